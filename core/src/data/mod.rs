//! Sources of images with labels and masks. Each source is one file; [`open`] is where they are registered.

mod dicom;
pub mod image;
pub mod mask;
pub mod mha;
pub mod nih;
pub mod node21;
pub mod phantom;
pub mod resize;
pub mod split;
pub mod store;
pub mod table;

use self::image::Grey;
use self::mask::BBox;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One image of a source, before it is read.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Unique in the source: usually the file's name.
    pub id: String,
    /// Images of one patient stay together in splits.
    pub patient: String,
    /// 1 with the finding (a nodule), 0 without.
    pub label: u8,
    pub truth: Truth,
}

/// Where the finding is.
#[derive(Debug, Clone, PartialEq)]
pub enum Truth {
    /// Nothing is known: pixel metrics are not applicable.
    Unknown,
    /// Boxes in pixels of the original image; none for an image without the finding.
    Boxes(Vec<BBox>),
    /// A mask image of any size; non-zero is finding.
    MaskFile(PathBuf),
}

/// A set of images. Reading is safe from many threads.
pub trait Source: Send + Sync {
    fn samples(&self) -> &[Sample];

    /// Reads image `i`.
    fn image(&self, i: usize) -> Result<Grey>;

    /// Sentences for the user about what was left out or looks odd.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What `lightbox list datasets` says of a source.
#[derive(Debug, Clone, Serialize)]
pub struct SourceInfo {
    pub name: &'static str,
    pub title: &'static str,
    pub keys: &'static str,
}

/// All sources, in the names' order.
pub const SOURCES: [SourceInfo; 4] = [nih::INFO, node21::INFO, phantom::INFO, table::INFO];

/// The `[data]` section of a spec.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "kebab-case")]
pub enum DataSpec {
    Nih(nih::Nih),
    Node21(node21::Node21),
    Phantom(phantom::Phantom),
    Table(table::Table),
}

/// Opens a source: reads its tables, checks that its files are there, reads no image.
pub fn open(spec: &DataSpec) -> Result<Box<dyn Source>> {
    let source = match spec {
        DataSpec::Nih(s) => s.open()?,
        DataSpec::Node21(s) => s.open()?,
        DataSpec::Phantom(s) => s.open()?,
        DataSpec::Table(s) => s.open()?,
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
