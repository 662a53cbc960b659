//! Grey images of any depth, and the files they come from.

use super::{dicom, mha};
use crate::{Error, Result, files};
use std::io::Cursor;
use std::path::Path;

/// More pixels than any radiograph has; a header that claims more is broken or hostile.
pub const MAX_PIXELS: u64 = 1 << 28;

/// Pixel values as the file has them, row by row.
#[derive(Debug, Clone, PartialEq)]
pub enum Pixels {
    U8(Vec<u8>),
    U16(Vec<u16>),
    F32(Vec<f32>),
}

/// A grey image.
#[derive(Debug, Clone, PartialEq)]
pub struct Grey {
    pub width: usize,
    pub height: usize,
    pub pixels: Pixels,
}

impl Grey {
    /// Errors when an image is empty or `pixels` has another number of values.
    pub fn new(width: usize, height: usize, pixels: Pixels) -> Result<Self> {
        let count = match &pixels {
            Pixels::U8(v) => v.len(),
            Pixels::U16(v) => v.len(),
            Pixels::F32(v) => v.len(),
        };
        if width == 0 || height == 0 {
            return Err(Error::new(format!("the image is empty ({width} x {height} pixels)")));
        }
        if width * height != count {
            return Err(Error::new(format!("{count} pixel values for {width} x {height} pixels")));
        }
        Ok(Grey { width, height, pixels })
    }

    /// True for 8-bit images, whose range is fixed.
    pub fn is_8_bit(&self) -> bool {
        matches!(self.pixels, Pixels::U8(_))
    }

    /// Values in [0, 1]: 8-bit images divided by 255; deeper ones from their own least to their own greatest value,
    /// since their range is a matter of the scanner (a constant image becomes 0). A value that is not finite is an
    /// error.
    pub fn unit(&self) -> Result<Vec<f32>> {
        let stretch = |values: Vec<f32>| -> Result<Vec<f32>> {
            if let Some(i) = values.iter().position(|v| !v.is_finite()) {
                let (x, y) = (i % self.width, i / self.width);
                return Err(Error::new(format!("pixel ({x}, {y}) is {}", values[i])));
            }
            let low = values.iter().copied().fold(f32::INFINITY, f32::min);
            let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let scale = if high > low { 1.0 / (f64::from(high) - f64::from(low)) } else { 0.0 };
            Ok(values.into_iter().map(|v| ((f64::from(v) - f64::from(low)) * scale) as f32).collect())
        };
        match &self.pixels {
            Pixels::U8(v) => Ok(v.iter().map(|&v| f32::from(v) / 255.0).collect()),
            Pixels::U16(v) => stretch(v.iter().map(|&v| f32::from(v)).collect()),
            Pixels::F32(v) => stretch(v.clone()),
        }
    }
}

/// File name endings that [`read`] knows.
pub const EXTENSIONS: [&str; 8] = ["png", "jpg", "jpeg", "mha", "mhd", "dcm", "dicom", "dic"];

/// Reads PNG (8 and 16 bits), JPEG, MetaImage (.mha, .mhd) or DICOM. The content decides, not the name, except for
/// MetaImage, which has no signature.
pub fn read(path: &Path) -> Result<Grey> {
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    let image = match ending.as_str() {
        "mha" | "mhd" => mha::read(path),
        _ => {
            let bytes = files::read(path)?;
            if bytes.is_empty() {
                Err(Error::new("the file is empty"))
            } else if bytes.starts_with(b"\x89PNG") || bytes.starts_with(b"\xff\xd8\xff") {
                decode(&bytes)
            } else if bytes.get(128..132) == Some(b"DICM") {
                dicom::decode(&bytes)
            } else {
                let known = EXTENSIONS.join(", ");
                Err(Error::new(format!("not an image that Lightbox reads (known: {known})")))
            }
        }
    };
    image.map_err(|e| e.with_path(path))
}

/// PNG or JPEG. Colour becomes luminance; an alpha channel is dropped.
fn decode(bytes: &[u8]) -> Result<Grey> {
    let broken = |e: &dyn std::fmt::Display| Error::new(format!("the image is broken: {e}"));
    let mut reader = image::ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| broken(&e))?;
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(MAX_PIXELS * 8);
    limits.max_image_width = Some(1 << 20);
    limits.max_image_height = Some(1 << 20);
    reader.limits(limits);
    let decoded = reader.decode().map_err(|e| broken(&e))?;
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    use image::ColorType::{L8, L16, La8, La16, Rgb8, Rgba8};
    let pixels = match decoded.color() {
        L8 | La8 | Rgb8 | Rgba8 => Pixels::U8(decoded.into_luma8().into_raw()),
        L16 | La16 => Pixels::U16(decoded.into_luma16().into_raw()),
        _ => Pixels::U16(decoded.into_luma16().into_raw()),
    };
    Grey::new(width, height, pixels)
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
        encoder.write_image(pixels, width as u32, height as u32, color).map_err(|e| match e {
            image::ImageError::IoError(e) => e,
            other => std::io::Error::other(other),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_error(name: &str, bytes: &[u8], message: &str) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = read(&path).unwrap_err().to_string();
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
        let error = read(Path::new("/nowhere/x.png")).unwrap_err().to_string();
        assert_eq!(error, "/nowhere/x.png: no such file or folder");
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum()
    }

    #[test]
    fn deep_images_are_stretched_and_8_bit_ones_are_not() {
        let deep = Grey::new(2, 1, Pixels::U16(vec![1000, 3000])).unwrap();
        assert_eq!(deep.unit().unwrap(), [0.0, 1.0]);
        let plain = Grey::new(2, 1, Pixels::U8(vec![0, 51])).unwrap();
        assert_eq!(plain.unit().unwrap(), [0.0, 0.2]);
        let flat = Grey::new(2, 1, Pixels::F32(vec![5.0, 5.0])).unwrap();
        assert_eq!(flat.unit().unwrap(), [0.0, 0.0]);
        let nan = Grey::new(2, 1, Pixels::F32(vec![5.0, f32::NAN])).unwrap();
        assert_eq!(nan.unit().unwrap_err().to_string(), "pixel (1, 0) is NaN");
        assert!(Grey::new(0, 4, Pixels::U8(vec![])).is_err());
    }
}
