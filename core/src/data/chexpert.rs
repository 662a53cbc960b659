//! CheXpert (Irvin et al., "CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and Expert Comparison", AAAI 2019,
//! arXiv:1901.07031): `train.csv` or `valid.csv` as released, a column an observation with 1 (present), 0 (absent), -1
//! (uncertain) or nothing (not mentioned). What -1 means is a choice that a spec states (section 3 of the paper has U-Ones,
//! U-Zeros and U-Ignore); what is not mentioned is absent unless the spec says otherwise.

use super::boxes;
use super::csv::{Row, Rows};
use super::files::{Files, Outside, need_files};
use super::image::Intensity;
use super::{Sample, Source, SourceInfo, Truth, sorted};
use crate::task::{Kind, Task};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What lists show of it.
pub const INFO: SourceInfo = SourceInfo {
    name: "chexpert",
    title: "CheXpert: image labels with uncertain ones",
    keys: "labels, images, boxes, uncertain (positive | negative | leave-out), blank (negative | leave-out), views (frontal | \
           lateral | all), finding (default Cardiomegaly); with task.kind = \"multi-label\" all observations",
};

/// The observations in the order of the file's columns.
pub const OBSERVATIONS: [&str; 14] = [
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
];

/// What a label that is not 0 or 1 counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// As 1.
    Positive,
    /// As 0.
    Negative,
    /// The image is left out.
    LeaveOut,
}

/// Which radiographs are taken, by the column `Frontal/Lateral`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Views {
    /// From the front or the back.
    #[default]
    Frontal,
    /// From the side.
    Lateral,
    /// Both.
    All,
}

/// Keys of `[data] source = "chexpert"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheXpert {
    /// `train.csv` or `valid.csv`.
    pub labels: PathBuf,
    /// The folder that the column `Path` is relative to, or the release's own folder, with which `Path` begins.
    pub images: PathBuf,
    /// Optional: a CSV of boxes (image, finding, x, y, width, height).
    pub boxes: Option<PathBuf>,
    /// What an uncertain label (-1) of one of the task's classes counts as. Needed where there is one.
    pub uncertain: Option<Policy>,
    /// What an observation that is not mentioned counts as; never positive.
    pub blank: Policy,
    /// Which radiographs.
    pub views: Views,
    /// The observation that makes an image positive, in a binary task.
    pub finding: String,
    /// `auto`, `full`, `percentile` or `depth`.
    pub intensity: Intensity,
    /// `error` or `leave-out`: a box that does not touch its image.
    pub outside: Outside,
}

impl Default for CheXpert {
    fn default() -> Self {
        let (labels, images, boxes, uncertain, views, intensity, outside) = Default::default();
        let (blank, finding) = (Policy::Negative, "Cardiomegaly".to_string());
        CheXpert { labels, images, boxes, uncertain, blank, views, finding, intensity, outside }
    }
}

/// What a label says of an image: whether it has the observation, or that it is left out.
enum Label {
    Is(bool),
    Left,
}

impl CheXpert {
    fn label(&self, row: &Row<'_>, column: &str) -> Result<Label> {
        let policy = match row.text(column) {
            "" => self.blank,
            text => match text.parse::<f64>() {
                Ok(1.0) => return Ok(Label::Is(true)),
                Ok(0.0) => return Ok(Label::Is(false)),
                Ok(-1.0) => self.uncertain.ok_or_else(|| {
                    row.error(format!("{column} is -1, uncertain, and nothing says what that counts as"))
                        .hint("data.uncertain = \"positive\", \"negative\" or \"leave-out\"")
                })?,
                _ => return Err(row.error(format!("{column} is `{text}`; 1, 0, -1 or nothing was expected"))),
            },
        };
        Ok(match policy {
            Policy::Positive => Label::Is(true),
            Policy::Negative => Label::Is(false),
            Policy::LeaveOut => Label::Left,
        })
    }

