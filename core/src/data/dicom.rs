//! DICOM files with a grey image, as a radiologist sees them (PS3.3 C.7.6.3, C.11.1, C.11.2; PS3.4 N.2):
//!
//! stored value (the bits from HighBit down) -> modality (LUT, or slope and intercept) -> VOI (LUT, or the first window by
//! its function) -> [0, 1] -> inverted for MONOCHROME1 or a PresentationLUTShape INVERSE, once for both.
//!
//! Where nothing says what range matters, 8-bit values without rescale are divided by 255 and all others go from their least
//! to their greatest, padding left out. Padding becomes black. Pixels that are not square are an error: no mask would fit.
//!
//! Read are raw little and big endian, deflated, RLE, JPEG baseline and lossless, JPEG 2000. JPEG-LS is not. Files without
//! preamble or without file meta are read too. Oracle: pydicom.

use super::dicom_walk;
use super::image::{Image, Intensity, MAX_PIXELS, Pixels, range, stretch};
use crate::{Error, Result};
use dicom_object::{DefaultDicomObject, FileDicomObject, FileMetaTableBuilder, InMemDicomObject, Tag};
use dicom_pixeldata::PixelDecoder;
use std::io::Read;

const RLE: &str = "1.2.840.10008.1.2.5";

/// True for a file that begins as DICOM does: with `DICM` after the preamble or at once, or with an element of group 2 or 8.
pub fn is_dicom(bytes: &[u8]) -> bool {
    let magic = |at: usize| bytes.get(at..at + 4) == Some(b"DICM");
    magic(128) || magic(0) || matches!(bytes.get(..4), Some([2 | 8, 0, _, 0]))
}

fn broken(e: &dyn std::error::Error) -> Error {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(inner) = cause {
        text += &format!(": {inner}");
        cause = inner.source();
    }
    let e = text;
    Error::new(format!("the DICOM file is broken: {e}"))
}

/// The element (0002,0000) for file meta elements that lack it (explicit, little-endian): their length in bytes.
fn group_length(meta: &[u8]) -> Vec<u8> {
    let mut at = 0;
    while let Some([2, 0, _, _, vr0, vr1, l0, l1]) = meta.get(at..at + 8) {
        let long = matches!([*vr0, *vr1], [b'O', _] | [b'U', b'N' | b'T' | b'C' | b'R'] | [b'S', b'Q']);
        at += match (long, meta.get(at + 8..at + 12)) {
            (true, Some(length)) => 12 + length.iter().rev().fold(0, |n, &b| n << 8 | usize::from(b)),
            _ => 8 + usize::from(u16::from_le_bytes([*l0, *l1])),
        };
    }
    let mut element = vec![2, 0, 0, 0, b'U', b'L', 4, 0];
    element.extend((at as u32).to_le_bytes());
    element
}

/// The data set, whatever its file begins with.
fn open(bytes: &[u8]) -> Result<DefaultDicomObject> {
    let magic = |at: usize| bytes.get(at..at + 4) == Some(b"DICM");
    let meta = match () {
        () if magic(128) => Some(&bytes[132..]),
        () if magic(0) => Some(&bytes[4..]),
        () if matches!(bytes.get(..4), Some([2, 0, _, 0])) => Some(bytes),
        () => None,
    };
    if let Some(meta) = meta {
        let (syntax, end) = dicom_walk::meta(meta)?;
        match syntax.as_str() {
            // Deflated, and big endian, which nobody has written for twenty years.
            "1.2.840.10008.1.2.1.99" | "1.2.840.10008.1.2.2" => {}
            syntax => dicom_walk::check(&meta[end..], syntax != "1.2.840.10008.1.2")?,
        }
        let mut head = b"DICM".to_vec();
        if meta.get(2..4) != Some(&[0, 0]) {
            head.extend(group_length(meta));
        }
        return FileDicomObject::from_reader(Read::chain(&head[..], meta)).map_err(|e| broken(&e));
    }
    // A bare data set: explicit value representations are two capital letters after the first tag.
    let explicit = bytes.get(4..6).is_some_and(|vr| vr.iter().all(u8::is_ascii_uppercase));
    dicom_walk::check(bytes, explicit)?;
    let syntax = if explicit { "1.2.840.10008.1.2.1" } else { "1.2.840.10008.1.2" };
    let meta = FileMetaTableBuilder::new()
        .transfer_syntax(syntax)
        .media_storage_sop_class_uid("1.2.840.10008.5.1.4.1.1.1")
        .media_storage_sop_instance_uid("2.25.1")
        .build();
    let mut head = b"DICM".to_vec();
    meta.map_err(|e| broken(&e))?.write(&mut head).map_err(|e| broken(&e))?;
    FileDicomObject::from_reader(Read::chain(&head[..], bytes)).map_err(|e| broken(&e))
}

