//! Arrays as plugins see them: checked on the way in, shared without copies, read only.

use crate::abi::{ROption, WireDType, WireTensor};
use crate::{Error, Result};
use ndarray::{ArrayD, ArrayViewD, IxDyn, ShapeBuilder};
use std::ffi::c_void;
use std::sync::Arc;

/// More dimensions than any image model has.
const MAX_DIMS: usize = 16;

/// Element types that cross the boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DType {
    /// Half precision.
    F16,
    /// The upper half of a float32.
    BF16,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
    /// Bytes.
    U8,
    /// 16-bit integers.
    I16,
    /// 32-bit integers.
    I32,
    /// 64-bit integers.
    I64,
    /// One byte each, 0 or 1.
    Bool,
}

impl DType {
    fn wire(self) -> WireDType {
        let (code, bits) = match self {
            DType::F16 => (2, 16),
            DType::BF16 => (4, 16),
            DType::F32 => (2, 32),
            DType::F64 => (2, 64),
            DType::U8 => (1, 8),
            DType::I16 => (0, 16),
            DType::I32 => (0, 32),
            DType::I64 => (0, 64),
            DType::Bool => (6, 8),
        };
        WireDType { code, bits, lanes: 1 }
    }

    fn of(wire: WireDType) -> Result<Self> {
        let all = [
            DType::F16,
            DType::BF16,
            DType::F32,
            DType::F64,
            DType::U8,
            DType::I16,
            DType::I32,
            DType::I64,
            DType::Bool,
        ];
        let found = all.into_iter().find(|d| d.wire() == wire);
        found.ok_or_else(|| Error::invalid(format!("element type {wire:?} is not one that Lightbox passes")))
    }

    /// All of them, with the names that they have between processes: NumPy's, and `bfloat16`.
    pub const NAMES: [(DType, &str); 9] = [
        (DType::F16, "float16"),
        (DType::BF16, "bfloat16"),
        (DType::F32, "float32"),
        (DType::F64, "float64"),
        (DType::U8, "uint8"),
        (DType::I16, "int16"),
        (DType::I32, "int32"),
        (DType::I64, "int64"),
        (DType::Bool, "bool"),
    ];

    /// Its name between processes.
    pub fn name(self) -> &'static str {
        DType::NAMES.iter().find(|(d, _)| *d == self).map_or("", |(_, name)| name)
    }

    /// The type of a name.
    pub fn of_name(name: &str) -> Option<Self> {
        DType::NAMES.iter().find(|(_, n)| *n == name).map(|(d, _)| *d)
    }

    /// Bytes an element.
    pub fn size(self) -> usize {
        usize::from(self.wire().bits) / 8
    }
}

/// A Rust type that is an element type.
pub trait Element: Copy + Send + Sync + 'static {
    /// Its element type.
    const DTYPE: DType;
}
macro_rules! element {
    ($($t:ty => $d:ident),*) => { $(impl Element for $t { const DTYPE: DType = DType::$d; })* };
}
element!(f32 => F32, f64 => F64, u8 => U8, i16 => I16, i32 => I32, i64 => I64, bool => Bool);

/// Where an array's memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The CPU's.
    Cpu,
    /// That of the CUDA device of this number.
    Cuda(usize),
}

/// A read-only array on some device. A clone shares the memory. Strides are in elements.
#[derive(Clone)]
pub struct Array {
    wire: Arc<WireTensor>,
    dtype: DType,
    place: Place,
}

impl std::fmt::Debug for Array {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Array({:?} {:?} on {:?})", self.dtype, self.shape(), self.place)
    }
}

/// # Safety
///
/// `owner` came from `Box::into_raw` of this type, and is released once.
unsafe extern "C" fn release_arc(owner: *mut c_void) {
    // SAFETY: `owner` came from `Box::into_raw` of this type, and a handle is released once.
    drop(unsafe { Box::from_raw(owner.cast::<Arc<WireTensor>>()) });
}

/// # Safety
///
/// As above.
unsafe extern "C" fn release_box<T>(owner: *mut c_void) {
    // SAFETY: as above.
    drop(unsafe { Box::from_raw(owner.cast::<T>()) });
}

