//! Images of any depth, how their values become [0, 1], and PNG files of them. `reader.rs` reads files.

use super::resize::resize;
use crate::{Error, Result, files};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// More pixels than any radiograph has; a header that claims more is broken or hostile.
pub const MAX_PIXELS: u64 = 1 << 26;

/// The most bytes that the pixels of a file may have once they are unpacked: a small file of one colour must not fill the memory.
pub const MAX_BYTES: usize = 1 << 28;

/// Pixel values as the file has them, row by row.
#[derive(Debug, Clone, PartialEq)]
pub enum Pixels {
    /// Eight bits, 0 to 255.
    U8(Vec<u8>),
    /// Sixteen bits, 0 to 65535.
    U16(Vec<u16>),
    /// Real numbers of the file's own unit.
    F32(Vec<f32>),
    /// Already in [0, 1].
    Unit(Vec<f32>),
}

/// How the values of an image become [0, 1].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Intensity {
    /// 8-bit values are divided by 255. DICOM is shown as its file says (VOI LUT or first window); what says nothing, and
    /// any other deeper image, goes from its own least to its own greatest value.
    #[default]
    Auto,
    /// From the least to the greatest value, 8-bit images too; a DICOM file's window is not looked at.
    Full,
    /// From the 0.5th to the 99.5th percentile of the values (nearest rank), 8-bit images too.
    Percentile,
    /// 0 to the greatest value of the file's type, 255 or 65535, whatever is in the image. A DICOM file's values, and those of
    /// floating point, have none, and go from their least to their greatest.
    Depth,
}

/// An image of one channel (grey) or three (RGB, interleaved).
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// 1 for grey, 3 for colour.
    pub channels: usize,
    /// The values, row by row, channels of a pixel side by side.
    pub pixels: Pixels,
}

impl Image {
    /// A grey image. Errors when it is empty or `pixels` has another number of values.
    pub fn grey(width: usize, height: usize, pixels: Pixels) -> Result<Self> {
        Self::new(width, height, 1, pixels)
    }

    /// Errors when an image is empty or `pixels` has another number of values.
    pub fn new(width: usize, height: usize, channels: usize, pixels: Pixels) -> Result<Self> {
        let count = match &pixels {
            Pixels::U8(v) => v.len(),
            Pixels::U16(v) => v.len(),
            Pixels::F32(v) | Pixels::Unit(v) => v.len(),
        };
        if width == 0 || height == 0 {
            return Err(Error::new(format!("the image is empty ({width} x {height} pixels)")));
        }
        if width * height * channels != count {
            return Err(Error::new(format!("{count} values for {width} x {height} pixels of {channels} channels")));
        }
        Ok(Image { width, height, channels, pixels })
    }

    /// True where 8 bits hold all that the image says.
    pub fn is_8_bit(&self) -> bool {
        matches!(self.pixels, Pixels::U8(_))
    }

    /// Values in [0, 1], as [`Intensity::Auto`] says.
    pub fn unit(&self) -> Result<Vec<f32>> {
        self.unit_by(Intensity::Auto)
    }

    /// The image at another size, channels first, values in [0, 1] as [`Image::unit_by`] says.
    pub fn resized(&self, (width, height): (usize, usize), intensity: Intensity) -> Result<Vec<f32>> {
        let (from, to) = ((self.width, self.height), (width, height));
        if let (Pixels::U8(bytes), Intensity::Auto, 1, false) =
            (&self.pixels, intensity, self.channels, crate::is_plain())
        {
            // Most radiographs: their bytes are read once.
            return Ok(resize(bytes, from, to).into_iter().map(|v| v / 255.0).collect());
        }
        let unit = self.unit_by(intensity)?;
        let mut all = Vec::with_capacity(self.channels * width * height);
        for c in 0..self.channels {
            let channel: Vec<f32> = unit.iter().skip(c).step_by(self.channels).copied().collect();
            all.extend(resize(&channel, from, to));
        }
        Ok(all)
    }

    /// Values in [0, 1]. A constant image becomes 0; a value that is not finite is an error.
    pub fn unit_by(&self, intensity: Intensity) -> Result<Vec<f32>> {
        let values: Vec<f32> = match &self.pixels {
            Pixels::U8(v) if [Intensity::Auto, Intensity::Depth].contains(&intensity) => {
                return Ok(v.iter().map(|&v| f32::from(v) / 255.0).collect());
            }
            Pixels::U16(v) if intensity == Intensity::Depth => {
                return Ok(v.iter().map(|&v| f32::from(v) / 65535.0).collect());
            }
            Pixels::Unit(v) => return Ok(v.clone()),
            Pixels::U8(v) => v.iter().map(|&v| f32::from(v)).collect(),
            Pixels::U16(v) => v.iter().map(|&v| f32::from(v)).collect(),
            Pixels::F32(v) => v.clone(),
        };
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            let (x, y) = (i / self.channels % self.width, i / self.channels / self.width);
            return Err(Error::new(format!("pixel ({x}, {y}) is {}", values[i])));
        }
        Ok(stretch(&values, range(&values, intensity)))
    }
}

