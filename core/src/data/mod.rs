//! Sources of images with labels and masks. Each source is one file; [`open`] is where they are registered.

mod boxes;
pub mod chexpert;
mod csv;
mod dicom;
mod dicom_walk;
pub mod duplicates;
mod files;
pub mod image;
pub mod mask;
pub mod mha;
pub mod nih;
pub mod node21;
pub mod phantom;
pub mod preparation;
pub mod reader;
pub mod resize;
pub mod split;
pub mod store;
pub mod table;

use self::image::Image;
use self::mask::BBox;
use crate::task::{Kind, Task};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// One image of a source, before it is read.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Unique in the source: usually the file's name.
    pub id: String,
    /// Images of one patient stay together in splits.
    pub patient: String,
    /// The classes that it has, ascending: `[1]` with the finding (a nodule) and `[0]` without in a binary task, one in a
    /// multi-class task, any number in a multi-label one.
    pub classes: Vec<usize>,
    /// What is known of where the findings are.
    pub truth: Truth,
    /// The source's further columns.
    pub columns: BTreeMap<String, String>,
}

impl Sample {
    /// A sample of a binary task: `label` 1 with the finding, 0 without.
    pub fn binary(id: impl Into<String>, patient: impl Into<String>, label: u8, truth: Truth) -> Self {
        Sample {
            id: id.into(),
            patient: patient.into(),
            classes: vec![usize::from(label)],
            truth,
            columns: BTreeMap::new(),
        }
    }

    /// What a run's identity says of it, field by field: a text that changes when one of them does, and with nothing else.
    pub fn describe(&self) -> String {
        let truth = match &self.truth {
            Truth::Unknown => serde_json::json!("unknown"),
            Truth::Boxes(boxes) => {
                let one = |b: &BBox| (b.x, b.y, b.width, b.height, b.class);
                serde_json::json!({"boxes": boxes.iter().map(one).collect::<Vec<_>>()})
            }
            Truth::MaskFile(path) => serde_json::json!({"mask": path.to_string_lossy()}),
        };
        let Sample { id, patient, classes, columns, truth: _ } = self;
        serde_json::json!({
            "id": id, "patient": patient, "classes": classes, "truth": truth, "columns": columns,
        })
        .to_string()
    }

    /// Whether the image has this class; class 0 of a task of two is the absence of the other.
    pub fn has(&self, class: usize) -> bool {
        self.classes.contains(&class)
    }

    /// The class by which splits are stratified: its last; 0 where it has none.
    pub fn stratum(&self) -> usize {
        self.classes.last().copied().unwrap_or(0)
    }

    /// Which bit of its stored mask marks a class; `None` for a class that the image does not have.
    pub fn mask_bit(&self, class: usize) -> Option<usize> {
        self.classes.iter().position(|c| *c == class)
    }
}

/// Where the finding is.
#[derive(Debug, Clone, PartialEq)]
pub enum Truth {
    /// Nothing is known: pixel metrics are not applicable.
    Unknown,
    /// Boxes in pixels of the original image; none for an image without the finding.
    Boxes(Vec<BBox>),
    /// A mask image of the image's size; non-zero marks all of its classes.
    MaskFile(PathBuf),
}

/// A set of images. Reading is safe from many threads.
pub trait Source: Send + Sync {
    /// All images, in the order of their indices.
    fn samples(&self) -> &[Sample];

    /// Reads image `i`.
    fn image(&self, i: usize) -> Result<Image>;

    /// The files that image `i` and its mask are read from; none where it is made.
    fn files(&self, i: usize) -> Vec<PathBuf> {
        let _ = i;
        Vec::new()
    }

    /// What was planted in image `i`, of `size` (width, height) pixels, to mislead a model: rectangles in its pixels.
    fn shortcut(&self, i: usize, size: (usize, usize)) -> Vec<BBox> {
        let _ = (i, size);
        Vec::new()
    }

    /// Width and height of image `i`, from its file's head where that is enough.
    ///
    /// # Errors
    /// Those of reading the image.
    fn dimensions(&self, i: usize) -> Result<[usize; 2]> {
        let image = self.image(i)?;
        Ok([image.width, image.height])
    }

    /// Whether the classes have an order of their own, as published, which given weights can be expected to have.
    fn orders_classes(&self) -> bool {
        true
    }

    /// Whether a box that does not touch its image is left out; otherwise it is an error.
    fn skips_boxes_off_the_image(&self) -> bool {
        false
    }

