//! What is done with maps before they are scored: brought to the masks' size, scaled to their own range, looked through for
//! faults. On the device they are on: by our own kernels on the CPU, by libtorch elsewhere, with one definition.

use crate::Result;
use crate::data::resize::{self, axis};
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

/// What is wrong with a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// A value is NaN or infinite.
    NotFinite,
    /// All values are equal: it says nothing of any place.
    Constant,
}

/// Values of a CPU tensor, row by row.
pub fn values(maps: &Tensor) -> Result<Vec<f32>> {
    Ok(Vec::<f32>::try_from(maps.f_flatten(0, -1)?.f_to_kind(Kind::Float)?)?)
}

fn shape(maps: &Tensor) -> Result<(usize, usize, usize)> {
    let [n, h, w]: [i64; 3] =
        maps.size().try_into().map_err(|s| crate::Error::new(format!("maps of shape {s:?}, expected [n, h, w]")))?;
    Ok((n as usize, h as usize, w as usize))
}

/// Maps [n, h, w] float32 at another size [n, to_h, to_w]: [`resize::upsample`].
pub fn upsample(maps: &Tensor, (to_h, to_w): (usize, usize)) -> Result<Tensor> {
    let (n, h, w) = shape(maps)?;
    if (h, w) == (to_h, to_w) {
        return Ok(maps.shallow_clone());
    }
    if maps.device() != Device::Cpu {
        return upsample_by_libtorch(maps, (to_h, to_w));
    }
    let large = resize::upsample(&values(maps)?, n, (h, w), (to_h, to_w));
    Ok(Tensor::f_from_slice(&large)?.f_reshape([n as i64, to_h as i64, to_w as i64])?)
}

/// [`upsample`] in libtorch's operations, on any device.
pub fn upsample_by_libtorch(maps: &Tensor, (to_h, to_w): (usize, usize)) -> Result<Tensor> {
    let (_, h, w) = shape(maps)?;
    let device = maps.device();
    let along = |x: &Tensor, dim: i64, from: usize, to: usize| -> Result<Tensor> {
        let taps = axis(from, to);
        let index = |f: &dyn Fn(&(usize, usize, f32)) -> usize| -> Result<Tensor> {
            let list: Vec<i64> = taps.iter().map(|t| f(t) as i64).collect();
            Ok(Tensor::f_from_slice(&list)?.f_to_device(device)?)
        };
        let (low, high) = (x.f_index_select(dim, &index(&|t| t.0)?)?, x.f_index_select(dim, &index(&|t| t.1)?)?);
        let fraction: Vec<f32> = taps.iter().map(|t| t.2).collect();
        let fraction = Tensor::f_from_slice(&fraction)?.f_to_device(device)?;
        let fraction = if dim == 1 { fraction.f_unsqueeze(1)? } else { fraction };
        Ok(low.f_add(&high.f_sub(&low)?.f_mul(&fraction)?)?)
    };
    along(&along(maps, 2, w, to_w)?, 1, h, to_h)
}

/// Each map scaled to [0, 1] by its own range; a constant one becomes 0. Maps that are not finite are not to be given.
pub fn min_max(maps: &Tensor) -> Result<Tensor> {
    let (n, h, w) = shape(maps)?;
    if maps.device() == Device::Cpu {
        let mut all = values(maps)?;
        all.par_chunks_exact_mut((h * w).max(1)).for_each(min_max_of);
        return Ok(Tensor::f_from_slice(&all)?.f_reshape([n as i64, h as i64, w as i64])?);
    }
    min_max_by_libtorch(maps)
}

/// [`min_max`] in libtorch's operations, on any device.
pub fn min_max_by_libtorch(maps: &Tensor) -> Result<Tensor> {
    let low = maps.f_amin([1i64, 2].as_slice(), true)?;
    let range = maps.f_amax([1i64, 2].as_slice(), true)?.f_sub(&low)?;
    let moved = maps.f_sub(&low)?.f_div(&range)?;
    Ok(moved.f_where_self(&range.f_gt(0.0)?, &moved.f_zeros_like()?)?)
}

