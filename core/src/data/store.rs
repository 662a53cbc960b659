//! The images of a run: decoded and resized once, then given out as normalised batches on the device.
//!
//! Preparing writes one file with `images` [N, C, H, W] (C 1 or 3; levels of each image's own depth: U8, or I16 where any image
//! is deeper, in which an image of 8 bits has 0 to 255 and a deeper one has 32768 subtracted), `depths` `[N]` U8 (8 or 16 bits),
//! `masks` [N, P, H, W] U8 (bit k % 8 of plane k / 8: the k-th class of the image, see
//! [`Sample::mask_bit`](super::Sample::mask_bit); the last bit of the last plane: a planted shortcut) and `known` `[N]` U8 (whether the mask is known). The file is mapped, not read: when the
//! set fits the memory budget its images are put on the device whole and batches are gathered there; otherwise a thread
//! gathers batches from the map ahead of their use, and the operating system decides which pages stay in memory.

use super::image::Image;
use super::mask::draw_ellipse;
use super::preparation::{Depth, Levels, Preparation};
use super::resize::resize;
use super::{Source, Truth, reader};
use crate::{Error, Result};
use rayon::prelude::*;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// How many planes of masks a source needs: a bit for each class that an image has at most, and one for a planted shortcut.
fn planes(source: &dyn Source) -> usize {
    let most = source.samples().iter().map(|s| s.classes.len()).max().unwrap_or(0);
    (most + 1).div_ceil(8)
}

/// How many images are decoded before they are written.
const CHUNK: usize = 256;

/// The prepared file, mapped.
#[derive(Clone)]
struct Mapped {
    map: Arc<memmap2::Mmap>,
    start: usize,
    n: usize,
    pixels: usize,
    channels: usize,
    /// Planes of masks.
    planes: usize,
    /// Bytes a value of an image: 1 or 2.
    bytes: usize,
}

impl Mapped {
    /// Maps a prepared file; also its height and width. What is not whole is an error.
    fn open(file: &Path) -> Result<(Self, [usize; 2])> {
        let opened = File::open(file).map_err(|e| Error::io(file, &e))?;
        // SAFETY: the file is ours and complete: it took its name after its last byte was written, and nobody changes it.
        let map = unsafe { memmap2::Mmap::map(&opened) }.map_err(|e| Error::io(file, &e))?;
        let broken = |e: &dyn std::fmt::Display| {
            Error::at(file, format!("the prepared images are broken: {e}")).hint("delete the file; it is made anew")
        };
        let (start, n, channels, planes, size, bytes) = {
            let (length, header) = safetensors::SafeTensors::read_metadata(&map).map_err(|e| broken(&e))?;
            let info = header.info("images").ok_or_else(|| broken(&"no images"))?;
            let bytes = if info.dtype == safetensors::Dtype::U8 { 1 } else { 2 };
            let [n, channels, height, width] =
                info.shape.as_slice().try_into().map_err(|_| broken(&"not [N, C, H, W]"))?;
            let masks = header.info("masks").ok_or_else(|| broken(&"no masks"))?;
            let [_, planes, ..] = masks.shape[..] else { return Err(broken(&"masks are not [N, P, H, W]")) };
            header.info("depths").ok_or_else(|| broken(&"no depths"))?;
            let end = 8 + length + n * height * width * (channels * bytes + planes) + 2 * n;
            if map.len() < end {
                return Err(broken(&"truncated"));
            }
            (8 + length, n, channels, planes, [height, width], bytes)
        };
        let pixels = size[0] * size[1];
        Ok((Mapped { map: Arc::new(map), start, n, pixels, channels, planes, bytes }, size))
    }

    fn image(&self, i: usize) -> &[u8] {
        let size = self.pixels * self.channels * self.bytes;
        &self.map[self.start + i * size..][..size]
    }

    /// Where the masks begin.
    fn masks(&self) -> usize {
        self.start + self.n * self.pixels * self.channels * self.bytes
    }

    /// The plane of the masks of image `i` that holds a bit.
    fn mask(&self, i: usize, bit: usize) -> &[u8] {
        let plane = (bit / 8).min(self.planes - 1);
        &self.map[self.masks() + (i * self.planes + plane) * self.pixels..][..self.pixels]
    }

