//! MetaImage: `.mha` (header and data in one file) and `.mhd` with a raw file, uncompressed or zlib, 8-, 16- and 32-bit
//! integers, 32- and 64-bit floats, both byte orders. Format: <https://itk.org/Wiki/ITK/MetaIO/Documentation>

use super::image::{Image, MAX_PIXELS, Pixels};
use crate::{Error, Result, files};
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A header longer than this is not one.
const MAX_HEADER: usize = 1 << 16;

/// The file of its own that the pixels of a MetaImage lie in, as its header says; none where there is none or no header.
pub fn data_file(path: &Path) -> Option<PathBuf> {
    let mut head = Vec::new();
    std::fs::File::open(path).ok()?.take(MAX_HEADER as u64).read_to_end(&mut head).ok()?;
    let (fields, _) = header(&head).ok()?;
    let name = fields.get("ElementDataFile").filter(|name| *name != "LOCAL")?;
    Some(path.with_file_name(name)).filter(|file| file.is_file())
}

/// Reads a 2-D image, or a 3-D one of a single slice.
pub fn read(path: &Path) -> Result<Image> {
    let bytes = files::read(path)?;
    let (header, start) = header(&bytes)?;
    let field = |key: &str| header.get(key).map(String::as_str);
    let need = |key: &str| field(key).ok_or_else(|| Error::new(format!("the MetaImage header has no {key}")));
    let yes = |key: &str| field(key).is_some_and(|v| v.eq_ignore_ascii_case("true"));

    let mut sizes = Vec::new();
    for word in need("DimSize")?.split_whitespace() {
        let size = word.parse::<u64>().map_err(|_| Error::new(format!("DimSize {word} is not a size")))?;
        sizes.push(size);
    }
    if sizes.len() < 2 || sizes[2..].iter().any(|&n| n != 1) {
        return Err(Error::new(format!("a 2-D image was expected, DimSize is {}", need("DimSize")?)));
    }
    let (width, height) = (sizes[0], sizes[1]);
    let count = width.checked_mul(height).filter(|&n| n <= MAX_PIXELS);
    let count = count.ok_or_else(|| Error::new(format!("{width} x {height} pixels are more than {MAX_PIXELS}")))?;
    if count == 0 {
        return Err(Error::new(format!("the image is empty ({width} x {height} pixels)")));
    }
    if field("ElementNumberOfChannels").is_some_and(|n| n != "1") {
        return Err(Error::new("the image has several channels; one was expected"));
    }
    let kind = need("ElementType")?;
    let bytes_each = match kind {
        "MET_UCHAR" | "MET_CHAR" => 1,
        "MET_USHORT" | "MET_SHORT" => 2,
        "MET_UINT" | "MET_INT" | "MET_FLOAT" => 4,
        "MET_DOUBLE" => 8,
        other => return Err(Error::new(format!("ElementType {other} is not supported"))),
    };

    let file = need("ElementDataFile")?;
    let raw = match file {
        "LOCAL" => bytes[start..].to_vec(),
        name if name.contains('%') || name == "LIST" => {
            return Err(Error::new(format!("ElementDataFile {name}: data in several files are not supported")));
        }
        name => files::read(&path.with_file_name(name))?,
    };
    let wanted = count as usize * bytes_each;
    // A raw file may have a header of its own: so many bytes, or (-1) all that come before the data.
    let raw = match field("HeaderSize").unwrap_or("0") {
        "-1" if !yes("CompressedData") => raw[raw.len().saturating_sub(wanted)..].to_vec(),
        size => match size.parse::<usize>() {
            Ok(skip) if skip <= raw.len() => raw[skip..].to_vec(),
            _ => return Err(Error::new(format!("HeaderSize {size} is not supported"))),
        },
    };
    let raw = if yes("CompressedData") {
        let mut plain = Vec::with_capacity(wanted);
        let limited = flate2::read::ZlibDecoder::new(raw.as_slice()).take(wanted as u64 + 1).read_to_end(&mut plain);
        limited.map_err(|e| Error::new(format!("the compressed data are broken: {e}")))?;
        plain
    } else {
        raw
    };
    if raw.len() < wanted {
        let have = raw.len();
        return Err(Error::new(format!(
            "the file is truncated: {have} of {wanted} bytes for {width} x {height} {kind}"
        )));
    }
    let raw = &raw[..wanted];

    let msb = yes("BinaryDataByteOrderMSB") || yes("ElementByteOrderMSB");
    fn values<const N: usize, T>(raw: &[u8], msb: bool, read: impl Fn([u8; N]) -> T) -> Vec<T> {
        let one = |chunk: &[u8]| {
            let mut bytes = [0; N];
            bytes.copy_from_slice(chunk);
            if msb {
                bytes.reverse();
            }
            read(bytes)
        };
        raw.chunks_exact(N).map(one).collect()
    }
    let pixels = match kind {
        "MET_UCHAR" => Pixels::U8(raw.to_vec()),
        "MET_CHAR" => Pixels::F32(raw.iter().map(|&b| f32::from(b as i8)).collect()),
        "MET_USHORT" => Pixels::U16(values(raw, msb, u16::from_le_bytes)),
        "MET_SHORT" => Pixels::F32(values(raw, msb, |b| f32::from(i16::from_le_bytes(b)))),
        "MET_UINT" => Pixels::F32(values(raw, msb, |b| u32::from_le_bytes(b) as f32)),
        "MET_INT" => Pixels::F32(values(raw, msb, |b| i32::from_le_bytes(b) as f32)),
        "MET_FLOAT" => Pixels::F32(values(raw, msb, f32::from_le_bytes)),
        _ => Pixels::F32(values(raw, msb, |b| f64::from_le_bytes(b) as f32)),
    };
    Image::grey(width as usize, height as usize, pixels)
}

