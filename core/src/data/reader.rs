//! Image files of every format that there is a reader of, by their content.

use super::image::{Image, Intensity, MAX_PIXELS, Pixels};
use super::{dicom, mha};
use crate::{Error, Result, files};
use std::io::Cursor;
use std::path::Path;

/// File name endings that [`read`] knows.
pub const EXTENSIONS: [&str; 8] = ["png", "jpg", "jpeg", "mha", "mhd", "dcm", "dicom", "dic"];

/// Reads PNG (8 and 16 bits), JPEG, MetaImage (.mha, .mhd) or DICOM. The content decides, not the name, except for
/// MetaImage, which has no signature. With `colour` a colour image keeps three channels and a grey one gets them;
/// otherwise colour becomes luminance (Rec. 709: 0.2126 R + 0.7152 G + 0.0722 B; Pillow takes Rec. 601's 0.299, 0.587,
/// 0.114). An alpha channel is dropped. A JPEG or PNG is turned as its EXIF orientation says.
pub fn read(path: &Path, colour: bool) -> Result<Image> {
    read_by(path, colour, Intensity::Auto)
}

/// [`read`] for an image that will be shown by this rule: a DICOM file's own window is used for [`Intensity::Auto`] only.
pub fn read_by(path: &Path, colour: bool, intensity: Intensity) -> Result<Image> {
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    let image = match ending.as_str() {
        "mha" | "mhd" => mha::read(path),
        _ => {
            let bytes = files::read(path)?;
            if bytes.is_empty() {
                Err(Error::new("the file is empty"))
            } else if bytes.starts_with(b"\x89PNG") || bytes.starts_with(b"\xff\xd8\xff") {
                decode(&bytes, colour)
            } else if dicom::is_dicom(&bytes) || ["dcm", "dicom", "dic"].contains(&ending.as_str()) {
                dicom::decode(&bytes, intensity)
            } else {
                let known = EXTENSIONS.join(", ");
                Err(Error::new(format!("not an image that Lightbox reads (known: {known})")))
            }
        }
    };
    let image = image.map_err(|e| e.with_path(path))?;
    Ok(if colour && image.channels == 1 { tripled(image) } else { image })
}

fn tripled(image: Image) -> Image {
    fn three<T: Copy>(v: &[T]) -> Vec<T> {
        v.iter().flat_map(|&v| [v; 3]).collect()
    }
    let pixels = match &image.pixels {
        Pixels::U8(v) => Pixels::U8(three(v)),
        Pixels::U16(v) => Pixels::U16(three(v)),
        Pixels::F32(v) => Pixels::F32(three(v)),
        Pixels::Unit(v) => Pixels::Unit(three(v)),
    };
    Image { channels: 3, pixels, ..image }
}

/// PNG or JPEG.
fn decode(bytes: &[u8], colour: bool) -> Result<Image> {
    use image::ImageDecoder;
    let broken = |e: &dyn std::fmt::Display| Error::new(format!("the image is broken: {e}"));
    let mut reader = image::ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| broken(&e))?;
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(MAX_PIXELS * 8);
    limits.max_image_width = Some(1 << 20);
    limits.max_image_height = Some(1 << 20);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|e| broken(&e))?;
    let orientation = decoder.orientation().map_err(|e| broken(&e))?;
    let mut decoded = image::DynamicImage::from_decoder(decoder).map_err(|e| broken(&e))?;
    decoded.apply_orientation(orientation);
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    use image::ColorType::{L8, La8, Rgb8, Rgba8};
    let deep = !matches!(decoded.color(), L8 | La8 | Rgb8 | Rgba8);
    let (channels, pixels) = match (colour && decoded.color().has_color(), deep) {
        (true, false) => (3, Pixels::U8(decoded.into_rgb8().into_raw())),
        (true, true) => (3, Pixels::U16(decoded.into_rgb16().into_raw())),
        (false, false) => (1, Pixels::U8(decoded.into_luma8().into_raw())),
        (false, true) => (1, Pixels::U16(decoded.into_luma16().into_raw())),
    };
    Image::new(width, height, channels, pixels)
}
