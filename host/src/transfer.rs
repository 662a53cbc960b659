//! The way between a model's memory and the CPU's, for explainers that read CPU memory only.

use lightbox_sdk::{Array, Result};
use tch::Device;

/// Brings arrays to the model's memory and back.
pub trait Transfer: Send + Sync {
    /// An array where the model can read it.
    fn to_model(&self, array: &Array) -> Result<Array>;
    /// An array in CPU memory.
    fn to_cpu(&self, array: &Array) -> Result<Array>;
}

/// Copies by libtorch between a device and the CPU.
pub struct Copies(pub Device);

impl Transfer for Copies {
    fn to_model(&self, array: &Array) -> Result<Array> {
        Array::from_tensor(&array.share_tensor()?.f_to_device(self.0)?)
    }

    fn to_cpu(&self, array: &Array) -> Result<Array> {
        array.to_cpu()
    }
}

/// A copy in memory of its own.
pub fn own(array: &Array) -> Result<Array> {
    let tensor = array.share_tensor()?;
    let mut copy = tensor.f_empty_like()?;
    copy.f_copy_(&tensor)?;
    Array::from_tensor(&copy)
}
