//! Maps as tensors.

use crate::Result;
use tch::{Kind, Tensor};

/// [B, grid...] to [B, size...], linear along each axis, `align_corners = false` as in every peer. One to three axes.
pub fn resize(map: &Tensor, size: &[i64]) -> Result<Tensor> {
    resize_channels(&map.f_unsqueeze(1)?, size)?.f_squeeze_dim(1).map_err(Into::into)
}

/// The same of [B, C, grid...].
pub fn resize_channels(maps: &Tensor, size: &[i64]) -> Result<Tensor> {
    if maps.dim() != size.len() + 2 {
        return Err(crate::Error::invalid(format!("cannot resize maps of shape {:?} to {size:?}", maps.size())));
    }
    Ok(match size.len() {
        1 => maps.f_upsample_linear1d(size, false, None::<f64>)?,
        2 => maps.f_upsample_bilinear2d(size, false, None::<f64>, None::<f64>)?,
        3 => maps.f_upsample_trilinear3d(size, false, None::<f64>, None::<f64>, None::<f64>)?,
        n => return Err(crate::Error::unsupported(format!("cannot resize maps of {n} spatial axes"))),
    })
}

/// The dimensions behind batch and channels of [B, C, grid...].
pub fn places(x: &Tensor) -> Vec<i64> {
    (2..x.dim() as i64).collect()
}

/// `[B]` or `[rows]` numbers as `[rows, 1, ...]`, to be multiplied with arrays of so many dimensions.
pub fn per_row(numbers: &Tensor, dimensions: usize) -> Result<Tensor> {
    let mut shape = vec![1i64; dimensions];
    shape[0] = -1;
    Ok(numbers.f_reshape(shape)?)
}

/// Least and greatest of each of [B, ...], each of shape [B, 1, ...].
pub fn range(map: &Tensor) -> Result<(Tensor, Tensor)> {
    let dims: Vec<i64> = (1..map.dim() as i64).collect();
    Ok((map.f_amin(dims.as_slice(), true)?, map.f_amax(dims.as_slice(), true)?))
}

/// Each of [B, ...] from 0 to 1; all 0 where it is constant.
pub fn min_max(map: &Tensor) -> Result<Tensor> {
    let (least, greatest) = range(map)?;
    let width = greatest.f_sub(&least)?;
    let usable = width.f_gt(0.0)?;
    let width = width.f_where_self(&usable, &width.f_ones_like()?)?;
    Ok(map.f_sub(&least)?.f_div(&width)?)
}

/// The sum over dimensions.
pub fn sum(x: &Tensor, dims: &[i64], keep: bool) -> Result<Tensor> {
    Ok(x.f_sum_dim_intlist(dims, keep, x.f_kind()?)?)
}

/// The mean over dimensions.
pub fn mean(x: &Tensor, dims: &[i64], keep: bool) -> Result<Tensor> {
    Ok(x.f_mean_dim(dims, keep, x.f_kind()?)?)
}

/// A Gaussian blur of [B, C, size...] with `sigma` pixels, cut off at `truncate` sigmas and edges repeated outwards: SciPy's
/// `gaussian_filter(mode="nearest")`.
pub fn blur(x: &Tensor, sigma: f64, truncate: f64) -> Result<Tensor> {
    if sigma <= 0.0 {
        return Ok(x.shallow_clone());
    }
    let radius = (truncate * sigma + 0.5) as i64;
    let values: Vec<f64> = (-radius..=radius).map(|i| (-0.5 * (i as f64 / sigma).powi(2)).exp()).collect();
    let total: f64 = values.iter().sum();
    let kernel: Vec<f32> = values.iter().map(|v| (v / total) as f32).collect();
    let kernel = Tensor::f_from_slice(&kernel)?.f_to_device(x.device())?.f_to_kind(x.f_kind()?)?;
    let n = 2 * radius + 1;
    let Ok([b, c, h, w]): std::result::Result<[i64; 4], _> = x.size().try_into() else {
        return blur_axes(x, &kernel, radius);
    };
    // One channel at a time: a batch of single-channel images.
    let flat = x.f_reshape([b * c, 1, h, w])?;
    let flat = flat.f_replication_pad2d([0, 0, radius, radius])?;
    let flat = flat.f_conv2d(&kernel.f_reshape([1, 1, n, 1])?, None::<&Tensor>, [1], [0], [1], 1)?;
    let flat = flat.f_replication_pad2d([radius, radius, 0, 0])?;
    let flat = flat.f_conv2d(&kernel.f_reshape([1, 1, 1, n])?, None::<&Tensor>, [1], [0], [1], 1)?;
    Ok(flat.f_reshape([b, c, h, w])?)
}

/// The blur of images of any number of spatial axes, one axis after the other.
fn blur_axes(x: &Tensor, kernel: &Tensor, radius: i64) -> Result<Tensor> {
    let mut x = x.shallow_clone();
    for axis in places(&x) {
        let moved = x.f_transpose(axis, -1)?.f_contiguous()?;
        let size = moved.size();
        let rows = moved.f_reshape([-1, 1, size[size.len() - 1]])?;
        let rows = rows.f_replication_pad1d([radius, radius])?;
        let rows = rows.f_conv1d(&kernel.f_reshape([1, 1, -1])?, None::<&Tensor>, [1], [0], [1], 1)?;
        x = rows.f_reshape(size)?.f_transpose(axis, -1)?;
    }
    Ok(x.f_contiguous()?)
}

/// As float32.
pub fn float(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_to_kind(Kind::Float)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn a_constant_map_becomes_zeros_and_others_span_the_range() {
        let map = Tensor::from_slice(&[3f32, 3.0, 3.0, 3.0, -1.0, 0.0, 1.0, 3.0]).reshape([2, 2, 2]);
        let found: Vec<f32> = Vec::try_from(min_max(&map).unwrap().flatten(0, -1)).unwrap();
        assert_eq!(found, [0.0, 0.0, 0.0, 0.0, 0.0, 0.25, 0.5, 1.0]);
    }

    #[test]
    fn a_blur_keeps_a_constant_and_spreads_a_point_evenly() {
        let ones = Tensor::ones([1, 2, 9, 7], (Kind::Float, Device::Cpu));
        assert_eq!(blur(&ones, 0.0, 4.0).unwrap(), ones);
        assert!((blur(&ones, 1.5, 4.0).unwrap() - 1.0).abs().max().double_value(&[]) < 1e-6);
        let point = Tensor::zeros([1, 1, 21, 21], (Kind::Float, Device::Cpu));
        let _ = point.get(0).get(0).get(10).get(10).fill_(1.0);
        let spread = blur(&point, 2.0, 4.0).unwrap();
        assert!((spread.sum(Kind::Double).double_value(&[]) - 1.0).abs() < 1e-5);
        let at = |y: i64, x: i64| spread.double_value(&[0, 0, y, x]);
        assert!((at(10, 12) - at(8, 10)).abs() < 1e-8);
        assert!((at(10, 12) / at(10, 10) - (-0.5f64).exp()).abs() < 1e-5);
        // A volume of equal slices is blurred as a slice is.
        let volume = point.unsqueeze(2).repeat([1, 1, 3, 1, 1]);
        let error = (blur(&volume, 2.0, 4.0).unwrap().select(2, 1) - spread).abs().max().double_value(&[]);
        assert!(error < 1e-6, "{error}");
    }
}
