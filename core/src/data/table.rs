//! Any CSV of images with labels and, where known, boxes or masks. One row an image, or one a box.

use super::image::{self, Grey};
use super::mask::BBox;
use super::{Sample, Source, SourceInfo, Truth, sorted};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub const INFO: SourceInfo = SourceInfo {
    name: "table",
    title: "A CSV of images with labels and boxes or masks; PNG, JPEG, MetaImage, DICOM",
    keys: "csv, images, and columns: image, label, patient, x, y, width, height, mask",
};

/// Keys of `[data] source = "table"`. The column keys name columns of the CSV.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Table {
    /// The table.
    pub csv: PathBuf,
    /// The folder that image and mask names are relative to; the table's own where it is empty.
    pub images: PathBuf,
    pub image: String,
    /// 0 or 1.
    pub label: String,
    /// Optional column; without it every image is its own patient.
    pub patient: String,
    /// Optional columns of a box: left, top and size in pixels of the image.
    pub x: String,
    pub y: String,
    pub width: String,
    pub height: String,
    /// Optional column: a mask image of the row.
    pub mask: String,
}

impl Default for Table {
    fn default() -> Self {
        let s = |s: &str| s.to_string();
        Table {
            csv: PathBuf::new(),
            images: PathBuf::new(),
            image: s("image"),
            label: s("label"),
            patient: s("patient"),
            x: s("x"),
            y: s("y"),
            width: s("width"),
            height: s("height"),
            mask: s("mask"),
        }
    }
}

/// The rows of a CSV under their columns' names.
pub(super) struct Rows {
    path: PathBuf,
    columns: Vec<String>,
    rows: Vec<(u64, csv::StringRecord)>,
}

/// One row.
pub(super) struct Row<'a> {
    rows: &'a Rows,
    line: u64,
    record: &'a csv::StringRecord,
}

impl Rows {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let bytes = crate::files::read(path)?;
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(bytes.as_slice());
        let broken = |e: csv::Error| Error::at(path, format!("not a table: {e}"));
        let columns = reader.headers().map_err(broken)?.iter().map(|c| c.trim_start_matches('\u{feff}').to_string());
        let columns: Vec<String> = columns.collect();
        let mut rows = Vec::new();
        for record in reader.records() {
            let record = record.map_err(broken)?;
            rows.push((record.position().map_or(0, |p| p.line()), record));
        }
        if rows.is_empty() {
            return Err(Error::at(path, "the table has no rows"));
        }
        Ok(Rows { path: path.to_path_buf(), columns, rows })
    }

    pub(super) fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|c| c == column)
    }

    /// Errors with all that are missing.
    pub(super) fn need(&self, columns: &[&str]) -> Result<()> {
        let missing: Vec<&str> = columns.iter().copied().filter(|c| !self.has(c)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let what = format!("the table has no column {}", missing.join(", "));
        Err(Error::at(&self.path, what).hint(format!("its columns are: {}", self.columns.join(", "))))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        self.rows.iter().map(|(line, record)| Row { rows: self, line: *line, record })
    }
}

impl Row<'_> {
    pub(super) fn text(&self, column: &str) -> &str {
        let index = self.rows.columns.iter().position(|c| c == column);
        index.and_then(|i| self.record.get(i)).unwrap_or_default()
    }

    pub(super) fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::at(&self.rows.path, format!("line {}: {what}", self.line))
    }

    pub(super) fn number(&self, column: &str) -> Result<f64> {
        let text = self.text(column);
        let number = text.parse::<f64>().map_err(|_| self.error(format!("{column} is `{text}`, not a number")))?;
        match number.is_finite() {
            true => Ok(number),
            false => Err(self.error(format!("{column} is {text}"))),
        }
    }

    /// 0 or 1, also written 0.0 and 1.0.
    pub(super) fn label(&self, column: &str) -> Result<u8> {
        match self.number(column)? {
            0.0 => Ok(0),
            1.0 => Ok(1),
            other => Err(self.error(format!("{column} is {other}; 0 or 1 was expected"))),
        }
    }

    pub(super) fn bbox(&self, [x, y, width, height]: [&str; 4]) -> Result<BBox> {
        let b =
            BBox { x: self.number(x)?, y: self.number(y)?, width: self.number(width)?, height: self.number(height)? };
        match b.fault(usize::MAX, usize::MAX) {
            Some(fault) => Err(self.error(fault)),
            None => Ok(b),
        }
    }
}

/// Errors when images of the table are not in the folder; all of them are counted.
pub(super) fn need_files(table: &Path, folder: &Path, files: impl Iterator<Item = PathBuf>) -> Result<()> {
    let missing: Vec<PathBuf> = files.filter(|f| !f.is_file()).collect();
    match missing.first() {
        None => Ok(()),
        Some(first) => {
            let what = format!("{} of the table's images are not there, first {}", missing.len(), first.display());
            Err(Error::at(table, what).hint(format!("images are looked for in {}", folder.display())))
        }
    }
}

/// A source of image files.
pub(super) struct Files {
    pub samples: Vec<Sample>,
    pub folder: PathBuf,
    pub notes: Vec<String>,
}

impl Source for Files {
    fn samples(&self) -> &[Sample] {
        &self.samples
    }

