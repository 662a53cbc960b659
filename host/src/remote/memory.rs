//! Memory that two processes share: segments of anonymous memory files, which have no name, so that nothing is left of them when
//! both have ended, however they end. The sender writes the arrays of a message into a segment of its own and lends it; the receiver
//! maps it read-only, and gives it back when its last array is dropped.

use lightbox_sdk::{Array, DType, Error, Place, Result};
use memmap2::{Mmap, MmapMut, MmapOptions};
use rustix::fs::{MemfdFlags, SealFlags};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// An array in a segment. Rows are one after the other, without gaps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Piece {
    /// NumPy's name of the element type, or `bfloat16`.
    pub dtype: String,
    pub shape: Vec<i64>,
    /// In bytes, a multiple of 64.
    pub offset: usize,
}

/// The smallest segment, in bytes.
const LEAST: usize = 1 << 16;
/// Bytes in segments that nobody uses, beyond which the smallest are given up.
const KEPT: usize = 1 << 30;
const ALIGNMENT: usize = 64;

fn aligned(n: usize) -> usize {
    n.next_multiple_of(ALIGNMENT)
}

fn io(what: &str) -> impl FnOnce(std::io::Error) -> Error {
    move |e| Error::invalid(format!("{what}: {e}"))
}

struct Segment {
    map: MmapMut,
    lent: bool,
}

/// A sender's segments.
#[derive(Default)]
pub struct Pool {
    segments: BTreeMap<u32, Segment>,
    next: u32,
}

/// A message's arrays in a segment.
#[derive(Default)]
pub struct Lent {
    /// None for no arrays.
    pub segment: Option<u32>,
    pub pieces: Vec<Piece>,
    /// The segment's memory file, if the receiver does not have it.
    pub new: Option<OwnedFd>,
    /// Segments that the receiver may let go of.
    pub gone: Vec<u32>,
}

impl Pool {
    /// Copies arrays into a segment that is free, or a new one.
    ///
    /// # Errors
    /// There is no memory.
    pub fn lend(&mut self, arrays: &[Array]) -> Result<Lent> {
        if arrays.is_empty() {
            return Ok(Lent::default());
        }
        let arrays = arrays.iter().map(contiguous).collect::<Result<Vec<Array>>>()?;
        let bytes = |a: &Array| a.shape().iter().product::<usize>() * a.dtype().size();
        let mut pieces = Vec::new();
        let mut end = 0;
        for array in &arrays {
            let shape = array.shape().iter().map(|n| *n as i64).collect();
            pieces.push(Piece { dtype: array.dtype().name().into(), shape, offset: end });
            end = aligned(end + bytes(array));
        }
        let (id, new) = self.segment(end)?;
        let segment = self.segments.get_mut(&id).ok_or_else(|| Error::invalid("a segment is gone"))?;
        segment.lent = true;
        for (array, piece) in arrays.iter().zip(&pieces).filter(|(a, _)| bytes(a) > 0) {
            // SAFETY: a contiguous CPU array holds as many bytes as its shape says.
            let from = unsafe { std::slice::from_raw_parts(array.as_ptr().cast::<u8>(), bytes(array)) };
            segment.map[piece.offset..piece.offset + from.len()].copy_from_slice(from);
        }
        Ok(Lent { segment: Some(id), pieces, new, gone: self.give_up() })
    }

