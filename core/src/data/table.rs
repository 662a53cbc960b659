//! Any CSV of images with labels and, where known, boxes or masks. One row an image, or one a box.

use super::csv::Rows;
use super::files::{Files, need_files, unnamed};
use super::image::Intensity;
use super::{Sample, Source, SourceInfo, Truth, sorted};
use crate::Result;
use crate::task::{Kind, Task};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What lists show of it.
pub const INFO: SourceInfo = SourceInfo {
    name: "table",
    title: "A CSV of images with labels and boxes or masks; PNG, JPEG, MetaImage, DICOM",
    keys: "csv, images, colour, and columns: image, label, patient, x, y, width, height, mask",
};

/// Keys of `[data] source = "table"`. The column keys name columns of the CSV.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Table {
    /// The table.
    pub csv: PathBuf,
    /// The folder that image and mask names are relative to; the table's own where it is empty.
    pub images: PathBuf,
    /// The column of the image's file.
    pub image: String,
    /// Keep three channels; otherwise colour becomes luminance.
    pub colour: bool,
    /// `auto`, `full` or `percentile`.
    pub intensity: Intensity,
    /// Column: 0 or 1; in a multi-class task a class's name or number; in a multi-label task several, joined by `|`, or
    /// none.
    pub label: String,
    /// Optional column; without it every image is its own patient.
    pub patient: String,
    /// Optional columns of a box: left, top and size in pixels of the image.
    pub x: String,
    /// The column of a box's upper edge.
    pub y: String,
    /// The column of a box's width.
    pub width: String,
    /// The column of a box's height.
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
            colour: false,
            intensity: Intensity::Auto,
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

impl Table {
    /// The classes: those of the task, else all that stand in the label column, sorted.
    fn classes(&self, rows: &Rows, task: &Task) -> Vec<String> {
        if task.kind == Kind::Binary || !task.classes.is_empty() {
            return task.classes.clone();
        }
        let all: BTreeSet<String> = rows.iter().flat_map(|r| labels(r.text(&self.label))).collect();
        let number = |s: &String| s.parse::<u64>().unwrap_or(u64::MAX);
        let mut all: Vec<String> = all.into_iter().collect();
        all.sort_by_key(|s| (number(s), s.clone()));
        all
    }

    pub(super) fn open(&self, task: &Task) -> Result<Box<dyn Source>> {
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
        let (masked, patients) = (rows.has(&self.mask), rows.has(&self.patient));
        let classes = self.classes(&rows, task);
        let mut samples: BTreeMap<String, Sample> = BTreeMap::new();
        let known = [&self.image, &self.label, &self.patient, &self.mask].map(String::as_str);
        let known = [&known[..], &columns].concat();
        let mut odd = 0;
        for row in rows.iter() {
            let id = row.text(&self.image).to_string();
            if id.is_empty() {
                return Err(row.error(format!("column {} is empty", self.image)));
            }
            let mut mine: Vec<usize> = match task.kind {
                Kind::Binary => vec![usize::from(row.label(&self.label)?)],
                _ => {
                    let known = |name: &String| {
                        let number = || name.parse::<usize>().ok().filter(|n| *n < classes.len());
                        let found = classes.iter().position(|c| c == name).or_else(number);
                        found.ok_or_else(|| row.error(format!("label `{name}` is no class ({})", classes.join(", "))))
                    };
                    labels(row.text(&self.label)).iter().map(known).collect::<Result<_>>()?
                }
            };
            mine.sort_unstable();
            mine.dedup();
            if task.kind == Kind::MultiClass && mine.len() != 1 {
                return Err(row.error(format!("column {} names {} classes; one was expected", self.label, mine.len())));
            }
            let negative = mine.is_empty() || (task.kind == Kind::Binary && mine == [0]);
            let patient = if patients { row.text(&self.patient) } else { &id }.to_string();
            let empty = columns.iter().all(|c| row.text(c).is_empty() || row.text(c).parse() == Ok(0.0));
            odd += usize::from(negative && boxed && !empty);
            let truth = match (masked && !row.text(&self.mask).is_empty(), boxed) {
                (true, _) => Truth::MaskFile(folder.join(row.text(&self.mask))),
                (false, true) if !negative && !empty => {
                    // A box of several labels marks each of them.
                    let one = row.bbox(columns)?;
                    Truth::Boxes(mine.iter().map(|&class| one.of(class)).collect())
                }
                (false, _) if negative => Truth::Boxes(vec![]),
                _ => Truth::Unknown,
            };
            match samples.get_mut(&id) {
                None => {
                    let columns = row.others(&known);
                    samples.insert(id.clone(), Sample { id, patient, classes: mine, truth, columns });
                }
                Some(old) if old.patient != patient => {
                    return Err(row.error(format!("image {id} has another patient than in an earlier row")));
                }
                Some(old) if old.classes != mine && task.kind != Kind::MultiLabel => {
                    return Err(row.error(format!("image {id} has another label than in an earlier row")));
                }
                Some(old) => {
                    old.classes.extend(mine);
                    old.classes.sort_unstable();
                    old.classes.dedup();
                    match (&mut old.truth, truth) {
                        (Truth::Boxes(boxes), Truth::Boxes(more)) => boxes.extend(more),
                        _ => return Err(row.error(format!("image {id} has several rows; only boxes may be several"))),
                    }
                }
            }
        }
        let samples: Vec<Sample> = sorted(samples.into_values().collect());
        let masks = samples.iter().filter_map(|s| match &s.truth {
            Truth::MaskFile(path) => Some(path.clone()),
            _ => None,
        });
        need_files(&self.csv, &folder, samples.iter().map(|s| folder.join(&s.id)).chain(masks))?;
        let mut notes = unnamed(&folder, &samples);
        if odd > 0 {
            notes.push(format!("{odd} boxes stand beside images without the finding and are not used"));
        }
        Ok(Box::new(Files {
            samples,
            folder,
            notes,
            classes,
            patients,
            colour: self.colour,
            intensity: self.intensity,
        }))
    }
}