fn number(set: &InMemDicomObject, tag: Tag) -> Option<f64> {
    set.get(tag)?.to_multi_float64().ok()?.first().copied().filter(|v| v.is_finite())
}

fn code(set: &InMemDicomObject, tag: Tag) -> Option<String> {
    let text = set.get(tag)?.to_str().ok()?;
    Some(text.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_ascii_uppercase())
}

/// A look-up table: entry `value - first`, clamped to its ends.
struct Table {
    first: i64,
    bits: u32,
    data: Vec<u16>,
}

impl Table {
    fn read(set: &InMemDicomObject, sequence: Tag, signed: bool) -> Option<Table> {
        let item = set.get(sequence)?.items()?.first()?;
        let descriptor: Vec<i64> = item.get(Tag(0x0028, 0x3002))?.to_multi_int().ok()?;
        let [n, first, bits] = descriptor[..] else { return None };
        let n = match n & 0xffff {
            0 => 65536,
            n => n as usize,
        };
        let first = if signed { i64::from(first as i16) } else { i64::from(first as u16) };
        let bytes = item.get(Tag(0x0028, 0x3006))?.to_bytes().ok()?;
        let data = if bytes.len() >= 2 * n {
            bytes.chunks_exact(2).take(n).map(|c| u16::from_ne_bytes([c[0], c[1]])).collect()
        } else {
            bytes.get(..n)?.iter().map(|&b| u16::from(b)).collect()
        };
        Some(Table { first, bits: bits as u32 & 0xff, data })
    }

    fn apply(&self, value: f64) -> f64 {
        let index = (value.round() as i64 - self.first).clamp(0, self.data.len() as i64 - 1);
        f64::from(self.data[index as usize])
    }
}

/// How values of interest become [0, 1].
enum Voi {
    Table(Table),
    Window { centre: f64, width: f64, function: String },
}

impl Voi {
    fn read(set: &InMemDicomObject, signed: bool) -> Result<Option<Voi>> {
        if let Some(table) = Table::read(set, Tag(0x0028, 0x3010), signed) {
            return Ok(Some(Voi::Table(table)));
        }
        let (centre, width) = (number(set, Tag(0x0028, 0x1050)), number(set, Tag(0x0028, 0x1051)));
        let function = code(set, Tag(0x0028, 0x1056)).filter(|f| !f.is_empty()).unwrap_or_else(|| "LINEAR".into());
        let (Some(centre), Some(width)) = (centre, width) else { return Ok(None) };
        let least = if function == "LINEAR" { 1.0 } else { f64::MIN_POSITIVE };
        if width < least || !["LINEAR", "LINEAR_EXACT", "SIGMOID"].contains(&function.as_str()) {
            return Err(Error::new(format!("the DICOM window {centre}, {width} ({function}) is not one")));
        }
        Ok(Some(Voi::Window { centre, width, function }))
    }

    /// C.11.2.1.2 with y from 0 to 1.
    fn apply(&self, value: f64) -> f64 {
        match self {
            Voi::Table(table) => table.apply(value) / ((1u64 << table.bits.clamp(1, 16)) - 1) as f64,
            Voi::Window { centre, width, function } => match function.as_str() {
                "SIGMOID" => 1.0 / (1.0 + (-4.0 * (value - centre) / width).exp()),
                "LINEAR_EXACT" => (value - centre) / width + 0.5,
                // A width of 1 is a step.
                _ if *width == 1.0 => f64::from(u8::from(value > centre - 0.5)),
                _ => (value - (centre - 0.5)) / (width - 1.0) + 0.5,
            },
        }
    }
}

