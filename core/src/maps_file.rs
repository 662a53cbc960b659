//! The maps of one explainer for some images, in a `.safetensors` that is written batch by batch, so that no more than a
//! batch of them is in memory.
//!
//! `images` `[n]` int64 (places in the prepared file), `targets` `[n]` int64 (the class that was explained), `maps`
//! [n, K, h, w] float32.

use crate::checkpoint::{self, pick};
use crate::{Error, Result, files};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// Writes maps as they come. The file takes its name in the end, and is not there if it is dropped before.
pub struct MapsWriter {
    path: PathBuf,
    file: BufWriter<tempfile::NamedTempFile>,
    images: Vec<i64>,
    targets: Vec<i64>,
    /// K, height and width, once a batch has come.
    shape: Option<Vec<i64>>,
    /// Rows that were written.
    written: usize,
}

impl MapsWriter {
    /// For these rows, whose images and targets are known beforehand.
    pub fn new(path: &Path, images: Vec<i64>, targets: Vec<i64>) -> Result<Self> {
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, &e))?;
        let file = tempfile::Builder::new().prefix(files::HALF).tempfile_in(folder).map_err(|e| Error::io(path, &e))?;
        Ok(MapsWriter { path: path.into(), file: BufWriter::new(file), images, targets, shape: None, written: 0 })
    }

    /// Appends maps [b, K, h, w]; all batches have the same K, h and w.
    pub fn append(&mut self, maps: &Tensor) -> Result<()> {
        let size = maps.size();
        let (rows, shape) = (size.first().copied().unwrap_or(0) as usize, size.get(1..).unwrap_or_default().to_vec());
        let io = |path: &Path, e: std::io::Error| Error::io(path, &e);
        match &self.shape {
            None => {
                let header = self.header(&shape);
                self.file.write_all(&header).map_err(|e| io(&self.path, e))?;
                self.shape = Some(shape);
            }
            Some(before) if *before != shape => {
                return Err(Error::new(format!("maps of shape {shape:?}, before of {before:?}")));
            }
            Some(_) => {}
        }
        if self.written + rows > self.images.len() {
            return Err(Error::new(format!("{} maps for {} rows", self.written + rows, self.images.len())));
        }
        let maps = maps.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
        let mut bytes = vec![0u8; maps.numel() * 4];
        maps.f_copy_data_u8(&mut bytes, maps.numel())?;
        self.file.write_all(&bytes).map_err(|e| io(&self.path, e))?;
        self.written += rows;
        Ok(())
    }

    /// The header and the two arrays before the maps.
    fn header(&self, shape: &[i64]) -> Vec<u8> {
        let n = self.images.len();
        let numbers = 8 * n;
        let maps = 4 * n * shape.iter().product::<i64>() as usize;
        let all = [&[n as i64][..], shape].concat();
        let mut text = serde_json::json!({
            "images": {"dtype": "I64", "shape": [n], "data_offsets": [0, numbers]},
            "targets": {"dtype": "I64", "shape": [n], "data_offsets": [numbers, 2 * numbers]},
            "maps": {"dtype": "F32", "shape": all, "data_offsets": [2 * numbers, 2 * numbers + maps]},
        })
        .to_string();
        while !text.len().is_multiple_of(8) {
            text.push(' ');
        }
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.into_bytes());
        for number in self.images.iter().chain(&self.targets) {
            bytes.extend(number.to_le_bytes());
        }
        bytes
    }

    /// Gives the file its name. An error where rows are missing.
    pub fn finish(self) -> Result<()> {
        if self.written != self.images.len() {
            return Err(Error::new(format!("{} maps for {} rows", self.written, self.images.len())));
        }
        let file = self.file.into_inner().map_err(|e| Error::io(&self.path, e.error()))?;
        files::persist(file, &self.path)
    }
}

/// A file of maps, for reading.
pub struct MapsFile {
    path: PathBuf,
    /// Places of the images in the prepared file.
    pub images: Vec<i64>,
    /// The classes that were explained.
    pub targets: Vec<i64>,
}

impl MapsFile {
    /// Opens a file that [`MapsWriter`] wrote.
    pub fn open(path: &Path) -> Result<Self> {
        let numbers = |found: Option<Tensor>| -> Result<Vec<i64>> {
            let found = found.ok_or_else(|| Error::at(path, "not a file of maps"))?;
            Ok(Vec::<i64>::try_from(found)?)
        };
        let mut picked = pick(path, &["images", "targets"])?;
        let (targets, images) = (picked.pop().flatten(), picked.pop().flatten());
        Ok(MapsFile { path: path.into(), images: numbers(images)?, targets: numbers(targets)? })
    }

    /// Maps of some rows, [count, K, h, w]; no others are read.
    pub fn rows(&self, first: usize, count: usize) -> Result<Tensor> {
        checkpoint::rows(&self.path, "maps", first, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_come_back_row_by_row_and_a_short_file_has_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("units/a.safetensors");
        let maps = Tensor::arange(3 * 2 * 4, (Kind::Float, Device::Cpu)).reshape([3, 2, 2, 2]);
        let mut writer = MapsWriter::new(&path, vec![5, 5, 9], vec![0, 1, 1]).unwrap();
        writer.append(&maps.narrow(0, 0, 2)).unwrap();
        assert!(writer.append(&maps.narrow(0, 2, 1).narrow(3, 0, 1)).is_err());
        writer.append(&maps.narrow(0, 2, 1)).unwrap();
        assert!(writer.append(&maps.narrow(0, 2, 1)).unwrap_err().to_string().contains("4 maps for 3 rows"));
        writer.finish().unwrap();
        let file = MapsFile::open(&path).unwrap();
        assert_eq!((file.images.clone(), file.targets.clone()), (vec![5, 5, 9], vec![0, 1, 1]));
        assert_eq!(file.rows(1, 2).unwrap(), maps.narrow(0, 1, 2));
        let mut short = MapsWriter::new(&folder.path().join("units/b.safetensors"), vec![1, 2], vec![0, 0]).unwrap();
        short.append(&maps.narrow(0, 0, 1)).unwrap();
        assert!(short.finish().is_err());
        assert_eq!(std::fs::read_dir(folder.path().join("units")).unwrap().count(), 1);
    }
}