/// The values that become 0 and 1. All values must be finite.
pub(super) fn range(values: &[f32], intensity: Intensity) -> (f32, f32) {
    if intensity == Intensity::Percentile && !values.is_empty() {
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f32::total_cmp);
        let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
        return (at(0.005), at(0.995));
    }
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    (low, values.iter().copied().fold(f32::NEG_INFINITY, f32::max))
}

/// `low` to 0, `high` to 1, what lies outside to the nearer of them.
pub(super) fn stretch(values: &[f32], (low, high): (f32, f32)) -> Vec<f32> {
    let scale = if high > low { 1.0 / (f64::from(high) - f64::from(low)) } else { 0.0 };
    values.iter().map(|&v| ((f64::from(v) - f64::from(low)) * scale).clamp(0.0, 1.0) as f32).collect()
}

/// Writes an 8-bit grey PNG.
pub fn write_png(path: &Path, width: usize, height: usize, pixels: &[u8]) -> Result<()> {
    write_encoded(path, width, height, pixels, image::ExtendedColorType::L8)
}

/// Writes an 8-bit RGB PNG.
pub fn write_png_rgb(path: &Path, width: usize, height: usize, pixels: &[u8]) -> Result<()> {
    write_encoded(path, width, height, pixels, image::ExtendedColorType::Rgb8)
}

fn write_encoded(
    path: &Path,
    width: usize,
    height: usize,
    pixels: &[u8],
    color: image::ExtendedColorType,
) -> Result<()> {
    use image::ImageEncoder;
    files::write_atomic(path, |w| {
        let encoder = image::codecs::png::PngEncoder::new(w);
        encoder.write_image(pixels, width as u32, height as u32, color).map_err(|e| {
            // What the disk said lies at the bottom, whatever the encoder wrapped it in.
            let mut at: Option<&dyn std::error::Error> = Some(&e);
            while let Some(cause) = at {
                if let Some(io) = cause.downcast_ref::<std::io::Error>() {
                    return std::io::Error::from(io.kind());
                }
                at = cause.source();
            }
            std::io::Error::other(e)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::reader::*;
    use super::*;

    fn check_error(name: &str, bytes: &[u8], message: &str) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = read(&path, false).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(message), "{error}");
    }

    fn png(width: usize, height: usize) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.png");
        write_png(&path, width, height, &vec![7; width * height]).unwrap();
        std::fs::read(path).unwrap()
    }

    #[test]
    fn broken_files_say_so() {
        let good = png(40, 30);
        check_error("cut.png", &good[..good.len() / 2], "the image is broken");
        check_error("empty.png", &[], "the file is empty");
        check_error("text.png", b"hello, this is not an image", "not an image that Lightbox reads");
        let mut huge = good.clone();
        // The header's width; its checksum must fit, so it is made anew.
        huge[16..20].copy_from_slice(&0x7fff_ffffu32.to_be_bytes());
        let crc = crc32(&huge[12..29]);
        huge[29..33].copy_from_slice(&crc.to_be_bytes());
        check_error("huge.png", &huge, "the image is broken");
        let mut zero = good;
        zero[16..20].copy_from_slice(&0u32.to_be_bytes());
        let crc = crc32(&zero[12..29]);
        zero[29..33].copy_from_slice(&crc.to_be_bytes());
        check_error("zero.png", &zero, "the image is broken");
        let error = read(Path::new("/nowhere/x.png"), false).unwrap_err().to_string();
        assert_eq!(error, "/nowhere/x.png: no such file or folder");
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum()
    }

    #[test]
    fn deep_images_are_stretched_and_8_bit_ones_are_not() {
        let deep = Image::grey(2, 1, Pixels::U16(vec![1000, 3000])).unwrap();
        assert_eq!(deep.unit().unwrap(), [0.0, 1.0]);
        let plain = Image::grey(2, 1, Pixels::U8(vec![0, 51])).unwrap();
        assert_eq!(plain.unit().unwrap(), [0.0, 0.2]);
        let flat = Image::grey(2, 1, Pixels::F32(vec![5.0, 5.0])).unwrap();
        assert_eq!(flat.unit().unwrap(), [0.0, 0.0]);
        let nan = Image::grey(2, 1, Pixels::F32(vec![5.0, f32::NAN])).unwrap();
        assert_eq!(nan.unit().unwrap_err().to_string(), "pixel (1, 0) is NaN");
        assert!(Image::grey(0, 4, Pixels::U8(vec![])).is_err());
    }
}