/// One frame of run-length coded grey samples (PS3.5 annex G), little-endian; `None` if it is broken.
fn run_lengths(fragment: &[u8], pixels: usize, bytes: usize) -> Option<Vec<u8>> {
    let word = |i: usize| Some(u32::from_le_bytes(fragment.get(4 * i..4 * i + 4)?.try_into().ok()?) as usize);
    if word(0)? != bytes {
        return None;
    }
    let mut out = vec![0; pixels * bytes];
    for plane in 0..bytes {
        // The most significant byte comes first.
        let end = if plane + 1 < bytes { word(plane + 2)? } else { fragment.len() };
        let mut from = fragment.get(word(plane + 1)?..end)?;
        let mut to = out.iter_mut().skip(bytes - 1 - plane).step_by(bytes);
        let mut left = pixels;
        while left > 0 {
            let (&n, rest) = from.split_first()?;
            let (count, run) = match n {
                0..=127 => (usize::from(n) + 1, false),
                128 => {
                    from = rest;
                    continue;
                }
                _ => (257 - usize::from(n), true),
            };
            let used = if run { 1 } else { count };
            let data = rest.get(..used)?;
            for i in 0..count.min(left) {
                *to.next()? = data[if run { 0 } else { i }];
            }
            left -= count.min(left);
            from = &rest[used..];
        }
    }
    Some(out)
}

/// The raw words of the first frame.
fn words(object: &DefaultDicomObject, [height, width]: [u32; 2], bits: u32) -> Result<Vec<u32>> {
    let pixels = width as usize * height as usize;
    let syntax = object.meta().transfer_syntax().trim_end_matches('\0').to_string();
    let bytes = bits as usize / 8;
    if syntax == RLE {
        let data = object.get(Tag(0x7fe0, 0x0010)).and_then(|e| e.fragments());
        let frame = data.and_then(|f| f.first()).and_then(|f| run_lengths(f, pixels, bytes));
        let frame = frame.ok_or_else(|| Error::new("the DICOM file is broken: its run-length coded pixels"))?;
        return Ok(frame.chunks_exact(bytes).map(|c| c.iter().rev().fold(0, |v, &b| v << 8 | u32::from(b))).collect());
    }
    let fragments = object.get(Tag(0x7fe0, 0x0010)).and_then(|e| e.fragments());
    let claimed = fragments.and_then(|f| f.first()).and_then(|f| dicom_walk::frame_size(f));
    if let Some([h, w]) = claimed.filter(|size| *size != [height, width]) {
        return Err(Error::new(format!(
            "the DICOM file is broken: it says {width} x {height} pixels, its code stream {w} x {h}"
        )));
    }
    // The decoder of JPEG panics on some broken streams; what it left is dropped.
    let decoded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| object.decode_pixel_data_frame(0)));
    let decoded = decoded.map_err(|_| Error::new("the DICOM file is broken: its compressed pixels"))?;
    let decoded = decoded.map_err(|e| {
        let what = format!("the pixels cannot be decoded (transfer syntax {syntax}): {e}");
        Error::new(what).hint("decompress the file, for instance by `gdcmconv --raw IN OUT`")
    })?;
    let frame = decoded.frame_data(0).map_err(|e| broken(&e))?;
    let words: Vec<u32> = match bytes {
        1 => frame.iter().map(|&b| u32::from(b)).collect(),
        _ => frame.chunks_exact(2).map(|b| u32::from(u16::from_ne_bytes([b[0], b[1]]))).collect(),
    };
    match words.len() >= pixels {
        true => Ok(words[..pixels].to_vec()),
        false => Err(Error::new(format!("the DICOM file is truncated: {} of {pixels} pixels", words.len()))),
    }
}