/// `Key = Value` lines up to ElementDataFile, and where the data begin.
fn header(bytes: &[u8]) -> Result<(HashMap<String, String>, usize)> {
    let mut fields = HashMap::new();
    let mut at = 0;
    loop {
        let rest = &bytes[at..bytes.len().min(MAX_HEADER)];
        let end = rest.iter().position(|&b| b == b'\n');
        let end = end.ok_or_else(|| Error::new("not a MetaImage: the header has no ElementDataFile"))?;
        let line =
            std::str::from_utf8(&rest[..end]).map_err(|_| Error::new("not a MetaImage: the header is not text"))?;
        at += end + 1;
        let Some((key, value)) = line.split_once('=') else {
            return Err(Error::new(format!("not a MetaImage: header line `{}`", line.trim())));
        };
        let key = key.trim().to_string();
        fields.insert(key.clone(), value.trim().to_string());
        if key == "ElementDataFile" {
            return Ok((fields, at));
        }
    }
}

/// Writes an uncompressed 16-bit `.mha`: what NODE21 ships.
pub fn write_u16(path: &Path, width: usize, height: usize, pixels: &[u16]) -> Result<()> {
    files::write_atomic(path, |w| {
        write!(
            w,
            "ObjectType = Image\nNDims = 2\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n\
             DimSize = {width} {height}\nElementType = MET_USHORT\nElementDataFile = LOCAL\n"
        )?;
        let bytes: Vec<u8> = pixels.iter().flat_map(|p| p.to_le_bytes()).collect();
        w.write_all(&bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(kind: &str, extra: &str, size: &str, data: &[u8]) -> Vec<u8> {
        let head = format!(
            "ObjectType = Image\nNDims = 2\n{extra}DimSize = {size}\nElementType = {kind}\nElementDataFile = LOCAL\n"
        );
        [head.as_bytes(), data].concat()
    }

    fn parse(bytes: &[u8]) -> Result<Image> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.mha");
        std::fs::write(&path, bytes).unwrap();
        read(&path)
    }

    fn check(kind: &str, extra: &str, data: &[u8], pixels: Pixels) {
        assert_eq!(
            parse(&file(kind, extra, "2 1", data)).unwrap(),
            Image::grey(2, 1, pixels).unwrap(),
            "{kind} {extra}"
        );
    }

    #[test]
    fn every_element_type_and_byte_order() {
        let msb = "BinaryDataByteOrderMSB = True\n";
        check("MET_UCHAR", "", &[1, 255], Pixels::U8(vec![1, 255]));
        check("MET_CHAR", "", &[1, 255], Pixels::F32(vec![1.0, -1.0]));
        check("MET_USHORT", "", &[1, 2, 3, 4], Pixels::U16(vec![0x201, 0x403]));
        check("MET_USHORT", msb, &[1, 2, 3, 4], Pixels::U16(vec![0x102, 0x304]));
        check("MET_SHORT", "ElementByteOrderMSB = True\n", &[255, 255, 0, 7], Pixels::F32(vec![-1.0, 7.0]));
        let floats: Vec<u8> = [0.5f32, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        check("MET_FLOAT", "", &floats, Pixels::F32(vec![0.5, -2.0]));
        let doubles: Vec<u8> = [0.5f64, -2.0].iter().flat_map(|v| v.to_be_bytes()).collect();
        check("MET_DOUBLE", msb, &doubles, Pixels::F32(vec![0.5, -2.0]));
        let ints: Vec<u8> = [70000i32, -2].iter().flat_map(|v| v.to_le_bytes()).collect();
        check("MET_INT", "", &ints, Pixels::F32(vec![70000.0, -2.0]));
    }

    #[test]
    fn zlib_and_a_raw_file_beside_the_header() {
        let mut zip = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        zip.write_all(&[1, 2, 3, 4]).unwrap();
        check("MET_USHORT", "CompressedData = True\n", &zip.finish().unwrap(), Pixels::U16(vec![0x201, 0x403]));
        let folder = tempfile::tempdir().unwrap();
        let head = "NDims = 3\nDimSize = 2 1 1\nElementType = MET_UCHAR\nElementDataFile = x.raw\n";
        std::fs::write(folder.path().join("x.mhd"), head).unwrap();
        let missing = read(&folder.path().join("x.mhd")).unwrap_err().to_string();
        assert!(missing.contains("x.raw: no such file"), "{missing}");
        std::fs::write(folder.path().join("x.raw"), [9, 8]).unwrap();
        assert_eq!(read(&folder.path().join("x.mhd")).unwrap().pixels, Pixels::U8(vec![9, 8]));
        assert_eq!(data_file(&folder.path().join("x.mhd")), Some(folder.path().join("x.raw")));
        for size in ["3", "-1"] {
            std::fs::write(folder.path().join("x.mhd"), format!("HeaderSize = {size}\n{head}")).unwrap();
            std::fs::write(folder.path().join("x.raw"), [0, 0, 0, 9, 8]).unwrap();
            assert_eq!(read(&folder.path().join("x.mhd")).unwrap().pixels, Pixels::U8(vec![9, 8]), "{size}");
        }
    }

    #[test]
    fn broken_files_say_so() {
        let error = |bytes: &[u8]| parse(bytes).unwrap_err().to_string();
        let cut = error(&file("MET_USHORT", "", "20 10", &[0; 399]));
        assert!(cut.contains("truncated: 399 of 400 bytes"), "{cut}");
        assert!(error(&file("MET_UCHAR", "", "4000000000 4000000000", &[])).contains("pixels are more than"));
        assert!(error(&file("MET_UCHAR", "", "0 5", &[])).contains("the image is empty (0 x 5 pixels)"));
        assert!(error(&file("MET_UCHAR", "", "2 2 9", &[0; 36])).contains("a 2-D image was expected"));
        assert!(error(&file("MET_LONG_LONG", "", "2 1", &[0; 16])).contains("MET_LONG_LONG is not supported"));
        assert!(error(b"NDims = 2\nDimSize = 1 1\n").contains("no ElementDataFile"));
        assert!(error(b"\xff\xfe\x00binary").contains("not a MetaImage"));
        let wrong = file("MET_UCHAR", "CompressedData = True\n", "2 1", b"not zlib");
        assert!(error(&wrong).contains("compressed data are broken"));
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("n0001.mha");
        write_u16(&path, 3, 1, &[0, 4095, 65535]).unwrap();
        assert_eq!(read(&path).unwrap().pixels, Pixels::U16(vec![0, 4095, 65535]));
    }
}
