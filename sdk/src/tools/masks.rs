//! Masks of images.

use super::draw::coins;
use crate::Result;
use ndarray::Array2;
use rand::Rng;
use tch::Tensor;

/// A smooth random mask [1, H, W] in [0, 1], as RISE draws them: a grid of `cells` x `cells`, each on with probability `q`, scaled
/// up bilinearly to one cell more than the image and shifted at random.
pub fn smooth(rng: &mut impl Rng, cells: usize, q: f64, [height, width]: [usize; 2]) -> Result<Tensor> {
    let cells = cells.max(1);
    let on: Vec<f32> = coins(rng, cells * cells, q).into_iter().map(|c| f32::from(u8::from(c))).collect();
    let (tall, wide) = (height.div_ceil(cells), width.div_ceil(cells));
    let (top, left) = (rng.random_range(0..tall), rng.random_range(0..wide));
    let grid = Tensor::f_from_slice(&on)?.f_reshape([1, 1, cells as i64, cells as i64])?;
    let size = [((cells + 1) * tall) as i64, ((cells + 1) * wide) as i64];
    let large = grid.f_upsample_bilinear2d(size, false, None::<f64>, None::<f64>)?.f_squeeze_dim(0)?;
    // Interpolation may round above 1.
    let large = large.f_clamp(0.0, 1.0)?;
    Ok(large.f_narrow(1, top as i64, height as i64)?.f_narrow(2, left as i64, width as i64)?)
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
            let mask = smooth(&mut rng, 4, 0.3, [10, 13]).unwrap();
            assert_eq!(mask.size(), [1, 10, 13]);
            assert!(mask.min().double_value(&[]) >= 0.0 && mask.max().double_value(&[]) <= 1.0);
            total += mask.mean(tch::Kind::Double).double_value(&[]);
        }
        assert!((total / 400.0 - 0.3).abs() < 0.02, "{total}");
        let labels = crate::tools::segment::grid(2, 4, 1, 2);
        assert_eq!(of_segments(&labels, &[false, true]), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]);
    }
}
