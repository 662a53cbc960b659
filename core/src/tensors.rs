//! Tensors in and out: normalised batches as .npy or .safetensors, maps as .npy.

use crate::{Error, Result, checkpoint, files};
use std::path::Path;
use tch::{Kind, Tensor};

/// A batch [B, C, H, W], or [B, C, D, H, W] of volumes, float32 from `.npy` (float32 or float64) or `.safetensors` (its only tensor, or `images`).
pub fn read_batch(path: &Path) -> Result<Tensor> {
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let batch = match ending {
        "npy" => read_npy(path),
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

/// Whether the header is one dictionary with one tuple, as that of an array of plain numbers is: the parser takes a time that grows
/// exponentially with brackets inside each other. NumPy's format, versions 1 to 3.
fn has_plain_header(bytes: &[u8]) -> bool {
    let length = |range: std::ops::Range<usize>| {
        bytes.get(range).map(|b| b.iter().rev().fold(0usize, |n, byte| n << 8 | usize::from(*byte)))
    };
    let (start, length): (usize, _) = match bytes.get(6) {
        Some(1) => (10, length(8..10)),
        _ => (12, length(8..12)),
    };
    let header = length.and_then(|n| bytes.get(start..start.checked_add(n)?));
    let count = |c: u8| header.unwrap_or_default().iter().filter(|b| **b == c).count();
    count(b'{') <= 1 && count(b'(') <= 1 && count(b'[') == 0
}

/// Values of whole numbers and truth values as floats.
fn whole_numbers<R: std::io::Read>(npy: npyz::NpyFile<R>) -> Result<Vec<f32>> {
    let broken = |e: std::io::Error| Error::new(format!("not a NumPy file that Lightbox reads: {e}"));
    macro_rules! one_of {
        ($npy:ident, $($t:ty => $to:expr),*) => {{
            let rest = $npy;
            $(
                let rest = match rest.try_data::<$t>() {
                    Ok(data) => return data.map(|v| v.map($to)).collect::<std::io::Result<_>>().map_err(broken),
                    Err(rest) => rest,
                };
            )*
            Err(Error::new(format!("element type {}; numbers expected", rest.dtype().descr())))
        }};
    }
    one_of!(npy, bool => |v| f32::from(u8::from(v)), u8 => f32::from, i64 => |v| v as f32, i32 => |v| v as f32,
        u16 => f32::from, i8 => f32::from)
}

/// An array of any shape from a `.npy` file, float32: of floating point, whole numbers or truth values.
///
/// # Errors
/// The file cannot be read, or holds something else.
pub fn read_array(path: &Path) -> Result<Tensor> {
    read_npy(path).map_err(|e| e.with_path(path))
}

fn read_npy(path: &Path) -> Result<Tensor> {
    let bytes = files::read(path)?;
    let broken = |e: std::io::Error| Error::new(format!("not a NumPy file that Lightbox reads: {e}"));
    if !has_plain_header(&bytes) {
        return Err(Error::at(path, "the header is not that of an array of plain numbers"));
    }
    let npy = npyz::NpyFile::new(bytes.as_slice()).map_err(broken)?;
    let shape: Vec<i64> = npy.shape().iter().map(|&n| n as i64).collect();
    let fortran = npy.order() == npyz::Order::Fortran;
    let values: Vec<f32> = match npy.try_data::<f32>() {
        Ok(data) => data.collect::<std::io::Result<_>>().map_err(broken)?,
        Err(npy) => match npy.try_data::<f64>() {
            Ok(data) => data.map(|v| v.map(|v| v as f32)).collect::<std::io::Result<_>>().map_err(broken)?,
            Err(npy) => whole_numbers(npy)?,
        },
    };
    if fortran {
        let reversed: Vec<i64> = shape.iter().rev().copied().collect();
        let order: Vec<i64> = (0..shape.len() as i64).rev().collect();
        return Ok(Tensor::f_from_slice(&values)?.f_reshape(&reversed)?.f_permute(&order)?);
    }
    Ok(Tensor::f_from_slice(&values)?.f_reshape(&shape)?)
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