    /// The smallest free segment of this size, unless it is far too large; or a new one, and its file.
    fn segment(&mut self, size: usize) -> Result<(u32, Option<OwnedFd>)> {
        let wanted = size.max(LEAST).next_power_of_two();
        let fits = |(_, s): &(&u32, &Segment)| !s.lent && s.map.len() >= wanted && s.map.len() <= 4 * wanted;
        if let Some((id, _)) = self.segments.iter().filter(fits).min_by_key(|(_, s)| s.map.len()) {
            return Ok((*id, None));
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("lightbox", flags).map_err(|e| io("shared memory")(e.into()))?;
        let file = File::from(file);
        file.set_len(wanted as u64).map_err(io("shared memory"))?;
        // Nobody can make it smaller under the other side's feet.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals).map_err(|e| io("shared memory")(e.into()))?;
        // SAFETY: the file cannot become smaller; what the other side reads while we write is its own mistake.
        let map = unsafe { MmapOptions::new().len(wanted).map_mut(&file) }.map_err(io("shared memory"))?;
        let id = self.next;
        self.next += 1;
        self.segments.insert(id, Segment { map, lent: false });
        Ok((id, Some(file.into())))
    }

    /// The receiver reads a segment no more.
    pub fn take_back(&mut self, id: u32) {
        if let Some(segment) = self.segments.get_mut(&id) {
            segment.lent = false;
        }
    }

    fn give_up(&mut self) -> Vec<u32> {
        let mut gone = Vec::new();
        loop {
            let free = || self.segments.iter().filter(|(_, s)| !s.lent);
            if free().map(|(_, s)| s.map.len()).sum::<usize>() <= KEPT {
                return gone;
            }
            let Some(id) = free().min_by_key(|(_, s)| s.map.len()).map(|(id, _)| *id) else { return gone };
            self.segments.remove(&id);
            gone.push(id);
        }
    }

    /// Segments that this process holds.
    pub fn count(&self) -> usize {
        self.segments.len()
    }
}

/// The array in CPU memory, its rows one after the other.
fn contiguous(array: &Array) -> Result<Array> {
    let (shape, strides) = (array.shape(), array.strides());
    let mut step = 1;
    let dense = shape.iter().zip(&strides).rev().all(|(n, stride)| {
        let fits = *n <= 1 || *stride == step;
        step *= n;
        fits
    });
    match (array.place(), dense) {
        (Place::Cpu, true) => Ok(array.clone()),
        _ => Array::from_tensor(&array.share_tensor()?.f_to_device(tch::Device::Cpu)?.f_contiguous()?),
    }
}

/// A receiver's maps of the sender's segments.
#[derive(Default)]
pub struct Mapped {
    segments: BTreeMap<u32, Arc<Mmap>>,
    /// Segments of which no array is left, to be given back with the next message.
    free: Arc<Mutex<Vec<u32>>>,
}

/// Keeps a segment's map, and gives the segment back when it is dropped.
struct Lease {
    _map: Arc<Mmap>,
    id: u32,
    free: Arc<Mutex<Vec<u32>>>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.id);
    }
}

