//! MetaImage: `.mha` (header and data in one file) and `.mhd` with a raw file beside it, uncompressed, zlib, gzip or numbers as
//! text, integers of 8 to 64 bits, floats of 32 and 64, both byte orders. Headers are read as MetaIO reads them: `=` or `:`
//! after a key, `local` in any case, blank lines, a truth value by its first letter, and `BinaryDataByteOrderMSB` over
//! `ElementByteOrderMSB` where both are there. Format: <https://itk.org/Wiki/ITK/MetaIO/Documentation>

use super::image::{Image, MAX_BYTES, MAX_PIXELS, Pixels};
use crate::{Error, Result, files};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// A header longer than this is not one.
const MAX_HEADER: usize = 1 << 16;

/// The file of its own that the pixels of a MetaImage lie in, as its header says; none where there is none or no header.
pub fn data_file(path: &Path) -> Option<PathBuf> {
    let (fields, _) = header(&head(&files::open_regular(path).ok()?, path).ok()?).ok()?;
    let name = fields.get("ElementDataFile").filter(|name| !is_local(name))?;
    beside(path, name).ok().filter(|file| file.is_file())
}

/// The beginning of a file.
fn head(file: &File, path: &Path) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    file.take(MAX_HEADER as u64).read_to_end(&mut head).map_err(|e| Error::io(path, &e))?;
    Ok(head)
}

fn is_local(name: &str) -> bool {
    name.eq_ignore_ascii_case("LOCAL")
}

/// A file of this name in the header's folder; a name that leads elsewhere is an error.
fn beside(path: &Path, name: &str) -> Result<PathBuf> {
    let plain = Path::new(name).file_name().is_some_and(|own| own == name);
    match plain {
        true => Ok(path.with_file_name(name)),
        false => Err(Error::new(format!("ElementDataFile {name}: the name of a file in the same folder was expected"))),
    }
}