    /// The bit of a planted shortcut.
    fn shortcut(&self) -> usize {
        self.planes * 8 - 1
    }

    fn known(&self, i: usize) -> bool {
        self.map[self.masks() + self.n * self.planes * self.pixels + i] != 0
    }

    /// How fine the values of image `i` are.
    fn depth(&self, i: usize) -> Depth {
        let at = self.masks() + self.n * self.planes * self.pixels + self.n + i;
        if self.map[at] == 8 { Depth::Eight } else { Depth::Sixteen }
    }

    /// Raw values of some images, CPU.
    fn gather(&self, indices: &[usize]) -> Result<Tensor> {
        let values = self.pixels * self.channels;
        let mut bytes = Vec::with_capacity(indices.len() * values * self.bytes);
        for &i in indices {
            bytes.extend_from_slice(self.image(i));
        }
        let kind = if self.bytes == 1 { Kind::Uint8 } else { Kind::Int16 };
        Ok(Tensor::f_from_data_size(&bytes, &[indices.len() as i64, values as i64], kind)?)
    }
}

/// A prepared set on a device.
pub struct Store {
    mapped: Mapped,
    /// Height and width.
    size: [usize; 2],
    device: Device,
    resident: Option<Tensor>,
    /// Of images of 8 bits and of 16, a channel: batch = raw * scale + shift. [2, C, 1, 1].
    scale: Tensor,
    shift: Tensor,
}

/// What the store holds, and where.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Holding {
    /// How many images.
    pub images: usize,
    /// Their height and width.
    pub size: [usize; 2],
    /// Of the deepest image's values: 8 or 16.
    pub bits: usize,
    /// Of all images and masks.
    pub bytes: usize,
    /// Whether all images are on the device, or stream from the file.
    pub resident: bool,
}

/// One image as it is stored.
struct Prepared {
    /// Resized, channels first.
    levels: Levels,
    /// Planes of masks; zeros where they are not known.
    marks: Vec<u8>,
    known: bool,
}

/// Reads and resizes one image and its masks.
fn prepare_one(source: &dyn Source, i: usize, preparation: &Preparation, planes: usize) -> Result<Prepared> {
    let [height, width] = preparation.size;
    let sample = &source.samples()[i];
    let name = |e: Error| match e.path {
        Some(_) => e,
        None => Error { what: format!("image {}: {}", sample.id, e.what), ..e },
    };
    let image: Image = source.image(i).map_err(name)?;
    let levels = preparation.levels(&image).map_err(name)?;
    let mut marks = vec![0u8; planes * height * width];
    let known = !matches!(sample.truth, Truth::Unknown);
    // The plane of a bit, and the bit in it.
    let plane = |bit: usize| ((bit / 8) * height * width..(bit / 8 + 1) * height * width, 1u8 << (bit % 8));
    match &sample.truth {
        Truth::Unknown => {}
        Truth::Boxes(boxes) => {
            for b in boxes {
                if let Some(fault) = b.fault(image.width, image.height) {
                    if source.skips_boxes_off_the_image() {
                        continue;
                    }
                    return Err(Error::new(format!("image {}: {fault}", sample.id)));
                }
                if let Some(bit) = sample.mask_bit(b.class) {
                    let (range, value) = plane(bit);
                    draw_ellipse(&mut marks[range], (width, height), (image.width, image.height), b, value);
                }
            }
        }
        Truth::MaskFile(path) => {
            let file = reader::read(path, false)?;
            if (file.width, file.height) != (image.width, image.height) {
                let (mw, mh, w, h) = (file.width, file.height, image.width, image.height);
                return Err(Error::at(path, format!("the mask has {mw} x {mh} pixels, its image {w} x {h}")));
            }
            let binary: Vec<f32> = file.unit()?.into_iter().map(|v| f32::from(u8::from(v > 0.0))).collect();
            // Half covered is covered; a mask that would vanish keeps its most covered pixels.
            let scaled = resize(&binary, (file.width, file.height), (width, height));
            let most = scaled.iter().copied().fold(0.0, f32::max);
            let least = if most > 0.0 { most.min(0.5) } else { 1.0 };
            for bit in 0..sample.classes.len() {
                let (range, value) = plane(bit);
                marks[range].iter_mut().zip(&scaled).filter(|(_, v)| **v >= least).for_each(|(m, _)| *m |= value);
            }
        }
    }
    if known {
        let (range_of_plane, value) = plane(planes * 8 - 1);
        for b in source.shortcut(i, (image.width, image.height)) {
            // Pixels whose centre lies in the rectangle; at least one.
            let range = |at: f64, length: f64, of: usize, size: usize| {
                let scale = size as f64 / of as f64;
                let first = ((at * scale - 0.5).ceil().max(0.0) as usize).min(size - 1);
                let end = ((at + length) * scale - 0.5).ceil().max(0.0) as usize;
                first..end.clamp(first + 1, size)
            };
            let marks = &mut marks[range_of_plane.clone()];
            for y in range(b.y, b.height, image.height, height) {
                range(b.x, b.width, image.width, width).for_each(|x| marks[y * width + x] |= value);
            }
        }
    }
    Ok(Prepared { levels, marks, known })
}

