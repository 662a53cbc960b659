//! Any CSV of images with labels and, where known, boxes or masks. One row an image, or one a box.

use super::boxes;
use super::csv::{Row, Rows};
use super::files::{Files, Outside, need_files, unnamed};
use super::image::Intensity;
use super::{Sample, Source, SourceInfo, Truth, sorted};
use crate::task::{Kind, Task};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What lists show of it.
pub const INFO: SourceInfo = SourceInfo {
    name: "table",
    title: "A CSV of images with labels and boxes or masks; PNG, JPEG, MetaImage, DICOM",
    keys: "csv, images, colour, boxes (a CSV of its own), and columns: image, label, patient, x, y, width, height, box_label, mask",
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
    /// `auto`, `full`, `percentile` or `depth`.
    pub intensity: Intensity,
    /// `error` or `leave-out`: a box that does not touch its image.
    pub outside: Outside,
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
    /// Optional column: the class that a row's box marks, where it is not all of the image's.
    pub box_label: String,
    /// Optional column: a mask image of the row.
    pub mask: String,
    /// Optional: a CSV of boxes of its own (image, label, x, y, width, height; in a binary task no label is
    /// needed), relative to the table's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boxes: Option<PathBuf>,
}

impl Default for Table {
    fn default() -> Self {
        let s = |s: &str| s.to_string();
        Table {
            csv: PathBuf::new(),
            images: PathBuf::new(),
            colour: false,
            intensity: Intensity::Auto,
            outside: Outside::Error,
            image: s("image"),
            label: s("label"),
            patient: s("patient"),
            x: s("x"),
            y: s("y"),
            width: s("width"),
            height: s("height"),
            box_label: s("box_label"),
            mask: s("mask"),
            boxes: None,
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

    /// Puts the boxes of their own file on the images; what is not used.
    fn boxed(
        &self,
        path: &Path,
        samples: &mut BTreeMap<String, Sample>,
        classes: &[String],
        task: &Task,
    ) -> Result<Option<String>> {
        let path = self.csv.parent().unwrap_or(Path::new(".")).join(path);
        let binary = task.kind == Kind::Binary;
        let class = |row: &Row<'_>, label: &str| match row.text(label) {
            "" | "1" | "1.0" if binary => Some(1),
            "0" | "0.0" if binary => None,
            "" => None,
            name => classes.iter().position(|c| c == name),
        };
        if !binary && !Rows::read(&path)?.has_any(&["finding", "Finding Label", "label"]) {
            return Err(Error::at(&path, "the table has no column label, and an image may have several classes")
                .hint("a column `label` says which class a box marks"));
        }
        boxes::place(&path, samples, &|name| name.to_string(), &class)
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
        let marked = rows.has(&self.box_label);
        let classes = self.classes(&rows, task);
        let mut samples: BTreeMap<String, Sample> = BTreeMap::new();
        let known = [&self.image, &self.label, &self.patient, &self.mask, &self.box_label].map(String::as_str);
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
                    let one = row.bbox(columns)?;
                    let named = if marked { row.text(&self.box_label) } else { "" };
                    let class = classes.iter().position(|c| c == named);
                    match (named, class.filter(|c| mine.contains(c))) {
                        // A box of several labels marks each of them.
                        ("", _) => Truth::Boxes(mine.iter().map(|&class| one.of(class)).collect()),
                        (_, Some(class)) => Truth::Boxes(vec![one.of(class)]),
                        (_, None) => {
                            return Err(
                                row.error(format!("{} is `{named}`, which the image is not labelled", self.box_label))
                            );
                        }
                    }
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
                        // A row for the image, and others for its boxes.
                        (Truth::Boxes(_), Truth::Unknown) | (Truth::Unknown, Truth::Unknown) => {}
                        (old @ Truth::Unknown, boxes @ Truth::Boxes(_)) => *old = boxes,
                        _ => return Err(row.error(format!("image {id} has several rows; only boxes may be several"))),
                    }
                }
            }
        }
        let mut unused = None;
        if let Some(path) = &self.boxes {
            unused = self.boxed(path, &mut samples, &classes, task)?;
        }
        let samples: Vec<Sample> = sorted(samples.into_values().collect());
        let masks = samples.iter().filter_map(|s| match &s.truth {
            Truth::MaskFile(path) => Some(path.clone()),
            _ => None,
        });
        need_files(&self.csv, &folder, samples.iter().map(|s| folder.join(&s.id)).chain(masks))?;
        let mut notes = unnamed(&folder, &samples);
        notes.extend(unused);
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
            outside: self.outside,
            ordered: !task.classes.is_empty() || task.kind == Kind::Binary,
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
    fn a_box_marks_the_class_that_it_is_of() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.png", "b.png"] {
            image::write_png(&folder.path().join(name), 8, 8, &[9; 64]).unwrap();
        }
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let task = Task { kind: Kind::MultiLabel, ..Task::default() };
        let classes = |table: &Table, image: usize| -> Vec<usize> {
            let source = table.open(&task).unwrap();
            let Truth::Boxes(boxes) = &source.samples()[image].truth else { return vec![99] };
            boxes.iter().map(|b| b.class).collect()
        };
        // A row for the image, and one a box with its own label.
        write(
            "t.csv",
            "image,label,x,y,width,height,box_label\na.png,cat|dog,,,,,\na.png,cat|dog,1,1,2,2,dog\nb.png,,,,,,\n",
        );
        let table = Table { csv: folder.path().join("t.csv"), ..Table::default() };
        assert_eq!((classes(&table, 0), classes(&table, 1)), (vec![1], vec![]));
        write("t.csv", "image,label,x,y,width,height,box_label\na.png,cat,1,1,2,2,dog\nb.png,dog,,,,,\n");
        let error = table.open(&task).err().unwrap().to_string();
        assert!(error.contains("line 2: box_label is `dog`, which the image is not labelled"), "{error}");
        // A file of boxes of its own.
        write("t.csv", "image,label\na.png,cat|dog\nb.png,\n");
        write("b.csv", "image,label,x,y,width,height\na.png,cat,1,1,2,2\na.png,bird,1,1,2,2\nc.png,cat,1,1,2,2\n");
        let table = Table { boxes: Some("b.csv".into()), ..table };
        assert_eq!(classes(&table, 0), [0]);
        let notes = table.open(&task).unwrap().notes();
        assert!(notes[0].contains("1 boxes are of images that the table does not have, and 1 mark what"), "{notes:?}");
        write("b.csv", "image,x,y,width,height\na.png,1,1,2,2\n");
        let error = table.open(&task).err().unwrap().to_string();
        assert!(error.contains("has no column label") && error.contains("which class a box marks"), "{error}");
        // In a binary task a box needs no label.
        write("t.csv", "image,label\na.png,1\nb.png,0\n");
        let source = table.open(&Task::default()).unwrap();
        assert!(
            matches!(&source.samples()[0].truth, Truth::Boxes(b) if b.len() == 1 && b[0].class == 1 && b[0].line == 2)
        );
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