/// The bytes of the data: `wanted` of them, behind a header of `skip` bytes (of `None`: whatever comes before them), or all
/// that there are where they are compressed or text. Compressed data are never much longer than plain ones.
fn data(file: &File, path: &Path, start: u64, skip: Option<u64>, wanted: usize, whole: bool) -> Result<Vec<u8>> {
    let io = |e: std::io::Error| Error::io(path, &e);
    let length = file.metadata().map_err(io)?.len().saturating_sub(start);
    let skip = skip.unwrap_or(length.saturating_sub(wanted as u64));
    if skip > length {
        return Err(Error::new(format!("HeaderSize {skip} is more than the {length} bytes that there are")));
    }
    let take = if whole { 32 * wanted as u64 + (1 << 16) } else { wanted as u64 };
    let mut file = file;
    file.seek(SeekFrom::Start(start + skip)).map_err(io)?;
    let mut bytes = Vec::new();
    file.take(take).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

/// Unpacks zlib or gzip, which MetaIO tells apart by their first bytes.
fn inflate(packed: &[u8], wanted: usize) -> Result<Vec<u8>> {
    let mut plain = Vec::new();
    let limit = wanted as u64 + 1;
    let done = match packed.starts_with(&[0x1f, 0x8b]) {
        true => flate2::read::GzDecoder::new(packed).take(limit).read_to_end(&mut plain),
        false => flate2::read::ZlibDecoder::new(packed).take(limit).read_to_end(&mut plain),
    };
    done.map_err(|e| Error::new(format!("the compressed data are broken: {e}")))?;
    Ok(plain)
}

/// Reads a 2-D image, or a 3-D one of a single slice.
pub fn read(path: &Path) -> Result<Image> {
    let file = files::open_regular(path)?;
    let (header, start) = header(&head(&file, path)?)?;
    let field = |key: &str| header.get(key).map(String::as_str);
    let need = |key: &str| field(key).ok_or_else(|| Error::new(format!("the MetaImage header has no {key}")));
    let yes = |key: &str| field(key).is_some_and(|v| v.starts_with(['T', 't', '1']));

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
        "MET_UCHAR" | "MET_CHAR" | "MET_ASCII_CHAR" => 1,
        "MET_USHORT" | "MET_SHORT" => 2,
        // A long of MetaIO has four bytes on every machine.
        "MET_UINT" | "MET_INT" | "MET_ULONG" | "MET_LONG" | "MET_FLOAT" => 4,
        "MET_ULONG_LONG" | "MET_LONG_LONG" | "MET_DOUBLE" => 8,
        other => return Err(Error::new(format!("ElementType {other} is not supported"))),
    };

    let text = field("BinaryData").is_some() && !yes("BinaryData");
    let packed = yes("CompressedData");
    if text && packed {
        return Err(Error::new("compressed data that are text (BinaryData = False) are not supported"));
    }
    let wanted = count as usize * bytes_each;
    if wanted > MAX_BYTES {
        return Err(Error::new(format!("{width} x {height} {kind} are {wanted} bytes, more than {MAX_BYTES}"))
            .hint("scale the image down, or write it as MET_USHORT"));
    }
    // A raw file may have a header of its own: so many bytes, or (-1) all that come before the data.
    let skip = match field("HeaderSize").unwrap_or("0") {
        "-1" if !packed && !text => None,
        size => match size.parse::<u64>() {
            Ok(skip) => Some(skip),
            Err(_) => return Err(Error::new(format!("HeaderSize {size} is not supported"))),
        },
    };
    let name = need("ElementDataFile")?;
    let raw = match name {
        name if is_local(name) => data(&file, path, start as u64, skip, wanted, packed || text)?,
        name if name.contains('%') || name == "LIST" => {
            return Err(Error::new(format!("ElementDataFile {name}: data in several files are not supported")));
        }
        name => {
            let path = beside(path, name)?;
            data(&files::open_regular(&path)?, &path, 0, skip, wanted, packed || text)?
        }
    };
    if text {
        return Image::grey(width as usize, height as usize, numbers(&raw, count as usize, kind)?);
    }
    let raw = match packed {
        true => {
            let size = field("CompressedDataSize").and_then(|n| n.parse::<usize>().ok()).filter(|n| *n > 0);
            inflate(&raw[..size.unwrap_or(raw.len()).min(raw.len())], wanted)?
        }
        false => raw,
    };
    if raw.len() < wanted {
        let have = raw.len();
        return Err(Error::new(format!(
            "the file is truncated: {have} of {wanted} bytes for {width} x {height} {kind}"
        )));
    }
    let raw = &raw[..wanted];

    // As MetaIO, which applies the first after the second (metaObject.cxx).
    let order = ["BinaryDataByteOrderMSB", "ElementByteOrderMSB"].into_iter().find(|key| field(key).is_some());
    let msb = order.is_some_and(yes);
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
        "MET_CHAR" | "MET_ASCII_CHAR" => Pixels::F32(raw.iter().map(|&b| f32::from(b as i8)).collect()),
        "MET_USHORT" => Pixels::U16(values(raw, msb, u16::from_le_bytes)),
        "MET_SHORT" => Pixels::F32(values(raw, msb, |b| f32::from(i16::from_le_bytes(b)))),
        "MET_UINT" | "MET_ULONG" => Pixels::F32(values(raw, msb, |b| u32::from_le_bytes(b) as f32)),
        "MET_INT" | "MET_LONG" => Pixels::F32(values(raw, msb, |b| i32::from_le_bytes(b) as f32)),
        "MET_FLOAT" => Pixels::F32(values(raw, msb, f32::from_le_bytes)),
        "MET_ULONG_LONG" => Pixels::F32(values(raw, msb, |b| u64::from_le_bytes(b) as f32)),
        "MET_LONG_LONG" => Pixels::F32(values(raw, msb, |b| i64::from_le_bytes(b) as f32)),
        _ => Pixels::F32(values(raw, msb, |b| f64::from_le_bytes(b) as f32)),
    };
    Image::grey(width as usize, height as usize, pixels)
}

/// Data that are numbers as text.
fn numbers(text: &[u8], count: usize, kind: &str) -> Result<Pixels> {
    let text = std::str::from_utf8(text).map_err(|_| Error::new("BinaryData = False, but the data are not text"))?;
    let mut values = Vec::new();
    for word in text.split_whitespace().take(count) {
        let value =
            word.parse::<f64>().map_err(|_| Error::new(format!("BinaryData = False: {word} is not a number")))?;
        values.push(value);
    }
    if values.len() < count {
        return Err(Error::new(format!("the file is truncated: {} of {count} numbers", values.len())));
    }
    let whole = |most: f64| values.iter().all(|v| v.fract() == 0.0 && (0.0..=most).contains(v));
    Ok(match kind {
        "MET_UCHAR" if whole(255.0) => Pixels::U8(values.iter().map(|v| *v as u8).collect()),
        "MET_USHORT" if whole(65535.0) => Pixels::U16(values.iter().map(|v| *v as u16).collect()),
        "MET_UCHAR" | "MET_USHORT" => return Err(Error::new(format!("a number of the data is not of {kind}"))),
        _ => Pixels::F32(values.iter().map(|v| *v as f32).collect()),
    })
}