impl Array {
    /// Checks a handle from the other side before anything reads through it.
    ///
    /// # Safety
    ///
    /// The handle's memory holds what its shape and strides say, of its element type, is not written to while the array
    /// or a clone of it lives, and lives until `release`. No check can find that out.
    pub unsafe fn from_wire(wire: WireTensor) -> Result<Self> {
        let dtype = DType::of(wire.dtype)?;
        let place = match wire.device_type {
            1 => Place::Cpu,
            2 => Place::Cuda(
                usize::try_from(wire.device_id).map_err(|_| Error::invalid("a negative CUDA device index"))?,
            ),
            other => return Err(Error::invalid(format!("device type {other} is neither CPU (1) nor CUDA (2)"))),
        };
        let (dims, strides) = (wire.shape.len(), wire.strides.len());
        if dims > MAX_DIMS || strides != dims {
            return Err(Error::invalid(format!("a shape of {dims} dimensions with {strides} strides")));
        }
        let mut count: usize = 1;
        let mut last: usize = 0;
        for (&n, &stride) in wire.shape.iter().zip(wire.strides.iter()) {
            let overflow = || Error::invalid(format!("shape {:?}, strides {:?}: too large", wire.shape, wire.strides));
            let n = usize::try_from(n).map_err(|_| Error::invalid(format!("negative size in {:?}", wire.shape)))?;
            let stride = usize::try_from(stride)
                .map_err(|_| Error::invalid(format!("negative stride in {:?}", wire.strides)))?;
            count = count.checked_mul(n).ok_or_else(overflow)?;
            let reach = stride.checked_mul(n.saturating_sub(1)).ok_or_else(overflow)?;
            last = last.checked_add(reach).ok_or_else(overflow)?;
        }
        let bytes = last.checked_add(1).and_then(|n| n.checked_mul(dtype.size()));
        if bytes.is_none_or(|b| b > isize::MAX as usize) {
            return Err(Error::invalid(format!("shape {:?}, strides {:?}: too large", wire.shape, wire.strides)));
        }
        if count > 0 && wire.data.is_null() {
            return Err(Error::invalid(format!("shape {:?} with no memory behind it", wire.shape)));
        }
        if count > 0 && place == Place::Cpu && !(wire.data as usize).is_multiple_of(dtype.size()) {
            return Err(Error::invalid(format!("a {dtype:?} array at a misaligned address")));
        }
        Ok(Array { wire: Arc::new(wire), dtype, place })
    }

    /// A handle for the other side. It shares this array's memory and keeps it alive.
    pub fn to_wire(&self) -> WireTensor {
        WireTensor {
            data: self.wire.data,
            device_type: self.wire.device_type,
            device_id: self.wire.device_id,
            dtype: self.wire.dtype,
            shape: self.wire.shape.clone(),
            strides: self.wire.strides.clone(),
            owner: Box::into_raw(Box::new(Arc::clone(&self.wire))).cast(),
            release: ROption::RSome(release_arc),
        }
    }

