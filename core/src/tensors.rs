//! Tensors in and out: normalised batches as .npy or .safetensors, maps as .npy.

use crate::{Error, Result, checkpoint, files};
use std::path::Path;
use tch::{Kind, Tensor};

/// A batch [B, C, H, W], or [B, C, D, H, W] of volumes, float32 from `.npy` (float16, 32 or 64) or `.safetensors` (its only tensor, or `images`).
pub fn read_batch(path: &Path) -> Result<Tensor> {
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let batch = match ending {
        "npy" => read_npy(path, &FLOATS),
        _ => {
            let mut state = checkpoint::safetensors(&files::read(path)?)?;
            match (state.iter().position(|(n, _)| n == "images"), state.len()) {
                (Some(i), _) => Ok(state.swap_remove(i).1),
                (None, 1) => Ok(state.swap_remove(0).1),
                (None, n) => {
                    Err(Error::new(format!("{n} tensors, none of them named images")).hint("name the batch `images`"))
                }
            }
        }
    };
    let batch = batch.map_err(|e| e.with_path(path))?;
    if ![4, 5].contains(&batch.dim()) {
        let what = format!("a batch [B, C, H, W] or [B, C, D, H, W] was expected, this has shape {:?}", batch.size());
        return Err(Error::at(path, what));
    }
    let batch = batch.f_to_kind(Kind::Float)?;
    if batch.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
        return Err(Error::at(path, "the batch holds values that are not finite"));
    }
    Ok(batch.f_contiguous()?)
}

/// Where the values begin, if the header is one dictionary with one tuple, as that of an array of plain numbers is: the parser takes a
/// time that grows exponentially with brackets inside each other. NumPy's format, versions 1 to 3.
fn values_begin(bytes: &[u8]) -> Option<usize> {
    let length = |range: std::ops::Range<usize>| {
        bytes.get(range).map(|b| b.iter().rev().fold(0usize, |n, byte| n << 8 | usize::from(*byte)))
    };
    let (start, length): (usize, _) = match bytes.get(6) {
        Some(1) => (10, length(8..10)),
        _ => (12, length(8..12)),
    };
    // A header that is cut short is for the parser to refuse.
    let end = length.and_then(|n| start.checked_add(n)).unwrap_or(bytes.len());
    let header = bytes.get(start..end).unwrap_or_default();
    let count = |c: u8| header.iter().filter(|b| **b == c).count();
    (count(b'{') <= 1 && count(b'(') <= 1 && count(b'[') == 0).then_some(end)
}

/// Element types of floating point.
const FLOATS: [(&str, Kind); 3] = [("f4", Kind::Float), ("f8", Kind::Double), ("f2", Kind::Half)];
/// Those of whole numbers and truth values, which are bytes.
const WHOLE: [(&str, Kind); 6] = [
    ("u1", Kind::Uint8),
    ("b1", Kind::Uint8),
    ("i1", Kind::Int8),
    ("i2", Kind::Int16),
    ("i4", Kind::Int),
    ("i8", Kind::Int64),
];

/// An array of any shape and element type from a `.npy` file: of floating point, whole numbers or truth values (0 and 1).
///
/// # Errors
/// The file cannot be read, or holds something else.
pub fn read_array(path: &Path) -> Result<Tensor> {
    read_npy(path, &[&FLOATS[..], &WHOLE].concat()).map_err(|e| e.with_path(path))
}

fn read_npy(path: &Path, kinds: &[(&str, Kind)]) -> Result<Tensor> {
    let bytes = files::read(path)?;
    let broken = |e: &dyn std::fmt::Display| Error::new(format!("not a NumPy file that Lightbox reads: {e}"));
    let begin =
        values_begin(&bytes).ok_or_else(|| Error::at(path, "the header is not that of an array of plain numbers"))?;
    // The parser multiplies sizes, whatever they are.
    let npy = lightbox_sdk::guard(|| Ok(npyz::NpyFile::new(bytes.as_slice()))).map_err(|e| broken(&e))?;
    let npy = npy.map_err(|e| broken(&e))?;
    let descr = npy.dtype().descr();
    let plain = descr.trim_matches('\'');
    let kind = kinds.iter().find(|(name, _)| plain.get(1..) == Some(name)).map(|(_, kind)| *kind).ok_or_else(|| {
        let known: Vec<&str> = kinds.iter().map(|(name, _)| *name).collect();
        Error::new(format!("element type {descr}; one of {} expected", known.join(", ")))
    })?;
    let mut shape: Vec<i64> = npy.shape().iter().map(|&n| n as i64).collect();
    let size = kind.elt_size_in_bytes();
    let wanted = npy.shape().iter().try_fold(size as u64, |all, n| all.checked_mul(*n));
    let found = bytes.get(begin..).unwrap_or_default();
    let values = wanted.and_then(|n| found.get(..usize::try_from(n).ok()?));
    let values = values.ok_or_else(|| broken(&format!("{} bytes of values of shape {shape:?}", found.len())))?;
    let swapped: Vec<u8>;
    let values = match plain.starts_with('>') && size > 1 {
        true => {
            swapped = values.chunks_exact(size).flat_map(|v| v.iter().rev().copied()).collect();
            &swapped
        }
        false => values,
    };
    let fortran = npy.order() == npyz::Order::Fortran;
    if fortran {
        shape.reverse();
    }
    let tensor = Tensor::f_from_data_size(values, &shape, kind)?;
    let order: Vec<i64> = (0..shape.len() as i64).rev().collect();
    Ok(if fortran { tensor.f_permute(&order)? } else { tensor })
}

