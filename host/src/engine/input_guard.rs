//! Guards what explainers are given: checksums of all arrays before the first call and after each, so that one that writes
//! to its input is named.

use crate::transfer::Transfer;
use lightbox_core::maps::checksum;
use lightbox_sdk::{Array, DType, Place};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// A number that another value anywhere in the array would change, and another order. On CUDA the bits, weighted by their
/// places, are summed.
pub(super) fn checksum_of(array: &Array) -> std::result::Result<u64, lightbox_sdk::Error> {
    if let (Place::Cpu, DType::F32) = (array.place(), array.dtype()) {
        let view = array.view::<f32>()?;
        return Ok(match view.as_slice_memory_order() {
            Some(values) => checksum(values),
            None => checksum(&view.iter().copied().collect::<Vec<_>>()),
        });
    }
    let values = array.share_tensor()?.f_contiguous()?.f_flatten(0, -1)?;
    let bits = match array.dtype() {
        DType::F32 => values.f_view_dtype(Kind::Int)?,
        DType::F64 => values.f_view_dtype(Kind::Int64)?,
        DType::F16 | DType::BF16 => values.f_view_dtype(Kind::Int16)?,
        DType::Bool => values.f_to_kind(Kind::Uint8)?,
        _ => values,
    };
    // Overflow wraps around, which is as good.
    let weights = Tensor::f_arange_start_step(3, 2 * bits.numel() as i64 + 3, 2, (Kind::Int64, bits.device()))?;
    Ok(bits.f_mul(&weights)?.f_sum(Kind::Int64)?.f_int64_value(&[])? as u64)
}

/// What explainers of a batch were given: checksums of all arrays before the first call, and CPU copies, each made once.
#[derive(Default)]
pub(super) struct InputGuard {
    sums: BTreeMap<(bool, String), u64>,
    copies: BTreeMap<String, Array>,
}

impl InputGuard {
    /// An array for an explainer, a copy in CPU memory where there is a way to it.
    pub(super) fn give(
        &mut self,
        cpu: Option<&dyn Transfer>,
        key: String,
        array: &Array,
    ) -> std::result::Result<Array, lightbox_sdk::Error> {
        let array = match (cpu, self.copies.get(&key)) {
            (None, _) => array.clone(),
            (Some(_), Some(copy)) => copy.clone(),
            (Some(transfer), None) => {
                let copy = transfer.to_cpu(array)?;
                self.copies.insert(key.clone(), copy.clone());
                copy
            }
        };
        if let std::collections::btree_map::Entry::Vacant(entry) = self.sums.entry((cpu.is_some(), key)) {
            entry.insert(checksum_of(&array)?);
        }
        Ok(array)
    }

    pub(super) fn is_unchanged(
        &self,
        cpu: bool,
        key: String,
        array: &Array,
    ) -> std::result::Result<bool, lightbox_sdk::Error> {
        Ok(self.sums.get(&(cpu, key)) == Some(&checksum_of(array)?))
    }
}