    /// The classes of the task, by the file's columns.
    fn classes(&self, rows: &Rows, task: &Task) -> Result<Vec<String>> {
        let classes = match task.kind {
            Kind::Binary => vec![self.finding.clone()],
            Kind::MultiLabel if task.classes.is_empty() => OBSERVATIONS.map(str::to_string).to_vec(),
            Kind::MultiLabel => task.classes.clone(),
            Kind::MultiClass => {
                return Err(Error::new("an image of CheXpert may have several observations")
                    .hint("task.kind = \"multi-label\", or \"binary\" for one of them"));
            }
        };
        rows.need(&classes.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(classes)
    }

    /// An image's name from the column `Path`: without the release's folder, where `images` is that folder.
    fn name(&self, path: &str) -> String {
        let inner = path.split_once('/').map(|(_, rest)| rest.to_string());
        inner
            .filter(|rest| !self.images.join(path).is_file() && self.images.join(rest).is_file())
            .unwrap_or(path.into())
    }

    pub(super) fn open(&self, task: &Task) -> Result<Box<dyn Source>> {
        if self.blank == Policy::Positive {
            return Err(Error::new("data.blank = \"positive\": what is not mentioned is not there"));
        }
        let rows = Rows::read(&self.labels)?;
        rows.need(&["Path"])?;
        let classes = self.classes(&rows, task)?;
        if self.views != Views::All {
            rows.need(&["Frontal/Lateral"])?;
        }
        let (mut samples, mut left) = (BTreeMap::new(), 0);
        let known: Vec<&str> = ["Path"].into_iter().chain(OBSERVATIONS).collect();
        for row in rows.iter() {
            let view = match row.text("Frontal/Lateral") {
                "Lateral" => Views::Lateral,
                _ => Views::Frontal,
            };
            if self.views != Views::All && view != self.views {
                continue;
            }
            let path = row.text("Path");
            let patient = Path::new(path).components().map(|c| c.as_os_str().to_string_lossy().into_owned());
            let patient = patient.into_iter().find(|c| c.starts_with("patient"));
            let patient = patient.ok_or_else(|| row.error(format!("Path `{path}` names no patient")))?;
            let labels = classes.iter().map(|c| self.label(&row, c)).collect::<Result<Vec<_>>>()?;
            if labels.iter().any(|l| matches!(l, Label::Left)) {
                left += 1;
                continue;
            }
            let holds = labels.iter().map(|l| matches!(l, Label::Is(true))).enumerate();
            let mine: Vec<usize> = match task.kind {
                Kind::Binary => vec![usize::from(matches!(labels[0], Label::Is(true)))],
                _ => holds.filter(|(_, h)| *h).map(|(c, _)| c).collect(),
            };
            let negative = mine.is_empty() || task.kind == Kind::Binary && mine == [0];
            let truth = if negative { Truth::Boxes(vec![]) } else { Truth::Unknown };
            let (id, columns) = (self.name(path), row.others(&known));
            let sample = Sample { id: id.clone(), patient, classes: mine, truth, columns };
            if samples.insert(id.clone(), sample).is_some() {
                return Err(row.error(format!("image {id} has a row before this one")));
            }
        }
        let mut notes = Vec::new();
        if left > 0 {
            notes.push(format!("{left} images are left out for a label that is uncertain or not mentioned"));
        }
        if let Some(path) = &self.boxes {
            let class = |row: &Row<'_>, finding: &str| {
                let at = classes.iter().position(|c| c == row.text(finding))?;
                Some(if task.kind == Kind::Binary { 1 } else { at })
            };
            notes.extend(boxes::place(path, &mut samples, &|path| self.name(path), &class)?);
        }
        let samples = sorted(samples.into_values().collect());
        need_files(&self.labels, &self.images, samples.iter().map(|s| self.images.join(&s.id)))?;
        let classes = if task.kind == Kind::Binary { vec![] } else { classes };
        Ok(Box::new(Files {
            samples,
            folder: self.images.clone(),
            notes,
            classes,
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

    const HEAD: &str = "Path,Sex,Age,Frontal/Lateral,AP/PA,Cardiomegaly,Edema,Pleural Effusion";

    fn files(rows: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("train.csv"), format!("{HEAD}\n{rows}")).unwrap();
        for n in 1..=4 {
            let at = folder.path().join(format!("small/train/patient{n}/study1"));
            std::fs::create_dir_all(&at).unwrap();
            for view in ["view1_frontal.png", "view2_lateral.png"] {
                write_png(&at.join(view), 4, 4, &[n; 16]).unwrap();
            }
        }
        folder
    }

    fn path(n: usize) -> String {
        format!("small/train/patient{n}/study1/view1_frontal.png")
    }

    #[test]
    fn labels_follow_the_stated_policies() {
        let rows = format!(
            "{},F,60,Frontal,AP,1.0,,0.0\n{},M,61,Frontal,PA,-1.0,1.0,1.0\n{},M,62,Frontal,PA,0.0,0.0,\n\
             small/train/patient4/study1/view2_lateral.png,M,63,Lateral,,1.0,1.0,1.0\n",
            path(1),
            path(2),
            path(3)
        );
        let folder = files(&rows);
        let task = Task {
            kind: Kind::MultiLabel,
            classes: ["Cardiomegaly", "Edema", "Pleural Effusion"].map(String::from).to_vec(),
            ..Task::default()
        };
        let spec =
            CheXpert { labels: folder.path().join("train.csv"), images: folder.path().into(), ..CheXpert::default() };
        let error = spec.open(&task).err().unwrap().to_string();
        assert!(error.contains("line 3: Cardiomegaly is -1, uncertain") && error.contains("data.uncertain"), "{error}");
        let classes = |spec: &CheXpert| -> Vec<Vec<usize>> {
            spec.open(&task).unwrap().samples().iter().map(|s| s.classes.clone()).collect()
        };
        let with = |uncertain: Policy| CheXpert { uncertain: Some(uncertain), ..spec.clone() };
        assert_eq!(classes(&with(Policy::Positive)), [vec![0], vec![0, 1, 2], vec![]]);
        assert_eq!(classes(&with(Policy::Negative)), [vec![0], vec![1, 2], vec![]]);
        assert_eq!(classes(&with(Policy::LeaveOut)), [vec![0], vec![]]);
        let strict = CheXpert { blank: Policy::LeaveOut, ..with(Policy::Positive) };
        assert_eq!(classes(&strict), [vec![0, 1, 2]]);
        assert!(strict.open(&task).unwrap().notes()[0].starts_with("2 images are left out"));
        let all = CheXpert { views: Views::All, ..with(Policy::Positive) };
        assert_eq!(classes(&all).len(), 4);
        let source = with(Policy::Positive).open(&task).unwrap();
        assert_eq!((source.samples()[0].patient.as_str(), source.classes().len()), ("patient1", 3));
        // The release's own folder does as well, and a binary task takes one observation.
        let inside = CheXpert { images: folder.path().join("small"), ..with(Policy::Negative) };
        let source = inside.open(&Task::default()).unwrap();
        assert_eq!(source.samples()[0].id, "train/patient1/study1/view1_frontal.png");
        assert_eq!(source.samples().iter().map(|s| s.classes[0]).collect::<Vec<_>>(), [1, 0, 0]);
    }

    #[test]
    fn boxes_mark_their_own_finding() {
        let folder = files(&format!("{},F,60,Frontal,AP,1.0,1.0,0.0\n", path(1)));
        let boxes = format!(
            "image,finding,x,y,width,height\n{0},Edema,0,0,2,2\n{0},Pleural Effusion,1,1,2,2\nother.png,Edema,0,0,1,1\n",
            path(1)
        );
        std::fs::write(folder.path().join("boxes.csv"), boxes).unwrap();
        let spec = CheXpert {
            labels: folder.path().join("train.csv"),
            images: folder.path().into(),
            boxes: Some(folder.path().join("boxes.csv")),
            ..CheXpert::default()
        };
        let classes = ["Cardiomegaly", "Edema", "Pleural Effusion"].map(String::from).to_vec();
        let source = spec.open(&Task { kind: Kind::MultiLabel, classes, ..Task::default() }).unwrap();
        let Truth::Boxes(boxes) = &source.samples()[0].truth else { panic!() };
        assert_eq!(boxes.iter().map(|b| b.class).collect::<Vec<_>>(), [1]);
        assert!(source.notes()[0].contains("1 boxes are of images"), "{:?}", source.notes());
        let missing = spec.open(&Task { kind: Kind::MultiLabel, ..Task::default() }).err().unwrap().to_string();
        assert!(missing.contains("no column No Finding"), "{missing}");
    }
}