/// Prepares `file` from a source unless it is there. `progress(done, of)` is called from this thread, `reading`
/// from any, before an image is read and after it.
/// A broken image or a box outside its image is an error that names it; nothing is left half written.
///
/// Each image keeps its own depth. A set of 8-bit images takes a byte a value; it is read anew, once, if an image is deeper than
/// all before it.
pub fn prepare(
    source: &dyn Source,
    size: [usize; 2],
    file: &Path,
    progress: &mut dyn FnMut(usize, usize),
    reading: &(dyn Fn(Option<usize>) + Sync),
) -> Result<()> {
    if file.is_file() {
        return Ok(());
    }
    reading(Some(0));
    let deep = source.image(0)?.is_8_bit() && write(source, size, file, 1, progress, reading)?;
    if !deep && file.is_file() {
        return Ok(());
    }
    write(source, size, file, 2, progress, reading).map(drop)
}

/// Writes the file with so many bytes a value; true, and nothing is written, if an image is deeper.
fn write(
    source: &dyn Source,
    size: [usize; 2],
    file: &Path,
    bytes: usize,
    progress: &mut dyn FnMut(usize, usize),
    reading: &(dyn Fn(Option<usize>) + Sync),
) -> Result<bool> {
    let n = source.samples().len();
    let [height, width] = size;
    let (pixels, planes) = (height * width, planes(source));
    let preparation = Preparation { size, colour: source.is_colour(), intensity: source.intensity() };
    let channels = if source.is_colour() { 3 } else { 1 };
    let dtype = if bytes == 1 { "U8" } else { "I16" };
    let values = pixels * channels;
    let (a, b) = (n * values * bytes, n * planes * pixels);
    let mut header = serde_json::json!({
        "images": {"dtype": dtype, "shape": [n, channels, height, width], "data_offsets": [0, a]},
        "masks": {"dtype": "U8", "shape": [n, planes, height, width], "data_offsets": [a, a + b]},
        "known": {"dtype": "U8", "shape": [n], "data_offsets": [a + b, a + b + n]},
        "depths": {"dtype": "U8", "shape": [n], "data_offsets": [a + b + n, a + b + 2 * n]},
    })
    .to_string();
    while !(header.len()).is_multiple_of(8) {
        header.push(' ');
    }
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, &e))?;
    let at = |e: std::io::Error| Error::io(file, &e);
    let temporary = tempfile::Builder::new().prefix(crate::files::HALF).tempfile_in(folder).map_err(at)?;
    let out: &File = temporary.as_file();
    out.write_all_at(&(header.len() as u64).to_le_bytes(), 0).map_err(at)?;
    out.write_all_at(header.as_bytes(), 8).map_err(at)?;
    let start = 8 + header.len();
    for first in (0..n).step_by(CHUNK) {
        let range = first..(first + CHUNK).min(n);
        let done: Vec<_> = range
            .clone()
            .into_par_iter()
            .map(|i| {
                reading(Some(i));
                let made = prepare_one(source, i, &preparation, planes);
                reading(None);
                made
            })
            .collect::<Result<_>>()?;
        if bytes == 1 && done.iter().any(|p| p.levels.depth != Depth::Eight) {
            return Ok(true);
        }
        let (mut images, mut masks, mut known, mut depths) = (vec![], vec![], vec![], vec![]);
        for (i, Prepared { levels: Levels { depth, values: image }, marks, known: is_known }) in range.clone().zip(done)
        {
            if image.len() != values {
                let id = &source.samples()[i].id;
                return Err(Error::new(format!(
                    "image {id} has {} channels, the source {channels}",
                    image.len() / pixels
                )));
            }
            match (bytes, depth) {
                (1, _) => images.extend(image.iter().map(|v| *v as u8)),
                (_, Depth::Eight) => images.extend(image.iter().flat_map(|v| v.to_le_bytes())),
                // The sign bit turned over is 32768 subtracted.
                (_, Depth::Sixteen) => images.extend(image.iter().flat_map(|v| (v ^ 0x8000).to_le_bytes())),
            }
            known.push(u8::from(is_known));
            depths.push(if depth == Depth::Eight { 8 } else { 16 });
            masks.extend(marks);
        }
        out.write_all_at(&images, (start + first * values * bytes) as u64).map_err(at)?;
        out.write_all_at(&masks, (start + a + first * planes * pixels) as u64).map_err(at)?;
        out.write_all_at(&known, (start + a + b + first) as u64).map_err(at)?;
        out.write_all_at(&depths, (start + a + b + n + first) as u64).map_err(at)?;
        progress(range.end, n);
    }
    crate::files::persist(temporary, file)?;
    Ok(false)
}

