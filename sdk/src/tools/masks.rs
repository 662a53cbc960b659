//! Masks of images.

use super::draw::coins;
use super::maps::resize_channels;
use crate::Result;
use ndarray::Array2;
use rand::Rng;
use tch::Tensor;

/// A smooth random mask [1, size...] in [0, 1], as RISE draws them: a grid of `cells` an axis, each on with probability `q`,
/// scaled up linearly to one cell more than the image and shifted at random. One to three axes.
pub fn smooth(rng: &mut impl Rng, cells: usize, q: f64, size: &[usize]) -> Result<Tensor> {
    let cells = cells.max(1);
    let on = coins(rng, cells.pow(size.len() as u32), q);
    let on: Vec<f32> = on.into_iter().map(|c| f32::from(u8::from(c))).collect();
    let cell: Vec<usize> = size.iter().map(|n| n.div_ceil(cells)).collect();
    let shift: Vec<usize> = cell.iter().map(|n| rng.random_range(0..*n)).collect();
    let grid = Tensor::f_from_slice(&on)?.f_reshape([vec![1i64, 1], vec![cells as i64; size.len()]].concat())?;
    let large: Vec<i64> = cell.iter().map(|n| ((cells + 1) * n) as i64).collect();
    let large = resize_channels(&grid, &large)?.f_squeeze_dim(0)?;
    // Interpolation may round above 1.
    let mut mask = large.f_clamp(0.0, 1.0)?;
    for (axis, (first, n)) in shift.iter().zip(size).enumerate() {
        mask = mask.f_narrow(axis as i64 + 1, *first as i64, *n as i64)?;
    }
    Ok(mask)
}

/// 1 where a superpixel is on, row by row.
pub fn of_segments(labels: &Array2<u32>, on: &[bool]) -> Vec<f32> {
    labels.iter().map(|l| f32::from(u8::from(on.get(*l as usize).copied().unwrap_or(false)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn masks_are_shifted_grids_and_their_mean_is_q() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let mut total = 0.0;
        for _ in 0..400 {
            let mask = smooth(&mut rng, 4, 0.3, &[10, 13]).unwrap();
            assert_eq!(mask.size(), [1, 10, 13]);
            assert!(mask.min().double_value(&[]) >= 0.0 && mask.max().double_value(&[]) <= 1.0);
            total += mask.mean(tch::Kind::Double).double_value(&[]);
        }
        assert!((total / 400.0 - 0.3).abs() < 0.02, "{total}");
        assert_eq!(smooth(&mut rng, 3, 0.5, &[4, 5, 6]).unwrap().size(), [1, 4, 5, 6]);
        let labels = crate::tools::segment::grid(2, 4, 1, 2);
        assert_eq!(of_segments(&labels, &[false, true]), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]);
    }
}