    /// An array over memory that `owner` keeps: the clone of the array that is dropped last drops it.
    ///
    /// Errors: sizes or strides (in elements) that are negative or too large, an address that is null or not aligned.
    ///
    /// # Safety
    ///
    /// As [`Array::from_wire`]: the memory holds what shape, strides and element type say, for as long as `owner` lives.
    pub unsafe fn from_raw_parts<O: Send + Sync + 'static>(
        owner: O,
        data: *mut c_void,
        dtype: DType,
        shape: &[i64],
        strides: &[i64],
    ) -> Result<Self> {
        let wire = WireTensor {
            data,
            device_type: 1,
            device_id: 0,
            dtype: dtype.wire(),
            shape: shape.iter().copied().collect(),
            strides: strides.iter().copied().collect(),
            owner: Box::into_raw(Box::new(owner)).cast(),
            release: ROption::RSome(release_box::<O>),
        };
        // SAFETY: the caller's promise.
        unsafe { Array::from_wire(wire) }
    }

    /// The first element; of a CPU array it can be read as far as shape and strides go.
    pub fn as_ptr(&self) -> *const c_void {
        self.wire.data
    }

    /// Takes over a row-major vector. Errors when `shape` does not have as many elements.
    pub fn from_vec<T: Element>(shape: &[usize], values: Vec<T>) -> Result<Self> {
        let count: usize = shape.iter().product();
        if count != values.len() {
            return Err(Error::invalid(format!("{} values do not fill shape {shape:?}", values.len())));
        }
        let mut strides = vec![1i64; shape.len()];
        for d in (1..shape.len()).rev() {
            strides[d - 1] = strides[d] * shape[d].max(1) as i64;
        }
        let owner = Box::new(values);
        let wire = WireTensor {
            data: owner.as_ptr() as *mut c_void,
            device_type: 1,
            device_id: 0,
            dtype: T::DTYPE.wire(),
            shape: shape.iter().map(|&n| n as i64).collect(),
            strides: strides.into_iter().collect(),
            owner: Box::into_raw(owner).cast(),
            release: ROption::RSome(release_box::<Vec<T>>),
        };
        // SAFETY: the vector is ours now, has as many elements as the shape, and lives until `release`.
        unsafe { Array::from_wire(wire) }
    }

    /// Takes over an ndarray; one that is not row-major is copied into that order.
    pub fn from_ndarray<T: Element, D: ndarray::Dimension>(array: ndarray::Array<T, D>) -> Result<Self> {
        let array = array.into_dyn();
        let shape = array.shape().to_vec();
        let values = if array.is_standard_layout() {
            let (values, offset) = array.into_raw_vec_and_offset();
            match offset {
                Some(skip) if skip > 0 => values[skip..].to_vec(),
                _ => values,
            }
        } else {
            array.iter().copied().collect()
        };
        Array::from_vec(&shape, values)
    }

    /// Sizes of the dimensions.
    pub fn shape(&self) -> Vec<usize> {
        self.wire.shape.iter().map(|&n| n as usize).collect()
    }

    /// In elements.
    pub fn strides(&self) -> Vec<usize> {
        self.wire.strides.iter().map(|&n| n as usize).collect()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Whose memory it is.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The shape, if it has `N` dimensions; otherwise an error that names `what`.
    pub fn dims<const N: usize>(&self, what: &str) -> Result<[usize; N]> {
        let shape = self.shape();
        let message = || Error::invalid(format!("{what} has shape {shape:?}, expected {N} dimensions"));
        shape.as_slice().try_into().map_err(|_| message())
    }

    /// A view of CPU memory. Errors for another element type or device, and for a `bool` whose byte is neither 0 nor 1.
    pub fn view<T: Element>(&self) -> Result<ArrayViewD<'_, T>> {
        if self.dtype != T::DTYPE {
            return Err(Error::invalid(format!("an array of {:?} where {:?} was expected", self.dtype, T::DTYPE)));
        }
        if self.place != Place::Cpu {
            return Err(Error::invalid(format!("an array on {:?} where CPU memory was expected", self.place)));
        }
        let shape = self.shape();
        if shape.contains(&0) {
            return Ok(ArrayViewD::from_shape(IxDyn(&shape), &[])?);
        }
        let shape = IxDyn(&shape).strides(IxDyn(&self.strides()));
        if self.dtype == DType::Bool {
            // SAFETY: as below; a byte may hold anything.
            let bytes = unsafe { ArrayViewD::from_shape_ptr(shape.clone(), self.wire.data as *const u8) };
            if let Some(bad) = bytes.iter().find(|b| **b > 1) {
                return Err(Error::invalid(format!("an array of Bool holds the byte {bad}")));
            }
        }
        // SAFETY: from_wire has checked address, alignment and extent; the memory lives as long as `self`; every byte
        // pattern is a value of the element types, of `bool` those that were just checked.
        Ok(unsafe { ArrayViewD::from_shape_ptr(shape, self.wire.data as *const T) })
    }

    /// A copy in row-major order, CPU only.
    pub fn to_ndarray<T: Element>(&self) -> Result<ArrayD<T>> {
        let view = self.view::<T>()?;
        let shape = view.shape().to_vec();
        Ok(ArrayD::from_shape_vec(IxDyn(&shape), view.iter().copied().collect())?)
    }

    /// The elements in row-major order, CPU only.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        Ok(self.view::<T>()?.iter().copied().collect())
    }
}

#[cfg(feature = "tch")]
pub(crate) mod torch {
    use super::*;
    use std::ffi::{CStr, c_char, c_int};
    use tch::{Device, Kind, Tensor};

    unsafe extern "C" {
        fn lightbox_for_blob(
            data: *mut c_void,
            sizes: *const i64,
            strides: *const i64,
            dims: usize,
            scalar_type: c_int,
            device_type: c_int,
            device_index: c_int,
            context: *mut c_void,
            release: unsafe extern "C" fn(*mut c_void),
            error: *mut c_char,
            error_len: usize,
        ) -> *mut c_void;
    }

    /// With ATen's own numbers of the kinds (c10/core/ScalarType.h).
    const KINDS: [(DType, Kind, c_int); 9] = [
        (DType::F16, Kind::Half, 5),
        (DType::BF16, Kind::BFloat16, 15),
        (DType::F32, Kind::Float, 6),
        (DType::F64, Kind::Double, 7),
        (DType::U8, Kind::Uint8, 0),
        (DType::I16, Kind::Int16, 2),
        (DType::I32, Kind::Int, 3),
        (DType::I64, Kind::Int64, 4),
        (DType::Bool, Kind::Bool, 11),
    ];

