//! A walk over the elements of a DICOM file before anything is made of them: a length that the file cannot hold would be
//! reserved, and sequences inside each other would be read by recursion. PS3.5 7 (encoding), PS3.10 7 (file meta).

use crate::{Error, Result};
use dicom_core::dictionary::{DataDictionary, DataDictionaryEntry};
use dicom_core::{Tag, VR};
use dicom_object::StandardDataDictionary;

/// Sequences inside each other; files of scanners have a handful.
const DEPTH: usize = 64;

/// A length that says that an end mark follows.
const UNDEFINED: u32 = u32::MAX;

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The value representations of PS3.5 6.2. Another one would be read with a length of two bytes here and of four there.
const KNOWN: [&[u8; 2]; 34] = [
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"OB", b"OD", b"OF", b"OL",
    b"OV", b"OW", b"PN", b"SH", b"SL", b"SQ", b"SS", b"ST", b"SV", b"TM", b"UC", b"UI", b"UL", b"UN", b"UR", b"US",
    b"UT", b"UV",
];

fn unknown(group: u16, element: u16, kind: &[u8]) -> Error {
    let kind = String::from_utf8_lossy(kind);
    Error::new(format!(
        "the DICOM file is broken: element ({group:04x},{element:04x}) has the unknown representation `{kind}`"
    ))
}

/// Bytes of a number of a representation; 1 where it holds none. The library reads whole numbers and goes on after the last of
/// them, in the middle of what is left of the element.
fn unit(kind: VR) -> u32 {
    match kind {
        VR::US | VR::SS | VR::OW => 2,
        VR::UL | VR::SL | VR::FL | VR::AT | VR::OL | VR::OF => 4,
        VR::FD | VR::OD | VR::SV | VR::UV | VR::OV => 8,
        _ => 1,
    }
}

/// The representation of an element: what the file says, or the dictionary where it says none.
fn representation(group: u16, element: u16, said: Option<&[u8]>) -> VR {
    match said {
        Some(&[a, b]) => VR::from_binary([a, b]).unwrap_or(VR::UN),
        _ => StandardDataDictionary.by_tag(Tag(group, element)).map_or(VR::UN, |entry| entry.vr().relaxed()),
    }
}

/// What a level of the walk is in.
struct Level {
    /// Where it ends; none where an end mark says so.
    end: Option<usize>,
    explicit: bool,
    /// Fragments of pixels: items whose bytes are no elements.
    fragments: bool,
}

/// Checks elements, little-endian, to the end of the bytes.
///
/// # Errors
/// A length that is more than what is left, or sequences nested deeper than any scanner's.
pub fn check(bytes: &[u8], explicit: bool) -> Result<()> {
    let mut levels = vec![Level { end: None, explicit, fragments: false }];
    let mut at = 0;
    while let Some(level) = levels.last() {
        if level.end.is_some_and(|end| at >= end) {
            levels.pop();
            continue;
        }
        let (Some(group), Some(element)) = (word(bytes, at), word(bytes, at + 2)) else { break };
        let (in_fragments, explicit) = (level.fragments, level.explicit);
        let is_item = group == 0xfffe;
        let (header, length) = match (is_item, explicit, bytes.get(at + 4..at + 6)) {
            (
                false,
                true,
                Some(
                    b"OB" | b"OW" | b"OF" | b"OD" | b"OL" | b"OV" | b"SQ" | b"UC" | b"UR" | b"UT" | b"UN" | b"SV"
                    | b"UV",
                ),
            ) => (12, long(bytes, at + 8)),
            (false, true, Some(_)) => (8, word(bytes, at + 6).map(u32::from)),
            _ => (8, long(bytes, at + 4)),
        };
        let Some(length) = length else { break };
        let kind = bytes.get(at + 4..at + 6).unwrap_or_default();
        if !is_item && explicit && !KNOWN.iter().any(|k| *k == kind) {
            return Err(unknown(group, element, kind));
        }
        at += header;
        let left = bytes.len().saturating_sub(at);
        if length != UNDEFINED && length as usize > left {
            return Err(Error::new(format!(
                "the DICOM file is truncated: element ({group:04x},{element:04x}) has {length} bytes, and {left} are left"
            )));
        }
        let unit = unit(representation(group, element, Some(kind).filter(|_| explicit)));
        if !is_item && length != UNDEFINED && !length.is_multiple_of(unit) {
            return Err(Error::new(format!(
                "the DICOM file is broken: element ({group:04x},{element:04x}) has {length} bytes of numbers of {unit}"
            )));
        }
        if is_item && element != 0xe000 {
            // The end of an item or of a sequence.
            if levels.len() > 1 {
                levels.pop();
            }
            continue;
        }
        let sequence = !is_item && explicit && kind == b"SQ";
        let pixels = (group, element) == (0x7fe0, 0x0010);
        let inside = match length {
            UNDEFINED => Some(Level { end: None, explicit: explicit && kind != b"UN", fragments: pixels }),
            _ if (is_item && !in_fragments) || sequence => {
                Some(Level { end: Some(at + length as usize), explicit, fragments: false })
            }
            _ => None,
        };
        match inside {
            Some(level) if levels.len() < DEPTH => levels.push(level),
            Some(_) => {
                return Err(Error::new(format!(
                    "the DICOM file is broken: more than {DEPTH} sequences inside each other"
                )));
            }
            None => at += length as usize,
        }
    }
    // What has no length ends with a mark.
    match levels.iter().skip(1).any(|level| level.end.is_none_or(|end| end > bytes.len())) {
        true => Err(Error::new("the DICOM file is truncated: it ends within a sequence")),
        false => Ok(()),
    }
}

