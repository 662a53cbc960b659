//! ChestX-ray14 (Wang et al., "ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks", CVPR 2017): label and
//! box files in the release's own form (`Data_Entry_2017.csv`, `BBox_List_2017.csv`) or with plain lower-case columns
//! (image, findings, patient_id; image, finding, x, y, width, height).

use super::csv::Rows;
use super::files::{Files, need_files};
use super::image::Intensity;
use super::{Sample, Source, SourceInfo, Truth, sorted};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What lists show of it.
pub const INFO: SourceInfo = SourceInfo {
    name: "nih",
    title: "ChestX-ray14: image labels, and boxes for some images",
    keys: "labels, images, boxes, finding (default Nodule), negatives (no-finding | all)",
};

/// Keys of `[data] source = "nih"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Nih {
    /// `Data_Entry_2017.csv`.
    pub labels: PathBuf,
    /// The folder of the images.
    pub images: PathBuf,
    /// Optional.
    pub boxes: Option<PathBuf>,
    /// The finding that makes an image positive.
    pub finding: String,
    /// `no-finding`: images labelled so; `all`: every image without the finding.
    pub negatives: String,
    /// `auto`, `full` or `percentile`.
    pub intensity: Intensity,
}

impl Default for Nih {
    fn default() -> Self {
        let (labels, images, intensity) = Default::default();
        Nih { labels, images, boxes: None, finding: "Nodule".into(), negatives: "all".into(), intensity }
    }
}

/// The name that this table uses for a column.
fn column<'a>(rows: &Rows, names: &[&'a str]) -> &'a str {
    names.iter().copied().find(|n| rows.has(n)).unwrap_or(names[0])
}

impl Nih {
    pub(super) fn open(&self) -> Result<Box<dyn Source>> {
        if !["no-finding", "all"].contains(&self.negatives.as_str()) {
            return Err(Error::new(format!("negatives = \"{}\" is neither no-finding nor all", self.negatives)));
        }
        let rows = Rows::read(&self.labels)?;
        let image = column(&rows, &["image", "Image Index"]);
        let findings = column(&rows, &["findings", "Finding Labels"]);
        let patient_column = column(&rows, &["patient_id", "Patient ID"]);
        rows.need(&[image, findings, patient_column])?;
        let mut samples: BTreeMap<String, Sample> = BTreeMap::new();
        let mut seen = std::collections::BTreeSet::new();
        for row in rows.iter() {
            let named: Vec<&str> = row.text(findings).split('|').map(str::trim).collect();
            seen.extend(named.iter().map(|s| s.to_string()));
            let label = u8::from(named.contains(&self.finding.as_str()));
            if label == 0 && self.negatives == "no-finding" && !named.contains(&"No Finding") {
                continue;
            }
            let (id, patient) = (row.text(image).to_string(), row.text(patient_column).to_string());
            let truth = if label == 0 { Truth::Boxes(vec![]) } else { Truth::Unknown };
            let columns = row.others(&[image, patient_column, findings]);
            samples.insert(id.clone(), Sample { columns, ..Sample::binary(id, patient, label, truth) });
        }
        if !seen.contains(&self.finding) {
            let known: Vec<String> = seen.into_iter().collect();
            let what = format!("no image has the finding {}", self.finding);
            return Err(Error::at(&self.labels, what).hint(format!("findings are: {}", known.join(", "))));
        }
        if let Some(path) = &self.boxes {
            let rows = Rows::read(path)?;
            let image = column(&rows, &["image", "Image Index"]);
            let finding = column(&rows, &["finding", "Finding Label"]);
            // The release's header reads `Bbox [x,y,w,h]`, which a CSV reader splits in four.
            let columns = [
                column(&rows, &["x", "Bbox [x"]),
                column(&rows, &["y"]),
                column(&rows, &["width", "w"]),
                column(&rows, &["height", "h]"]),
            ];
            rows.need(&[image, finding])?;
            rows.need(&columns)?;
            // The release itself spells one finding in two ways.
            let alias = if self.finding == "Infiltration" { "Infiltrate" } else { self.finding.as_str() };
            for row in rows.iter().filter(|r| [self.finding.as_str(), alias].contains(&r.text(finding))) {
                let Some(sample) = samples.get_mut(row.text(image)).filter(|s| s.has(1)) else { continue };
                let b = row.bbox(columns)?;
                match &mut sample.truth {
                    Truth::Boxes(boxes) => boxes.push(b),
                    truth => *truth = Truth::Boxes(vec![b]),
                }
            }
        }
        let samples = sorted(samples.into_values().collect());
        let boxed = samples.iter().any(|s| matches!(&s.truth, Truth::Boxes(b) if !b.is_empty()));
        let notes = match &self.boxes {
            Some(path) if !boxed => vec![format!("{} has no box of {} on these images", path.display(), self.finding)],
            _ => vec![],
        };
        need_files(&self.labels, &self.images, samples.iter().map(|s| self.images.join(&s.id)))?;
        let folder = self.images.clone();
        Ok(Box::new(Files {
            samples,
            folder,
            notes,
            classes: vec![],
            patients: true,
            colour: false,
            intensity: self.intensity,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::image::write_png;

    #[test]
    fn the_releases_own_columns_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["a.png", "b.png", "c.png"] {
            write_png(&at(name), 4, 4, &[0; 16]).unwrap();
        }
        let labels = "Image Index,Finding Labels,Follow-up #,Patient ID\na.png,Nodule|Mass,0,1\nb.png,No Finding,0,2\nc.png,Mass,0,3\n";
        std::fs::write(at("l.csv"), labels).unwrap();
        let boxes = "Image Index,Finding Label,Bbox [x,y,w,h],,,\na.png,Nodule,1,1,2,2,,,\na.png,Mass,0,0,1,1,,,\n";
        std::fs::write(at("b.csv"), boxes).unwrap();
        let spec =
            Nih { labels: at("l.csv"), images: folder.path().into(), boxes: Some(at("b.csv")), ..Nih::default() };
        let source = spec.open().unwrap();
        assert_eq!(source.samples().iter().map(Sample::stratum).collect::<Vec<_>>(), [1, 0, 0]);
        assert!(matches!(&source.samples()[0].truth, Truth::Boxes(b) if b.len() == 1 && b[0].width == 2.0));
        let fewer = Nih { negatives: "no-finding".into(), ..spec.clone() }.open().unwrap();
        assert_eq!(fewer.samples().len(), 2);
        let error = Nih { finding: "Nodul".into(), ..spec }.open().err().unwrap().to_string();
        assert!(
            error.contains("no image has the finding Nodul (hint: findings are: Mass, No Finding, Nodule)"),
            "{error}"
        );
    }
}