/// Scales one map to [0, 1] by its own range; a constant map becomes 0.
pub fn min_max_of(map: &mut [f32]) {
    let low = map.iter().copied().fold(f32::INFINITY, f32::min);
    let high = map.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let range = high - low;
    let one = |v: f32| if range > 0.0 { (v - low) / range } else { 0.0 };
    map.iter_mut().for_each(|v| *v = one(*v));
}

/// What is wrong with each map of [n, h, w].
pub fn faults(maps: &Tensor) -> Result<Vec<Fault>> {
    let (n, ..) = shape(maps)?;
    let flat = maps.f_reshape([n as i64, -1])?;
    let finite = flat.f_isfinite()?.f_all_dim(1, false)?;
    let constant = flat.f_eq_tensor(&flat.f_narrow(1, 0, 1)?)?.f_all_dim(1, false)?;
    let list = |t: Tensor| -> Result<Vec<i64>> {
        Ok(Vec::<i64>::try_from(t.f_to_device(Device::Cpu)?.f_to_kind(Kind::Int64)?)?)
    };
    let fault = |(finite, constant)| match (finite, constant) {
        (0, _) => Fault::NotFinite,
        (_, 0) => Fault::None,
        _ => Fault::Constant,
    };
    Ok(list(finite)?.into_iter().zip(list(constant)?).map(fault).collect())
}

/// A checksum of values in their order: two that differ anywhere, unless by design, give others.
pub fn checksum(values: &[f32]) -> u64 {
    const LANES: usize = 16;
    let mut lanes = [0u32; LANES];
    let mut chunks = values.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_mul(0x9e37_79b1) ^ value.to_bits();
        }
    }
    let rest = chunks.remainder().iter().map(|v| v.to_bits());
    lanes
        .into_iter()
        .chain(rest)
        .fold(values.len() as u64, |h, v| (h ^ u64::from(v)).wrapping_mul(0x100_0000_01b3).rotate_left(17))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(shape: &[i64]) -> Tensor {
        let n = shape.iter().product::<i64>();
        ((Tensor::arange(n, (Kind::Double, Device::Cpu)) * 12.9898).sin() * 7.0).to_kind(Kind::Float).reshape(shape)
    }

    fn bits(t: &Tensor) -> Vec<u32> {
        values(t).unwrap().into_iter().map(f32::to_bits).collect()
    }

    #[test]
    fn libtorchs_way_is_ours_to_the_bit() {
        for (from, to) in [((7, 5), (32, 60)), ((14, 14), (224, 224)), ((3, 3), (2, 2))] {
            // Plateaus too.
            let maps = noise(&[3, from.0, from.1]).relu();
            let (ours, theirs) = (upsample(&maps, to).unwrap(), upsample_by_libtorch(&maps, to).unwrap());
            assert_eq!(bits(&ours), bits(&theirs), "{from:?} {to:?}");
            assert_eq!(bits(&min_max(&ours).unwrap()), bits(&min_max_by_libtorch(&theirs).unwrap()));
        }
    }

    #[test]
    fn faults_are_seen() {
        let maps = Tensor::from_slice(&[1f32, 2.0, 3.0, 3.0, f32::NAN, 1.0, 0.0, f32::INFINITY]).reshape([4, 1, 2]);
        assert_eq!(faults(&maps).unwrap(), [Fault::None, Fault::Constant, Fault::NotFinite, Fault::NotFinite]);
    }

    #[test]
    fn min_max_of_a_constant_is_zero() {
        let mut map = [3.0, 3.0];
        min_max_of(&mut map);
        assert_eq!(map, [0.0, 0.0]);
        let mut map = [-1.0, 3.0, 1.0];
        min_max_of(&mut map);
        assert_eq!(map, [0.0, 1.0, 0.5]);
        let constant = min_max_by_libtorch(&Tensor::ones([1, 2, 2], (Kind::Float, Device::Cpu))).unwrap();
        assert_eq!(values(&constant).unwrap(), [0.0; 4]);
    }

    #[test]
    fn a_checksum_sees_every_place() {
        let values: Vec<f32> = (0..37).map(|i| i as f32).collect();
        let before = checksum(&values);
        for i in 0..37 {
            let mut other = values.clone();
            other[i] += 0.5;
            assert_ne!(checksum(&other), before, "{i}");
        }
        let mut other = values.clone();
        other.swap(0, 16);
        assert_ne!(checksum(&other), before);
    }
}