/// The transfer syntax of file meta elements (group 2, explicit, little-endian), and where they end.
///
/// # Errors
/// As [`check`].
pub fn meta(bytes: &[u8]) -> Result<(String, usize)> {
    let (mut at, mut syntax) = (0, String::new());
    while word(bytes, at) == Some(2) {
        let element = word(bytes, at + 2).unwrap_or_default();
        let kind = bytes.get(at + 4..at + 6).unwrap_or_default();
        if !KNOWN.iter().any(|k| *k == kind) {
            return Err(unknown(2, element, kind));
        }
        let wide = matches!(bytes.get(at + 4..at + 6), Some(b"OB" | b"OW" | b"UN" | b"UT" | b"UC" | b"UR" | b"SQ"));
        let (header, length) = if wide { (12, long(bytes, at + 8)) } else { (8, word(bytes, at + 6).map(u32::from)) };
        let Some(length) = length else { break };
        let left = bytes.len().saturating_sub(at + header);
        let claimed = if element == 0 { long(bytes, at + header).unwrap_or(0) } else { length };
        if length as usize > left || claimed as usize > left {
            return Err(Error::new(format!(
                "the DICOM file is truncated: element (0002,{element:04x}) claims {claimed} bytes, and {left} are left"
            )));
        }
        if element == 0x0010 {
            let value = &bytes[at + header..at + header + length as usize];
            syntax = String::from_utf8_lossy(value).trim_end_matches(['\0', ' ']).to_string();
        }
        at += header + length as usize;
    }
    Ok((syntax, at))
}

/// Height and width that the frame header of a JPEG or JPEG 2000 code stream says; none where none is found.
pub fn frame_size(stream: &[u8]) -> Option<[u32; 2]> {
    let short = |at: usize| Some(u32::from(u16::from_be_bytes(stream.get(at..at + 2)?.try_into().ok()?)));
    // SIZ: the image's end and beginning on the reference grid (ISO 15444-1 A.5.1).
    if stream.starts_with(&[0xff, 0x4f, 0xff, 0x51]) {
        let long = |at: usize| Some(u32::from_be_bytes(stream.get(at..at + 4)?.try_into().ok()?));
        return Some([long(12)?.saturating_sub(long(20)?), long(8)?.saturating_sub(long(16)?)]);
    }
    let mut at = 2;
    while stream.get(at) == Some(&0xff) {
        let marker = *stream.get(at + 1)?;
        // SOF: any but DHT, JPG and DAC (ISO 10918-1 B.2.2).
        if (0xc0..=0xcf).contains(&marker) && ![0xc4, 0xc8, 0xcc].contains(&marker) {
            return Some([short(at + 5)?, short(at + 7)?]);
        }
        at += 2 + short(at + 2)? as usize;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_file_cannot_hold_is_refused() {
        let error = |bytes: &[u8], explicit| check(bytes, explicit).unwrap_err().to_string();
        let deep: Vec<u8> =
            [0x08, 0, 0x40, 0x11, 0xff, 0xff, 0xff, 0xff, 0xfe, 0xff, 0, 0xe0, 0xff, 0xff, 0xff, 0xff].repeat(200_000);
        assert!(error(&deep, false).contains("more than 64 sequences"));
        assert!(
            error(&[0x10, 0, 0x10, 0, 0xf0, 0xff, 0xff, 0xff], false)
                .contains("(0010,0010) has 4294967280 bytes, and 0 are left")
        );
        assert!(error(&[0xe0, 0x7f, 0x10, 0, b'O', b'B', 0, 0, 9, 0, 0, 0], true).contains("has 9 bytes"));
        assert!(check(b"\x10\0\x10\0PN\x02\0ab", true).is_ok());
        // What is left of numbers would be read as the next element: 1.3 GB of it, of a file of 21 bytes.
        let odd = b"\x08\0\0\0\x07\0\0\0\x01\0\0\0\0\0\0\x02\xa3\x89PNG";
        assert!(error(odd, false).contains("(0008,0000) has 7 bytes of numbers of 4"));
        assert!(error(b"\x28\0\x10\0US\x03\0abc", true).contains("(0028,0010) has 3 bytes of numbers of 2"));
        // A representation that nobody knows would have its length read in two bytes here and in four by the library.
        assert!(error(b"\x10\0\x10\0U8\x02\0ab", true).contains("(0010,0010) has the unknown representation `U8`"));
        assert!(meta(b"\x02\0\x10\0U8\x02\0ab").unwrap_err().to_string().contains("unknown representation `U8`"));
        // A sequence without a length that the file ends in; with its mark it is whole.
        let open = [0x08, 0, 0x40, 0x11, 0xff, 0xff, 0xff, 0xff];
        assert!(error(&open, false).contains("it ends within a sequence"));
        let mark = [0xfe, 0xff, 0xdd, 0xe0, 0, 0, 0, 0];
        assert!(check(&[open, mark].concat(), false).is_ok());
        let group = [2, 0, 0, 0, b'U', b'L', 4, 0, 0xf0, 0xff, 0xff, 0xff];
        assert!(meta(&group).unwrap_err().to_string().contains("claims 4294967280 bytes"));
    }

    #[test]
    fn frames_say_their_size() {
        let jpeg = [0xff, 0xd8, 0xff, 0xe0, 0, 4, 0, 0, 0xff, 0xc0, 0, 11, 8, 0, 20, 0, 24];
        assert_eq!(frame_size(&jpeg), Some([20, 24]));
        let mut stream = vec![0xff, 0x4f, 0xff, 0x51, 0, 41, 0, 0];
        for v in [24u32, 20, 0, 0] {
            stream.extend(v.to_be_bytes());
        }
        assert_eq!(frame_size(&stream), Some([20, 24]));
        assert_eq!(frame_size(b"none"), None);
    }
}
