//! ChestX-ray14 (Wang et al., "ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks", CVPR 2017): label and
//! box files in the release's own form (`Data_Entry_2017.csv`, `BBox_List_2017.csv`) or with plain lower-case columns
//! (image, findings, patient_id; image, finding, x, y, width, height). In a multi-label task each finding is a class, in the
//! order of the paper and of CheXNet's outputs unless the task names others.

use super::boxes::{self, column};
use super::csv::{Row, Rows};
use super::files::{Files, Outside, need_files};
use super::image::Intensity;
use super::{Sample, Source, SourceInfo, Truth, sorted};
use crate::task::{Kind, Task};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// What lists show of it.
pub const INFO: SourceInfo = SourceInfo {
    name: "nih",
    title: "ChestX-ray14: image labels, and boxes for some images",
    keys: "labels, images, boxes, finding (default Nodule), negatives (no-finding | all); with task.kind = \"multi-label\" all \
           findings",
};

/// The findings in the order of the paper's table and of CheXNet's outputs.
pub const FINDINGS: [&str; 14] = [
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
];

/// What an image without a finding is labelled.
const NONE: &str = "No Finding";

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
    /// The finding that makes an image positive, in a binary task.
    pub finding: String,
    /// The others of a binary task. `no-finding`: images labelled so; `all`: every image without the finding.
    pub negatives: String,
    /// `auto`, `full`, `percentile` or `depth`.
    pub intensity: Intensity,
    /// `error` or `leave-out`: a box that does not touch its image.
    pub outside: Outside,
}

impl Default for Nih {
    fn default() -> Self {
        let (labels, images, intensity, outside) = Default::default();
        Nih { labels, images, boxes: None, finding: "Nodule".into(), negatives: "all".into(), intensity, outside }
    }
}

impl Nih {
    /// The classes: the task's, else all findings; of a binary task the one that makes an image positive, as class 1.
    fn classes(&self, task: &Task) -> Result<Vec<String>> {
        match task.kind {
            Kind::Binary => Ok(vec![NONE.to_string(), self.finding.clone()]),
            Kind::MultiLabel if task.classes.is_empty() => Ok(FINDINGS.map(str::to_string).to_vec()),
            Kind::MultiLabel => Ok(task.classes.clone()),
            Kind::MultiClass => Err(Error::new("an image of ChestX-ray14 may have several findings")
                .hint("task.kind = \"multi-label\", or \"binary\" for one of them")),
        }
    }

    /// The images with their labels; what the labels name.
    fn labelled(&self, task: &Task, classes: &[String]) -> Result<(BTreeMap<String, Sample>, BTreeSet<String>)> {
        let rows = Rows::read(&self.labels)?;
        let image = column(&rows, &["image", "Image Index"]);
        let findings = column(&rows, &["findings", "Finding Labels"]);
        let patient_column = column(&rows, &["patient_id", "Patient ID"]);
        rows.need(&[image, findings, patient_column])?;
        let mut samples: BTreeMap<String, Sample> = BTreeMap::new();
        // What an image's row said, whether or not the image is taken.
        let mut rows_of: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for row in rows.iter() {
            let named: BTreeSet<String> = row.text(findings).split('|').map(|s| s.trim().to_string()).collect();
            let (id, patient) = (row.text(image).to_string(), row.text(patient_column).to_string());
            match rows_of.get(&id) {
                Some((_, before)) if *before != named => {
                    let (now, before) = (row.text(findings), before.iter().cloned().collect::<Vec<_>>().join("|"));
                    return Err(row.error(format!("image {id} is labelled {now}, and {before} in an earlier row")));
                }
                Some((before, _)) if *before != patient => {
                    return Err(
                        row.error(format!("image {id} is of patient {patient}, and of {before} in an earlier row"))
                    );
                }
                _ => drop(rows_of.insert(id.clone(), (patient.clone(), named.clone()))),
            }
            seen.extend(named.iter().cloned());
            let mut mine: Vec<usize> = (0..classes.len()).filter(|&c| named.contains(&classes[c])).collect();
            if task.kind == Kind::Binary {
                let positive = mine.contains(&1);
                if !positive && self.negatives == "no-finding" && !named.contains(NONE) {
                    continue;
                }
                mine = vec![usize::from(positive)];
            }
            let negative = mine.is_empty() || mine == [0] && task.kind == Kind::Binary;
            let truth = if negative { Truth::Boxes(vec![]) } else { Truth::Unknown };
            let columns = row.others(&[image, patient_column, findings]);
            samples.insert(id.clone(), Sample { id, patient, classes: mine, truth, columns });
        }
        Ok((samples, seen))
    }