    /// A tensor over memory that belongs to the other side. It can be read as any `&Tensor`. tch's in-place operations take
    /// `&mut Tensor`, which it never gives; but `narrow`, `select`, `reshape`, `detach`, `shallow_clone` and all others that
    /// make views give tensors of their own over the same memory, and writing to those changes what the host and other
    /// plugins see. The host notices it and fails the explainer. To change values take a copy first: `view.f_copy()`, or the
    /// result of arithmetic.
    #[derive(Debug)]
    pub struct TensorView(Tensor);

    impl std::ops::Deref for TensorView {
        type Target = Tensor;
        fn deref(&self) -> &Tensor {
            &self.0
        }
    }

    impl std::borrow::Borrow<Tensor> for TensorView {
        fn borrow(&self) -> &Tensor {
            &self.0
        }
    }

    impl Array {
        /// Shares a tensor's memory. Autograd history does not cross: the array is the tensor's detached value.
        ///
        /// An array does not change, and Rust cannot hold libtorch to that: after this call the tensor, and all that share its
        /// memory, must not be written to in place while the array lives. Where that is not sure give it a copy.
        pub fn from_tensor(tensor: &Tensor) -> Result<Self> {
            let kind = tensor.f_kind()?;
            let dtype = KINDS.iter().find(|(_, k, _)| *k == kind).map(|(d, ..)| *d);
            let dtype = dtype.ok_or_else(|| Error::invalid(format!("tensors of {kind:?} do not cross")))?;
            let (device_type, device_id) = match tensor.device() {
                Device::Cpu => (1, 0),
                Device::Cuda(n) => (2, n as i32),
                other => return Err(Error::invalid(format!("tensors on {other:?} do not cross"))),
            };
            let owner = Box::new(tensor.f_detach()?);
            let wire = WireTensor {
                data: owner.data_ptr(),
                device_type,
                device_id,
                dtype: dtype.wire(),
                shape: tensor.size().into_iter().collect(),
                strides: tensor.stride().into_iter().collect(),
                owner: Box::into_raw(owner).cast(),
                release: ROption::RSome(release_box::<Tensor>),
            };
            // SAFETY: libtorch's tensor has this shape and keeps its memory until `release` drops it. Whoever goes on
            // writing to the tensor in place changes the array too; models and explainers do not.
            unsafe { Array::from_wire(wire) }
        }

        /// A tensor over this array's memory, which lives as long as any view of the tensor.
        pub fn to_tensor(&self) -> Result<TensorView> {
            Ok(TensorView(self.share_tensor()?))
        }

        /// As [`Array::to_tensor`], as a plain tensor: for code that keeps its promise not to write to it.
        pub fn share_tensor(&self) -> Result<Tensor> {
            let kind = KINDS.iter().find(|(d, ..)| *d == self.dtype).map(|(.., code)| *code);
            let kind = kind.ok_or_else(|| Error::invalid(format!("{:?} has no tensor type", self.dtype)))?;
            let (device_type, index) = match self.place {
                Place::Cpu => (0, -1),
                Place::Cuda(n) => (1, n as c_int),
            };
            let owner = Box::into_raw(Box::new(Arc::clone(&self.wire)));
            let mut error = [0 as c_char; 512];
            // SAFETY: sizes and strides hold `len` elements each; the memory is kept by `owner`, which libtorch releases,
            // on an error too; `error` is as long as it says.
            let made = unsafe {
                lightbox_for_blob(
                    self.wire.data,
                    self.wire.shape.as_ptr(),
                    self.wire.strides.as_ptr(),
                    self.wire.shape.len(),
                    kind,
                    device_type,
                    index,
                    owner.cast(),
                    release_arc,
                    error.as_mut_ptr(),
                    error.len(),
                )
            };
            if made.is_null() {
                // SAFETY: the shim writes at most one byte less than the buffer, which began as zeros.
                let message = unsafe { CStr::from_ptr(error.as_ptr()) }.to_string_lossy();
                return Err(Error::new(crate::ErrorKind::Torch, message));
            }
            // SAFETY: a new `at::Tensor` that nobody else owns.
            Ok(unsafe { Tensor::from_ptr(made.cast()) })
        }