/// The labels of a cell.
fn labels(text: &str) -> Vec<String> {
    text.split('|').map(str::trim).filter(|t| !t.is_empty()).map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::image;

    fn open(csv: &str, images: &[&str]) -> Result<Box<dyn Source>> {
        let folder = tempfile::tempdir().unwrap();
        for name in images {
            image::write_png(&folder.path().join(name), 8, 8, &[9; 64]).unwrap();
        }
        let path = folder.path().join("t.csv");
        std::fs::write(&path, csv).unwrap();
        Table { csv: path, ..Table::default() }.open(&Task::default())
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
        assert_eq!((a.id.as_str(), a.classes.as_slice(), &a.truth), ("a.png", &[0usize][..], &Truth::Boxes(vec![])));
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

    #[test]
    fn classes_are_those_of_the_column_or_of_the_task() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.png", "b.png", "c.png"] {
            image::write_png_rgb(&folder.path().join(name), 8, 8, &[9; 192]).unwrap();
        }
        let path = folder.path().join("t.csv");
        let csv =
            "image,label,x,y,width,height\na.png,dog,1,1,2,2\nb.png,cat|dog,1,1,3,3\nb.png,cat,4,4,2,2\nc.png,,,,,\n";
        std::fs::write(&path, csv).unwrap();
        let table = Table { csv: path.clone(), colour: true, ..Table::default() };
        let many = Task { kind: Kind::MultiLabel, ..Task::default() };
        let source = table.open(&many).unwrap();
        assert_eq!(source.classes(), ["cat", "dog"]);
        let [a, b, c] = source.samples() else { panic!() };
        assert_eq!((a.classes.as_slice(), b.classes.as_slice(), c.classes.len()), (&[1usize][..], &[0usize, 1][..], 0));
        let Truth::Boxes(boxes) = &b.truth else { panic!() };
        assert_eq!(boxes.iter().map(|b| b.class).collect::<Vec<_>>(), [0, 1, 0]);
        assert_eq!(source.image(0).unwrap().channels, 3);
        let one = Task { kind: Kind::MultiClass, ..Task::default() };
        let error = table.open(&one).err().unwrap().to_string();
        assert!(error.contains("line 3: column label names 2 classes; one was expected"), "{error}");
        let known = Task { kind: Kind::MultiLabel, classes: vec!["cat".into(), "bird".into()], ..Task::default() };
        let error = table.open(&known).err().unwrap().to_string();
        assert!(error.contains("line 2: label `dog` is no class (cat, bird)"), "{error}");
    }
}