/// `Key = Value` (or `Key: Value`) lines up to ElementDataFile, and where the data begin.
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
        if line.trim().is_empty() {
            continue;
        }
        let Some((key, value)) = line.split_once(['=', ':']) else {
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
        assert!(error(&file("MET_STRING", "", "2 1", &[0; 16])).contains("MET_STRING is not supported"));
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

    /// Three by two words, 1 to 6.
    fn words(head: &str, data: &[u8]) -> Result<Image> {
        parse(&[head.as_bytes(), data].concat())
    }

    #[test]
    fn headers_and_data_as_metaio_reads_them() {
        let head = "ObjectType = Image\nNDims = 2\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n\
                    DimSize = 3 2\nElementType = MET_USHORT\nElementDataFile = LOCAL\n";
        let raw: Vec<u8> = (1u16..7).flat_map(u16::to_le_bytes).collect();
        let wanted = Image::grey(3, 2, Pixels::U16((1..7).collect())).unwrap();
        let with = |from: &str, to: &str| {
            assert!(head.contains(from));
            head.replace(from, to)
        };
        let check = |head: String, data: &[u8]| assert_eq!(words(&head, data).unwrap(), wanted, "{head}");
        check(head.into(), &raw);
        check(with("LOCAL", "local"), &raw);
        check(with("LOCAL", "Local"), &raw);
        check(head.replace(" = ", ": "), &raw);
        check(head.replace('\n', "\r\n"), &raw);
        check(head.replace('\n', "\n\n").trim_end().to_string() + "\n", &raw);
        check(with("NDims", "Comment = a = b\nNDims"), &raw);
        check(with("NDims", "HeaderSize = -1\nNDims"), &raw);
        // The first named wins over the other, whichever comes first.
        check(with("CompressedData", "ElementByteOrderMSB = True\nCompressedData"), &raw);
        check(with("BinaryData = True", "ElementByteOrderMSB = True\nBinaryData = True"), &raw);
        check(with("BinaryData = True", "BinaryData = 1"), &raw);
        // Numbers as text take 12 bytes too.
        check(with("BinaryData = True", "BinaryData = False"), b"1 2 3 4 5 6\n");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(&raw).unwrap();
        let packed = gzip.finish().unwrap();
        check(with("CompressedData = False", "CompressedData = True"), &packed);
        let sized = format!("CompressedData = True\nCompressedDataSize = {}", packed.len());
        check(with("CompressedData = False", &sized), &[&packed[..], b"rubbish"].concat());
        for (kind, size) in [("MET_LONG", 4), ("MET_ULONG", 4), ("MET_LONG_LONG", 8), ("MET_ULONG_LONG", 8)] {
            let wide: Vec<u8> = (1u64..7).flat_map(|v| v.to_le_bytes()[..size].to_vec()).collect();
            let found = words(&with("MET_USHORT", kind), &wide).unwrap();
            assert_eq!(found.pixels, Pixels::F32((1..7).map(|v| v as f32).collect()), "{kind}");
        }
        let fault = |head: String, data: &[u8], message: &str| {
            let error = words(&head, data).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        fault(with("BinaryData = True", "BinaryData = False"), &raw, "is not a number");
        fault(with("BinaryData = True", "BinaryData = False"), b"1 2 3", "truncated: 3 of 6 numbers");
        fault(with("LOCAL", "/etc/hostname"), b"", "the name of a file in the same folder was expected");
        fault(with("LOCAL", "../x.raw"), b"", "the name of a file in the same folder was expected");
        fault(with("LOCAL", ".."), b"", "the name of a file in the same folder was expected");
        fault(with("NDims", "HeaderSize = 99\nNDims"), &raw, "HeaderSize 99 is more than the 12 bytes");
    }

    #[test]
    fn a_pipe_is_no_image() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.mha");
        let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: a plain call with a text that ends.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        assert!(read(&path).unwrap_err().to_string().contains("it is a pipe or a device"));
    }
}