/// How many images a prepared file holds. One that is not whole is an error.
pub fn images(file: &Path) -> Result<usize> {
    Ok(Mapped::open(file)?.0.n)
}

impl Store {
    /// Opens a prepared file. `mean` and `std` are the model's, a channel; `budget` is in bytes of device memory.
    pub fn open(file: &Path, mean: &[f64], std: &[f64], device: Device, budget: usize) -> Result<Self> {
        let (mapped, size) = Mapped::open(file)?;
        let (n, channels) = (mapped.n, mapped.channels);
        let both = [Depth::Eight, Depth::Sixteen].map(|depth| depth.normalisation(mean, std)).concat();
        let tensor = |values: Vec<f32>| -> Result<Tensor> {
            Ok(Tensor::f_from_slice(&values)?.f_reshape([2, mean.len() as i64, 1, 1])?.f_to_device(device)?)
        };
        let scale = tensor(both.iter().map(|(scale, _)| *scale).collect())?;
        let shift = tensor(both.iter().map(|(_, shift)| *shift).collect())?;
        let bytes = n * mapped.pixels * channels * mapped.bytes;
        let resident = (bytes <= budget)
            .then(|| -> Result<Tensor> {
                let all: Vec<usize> = (0..n).collect();
                Ok(mapped.gather(&all)?.f_to_device(device)?)
            })
            .transpose()?;
        Ok(Store { mapped, size, device, resident, scale, shift })
    }

    /// What the store holds, and where.
    pub fn holding(&self) -> Holding {
        Holding {
            images: self.mapped.n,
            size: self.size,
            bits: self.mapped.bytes * 8,
            bytes: self.mapped.n * self.mapped.pixels * self.mapped.channels * self.mapped.bytes,
            resident: self.resident.is_some(),
        }
    }

    /// Raw values of these images as a model's input.
    fn normalise(&self, indices: &[usize], raw: &Tensor) -> Result<Tensor> {
        let (n, [height, width]) = (raw.size()[0], self.size.map(|v| v as i64));
        let raw = raw.f_reshape([n, self.mapped.channels as i64, height, width])?.f_to_kind(Kind::Float)?;
        let deep: Vec<i64> = indices.iter().map(|&i| i64::from(self.mapped.depth(i) == Depth::Sixteen)).collect();
        // One channel is spread over all of the model's.
        let (scale, shift) = match deep.iter().sum::<i64>() {
            0 => (self.scale.f_narrow(0, 0, 1)?, self.shift.f_narrow(0, 0, 1)?),
            _ => {
                let rows = Tensor::f_from_slice(&deep)?.f_to_device(self.device)?;
                (self.scale.f_index_select(0, &rows)?, self.shift.f_index_select(0, &rows)?)
            }
        };
        // In 16 bits the sign bit of a deep image is turned over: 32768 comes back, exactly.
        let raw = match self.mapped.bytes {
            1 => raw,
            _ => {
                let offset: Vec<f32> = deep.iter().map(|d| *d as f32 * 32768.0).collect();
                raw.f_add(&Tensor::f_from_slice(&offset)?.f_reshape([n, 1, 1, 1])?.f_to_device(self.device)?)?
            }
        };
        Ok(raw.f_mul(&scale)?.f_add(&shift)?)
    }