    /// Image `i` with the planted shortcut, or without it, all else being equal. None where the source plants none.
    ///
    /// # Errors
    /// Those of reading the image.
    fn with_shortcut(&self, i: usize, present: bool) -> Result<Option<Image>> {
        let _ = (i, present);
        Ok(None)
    }

    /// Whether image `i` has the planted shortcut.
    fn has_shortcut(&self, i: usize) -> bool {
        let _ = i;
        false
    }

    /// Names of the classes, where the source has them.
    fn classes(&self) -> Vec<String> {
        Vec::new()
    }

    /// False where the source has no patient numbers, so that images of one patient may lie on both sides of a split.
    fn knows_patients(&self) -> bool {
        true
    }

    /// How the images' values become [0, 1].
    fn intensity(&self) -> image::Intensity {
        image::Intensity::Auto
    }

    /// True for images of three channels.
    fn is_colour(&self) -> bool {
        false
    }

    /// Sentences for the user about what was left out or looks odd.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What `lightbox list datasets` says of a source.
#[derive(Debug, Clone, Serialize)]
pub struct SourceInfo {
    /// As in a spec's `source`.
    pub name: &'static str,
    /// In words.
    pub title: &'static str,
    /// The keys of its section of a spec, a line each.
    pub keys: &'static str,
}

/// All sources, in the names' order.
pub const SOURCES: [SourceInfo; 5] = [chexpert::INFO, nih::INFO, node21::INFO, phantom::INFO, table::INFO];

/// The `[data]` section of a spec.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "kebab-case")]
pub enum DataSpec {
    /// CheXpert.
    #[serde(rename = "chexpert")]
    CheXpert(chexpert::CheXpert),
    /// ChestX-ray14.
    Nih(nih::Nih),
    /// NODE21.
    Node21(node21::Node21),
    /// Made radiographs.
    Phantom(phantom::Phantom),
    /// A table that the user wrote.
    Table(table::Table),
}

/// Opens a source: reads its tables, checks that its files are there, reads no image. Only `table`, `nih` and `chexpert` know other
/// tasks than a binary one.
pub fn open(spec: &DataSpec, task: &Task) -> Result<Box<dyn Source>> {
    if task.kind != Kind::Binary && !matches!(spec, DataSpec::Table(_) | DataSpec::Nih(_) | DataSpec::CheXpert(_)) {
        return Err(
            Error::new("this data source has two classes").hint("task.kind = \"binary\", or source = \"table\"")
        );
    }
    let source = match spec {
        DataSpec::CheXpert(s) => s.open(task)?,
        DataSpec::Nih(s) => s.open(task)?,
        DataSpec::Node21(s) => s.open()?,
        DataSpec::Phantom(s) => s.open()?,
        DataSpec::Table(s) => s.open(task)?,
    };
    if source.samples().is_empty() {
        return Err(Error::new("the data source holds no images"));
    }
    Ok(source)
}

/// The numbers of the images' names, in a fixed order of the samples.
fn sorted(mut samples: Vec<Sample>) -> Vec<Sample> {
    samples.sort_by(|a, b| a.id.cmp(&b.id));
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_samples_text_changes_with_each_of_its_fields() {
        let area = BBox { x: 1.0, y: 2.0, width: 3.0, height: 4.0, class: 1, line: 0 };
        let sample = Sample::binary("a.png", "p", 1, Truth::Boxes(vec![area]));
        let others = [
            Sample { id: "b.png".into(), ..sample.clone() },
            Sample { patient: "q".into(), ..sample.clone() },
            Sample { classes: vec![0], ..sample.clone() },
            Sample { classes: vec![0, 1], ..sample.clone() },
            Sample { truth: Truth::Unknown, ..sample.clone() },
            Sample { truth: Truth::MaskFile("m.png".into()), ..sample.clone() },
            Sample { truth: Truth::Boxes(vec![BBox { class: 0, ..area }]), ..sample.clone() },
            Sample { truth: Truth::Boxes(vec![BBox { x: 1.5, ..area }]), ..sample.clone() },
            Sample { truth: Truth::Boxes(vec![area, area]), ..sample.clone() },
            Sample { columns: [("age".to_string(), "7".to_string())].into(), ..sample.clone() },
        ];
        let mut texts: Vec<String> = others.iter().chain([&sample]).map(Sample::describe).collect();
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), others.len() + 1);
        assert_eq!(sample.clone().describe(), sample.describe());
    }
}