/// Decodes the first frame.
pub fn decode(bytes: &[u8], intensity: Intensity) -> Result<Image> {
    let object = open(bytes)?;
    let need = |tag: Tag, name: &str| -> Result<u32> {
        let found = object.get(tag).and_then(|e| e.to_int::<u32>().ok());
        found.ok_or_else(|| Error::new(format!("the DICOM file is broken: it has no {name}")))
    };
    let (width, height) = (need(Tag(0x0028, 0x0011), "Columns")?, need(Tag(0x0028, 0x0010), "Rows")?);
    if width == 0 || height == 0 || u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(Error::new(format!("the image has {width} x {height} pixels")));
    }
    let photometric = code(&object, Tag(0x0028, 0x0004)).unwrap_or_default();
    if !["MONOCHROME1", "MONOCHROME2"].contains(&photometric.as_str()) {
        return Err(Error::new(format!("a grey DICOM image was expected, this one is {photometric}")));
    }
    let aspect = object.get(Tag(0x0028, 0x0034)).and_then(|e| e.to_multi_float64().ok());
    if let Some([vertical, horizontal]) = aspect.as_deref()
        && vertical != horizontal
    {
        return Err(Error::new(format!("the pixels are not square (aspect {vertical}:{horizontal})")));
    }
    let allocated = need(Tag(0x0028, 0x0100), "BitsAllocated")?;
    let stored = need(Tag(0x0028, 0x0101), "BitsStored")?;
    let high = object.get(Tag(0x0028, 0x0102)).and_then(|e| e.to_int::<u32>().ok()).unwrap_or(stored.wrapping_sub(1));
    if ![8, 16].contains(&allocated) || stored == 0 || high >= allocated || high + 1 < stored {
        return Err(Error::new(format!("BitsAllocated {allocated}, BitsStored {stored}, HighBit {high} are not read")));
    }
    let signed = object.get(Tag(0x0028, 0x0103)).and_then(|e| e.to_int::<u32>().ok()) == Some(1);
    let words = words(&object, [height, width], allocated)?;
    let value = |word: u32| -> i64 {
        let moved = word << (31 - high);
        if signed { i64::from(moved as i32 >> (32 - stored)) } else { i64::from(moved >> (32 - stored)) }
    };
    // Padding may use the bits above those that are stored, so both readings of a word are compared.
    let whole = |word: u32| -> i64 {
        let moved = word << (32 - allocated);
        if signed { i64::from(moved as i32 >> (32 - allocated)) } else { i64::from(moved >> (32 - allocated)) }
    };
    let padding = |tag: Tag| object.get(tag)?.to_int::<i64>().ok().map(|v| whole(v as u32));
    let padding = padding(Tag(0x0028, 0x0120)).map(|a| {
        let b = padding(Tag(0x0028, 0x0121)).unwrap_or(a);
        (a.min(b), a.max(b))
    });
    let is_padding = |word: u32| {
        padding.is_some_and(|(low, high)| [value(word), whole(word)].iter().any(|v| (low..=high).contains(v)))
    };

    let slope = number(&object, Tag(0x0028, 0x1053)).unwrap_or(1.0);
    let intercept = number(&object, Tag(0x0028, 0x1052)).unwrap_or(0.0);
    let modality = Table::read(&object, Tag(0x0028, 0x3000), signed);
    let output = |word: u32| match &modality {
        Some(table) => table.apply(value(word) as f64),
        None => value(word) as f64 * slope + intercept,
    };
    let voi = match intensity {
        Intensity::Auto => Voi::read(&object, signed || intercept < 0.0)?,
        _ => None,
    };
    let plain = modality.is_none() && slope == 1.0 && intercept == 0.0 && stored == 8 && !signed;
    let inverted = photometric == "MONOCHROME1" || code(&object, Tag(0x2050, 0x0020)).as_deref() == Some("INVERSE");
    let mut unit: Vec<f32> = match &voi {
        Some(voi) => words.iter().map(|&w| voi.apply(output(w)).clamp(0.0, 1.0) as f32).collect(),
        None => {
            let values: Vec<f32> = words.iter().map(|&w| output(w) as f32).collect();
            let shown: Vec<f32> =
                words.iter().zip(&values).filter(|(w, _)| !is_padding(**w)).map(|(_, v)| *v).collect();
            let ends = if plain && intensity == Intensity::Auto { (0.0, 255.0) } else { range(&shown, intensity) };
            stretch(&values, ends)
        }
    };
    for (v, &word) in unit.iter_mut().zip(&words) {
        *v = match (is_padding(word), inverted) {
            (true, _) => 0.0,
            (_, true) => 1.0 - *v,
            _ => *v,
        };
    }
    // What 8 bits hold exactly stays 8-bit.
    let pixels = match plain && voi.is_none() && intensity == Intensity::Auto {
        true => Pixels::U8(unit.iter().map(|v| (v * 255.0 + 0.5) as u8).collect()),
        false => Pixels::Unit(unit),
    };
    Image::grey(width as usize, height as usize, pixels)
}
