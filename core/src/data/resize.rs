//! Bilinear resizing with antialiasing, as torchvision's `resize(..., antialias=True)` and Pillow's `BILINEAR` define it:
//! a triangle filter of half-width `max(1, scale)` around `(i + 1/2) * scale`, weights normalised, each axis in turn.

use rayon::prelude::*;

/// For each output position, the first input position and the weights.
fn taps(from: usize, to: usize) -> Vec<(usize, Vec<f32>)> {
    let scale = from as f64 / to as f64;
    let reach = scale.max(1.0);
    (0..to)
        .map(|i| {
            let centre = (i as f64 + 0.5) * scale;
            let first = ((centre - reach + 0.5).floor().max(0.0)) as usize;
            let last = ((centre + reach + 0.5).floor() as usize).min(from);
            let weight = |j: usize| (1.0 - ((j as f64 + 0.5 - centre) / reach).abs()).max(0.0);
            let weights: Vec<f64> = (first..last).map(weight).collect();
            let sum: f64 = weights.iter().sum();
            (first, weights.iter().map(|w| (w / sum) as f32).collect())
        })
        .collect()
}

/// Resizes a row-major image of bytes or floats. Sizes must not be 0.
pub fn resize<T: Copy + Into<f32>>(
    image: &[T],
    (width, height): (usize, usize),
    (to_width, to_height): (usize, usize),
) -> Vec<f32> {
    if (width, height) == (to_width, to_height) {
        return image.iter().map(|v| (*v).into()).collect();
    }
    // Rows first: whole rows are added at a time, and few are left for the columns, whose sums are short.
    let columns = taps(width, to_width);
    let (mut sum, add) = (vec![0f32; width], ways().last().copied().unwrap_or(add_rows));
    let mut result = Vec::with_capacity(to_width * to_height);
    for (first, weights) in taps(height, to_height) {
        // SAFETY: of `ways`, which has looked at what this CPU has.
        unsafe { add(&mut sum, &weights, &image[first * width..]) };
        let column =
            |(first, weights): &(usize, Vec<f32>)| weights.iter().zip(&sum[*first..]).map(|(w, v)| w * v).sum::<f32>();
        result.extend(columns.iter().map(column));
    }
    result
}

/// Columns whose sums stay in registers.
const BLOCK: usize = 32;