    /// A normalised batch [B, C, H, W] float32 on the device.
    pub fn batch(&self, indices: &[usize]) -> Result<Tensor> {
        if let Some(bad) = indices.iter().find(|&&i| i >= self.mapped.n) {
            return Err(Error::new(format!("image {bad} of {}", self.mapped.n)));
        }
        let raw = match &self.resident {
            Some(all) => {
                let indices: Vec<i64> = indices.iter().map(|&i| i as i64).collect();
                all.f_index_select(0, &Tensor::f_from_slice(&indices)?.f_to_device(self.device)?)?
            }
            None => self.mapped.gather(indices)?.f_to_device(self.device)?,
        };
        self.normalise(indices, &raw)
    }

    /// Batches in order; those of a streaming store are gathered by a thread two ahead.
    pub fn batches(&self, batches: Vec<Vec<usize>>) -> Batches<'_> {
        let ahead = self.resident.is_none().then(|| {
            let (send, receive) = std::sync::mpsc::sync_channel(2);
            let (mapped, work) = (self.mapped.clone(), batches.clone());
            std::thread::spawn(move || {
                for indices in work {
                    if send.send(mapped.gather(&indices)).is_err() {
                        break;
                    }
                }
            });
            receive
        });
        Batches { store: self, batches: batches.into_iter(), ahead }
    }

    /// Whether the mask of image `i` is known.
    pub fn known(&self, i: usize) -> bool {
        self.mapped.known(i)
    }

    /// The mask of image `i` for the class of this bit ([`Sample::mask_bit`](super::Sample::mask_bit)), row-major, 0 and 1;
    /// all 0 for a class that the image does not have. `None` where it is unknown.
    pub fn mask(&self, i: usize, bit: Option<usize>) -> Option<Vec<u8>> {
        self.mapped.known(i).then(|| match bit {
            Some(bit) => self.mapped.mask(i, bit).iter().map(|b| b >> (bit % 8) & 1).collect(),
            None => vec![0; self.mapped.pixels],
        })
    }

    /// The planted shortcut of image `i`, row-major, 0 and 1; all 0 where there is none.
    pub fn shortcut(&self, i: usize) -> Vec<u8> {
        self.mask(i, Some(self.mapped.shortcut())).unwrap_or_else(|| vec![0; self.mapped.pixels])
    }

    /// The image's grey values as stored (the mean of its channels), scaled to 8 bits.
    pub fn grey(&self, i: usize) -> Vec<u8> {
        let raw = self.mapped.image(i);
        let bytes: Vec<u8> = match (self.mapped.bytes, self.mapped.depth(i)) {
            (1, _) => raw.to_vec(),
            (_, Depth::Eight) => raw.chunks_exact(2).map(|b| b[0]).collect(),
            // The upper byte of value - 32768, back to unsigned.
            (_, Depth::Sixteen) => raw.chunks_exact(2).map(|b| b[1].wrapping_add(128)).collect(),
        };
        let (n, channels) = (self.mapped.pixels, self.mapped.channels);
        let mean = |p: usize| (0..channels).map(|c| u32::from(bytes[c * n + p])).sum::<u32>() / channels as u32;
        if channels == 1 { bytes } else { (0..n).map(|p| mean(p) as u8).collect() }
    }

    /// The mean of the known masks of these images and bits, in [0, 1]; `None` when nothing is marked in any of them.
    pub fn mean_mask(&self, images: impl Iterator<Item = (usize, Option<usize>)>) -> Option<Vec<f32>> {
        let mut sum = vec![0f32; self.mapped.pixels];
        let mut count = 0f32;
        for mask in images.filter_map(|(i, bit)| self.mask(i, bit)) {
            sum.iter_mut().zip(mask).for_each(|(s, m)| *s += f32::from(m));
            count += 1.0;
        }
        sum.iter_mut().for_each(|s| *s /= count.max(1.0));
        sum.iter().any(|s| *s > 0.0).then_some(sum)
    }
}

