//! What is done with maps before they are scored: brought to the masks' size, scaled to their own range, looked through for
//! faults. On the device they are on: by our own kernels on the CPU, by libtorch elsewhere, with one definition.

use crate::Result;
use crate::data::resize::{self, axis};
use rayon::prelude::*;
use std::ops::Deref;
use tch::kind::Element;
use tch::{Device, Kind, Tensor};

/// What is wrong with a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The map is as it should be.
    None,
    /// A value is NaN or infinite.
    NotFinite,
    /// All values are equal: it says nothing of any place.
    Constant,
}

/// A tensor's elements, row by row, on the CPU. They are not copied where they lie there so; nobody may write to the tensor
/// meanwhile.
pub struct Flat<T> {
    start: *const T,
    len: usize,
    _keeps: Tensor,
}

// SAFETY: the elements are read only, and the tensor is not touched but to be dropped.
unsafe impl<T: Sync> Sync for Flat<T> {}

impl<T: Element> Flat<T> {
    /// Of a tensor of any kind and device.
    pub fn of(tensor: &Tensor) -> Result<Self> {
        let tensor = tensor.f_to_device(Device::Cpu)?.f_to_kind(T::KIND)?.f_contiguous()?;
        Ok(Flat { start: tensor.data_ptr().cast::<T>(), len: tensor.numel(), _keeps: tensor })
    }
}

impl<T> Deref for Flat<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self.len {
            0 => &[],
            // SAFETY: `of` has made it a contiguous tensor of `T` on the CPU, which lives as long as `self`.
            n => unsafe { std::slice::from_raw_parts(self.start, n) },
        }
    }
}

/// Values of maps, row by row.
pub fn values(maps: &Tensor) -> Result<Flat<f32>> {
    Flat::of(maps)
}

/// How many maps of so many pixels make work that is worth another thread.
pub fn at_least(pixels: usize) -> usize {
    ((1 << 16) / pixels.max(1)).max(1)
}

/// A new tensor [n, h, w] float32 on the CPU, filled map by map: by its number and its pixels, zeros before.
fn filled((n, h, w): (usize, usize, usize), fill: impl Fn(usize, &mut [f32]) + Sync) -> Result<Tensor> {
    let made = Tensor::f_zeros([n as i64, h as i64, w as i64], (Kind::Float, Device::Cpu))?;
    if n * h * w > 0 {
        // SAFETY: new, contiguous, float32, on the CPU, and nobody else's.
        let pixels = unsafe { std::slice::from_raw_parts_mut(made.data_ptr().cast::<f32>(), n * h * w) };
        let maps = pixels.par_chunks_exact_mut(h * w).with_min_len(at_least(h * w)).enumerate();
        maps.for_each(|(i, map)| fill(i, map));
    }
    Ok(made)
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
    let (small, axes) = (values(maps)?, (axis(h, to_h), axis(w, to_w)));
    filled((n, to_h, to_w), |i, map| resize::upsample_into(map, &small[i * h * w..][..h * w], w, &axes))
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
        let all = values(maps)?;
        return filled((n, h, w), |i, map| {
            map.copy_from_slice(&all[i * h * w..][..h * w]);
            min_max_of(map);
        });
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
    let (low, high) = extremes(map);
    let range = high - low;
    match range > 0.0 {
        true => map.iter_mut().for_each(|v| *v = (*v - low) / range),
        false => map.fill(0.0),
    }
}

/// Values side by side, so that they are compared in vectors.
const LANES: usize = 16;

/// The least and the greatest value of a finite map.
pub fn extremes(map: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let least = |a: f32, b: f32| if b < a { b } else { a };
    let greatest = |a: f32, b: f32| if b > a { b } else { a };
    for part in map.chunks(LANES) {
        let lanes = low.iter_mut().zip(&mut high).zip(part);
        lanes.for_each(|((low, high), v)| (*low, *high) = (least(*low, *v), greatest(*high, *v)));
    }
    (low.into_iter().fold(f32::INFINITY, least), high.into_iter().fold(f32::NEG_INFINITY, greatest))
}