/// The sums of rows, one behind the other, by their weights. In whatever vectors, each column adds its rows in their order.
#[inline(always)]
fn add_rows<T: Copy + Into<f32>>(sum: &mut [f32], weights: &[f32], rows: &[T]) {
    let width = sum.len();
    for (at, sum) in sum.chunks_mut(BLOCK).enumerate() {
        let mut block = [0f32; BLOCK];
        for (weight, row) in weights.iter().zip(rows.chunks_exact(width)) {
            let row = &row[at * BLOCK..][..sum.len()];
            // A whole block has a length that the compiler knows: its loop is vectors alone.
            match <&[T; BLOCK]>::try_from(row) {
                Ok(row) => block.iter_mut().zip(row).for_each(|(s, v)| *s += weight * (*v).into()),
                Err(_) => block.iter_mut().zip(row).for_each(|(s, v)| *s += weight * (*v).into()),
            }
        }
        sum.copy_from_slice(&block[..sum.len()]);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_rows_avx2<T: Copy + Into<f32>>(sum: &mut [f32], weights: &[f32], rows: &[T]) {
    add_rows(sum, weights, rows);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn add_rows_avx512<T: Copy + Into<f32>>(sum: &mut [f32], weights: &[f32], rows: &[T]) {
    add_rows(sum, weights, rows);
}

type AddRows<T> = unsafe fn(&mut [f32], &[f32], &[T]);

/// What this CPU can run, the widest vectors last.
fn ways<T: Copy + Into<f32>>() -> Vec<AddRows<T>> {
    let mut ways: Vec<AddRows<T>> = vec![add_rows::<T>];
    #[cfg(target_arch = "x86_64")]
    if !crate::is_plain() {
        if is_x86_feature_detected!("avx2") {
            ways.push(add_rows_avx2::<T>);
        }
        let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        if wide && is_x86_feature_detected!("avx512vl") {
            ways.push(add_rows_avx512::<T>);
        }
    }
    ways
}

/// Of a position of an upsampled axis: its two neighbours and how far it is from the first towards the second.
pub(crate) type Tap = (usize, usize, f32);

/// The taps of an axis.
pub(crate) fn axis(from: usize, to: usize) -> Vec<Tap> {
    let scale = from as f32 / to as f32;
    let one = |i: usize| {
        let at = ((i as f32 + 0.5) * scale - 0.5).max(0.0);
        let low = (at as usize).min(from - 1);
        (low, (low + 1).min(from - 1), at - low as f32)
    };
    (0..to).map(one).collect()
}

/// Bilinear upsampling of a batch of maps without antialiasing, `align_corners = false`: what every CAM library does to
/// bring a map to the image's size. `maps` is [n, h, w]; the result [n, to_h, to_w].
///
/// Written as `a + (b - a) f`, so that equal neighbours give exactly their value: `a (1 - f) + b f` in float32 splits a
/// plateau into values that differ in the last bit, which a rank metric takes for an order.
pub fn upsample(maps: &[f32], n: usize, (h, w): (usize, usize), (to_h, to_w): (usize, usize)) -> Vec<f32> {
    if (h, w) == (to_h, to_w) {
        return maps.to_vec();
    }
    let axes = (axis(h, to_h), axis(w, to_w));
    let mut result = vec![0f32; n * to_h * to_w];
    let maps = result.par_chunks_exact_mut(to_h * to_w).zip(maps.par_chunks_exact(h * w));
    maps.for_each(|(out, map)| upsample_into(out, map, w, &axes));
    result
}

/// One map of width `w` by its [`axis`]es, rows and columns.
pub(crate) fn upsample_into(out: &mut [f32], map: &[f32], w: usize, (rows, columns): &(Vec<Tap>, Vec<Tap>)) {
    let to_w = columns.len();
    // Each row at its new width, once; an output row is between two of them.
    let mut wide = Vec::with_capacity(map.len() / w.max(1) * to_w);
    for row in map.chunks_exact(w.max(1)) {
        wide.extend(columns.iter().map(|&(x0, x1, f)| row[x0] + (row[x1] - row[x0]) * f));
    }
    for (line, &(y0, y1, f)) in out.chunks_exact_mut(to_w.max(1)).zip(rows) {
        let (top, bottom) = (&wide[y0 * to_w..][..to_w], &wide[y1 * to_w..][..to_w]);
        line.iter_mut().zip(top).zip(bottom).for_each(|((value, top), bottom)| *value = top + (bottom - top) * f);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    fn check(from: (usize, usize), to: (usize, usize)) {
        let image = Tensor::rand([1, 1, from.1 as i64, from.0 as i64], (Kind::Float, Device::Cpu));
        let values = Vec::<f32>::try_from(image.flatten(0, -1)).unwrap();
        let torch = image.internal_upsample_bilinear2d_aa([to.1 as i64, to.0 as i64], false, None, None);
        let torch = Vec::<f32>::try_from(torch.flatten(0, -1)).unwrap();
        let worst = resize(&values, from, to).iter().zip(&torch).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // libtorch computes its weights in float32; a tenth of a grey level of 1/255 is far above that.
        assert!(worst < 1e-4, "{from:?} -> {to:?}: {worst}");
    }

    #[test]
    fn equals_libtorch() {
        for (from, to) in
            [((320, 320), (224, 224)), ((101, 67), (224, 30)), ((10, 10), (64, 64)), ((7, 5), (7, 9)), ((3, 1), (1, 3))]
        {
            check(from, to);
        }
    }

    #[test]
    fn all_vectors_give_the_same_numbers() {
        let bytes: Vec<u8> = (0..5 * 101).map(|i| (i * 37 % 251) as u8).collect();
        let weights = [0.1, 0.3, 0.25, 0.2, 0.15];
        let sums = ways::<u8>().into_iter().map(|add| {
            let mut sum = vec![7f32; 101];
            // SAFETY: of `ways`.
            unsafe { add(&mut sum, &weights, &bytes) };
            sum
        });
        let plain: Vec<f32> =
            (0..101).map(|x| (0..5).fold(0.0, |s, y| s + weights[y] * f32::from(bytes[y * 101 + x]))).collect();
        sums.for_each(|sum| assert_eq!(sum, plain));
    }

    #[test]
    fn a_plateau_stays_one_value() {
        // 7 x 7 with large equal regions, as a ReLU leaves them.
        let map: Vec<f32> = (0..49).map(|i| if i % 7 < 4 { 0.1 } else { [0.7, 0.3][i / 28] }).collect();
        let large = upsample(&map, 1, (7, 7), (224, 224));
        let taps = axis(7, 224);
        let mut plateau = 0;
        for (y, (y0, y1, _)) in taps.iter().enumerate() {
            for (x, (x0, x1, _)) in taps.iter().enumerate() {
                let four = [map[y0 * 7 + x0], map[y0 * 7 + x1], map[y1 * 7 + x0], map[y1 * 7 + x1]];
                if four.iter().all(|v| *v == four[0]) {
                    assert_eq!(large[y * 224 + x], four[0], "({x}, {y})");
                    plateau += 1;
                }
            }
        }
        assert!(plateau > 224 * 150, "{plateau}");
    }

    #[test]
    fn upsampling_equals_libtorch() {
        let maps = (Tensor::arange(105, (Kind::Float, Device::Cpu)) * 12.9898).sin().reshape([3, 1, 7, 5]);
        let torch = maps.upsample_bilinear2d([224, 60], false, None, None);
        let torch = Vec::<f32>::try_from(torch.flatten(0, -1)).unwrap();
        let ours = upsample(&Vec::<f32>::try_from(maps.flatten(0, -1)).unwrap(), 3, (7, 5), (224, 60));
        let worst = ours.iter().zip(&torch).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-5, "{worst}");
    }
}
