//! NODE21 (Sogancioglu et al., "Nodule detection and generation on chest X-rays: NODE21 Challenge", IEEE TMI 2024;
//! Zenodo record 4725881): a folder with `metadata.csv` and `images/`. A row a nodule, in pixels of the image; an image
//! without nodules has one row of zeros. Images are .mha; PNG or DICOM of the same name are taken too.

use super::csv::Rows;
use super::files::{Files, Outside, need_files, unnamed};
use super::mask::BBox;
use super::{Sample, Source, SourceInfo, Truth, image, reader, sorted};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What lists show of it.
pub const INFO: SourceInfo = SourceInfo {
    name: "node21",
    title: "NODE21: chest radiographs with boxes of lung nodules (.mha, or the same as PNG or DICOM)",
    keys: "root (with metadata.csv and images/), or metadata and images",
};

/// Keys of `[data] source = "node21"`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Node21 {
    /// The folder of the download's training set.
    pub root: PathBuf,
    /// `metadata.csv` elsewhere, or a folder of CSV files of its form, which are read together.
    pub metadata: Option<PathBuf>,
    /// The images elsewhere.
    pub images: Option<PathBuf>,
    /// `auto`, `full`, `percentile` or `depth`.
    pub intensity: image::Intensity,
    /// `error` or `leave-out`: a box that does not touch its image.
    pub outside: Outside,
}

impl Node21 {
    pub(super) fn open(&self) -> Result<Box<dyn Source>> {
        let metadata = self.metadata.clone().unwrap_or_else(|| self.root.join("metadata.csv"));
        let folder = self.images.clone().unwrap_or_else(|| self.root.join("images"));
        if !metadata.exists() {
            return Err(Error::new("no such file or folder").with_path(&metadata).hint(
                "data.root is the folder of NODE21 that holds metadata.csv and images/; the images are on Zenodo, record \
                 4725881, on request",
            ));
        }
        let (mut samples, odd) = annotations(&metadata)?;
        // The images may have been converted: same name, another ending.
        for sample in &mut samples {
            if folder.join(&sample.id).is_file() {
                continue;
            }
            let stem = sample.id.rsplit_once('.').map_or(sample.id.as_str(), |(stem, _)| stem).to_string();
            let other = reader::EXTENSIONS.iter().map(|e| format!("{stem}.{e}")).find(|n| folder.join(n).is_file());
            if let Some(other) = other {
                sample.id = other;
            }
        }
        let samples = sorted(samples);
        need_files(&metadata, &folder, samples.iter().map(|s| folder.join(&s.id)))?;
        let mut notes = unnamed(&folder, &samples);
        if odd > 0 {
            notes.push(format!("{odd} boxes stand beside images with label 0 and are not used"));
        }
        Ok(Box::new(Files {
            samples,
            folder,
            notes,
            classes: vec![],
            patients: false,
            colour: false,
            intensity: self.intensity,
            outside: self.outside,
            ordered: true,
        }))
    }
}

/// Reads one table, or all tables of a folder; a row that stands in several is taken once. The number says how many boxes
/// stand beside images with label 0.
pub fn annotations(path: &std::path::Path) -> Result<(Vec<Sample>, usize)> {
    let mut odd = 0;
    let mut files = vec![path.to_path_buf()];
    if path.is_dir() {
        let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, &e))?;
        files = entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "csv")).collect();
        files.sort();
    }
    let mut samples: BTreeMap<String, Sample> = BTreeMap::new();
    for file in files {
        let rows = Rows::read(&file)?;
        rows.need(&["img_name", "label", "x", "y", "width", "height"])?;
        for row in rows.iter() {
            let id = row.text("img_name").to_string();
            if id.is_empty() {
                return Err(row.error("img_name is empty"));
            }
            let label = row.label("label")?;
            let empty =
                ["x", "y", "width", "height"].iter().all(|c| row.text(c).is_empty() || row.text(c).parse() == Ok(0.0));
            odd += usize::from(label == 0 && !empty);
            let b: Option<BBox> = (label == 1).then(|| row.bbox(["x", "y", "width", "height"])).transpose()?;
            let new = || Sample::binary(id.clone(), id.clone(), label, Truth::Boxes(vec![]));
            let sample = samples.entry(id.clone()).or_insert_with(new);
            if sample.classes != [usize::from(label)] {
                return Err(row.error(format!("image {id} has label {label} here and {} elsewhere", 1 - label)));
            }
            if let (Some(b), Truth::Boxes(boxes)) = (b, &mut sample.truth)
                && !boxes.contains(&b)
            {
                boxes.push(b);
            }
        }
    }
    Ok((samples.into_values().collect(), odd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::mha;

    fn open(csv: &str) -> Result<Box<dyn Source>> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("metadata.csv"), csv).unwrap();
        mha::write_u16(&folder.path().join("images/n0001.mha"), 2, 2, &[1; 4]).unwrap();
        image::write_png(&folder.path().join("images/c0002.png"), 2, 2, &[1; 4]).unwrap();
        Node21 { root: folder.path().into(), ..Node21::default() }.open()
    }

    #[test]
    fn rows_become_samples() {
        let csv =
            "height,img_name,label,width,x,y\n94,n0001.mha,1,92,776,579\n10,n0001.mha,1,12,1,2\n0,c0002.mha,0,0,0,0\n";
        let source = open(csv).unwrap();
        let [c, n] = source.samples() else { panic!() };
        assert_eq!((c.id.as_str(), &c.truth), ("c0002.png", &Truth::Boxes(vec![])));
        assert!(matches!(&n.truth, Truth::Boxes(b) if b.len() == 2 && b[1].width == 12.0));
    }

    #[test]
    fn bad_tables_say_what_and_where() {
        let error = |csv: &str| open(csv).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error("img_name,label,x,y,width\nn0001.mha,1,1,1,1\n").contains("no column height"));
        let nan = error("height,img_name,label,width,x,y\nnan,n0001.mha,1,92,776,579\n");
        assert!(nan.contains("line 2: height is nan"), "{nan}");
        let nowhere = Node21 { root: "/no/node21".into(), ..Node21::default() }.open().err().map(|e| e.to_string());
        assert!(
            nowhere.is_some_and(|e| e.contains("/no/node21/metadata.csv") && e.contains("data.root is the folder"))
        );
        let missing = error("height,img_name,label,width,x,y\n0,c9999.mha,0,0,0,0\n");
        assert!(missing.contains("1 of the table's images are not there"), "{missing}");
    }

    #[test]
    fn the_published_annotation_is_read_whole() {
        let splits = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/node21-splits");
        if !splits.is_dir() {
            let _ = std::io::Write::write_fmt(
                &mut std::io::stderr(),
                format_args!("skipped: {} is absent\n", splits.display()),
            );
            return;
        }
        let (samples, _) = annotations(&splits).unwrap();
        let boxes = |s: &Sample| if let Truth::Boxes(b) = &s.truth { b.len() } else { 0 };
        assert_eq!(samples.len(), 4882);
        assert_eq!(samples.iter().filter(|s| s.has(1)).count(), 1134);
        assert!(samples.iter().map(boxes).sum::<usize>() >= 1420);
    }
}
