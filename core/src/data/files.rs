//! What sources of image files share.

use super::image::{Image, Intensity};
use super::{Sample, Source, Truth, mha, reader};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

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
    pub classes: Vec<String>,
    pub patients: bool,
    pub colour: bool,
    pub intensity: Intensity,
    pub outside: Outside,
    /// The classes have an order of their own, which is that of a model's outputs.
    pub ordered: bool,
}

/// What becomes of a box that does not touch its image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outside {
    /// It ends the run.
    #[default]
    Error,
    /// It is not used; `lightbox data inspect` counts such boxes.
    LeaveOut,
}

impl Source for Files {
    fn samples(&self) -> &[Sample] {
        &self.samples
    }

    fn image(&self, i: usize) -> Result<Image> {
        reader::read_by(&self.folder.join(&self.samples[i].id), self.colour, self.intensity)
    }

    fn dimensions(&self, i: usize) -> Result<[usize; 2]> {
        reader::dimensions(&self.folder.join(&self.samples[i].id))
    }

    fn orders_classes(&self) -> bool {
        self.ordered
    }

    fn skips_boxes_off_the_image(&self) -> bool {
        self.outside == Outside::LeaveOut
    }

    fn files(&self, i: usize) -> Vec<PathBuf> {
        let mut files = vec![self.folder.join(&self.samples[i].id)];
        if let Truth::MaskFile(path) = &self.samples[i].truth {
            files.push(path.clone());
        }
        let is_meta = |file: &&PathBuf| {
            let ending = file.extension().unwrap_or_default().to_ascii_lowercase();
            ending == "mhd" || ending == "mha"
        };
        let apart: Vec<PathBuf> = files.iter().filter(is_meta).filter_map(|file| mha::data_file(file)).collect();
        files.extend(apart);
        files
    }

    fn classes(&self) -> Vec<String> {
        self.classes.clone()
    }

    fn knows_patients(&self) -> bool {
        self.patients
    }

    fn intensity(&self) -> Intensity {
        self.intensity
    }

    fn is_colour(&self) -> bool {
        self.colour
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
        reader::EXTENSIONS.contains(&ending.as_str()) && !known.contains(n.as_str())
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