    fn image(&self, i: usize) -> Result<Grey> {
        image::read(&self.folder.join(&self.samples[i].id))
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}

/// How many images of the folder the table does not name.
pub(super) fn unnamed(folder: &Path, samples: &[Sample]) -> Vec<String> {
    let known: std::collections::HashSet<&str> = samples.iter().map(|s| s.id.as_str()).collect();
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let names = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    let images = names.filter(|n| {
        let ending = n.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
        image::EXTENSIONS.contains(&ending.as_str()) && !known.contains(n.as_str())
    });
    let mut images: Vec<String> = images.collect();
    images.sort();
    match images.first() {
        None => Vec::new(),
        Some(first) => {
            let count = images.len();
            vec![format!(
                "{count} images of {} have no row in the table and are not used, first {first}",
                folder.display()
            )]
        }
    }
}

impl Table {
    pub(super) fn open(&self) -> Result<Box<dyn Source>> {
        let rows = Rows::read(&self.csv)?;
        rows.need(&[&self.image, &self.label])?;
        let folder = match self.images.as_os_str().is_empty() {
            true => self.csv.parent().unwrap_or(Path::new(".")).to_path_buf(),
            false => self.images.clone(),
        };
        let columns = [&self.x, &self.y, &self.width, &self.height].map(String::as_str);
        let boxed = columns.iter().any(|c| rows.has(c));
        if boxed {
            rows.need(&columns)?;
        }
        let masked = rows.has(&self.mask);
        let mut samples: BTreeMap<String, Sample> = BTreeMap::new();
        for row in rows.iter() {
            let id = row.text(&self.image).to_string();
            if id.is_empty() {
                return Err(row.error(format!("column {} is empty", self.image)));
            }
            let label = row.label(&self.label)?;
            let patient = if rows.has(&self.patient) { row.text(&self.patient) } else { &id }.to_string();
            let empty = columns.iter().all(|c| row.text(c).is_empty() || row.text(c).parse() == Ok(0.0));
            let truth = match (masked && !row.text(&self.mask).is_empty(), boxed) {
                (true, _) => Truth::MaskFile(folder.join(row.text(&self.mask))),
                (false, true) if label == 1 && !empty => Truth::Boxes(vec![row.bbox(columns)?]),
                (false, _) if label == 0 => Truth::Boxes(vec![]),
                _ => Truth::Unknown,
            };
            match samples.get_mut(&id) {
                None => drop(samples.insert(id.clone(), Sample { id, patient, label, truth })),
                Some(old) if old.label != label || old.patient != patient => {
                    return Err(row.error(format!("image {id} has another label or patient than in an earlier row")));
                }
                Some(old) => match (&mut old.truth, truth) {
                    (Truth::Boxes(boxes), Truth::Boxes(more)) => boxes.extend(more),
                    _ => return Err(row.error(format!("image {id} has several rows; only boxes may be several"))),
                },
            }
        }
        let samples: Vec<Sample> = sorted(samples.into_values().collect());
        let masks = samples.iter().filter_map(|s| match &s.truth {
            Truth::MaskFile(path) => Some(path.clone()),
            _ => None,
        });
        need_files(&self.csv, &folder, samples.iter().map(|s| folder.join(&s.id)).chain(masks))?;
        let notes = unnamed(&folder, &samples);
        Ok(Box::new(Files { samples, folder, notes }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(csv: &str, images: &[&str]) -> Result<Box<dyn Source>> {
        let folder = tempfile::tempdir().unwrap();
        for name in images {
            image::write_png(&folder.path().join(name), 8, 8, &[9; 64]).unwrap();
        }
        let path = folder.path().join("t.csv");
        std::fs::write(&path, csv).unwrap();
        Table { csv: path, ..Table::default() }.open()
    }

    fn check_error(csv: &str, message: &str) {
        let error = open(csv, &["a.png"]).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains(message), "{error}");
    }

    #[test]
    fn rows_become_samples() {
        let csv = "image,label,patient,x,y,width,height\nb.png,1,p1,1,2,3,4\nb.png,1,p1,5,5,2,2\na.png,0,p1,,,,\n";
        let source = open(csv, &["a.png", "b.png", "c.png"]).unwrap();
        let [a, b] = source.samples() else { panic!() };
        assert_eq!((a.id.as_str(), a.label, &a.truth), ("a.png", 0, &Truth::Boxes(vec![])));
        assert!(matches!(&b.truth, Truth::Boxes(boxes) if boxes.len() == 2 && boxes[0].height == 4.0));
        assert!(source.notes()[0].contains("1 images of") && source.notes()[0].contains("c.png"));
    }

    #[test]
    fn bad_tables_say_what_and_where() {
        check_error("image,tag\na.png,1\n", "no column label (hint: its columns are: image, tag)");
        check_error("image,label\n", "the table has no rows");
        check_error("image,label\na.png,2\n", "line 2: label is 2; 0 or 1 was expected");
        check_error("image,label\nz.png,1\n", "1 of the table's images are not there");
        check_error("image,label,x,y,width\na.png,1,1,1,1\n", "no column height");
        check_error("image,label,x,y,width,height\na.png,1,nan,2,3,4\n", "line 2: x is nan");
        check_error("image,label,x,y,width,height\na.png,1,1,2,-3,4\n", "line 2: box (1, 2) has size -3 x 4");
        check_error("image,label\na.png,1\na.png,0\n", "line 3: image a.png has another label");
    }
}