    pub(super) fn open(&self, task: &Task) -> Result<Box<dyn Source>> {
        if !["no-finding", "all"].contains(&self.negatives.as_str()) {
            return Err(Error::new(format!("negatives = \"{}\" is neither no-finding nor all", self.negatives)));
        }
        let classes = self.classes(task)?;
        let (mut samples, seen) = self.labelled(task, &classes)?;
        let wanted = if task.kind == Kind::Binary { &classes[1..] } else { &classes };
        // A small part of the data may lack one of the fourteen; a name that is none of them is a slip.
        let known = |name: &str| task.kind == Kind::MultiLabel && FINDINGS.contains(&name);
        if let Some(missing) = wanted.iter().find(|name| !seen.contains(*name) && !known(name)) {
            let named: Vec<String> = seen.into_iter().collect();
            let what = format!("no image has the finding {missing}");
            return Err(Error::at(&self.labels, what).hint(format!("findings are: {}", named.join(", "))));
        }
        let mut notes = Vec::new();
        if let Some(path) = &self.boxes {
            let class = |row: &Row<'_>, finding: &str| {
                // The release itself spells one finding in two ways.
                let name = if row.text(finding) == "Infiltrate" { "Infiltration" } else { row.text(finding) };
                classes.iter().position(|c| c == name)
            };
            boxes::place(path, &mut samples, &|name| name.to_string(), &class)?;
        }
        let samples = sorted(samples.into_values().collect());
        let boxed = samples.iter().any(|s| matches!(&s.truth, Truth::Boxes(b) if !b.is_empty()));
        if let Some(path) = self.boxes.as_ref().filter(|_| !boxed) {
            let what = if task.kind == Kind::Binary { self.finding.as_str() } else { "the task's findings" };
            notes.push(format!("{} has no box of {what} on these images", path.display()));
        }
        need_files(&self.labels, &self.images, samples.iter().map(|s| self.images.join(&s.id)))?;
        let folder = self.images.clone();
        Ok(Box::new(Files {
            samples,
            folder,
            notes,
            classes: if task.kind == Kind::Binary { vec![] } else { classes },
            patients: true,
            colour: false,
            intensity: self.intensity,
            outside: self.outside,
            ordered: true,
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
        let source = spec.open(&Task::default()).unwrap();
        assert_eq!(source.samples().iter().map(Sample::stratum).collect::<Vec<_>>(), [1, 0, 0]);
        assert!(matches!(&source.samples()[0].truth, Truth::Boxes(b) if b.len() == 1 && b[0].width == 2.0));
        let fewer = Nih { negatives: "no-finding".into(), ..spec.clone() }.open(&Task::default()).unwrap();
        assert_eq!(fewer.samples().len(), 2);
        let error = Nih { finding: "Nodul".into(), ..spec }.open(&Task::default()).err().unwrap().to_string();
        assert!(
            error.contains("no image has the finding Nodul (hint: findings are: Mass, No Finding, Nodule)"),
            "{error}"
        );
    }

    #[test]
    fn all_findings_are_classes_of_a_multi_label_task() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["a.png", "b.png", "c.png"] {
            write_png(&at(name), 4, 4, &[0; 16]).unwrap();
        }
        let labels = "image,findings,patient_id\na.png,Nodule|Mass,1\nb.png,No Finding,2\nc.png,Infiltration,3\n";
        std::fs::write(at("l.csv"), labels).unwrap();
        let boxes =
            "image,finding,x,y,width,height\na.png,Mass,0,0,1,1\nc.png,Infiltrate,1,1,2,2\nb.png,Mass,0,0,1,1\n";
        std::fs::write(at("b.csv"), boxes).unwrap();
        let spec = Nih { labels: at("l.csv"), images: at(""), boxes: Some(at("b.csv")), ..Nih::default() };
        let task = Task { kind: Kind::MultiLabel, ..Task::default() };
        let source = spec.open(&task).unwrap();
        assert_eq!(source.classes(), FINDINGS);
        let [a, b, c] = source.samples() else { panic!() };
        assert_eq!((&a.classes, &b.classes, &c.classes), (&vec![4, 5], &vec![], &vec![3]));
        // The nodule of a has no box: it is not the mass's.
        let of = |s: &Sample| {
            if let Truth::Boxes(boxes) = &s.truth { boxes.iter().map(|b| b.class).collect() } else { vec![] }
        };
        assert_eq!((of(a), of(b), of(c)), (vec![4], vec![], vec![3]));
        // What a worker opens has the classes written down; that no image has a hernia is no slip, then or before.
        let named = |second: &str| Task { classes: vec!["Mass".into(), second.into()], ..task.clone() };
        assert_eq!(spec.open(&named("Hernia")).unwrap().classes(), ["Mass", "Hernia"]);
        let error = spec.open(&named("Hernja")).err().unwrap().to_string();
        assert!(error.contains("no image has the finding Hernja"), "{error}");
    }

    #[test]
    fn rows_that_contradict_each_other_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        write_png(&at("a.png"), 4, 4, &[0; 16]).unwrap();
        let check = |row: &str, message: &str| {
            std::fs::write(at("l.csv"), format!("image,findings,patient_id\na.png,Nodule|Mass,1\n{row}\n")).unwrap();
            let spec = Nih { labels: at("l.csv"), images: at(""), ..Nih::default() };
            match spec.open(&Task::default()) {
                Ok(source) => assert_eq!((source.samples().len(), message), (1, "")),
                Err(e) => assert!(e.to_string().contains(message) && !message.is_empty(), "{e}"),
            }
        };
        check("a.png,Mass|Nodule,1", "");
        check("a.png,No Finding,1", "line 3: image a.png is labelled No Finding, and Mass|Nodule in an earlier row");
        check("a.png,Nodule|Mass,2", "line 3: image a.png is of patient 2, and of 1 in an earlier row");
    }
}