impl Mapped {
    /// Maps a segment that is new.
    ///
    /// # Errors
    /// The file is none that cannot shrink.
    pub fn add(&mut self, id: u32, file: OwnedFd) -> Result<()> {
        let seals = rustix::fs::fcntl_get_seals(&file).map_err(|e| io("the other side's memory")(e.into()))?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(Error::invalid("the other side's memory is not sealed against shrinking"));
        }
        // SAFETY: the file cannot become smaller. The other side could write to it, whose values are then whatever they are:
        // every bit pattern is a value of the types that are read, and those that are not are checked (`Array::view`).
        let map = unsafe { Mmap::map(&File::from(file)) }.map_err(io("the other side's memory"))?;
        self.segments.insert(id, Arc::new(map));
        Ok(())
    }

    pub fn remove(&mut self, id: u32) {
        self.segments.remove(&id);
    }

    /// The arrays of a message, which share the segment.
    ///
    /// # Errors
    /// There is no such segment, or a piece is not within it.
    pub fn arrays(&self, id: Option<u32>, pieces: &[Piece]) -> Result<Vec<Array>> {
        let Some(id) = id else {
            return if pieces.is_empty() { Ok(vec![]) } else { Err(Error::invalid("arrays without a segment")) };
        };
        let map = self.segments.get(&id).ok_or_else(|| Error::invalid(format!("there is no segment {id}")))?;
        let lease = Arc::new(Lease { _map: map.clone(), id, free: self.free.clone() });
        let array = |piece: &Piece| {
            let wrong = |what: &str| Error::invalid(format!("an array of {:?}: {what}", piece));
            let dtype = DType::of_name(&piece.dtype).ok_or_else(|| wrong("no such element type"))?;
            let mut strides = vec![1i64; piece.shape.len()];
            let mut count = 1i64;
            for (stride, n) in strides.iter_mut().zip(&piece.shape).rev() {
                *stride = count.max(1);
                let n = Some(*n).filter(|n| *n >= 0).ok_or_else(|| wrong("a negative size"))?;
                count = count.checked_mul(n).ok_or_else(|| wrong("too large"))?;
            }
            let bytes = usize::try_from(count).ok().and_then(|n| n.checked_mul(dtype.size()));
            let end = bytes.and_then(|n| n.checked_add(piece.offset));
            if end.is_none_or(|end| end > map.len()) || !piece.offset.is_multiple_of(ALIGNMENT) {
                return Err(wrong(&format!("not within its segment of {} bytes", map.len())));
            }
            let data = map[piece.offset.min(map.len())..].as_ptr() as *mut std::ffi::c_void;
            // SAFETY: the piece lies within the map, which the lease keeps.
            unsafe { Array::from_raw_parts(lease.clone(), data, dtype, &piece.shape, &strides) }
        };
        pieces.iter().map(array).collect()
    }

    /// Segments to be given back.
    pub fn freed(&self) -> Vec<u32> {
        std::mem::take(&mut *self.free.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was lent is read on the other side; a segment that was given back is used again.
    #[test]
    fn arrays_cross_and_segments_are_used_again() {
        let (mut pool, mut mapped) = (Pool::default(), Mapped::default());
        let tensor = tch::Tensor::arange(12, (tch::Kind::Float, tch::Device::Cpu)).reshape([3, 4]).tr();
        let array = Array::from_tensor(&tensor).unwrap();
        let flags = Array::from_vec(&[3], vec![true, false, true]).unwrap();
        for round in 0..3 {
            let lent = pool.lend(&[array.clone(), flags.clone()]).unwrap();
            assert_eq!(lent.new.is_some(), round == 0);
            if let Some(file) = lent.new {
                mapped.add(0, file).unwrap();
            }
            let arrays = mapped.arrays(lent.segment, &lent.pieces).unwrap();
            assert_eq!(arrays[0].to_ndarray::<f32>().unwrap(), array.to_ndarray::<f32>().unwrap());
            assert_eq!(arrays[1].to_vec::<bool>().unwrap(), [true, false, true]);
            let kept = arrays[1].clone();
            drop(arrays);
            assert!(mapped.freed().is_empty(), "an array is still there");
            drop(kept);
            let freed = mapped.freed();
            assert_eq!(freed, [0]);
            freed.into_iter().for_each(|id| pool.take_back(id));
        }
        assert_eq!(pool.count(), 1);
    }

    #[test]
    fn what_is_not_within_its_segment_is_refused() {
        let (mut pool, mut mapped) = (Pool::default(), Mapped::default());
        let lent = pool.lend(&[Array::from_vec(&[4], vec![0f32; 4]).unwrap()]).unwrap();
        mapped.add(0, lent.new.unwrap()).unwrap();
        let check = |dtype: &str, shape: &[i64], offset: usize, message: &str| {
            let piece = Piece { dtype: dtype.into(), shape: shape.to_vec(), offset };
            let error = mapped.arrays(Some(0), &[piece]).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        check("float32", &[1 << 20], 0, "not within its segment");
        check("float32", &[4], LEAST, "not within its segment");
        check("float32", &[4], usize::MAX - 63, "not within its segment");
        check("float32", &[4], 4, "not within its segment");
        check("float32", &[-4], 0, "a negative size");
        check("float32", &[i64::MAX, 4], 0, "too large");
        check("complex64", &[1], 0, "no such element type");
        assert!(mapped.arrays(Some(7), &[]).unwrap_err().message.contains("no segment 7"));
        let piece = Piece { dtype: "uint8".into(), shape: vec![1], offset: 0 };
        assert!(mapped.arrays(None, &[piece]).is_err());
        let plain = rustix::fs::memfd_create("plain", MemfdFlags::CLOEXEC).unwrap();
        assert!(mapped.add(1, plain).unwrap_err().message.contains("not sealed"));
    }
}