/// Writes float32 as `.npy` in C order, whole or not at all.
pub fn write_npy(path: &Path, tensor: &Tensor) -> Result<()> {
    use npyz::WriterBuilder;
    let shape: Vec<u64> = tensor.size().iter().map(|n| *n as u64).collect();
    let values = crate::maps::values(tensor)?;
    files::write_atomic(path, |w| {
        let mut writer = npyz::WriteOptions::new().default_dtype().shape(&shape).writer(w).begin_nd()?;
        writer.extend(values.iter().copied())?;
        writer.finish()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_as_npy_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.npy");
        let tensor = Tensor::from_slice(&(0..24).map(|v| v as f32 / 7.0).collect::<Vec<_>>()).reshape([2, 3, 2, 2]);
        write_npy(&path, &tensor.transpose(2, 3)).unwrap();
        assert_eq!(read_batch(&path).unwrap(), tensor.transpose(2, 3));
    }

    fn npy(order: &str, values: &[f32]) -> Vec<u8> {
        let mut header = format!("{{'descr': '<f4', 'fortran_order': {order}, 'shape': (1, 1, 2, 3), }}");
        while !(header.len() + 11).is_multiple_of(64) {
            header.push(' ');
        }
        header.push('\n');
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.bytes());
        bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        bytes
    }

    #[test]
    fn both_orders_of_npy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.npy");
        std::fs::write(&path, npy("False", &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])).unwrap();
        let c = read_batch(&path).unwrap();
        std::fs::write(&path, npy("True", &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0])).unwrap();
        let f = read_batch(&path).unwrap();
        assert_eq!((c.size(), &c), (vec![1, 1, 2, 3], &f));
        std::fs::write(&path, npy("False", &[0.0, f32::NAN, 2.0, 3.0, 4.0, 5.0])).unwrap();
        assert!(read_batch(&path).unwrap_err().to_string().contains("not finite"));
        std::fs::write(&path, b"\x93NUMPY").unwrap();
        assert!(read_batch(&path).unwrap_err().to_string().contains("not a NumPy file"));
    }

    /// An array of one element type as NumPy writes it.
    fn of_type(descr: &str, shape: &str, values: &[u8]) -> Vec<u8> {
        let mut bytes = npy("False", &[]);
        let header = String::from_utf8_lossy(&bytes[10..]).replace("'<f4'", &format!("'{descr}'"));
        let header = header.trim_end().replace("(1, 1, 2, 3)", shape);
        bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend(((header.len() + 1) as u16).to_le_bytes());
        bytes.extend(header.bytes().chain([b'\n']));
        bytes.extend(values);
        bytes
    }

    #[test]
    fn arrays_of_every_type_and_byte_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        let check = |descr: &str, shape: &str, values: &[u8], wanted: &[f64]| {
            std::fs::write(&path, of_type(descr, shape, values)).unwrap();
            let found = read_array(&path).unwrap().to_kind(Kind::Double);
            assert_eq!(Vec::<f64>::try_from(found.reshape([-1])).unwrap(), wanted, "{descr}");
        };
        check("|u1", "(2,)", &[7, 200], &[7.0, 200.0]);
        check("|b1", "(3,)", &[0, 1, 1], &[0.0, 1.0, 1.0]);
        check("<i2", "(1,)", &[0xfe, 0xff], &[-2.0]);
        check(">i4", "(1, 1)", &[0, 0, 1, 0], &[256.0]);
        check(">f4", "(1,)", &1.5f32.to_be_bytes(), &[1.5]);
        check("<f8", "(1,)", &0.1f64.to_le_bytes(), &[0.1]);
        for (descr, shape, said) in [
            ("<c8", "(1,)", "element type '<c8'"),
            ("<f4", "(4,)", "8 bytes of values of shape [4]"),
            ("<f4", "(4611686018427387904, 2)", "8 bytes of values"),
            ("<f4", "(4611686018427387904, 8)", "not a NumPy file that Lightbox reads"),
        ] {
            std::fs::write(&path, of_type(descr, shape, &[0; 8])).unwrap();
            let error = read_array(&path).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        // Bytes are no normalised images.
        std::fs::write(&path, of_type("|u1", "(1, 1, 1, 2)", &[7, 200])).unwrap();
        assert!(read_batch(&path).unwrap_err().to_string().contains("one of f4, f8, f2 expected"));
    }

    #[test]
    fn a_header_of_brackets_does_not_hang() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        let mut bytes = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        bytes.extend(vec![b'{'; 0x76]);
        std::fs::write(&path, bytes).unwrap();
        assert!(read_batch(&path).unwrap_err().to_string().contains("not that of an array of plain numbers"));
    }

    #[test]
    fn safetensors_need_one_tensor_or_the_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.safetensors");
        let t = |n: i64| Tensor::zeros([n, 3, 2, 2], (Kind::Float, tch::Device::Cpu));
        checkpoint::write(&path, &[("x".into(), t(1))]).unwrap();
        assert_eq!(read_batch(&path).unwrap().size()[0], 1);
        checkpoint::write(&path, &[("x".into(), t(1)), ("images".into(), t(2))]).unwrap();
        assert_eq!(read_batch(&path).unwrap().size()[0], 2);
        checkpoint::write(&path, &[("x".into(), t(1)), ("y".into(), t(2))]).unwrap();
        assert!(read_batch(&path).unwrap_err().to_string().contains("2 tensors, none of them named images"));
    }
}