/// The sum of float64 terms of a map's values: sixteen sums side by side, then those, always in one order.
pub fn sum(map: &[f32], term: impl Fn(f32) -> f64) -> f64 {
    let mut sums = [0.0; LANES];
    for part in map.chunks(LANES) {
        sums.iter_mut().zip(part).for_each(|(sum, v)| *sum += term(*v));
    }
    sums.iter().sum()
}

/// What is wrong with each map of [n, h, w].
pub fn faults(maps: &Tensor) -> Result<Vec<Fault>> {
    let (n, h, w) = shape(maps)?;
    if maps.device() == Device::Cpu && h * w > 0 {
        let all = values(maps)?;
        return Ok(all.par_chunks_exact(h * w).with_min_len(at_least(h * w)).map(fault_of).collect());
    }
    faults_by_libtorch(maps, n)
}

/// What is wrong with one map.
fn fault_of(map: &[f32]) -> Fault {
    let first = map.first().copied().unwrap_or_default();
    // Any NaN or infinity makes the sum of `0 x` NaN; so does a value whose double is none any more, since the range of a map
    // that has its negative too is not finite.
    let (mut sums, mut others) = ([0f32; LANES], [0u32; LANES]);
    for part in map.chunks(LANES) {
        for ((sum, others), v) in sums.iter_mut().zip(&mut others).zip(part) {
            *sum += (v + v) * 0.0;
            *others |= u32::from(*v != first);
        }
    }
    match (sums.iter().any(|s| s.is_nan()), others.iter().any(|n| *n > 0)) {
        (true, _) => Fault::NotFinite,
        (_, true) => Fault::None,
        _ => Fault::Constant,
    }
}

/// [`faults`] in libtorch's operations, on any device.
fn faults_by_libtorch(maps: &Tensor, n: usize) -> Result<Vec<Fault>> {
    let flat = maps.f_reshape([n as i64, -1])?;
    let finite = flat.f_add(&flat)?.f_isfinite()?.f_all_dim(1, false)?;
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
        values(t).unwrap().iter().copied().map(f32::to_bits).collect()
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
        let wanted = [Fault::None, Fault::Constant, Fault::NotFinite, Fault::NotFinite];
        assert_eq!(faults(&maps).unwrap(), wanted);
        assert_eq!(faults_by_libtorch(&maps, 4).unwrap(), wanted);
        // At any place of a map that no lanes fill.
        for at in 0..35 {
            let with = |value: f32| {
                let mut map = vec![0.5f32; 35];
                map[at] = value;
                fault_of(&map)
            };
            assert_eq!([with(f32::NAN), with(f32::NEG_INFINITY)], [Fault::NotFinite; 2], "{at}");
            assert_eq!([with(0.25), with(0.5)], [Fault::None, Fault::Constant], "{at}");
        }
        assert_eq!(fault_of(&[0.0, -0.0]), Fault::Constant);
        let extreme = Tensor::from_slice(&[f32::MAX, -f32::MAX]).reshape([1, 1, 2]);
        assert_eq!(
            (faults(&extreme).unwrap(), faults_by_libtorch(&extreme, 1).unwrap()),
            (vec![Fault::NotFinite], vec![Fault::NotFinite])
        );
    }

    #[test]
    fn extremes_and_sums_are_of_all_values() {
        for n in [1, 15, 16, 17, 100] {
            let map: Vec<f32> = (0..n).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
            let by = |f: fn(f32, f32) -> f32| map.iter().copied().reduce(f).unwrap();
            assert_eq!(extremes(&map), (by(f32::min), by(f32::max)));
            assert_eq!(sum(&map, f64::from), map.iter().map(|v| f64::from(*v)).sum::<f64>());
        }
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
        assert_eq!(values(&constant).unwrap()[..], [0.0; 4]);
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