/// See [`Store::batches`].
pub struct Batches<'a> {
    store: &'a Store,
    batches: std::vec::IntoIter<Vec<usize>>,
    ahead: Option<std::sync::mpsc::Receiver<Result<Tensor>>>,
}

impl Iterator for Batches<'_> {
    /// Indices and their normalised images.
    type Item = Result<(Vec<usize>, Tensor)>;

    fn next(&mut self) -> Option<Self::Item> {
        let indices = self.batches.next()?;
        let images = match &self.ahead {
            None => self.store.batch(&indices),
            Some(receive) => match receive.recv() {
                Ok(raw) => raw.and_then(|raw| self.store.normalise(&indices, &raw.f_to_device(self.store.device)?)),
                Err(_) => Err(Error::new("the thread that reads images ahead has stopped")),
            },
        };
        Some(images.map(|images| (indices, images)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::image::Pixels;
    use super::*;
    use crate::data::{DataSpec, open, phantom::Phantom};
    use crate::task::Task;

    fn phantoms(n: usize) -> Box<dyn Source> {
        open(&DataSpec::Phantom(Phantom { count: n, pixels: 48, ..Phantom::default() }), &Task::default()).unwrap()
    }

    #[test]
    fn resident_and_streaming_stores_give_the_same_batches() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("images.safetensors");
        let source = phantoms(9);
        let mut seen = 0;
        prepare(source.as_ref(), [32, 32], &file, &mut |done, _| seen = done, &|_| {}).unwrap();
        assert_eq!(seen, 9);
        let (mean, std) = ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]);
        let open = |budget| Store::open(&file, &mean, &std, Device::Cpu, budget).unwrap();
        let (whole, streamed) = (open(usize::MAX), open(0));
        assert!(whole.holding().resident && !streamed.holding().resident);
        let order: Vec<Vec<usize>> = vec![vec![8, 0, 3], vec![1], vec![2, 2]];
        for (a, b) in whole.batches(order.clone()).zip(streamed.batches(order)) {
            let ((i, a), (j, b)) = (a.unwrap(), b.unwrap());
            assert_eq!((i, a.size()[1..].to_vec()), (j, vec![3, 32, 32]));
            assert_eq!(a, b);
        }
        let raw = f64::from(whole.grey(8)[5]);
        let value = whole.batch(&[8]).unwrap().double_value(&[0, 1, 0, 5]);
        assert!((value - (raw / 255.0 - 0.4) / 0.3).abs() < 1e-6);
        assert!(whole.batch(&[9]).is_err());
    }

    #[test]
    fn a_planted_shortcut_is_where_the_image_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let phantom = Phantom { count: 6, pixels: 128, shortcut: Some(1.0), ..Phantom::default() };
        let source = open(&DataSpec::Phantom(phantom), &Task::default()).unwrap();
        for side in [128, 64] {
            let file = folder.path().join(format!("{side}.safetensors"));
            prepare(source.as_ref(), [side, side], &file, &mut |_, _| {}, &|_| {}).unwrap();
            let store = Store::open(&file, &[0.0], &[1.0], Device::Cpu, 0).unwrap();
            for (i, sample) in source.samples().iter().enumerate() {
                let shortcut = store.shortcut(i);
                let grey = store.grey(i);
                assert_eq!(shortcut.contains(&1), sample.has(1), "image {i}");
                // An L of bars of a thirty-second: 4 + 2 squares, all as bright as can be.
                let bright = (0..side * side).filter(|p| shortcut[*p] == 1);
                assert!(bright.clone().all(|p| grey[p] > 200), "image {i} of {side}");
                let unit = side / 32;
                assert!(!sample.has(1) || bright.count() == 6 * unit * unit);
                // The finding's mask is another bit.
                let mask = store.mask(i, sample.mask_bit(1)).unwrap();
                assert!(mask.iter().zip(&shortcut).all(|(m, s)| m + s < 2));
            }
        }
    }

    #[test]
    fn deep_images_keep_their_depth() {
        struct Deep(Vec<crate::data::Sample>);
        impl Source for Deep {
            fn samples(&self) -> &[crate::data::Sample] {
                &self.0
            }
            fn image(&self, _: usize) -> Result<Image> {
                Image::grey(2, 2, Pixels::U16(vec![0, 1000, 2000, 4000]))
            }
        }
        let sample = crate::data::Sample::binary("d", "d", 1, Truth::Unknown);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("images.safetensors");
        prepare(&Deep(vec![sample]), [2, 2], &file, &mut |_, _| {}, &|_| {}).unwrap();
        let store = Store::open(&file, &[0.0], &[1.0], Device::Cpu, 0).unwrap();
        let values = Vec::<f32>::try_from(store.batch(&[0]).unwrap().flatten(0, -1)).unwrap();
        for (value, wanted) in values.iter().zip([0.0, 0.25, 0.5, 1.0]) {
            assert!((value - wanted).abs() < 1e-5, "{values:?}");
        }
        assert_eq!(store.grey(0), [0, 64, 128, 255]);
        assert!(store.mask(0, Some(0)).is_none());
    }

    #[test]
    fn a_box_outside_its_image_is_named() {
        struct Off(Vec<crate::data::Sample>);
        impl Source for Off {
            fn samples(&self) -> &[crate::data::Sample] {
                &self.0
            }
            fn image(&self, _: usize) -> Result<Image> {
                Image::grey(8, 8, Pixels::U8(vec![0; 64]))
            }
        }
        let b = crate::data::mask::BBox::new(30.0, 0.0, 2.0, 2.0);
        let truth = Truth::Boxes(vec![b]);
        let sample = crate::data::Sample::binary("n1.mha", "p", 1, truth);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("images.safetensors");
        let error = prepare(&Off(vec![sample]), [8, 8], &file, &mut |_, _| {}, &|_| {}).unwrap_err().to_string();
        assert_eq!(error, "image n1.mha: box (30, 0, 2 x 2) lies outside the image of 8 x 8 pixels");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing half written");
    }

    #[test]
    fn an_image_is_prepared_as_it_is_whatever_its_neighbours() {
        struct Mixed(Vec<crate::data::Sample>);
        impl Source for Mixed {
            fn samples(&self) -> &[crate::data::Sample] {
                &self.0
            }
            fn image(&self, i: usize) -> Result<Image> {
                match i {
                    0 => Image::grey(3, 2, Pixels::U8(vec![0, 51, 102, 255, 7, 93])),
                    _ => Image::grey(3, 2, Pixels::U16(vec![0, 1001, 2002, 4095, 17, 2333])),
                }
            }
        }
        let sample = |id: &str| crate::data::Sample::binary(id, id, 1, Truth::Unknown);
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str, samples: Vec<crate::data::Sample>| {
            let file = folder.path().join(name);
            prepare(&Mixed(samples), [4, 5], &file, &mut |_, _| {}, &|_| {}).unwrap();
            Store::open(&file, &[0.48, 0.45, 0.4], &[0.23, 0.22, 0.2], Device::Cpu, 0).unwrap()
        };
        let (alone, both) = (open("a", vec![sample("a")]), open("b", vec![sample("a"), sample("b")]));
        assert_eq!((alone.holding().bits, both.holding().bits), (8, 16));
        let values = |store: &Store, rows: &[usize], row: i64| {
            Vec::<f32>::try_from(store.batch(rows).unwrap().get(row).flatten(0, -1)).unwrap()
        };
        assert_eq!(values(&alone, &[0], 0), values(&both, &[0], 0));
        assert_eq!(values(&alone, &[0], 0), values(&both, &[0, 1], 0));
        assert_eq!(values(&both, &[1], 0), values(&both, &[0, 1], 1));
        assert_eq!(alone.grey(0), both.grey(0));
        // And as its levels say, bit by bit.
        let preparation = Preparation { size: [4, 5], colour: false, intensity: Default::default() };
        for i in 0..2 {
            let levels = preparation.levels(&both_image(i)).unwrap();
            let [(scale, shift), ..] = levels.depth.normalisation(&[0.48, 0.45, 0.4], &[0.23, 0.22, 0.2])[..] else {
                panic!()
            };
            let wanted: Vec<f32> = levels.values.iter().map(|v| f32::from(*v) * scale + shift).collect();
            assert_eq!(values(&both, &[i], 0)[..20], wanted);
        }
        fn both_image(i: usize) -> Image {
            Mixed(vec![]).image(i).unwrap()
        }
    }
}