        /// The array in CPU memory, contiguous; itself where it is.
        pub fn to_cpu(&self) -> Result<Array> {
            match self.place {
                Place::Cpu => Ok(self.clone()),
                Place::Cuda(_) => Array::from_tensor(&self.share_tensor()?.f_to_device(Device::Cpu)?.f_contiguous()?),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(shape: &[i64], strides: &[i64], data: *mut c_void) -> WireTensor {
        WireTensor {
            data,
            device_type: 1,
            device_id: 0,
            dtype: DType::F32.wire(),
            shape: shape.iter().copied().collect(),
            strides: strides.iter().copied().collect(),
            owner: std::ptr::null_mut(),
            release: ROption::RNone,
        }
    }

    fn check_rejected(wire: WireTensor, message: &str) {
        // SAFETY: it is rejected before anything is read.
        let error = unsafe { Array::from_wire(wire) }.unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }

    #[test]
    fn a_bad_handle_is_rejected() {
        let mut value = 1f32;
        let data = (&raw mut value).cast::<c_void>();
        check_rejected(wire(&[-1], &[1], data), "negative size");
        check_rejected(wire(&[2], &[-1], data), "negative stride");
        check_rejected(wire(&[i64::MAX, 4], &[4, 1], data), "too large");
        check_rejected(wire(&[2], &[i64::MAX], data), "too large");
        check_rejected(wire(&[2, 2], &[1], data), "2 dimensions with 1 strides");
        check_rejected(wire(&[1], &[1], std::ptr::null_mut()), "no memory");
        check_rejected(wire(&[1], &[1], (data as usize + 1) as *mut c_void), "misaligned");
        let mut other = wire(&[1], &[1], data);
        other.dtype = WireDType { code: 9, bits: 3, lanes: 1 };
        check_rejected(other, "element type");
        let mut other = wire(&[1], &[1], data);
        other.device_type = 7;
        check_rejected(other, "device type 7");
    }

    #[test]
    fn a_bool_that_is_none_is_an_error() {
        let good = Array::from_vec(&[3], vec![true, false, true]).unwrap();
        assert_eq!(good.to_vec::<bool>().unwrap(), [true, false, true]);
        let bytes = [1u8, 2, 0];
        let mut odd = wire(&[3], &[1], bytes.as_ptr() as *mut c_void);
        odd.dtype = DType::Bool.wire();
        // SAFETY: the bytes outlive the array.
        let odd = unsafe { Array::from_wire(odd) }.unwrap();
        assert!(odd.view::<bool>().unwrap_err().to_string().contains("the byte 2"));
    }

    #[test]
    fn memory_is_shared_and_released_once() {
        let array = Array::from_vec(&[2, 3], (0..6).map(|i| i as f32).collect()).unwrap();
        // SAFETY: the handle is an array's own.
        let other = unsafe { Array::from_wire(array.to_wire()) }.unwrap();
        assert_eq!(other.wire.data, array.wire.data);
        drop(array);
        assert_eq!(other.view::<f32>().unwrap()[[1, 2]], 5.0);
        assert!(other.view::<i64>().unwrap_err().to_string().contains("F32"));
        assert!(Array::from_vec(&[2, 2], vec![1f32]).is_err());
    }

    #[test]
    fn ndarrays_of_any_layout_keep_their_values() {
        let a = ndarray::Array2::from_shape_fn((3, 4), |(i, j)| (i * 10 + j) as f32);
        let t = Array::from_ndarray(a.t().to_owned()).unwrap();
        assert_eq!(t.view::<f32>().unwrap()[[3, 2]], 23.0);
        let s = Array::from_ndarray(a.slice_move(ndarray::s![1.., 1..3])).unwrap();
        assert_eq!(s.to_vec::<f32>().unwrap(), [11.0, 12.0, 21.0, 22.0]);
    }

    #[cfg(feature = "tch")]
    #[test]
    fn tensors_cross_without_a_copy() {
        use tch::{Device, Kind, Tensor};
        let t = Tensor::arange(12, (Kind::Float, Device::Cpu)).reshape([3, 4]).tr();
        let array = Array::from_tensor(&t).unwrap();
        // SAFETY: the handle is an array's own.
        let back = unsafe { Array::from_wire(array.to_wire()) }.unwrap().to_tensor().unwrap();
        assert_eq!(back.data_ptr(), t.data_ptr());
        assert_eq!(back.stride(), [1, 4]);
        drop((t, array));
        let view = back.get(3);
        drop(back);
        assert_eq!(Vec::<f32>::try_from(view).unwrap(), [3.0, 7.0, 11.0]);
    }
}
