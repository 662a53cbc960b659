//! Image files of every format that there is a reader of, by their content.

use super::image::{Image, Intensity, MAX_BYTES, MAX_PIXELS, Pixels};
use super::{dicom, mha};
use crate::{Error, Result, files};
use std::borrow::Cow;
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

/// Width and height of an image, from its head where it is a PNG or JPEG without a turn.
pub fn dimensions(path: &Path) -> Result<[usize; 2]> {
    let head = || -> Option<[usize; 2]> {
        use image::ImageDecoder;
        let file = std::io::BufReader::new(files::open_regular(path).ok()?);
        let mut decoder = image::ImageReader::new(file).with_guessed_format().ok()?.into_decoder().ok()?;
        let turned = decoder.orientation().ok()? != image::metadata::Orientation::NoTransforms;
        let (width, height) = decoder.dimensions();
        (!turned).then_some([width as usize, height as usize])
    };
    match head() {
        Some(size) => Ok(size),
        None => read(path, false).map(|i| [i.width, i.height]),
    }
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

/// A JPEG that may be progressive, with end marks after it, more than any segment can take in: zune-jpeg 0.4 looks for the next
/// mark without end where the file stops after a segment. Others as they are. What follows the first end mark is not read.
fn ended(bytes: &[u8]) -> Cow<'_, [u8]> {
    let progressive = bytes.starts_with(b"\xff\xd8") && bytes.windows(2).any(|w| w == b"\xff\xc2");
    match progressive {
        true => Cow::Owned([bytes, &b"\xff\xd9".repeat(1 << 15 | 8)].concat()),
        false => Cow::Borrowed(bytes),
    }
}

/// PNG or JPEG.
fn decode(bytes: &[u8], colour: bool) -> Result<Image> {
    use image::ImageDecoder;
    let broken = |e: &dyn std::fmt::Display| Error::new(format!("the image is broken: {e}"));
    let padded = ended(bytes);
    let mut reader =
        image::ImageReader::new(Cursor::new(padded.as_ref())).with_guessed_format().map_err(|e| broken(&e))?;
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(MAX_BYTES as u64);
    limits.max_image_width = Some(1 << 20);
    limits.max_image_height = Some(1 << 20);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|e| broken(&e))?;
    // What a header claims is compared before anything is allocated for it. The best of either format packs a pixel of one
    // bit, of which eight bytes are made, a thousand times.
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels > MAX_PIXELS {
        return Err(Error::new(format!("{width} x {height} pixels are more than {MAX_PIXELS}")).hint("scale it down"));
    }
    if decoder.total_bytes() > MAX_BYTES as u64 {
        let total = decoder.total_bytes();
        let what = format!("{width} x {height} pixels are {total} bytes, more than {MAX_BYTES}");
        return Err(Error::new(what).hint("scale the image down, or write it with 8 bits a channel"));
    }
    // A JPEG has a bit at least for each 8 x 8 block: 512 pixels a byte.
    let jpeg = bytes.starts_with(b"\xff\xd8") && pixels > (bytes.len() as u64).saturating_mul(1024) + (1 << 16);
    if jpeg || decoder.total_bytes() > (bytes.len() as u64).saturating_mul(8 * 1200) + (1 << 20) {
        return Err(Error::new(format!(
            "the image is broken: {} bytes cannot hold {width} x {height} pixels",
            bytes.len()
        )));
    }
    let orientation = decoder.orientation().map_err(|e| broken(&e))?;
    // zune-jpeg panics on some damaged progressive files.
    let decoded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| image::DynamicImage::from_decoder(decoder)));
    let mut decoded = decoded.map_err(|_| broken(&"its decoder gave up"))?.map_err(|e| broken(&e))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A damaged progressive JPEG that stops after a segment, as a fuzzer made it; one that is whole is read as it was.
    #[test]
    fn a_damaged_progressive_jpeg_is_an_error_at_worst() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus/image");
        let endless = std::fs::read(corpus.join("endless.jpg")).unwrap();
        let (send, done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let found = std::panic::catch_unwind(|| decode(&endless, false).is_ok());
            let _ = send.send(found.is_ok());
        });
        assert!(done.recv_timeout(std::time::Duration::from_secs(30)).is_ok(), "it is read without end");
        // Another one makes the library panic.
        let panics = std::fs::read(corpus.join("panics.jpg")).unwrap();
        assert!(decode(&panics, false).unwrap_err().to_string().contains("the image is broken"));
        // A frame of 8192 x 170 in a file of some hundred bytes.
        let mut claim = std::fs::read(corpus.join("grey.jpg")).unwrap();
        let frame = claim.windows(2).position(|w| w == b"\xff\xc0").unwrap();
        claim[frame + 5..frame + 9].copy_from_slice(&[0, 170, 32, 0]);
        assert!(decode(&claim, false).unwrap_err().to_string().contains("cannot hold 8192 x 170 pixels"));
        let whole = std::fs::read(corpus.join("rgb.jpg")).unwrap();
        assert!(matches!(ended(&whole), Cow::Owned(_)));
        let plain = image::load_from_memory(&whole).unwrap().to_rgb8().into_raw();
        assert_eq!(decode(&whole, true).unwrap().pixels, Pixels::U8(plain));
    }

    /// A PNG's header of 8-bit grey pixels, and nothing behind it.
    fn claim(width: u32, height: u32) -> Vec<u8> {
        let mut chunk = b"IHDR".to_vec();
        chunk.extend(width.to_be_bytes());
        chunk.extend(height.to_be_bytes());
        chunk.extend([8, 0, 0, 0, 0]);
        let mut crc = flate2::Crc::new();
        crc.update(&chunk);
        let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
        file.extend(&chunk);
        file.extend(crc.sum().to_be_bytes());
        file.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
        file
    }

    #[test]
    fn what_a_header_claims_is_compared_before_it_is_allocated() {
        let check = |width, height, message: &str| {
            let error = decode(&claim(width, height), false).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        check(1 << 20, 1 << 20, "pixels are more than");
        check(8000, 8000, "bytes cannot hold 8000 x 8000 pixels");
        check(8200, 8200, "8200 x 8200 pixels are more than");
    }
}
