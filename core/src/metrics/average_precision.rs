//! Average precision: of images by their scores, of pixels by a map, within one image or pooled over many.
//!
//! `AP = sum_n (R_n - R_(n-1)) P_n` over the distinct scores from high to low; a group of equal scores is taken as one
//! step, so ties do not depend on any order. Oracle: scikit-learn `average_precision_score`.
//!
//! For pixels the sum runs over the positives alone, and every pixel is counted between two of them (`pixels.rs`).

use super::pixels::Pixels;
use super::{
    Better, Evaluation, Level, Metric, MetricSpec, Needs, Predictions, Reference, Score as Answer, over_classes,
};
use crate::{Error, Result};
use lightbox_sdk::params::ParamValues;
use tch::{Kind, Tensor};

/// The average precision of the classification; that of maps is in `pixel_auprc.rs`.
pub struct Auprc;

impl Metric for Auprc {
    fn spec(&self) -> MetricSpec {
        MetricSpec {
            name: "auprc",
            short: "AUPRC",
            title: "AUPRC (average precision) of the classification",
            family: "classification",
            level: Level::Set,
            formula: "sum over distinct scores, high to low, of (recall gained) * precision; the mean over classes where \
                      there are several",
            better: Better::Higher,
            range: [0.0, 1.0],
            chance: "share of positive images",
            chance_is_constant: false,
            unit: "share",
            cost: "0",
            edge_cases: "N/A when no image is positive or a score is NaN; ties are one step",
            reference: Reference::new(
                "Pedregosa et al.",
                "scikit-learn, average_precision_score",
                "Journal of Machine Learning Research",
                2011,
                "",
            ),
            version: 1,
            parameters: vec![],
        }
    }

    fn needs(&self) -> Needs {
        Needs::PREDICTIONS
    }

    fn start(&self, _: &ParamValues, _: u64) -> Result<Box<dyn Evaluation>> {
        Err(Error::new("auprc is a metric of predictions"))
    }

    fn predictions(&self, predictions: &Predictions<'_>) -> Result<Answer> {
        Ok(over_classes(predictions, "no image has a class", average_precision))
    }
}

/// `scores` and `labels` (0 or 1), one an image. `None` when there is no positive or a score is NaN.
///
/// ```
/// use lightbox_core::metrics::average_precision::average_precision;
/// let ap = average_precision(&[0.1, 0.4, 0.35, 0.8], &[0, 0, 1, 1]).unwrap();
/// assert!((ap - 0.8333333333333333).abs() < 1e-12);
/// ```
pub fn average_precision(scores: &[f64], labels: &[u8]) -> Option<f64> {
    let positives = labels.iter().filter(|&&l| l == 1).count() as f64;
    if positives == 0.0 || scores.iter().any(|s| s.is_nan()) {
        return None;
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let (mut sum, mut hits, mut start) = (0.0, 0.0, 0);
    while start < order.len() {
        let mut end = start + 1;
        while end < order.len() && scores[order[end]] == scores[order[start]] {
            end += 1;
        }
        let new = order[start..end].iter().filter(|&&i| labels[i] == 1).count() as f64;
        hits += new;
        sum += new / positives * (hits / end as f64);
        start = end;
    }
    Some(sum)
}

/// What a map scores on an image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Score {
    /// The average precision, 0 to 1.
    Value(f64),
    /// No mask, or an empty one.
    NotApplicable,
    /// The map is not finite.
    Failed,
}

/// Pixel-wise average precision of one map, of the mask's shape, row-major.
///
/// ```
/// use lightbox_core::metrics::average_precision::{Score, pixel_average_precision};
/// let score = pixel_average_precision(&[0.1, 0.4, 0.35, 0.8], &[0, 0, 1, 1]);
/// assert!(matches!(score, Score::Value(v) if (v - 0.8333333333333333).abs() < 1e-12));
/// ```
pub fn pixel_average_precision(map: &[f32], mask: &[u8]) -> Score {
    assert_eq!(map.len(), mask.len(), "map and mask have one shape");
    match Pixels::of(map, mask) {
        Some(pixels) => Score::Value(pixels.average_precision()),
        None if map.iter().all(|v| v.is_finite()) => Score::NotApplicable,
        None => Score::Failed,
    }
}

/// [`pixel_average_precision`] of maps [n, h, w] against masks [n, h, w] (uint8) in libtorch's operations, on any device: the
/// pixels are sorted, and the sum runs over the last of each group of equal ones. Every map must be finite; a mask without
/// pixels gives NaN. Float64.
pub fn average_precision_by_libtorch(maps: &Tensor, masks: &Tensor) -> Result<Vec<f64>> {
    let n = maps.size()[0];
    // -0 is 0.
    let (sorted, order) = maps.f_reshape([n, -1])?.f_add_scalar(0.0)?.f_sort(1, true)?;
    let pixels = sorted.size()[1];
    let hits =
        masks.f_reshape([n, -1])?.f_gather(1, &order, false)?.f_to_kind(Kind::Double)?.f_cumsum(1, Kind::Double)?;
    let rest = sorted.f_narrow(1, 1, pixels - 1)?.f_ne_tensor(&sorted.f_narrow(1, 0, pixels - 1)?)?;
    let last = Tensor::f_cat(&[rest, sorted.f_narrow(1, 0, 1)?.f_isfinite()?], 1)?;
    // Hits at the ends of groups; between them the greatest so far, since hits only grow.
    let at_ends = hits.f_where_self(&last, &hits.f_zeros_like()?)?;
    let so_far = at_ends.f_cummax(1)?.0;
    let before = Tensor::f_cat(&[&hits.f_zeros_like()?.f_narrow(1, 0, 1)?, &so_far.f_narrow(1, 0, pixels - 1)?], 1)?;
    let rank = Tensor::f_arange_start(1, pixels + 1, (Kind::Double, maps.device()))?;
    let gained = at_ends.f_sub(&before)?.f_mul(&at_ends)?.f_div(&rank)?;
    let gained = gained.f_where_self(&last, &gained.f_zeros_like()?)?;
    let positives = hits.f_narrow(1, pixels - 1, 1)?.f_squeeze_dim(1)?;
    let ap = gained.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Double)?.f_div(&positives)?;
    Ok(Vec::<f64>::try_from(ap.f_to_device(tch::Device::Cpu)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn edge_cases_are_as_documented() {
        assert_eq!(pixel_average_precision(&[0.1, 0.2], &[0, 0]), Score::NotApplicable);
        assert_eq!(pixel_average_precision(&[0.1, f32::NAN], &[1, 0]), Score::Failed);
        assert_eq!(pixel_average_precision(&[0.1, f32::INFINITY], &[0, 0]), Score::Failed);
        assert_eq!(pixel_average_precision(&[-0.0, 0.0, 0.0, 0.0], &[1, 0, 0, 0]), Score::Value(0.25));
        assert_eq!(average_precision(&[1.0], &[0]), None);
    }

    #[test]
    fn libtorchs_way_is_ours() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
        for round in [1.0, 5.0, 1e6] {
            let n = 40 * 40;
            let maps: Vec<f32> = (0..3 * n).map(|_| ((rng.random::<f32>() - 0.5) * round).round() * 0.5).collect();
            let masks: Vec<u8> = (0..3 * n).map(|_| u8::from(rng.random::<f64>() < 0.05)).collect();
            let tensor = Tensor::from_slice(&maps).reshape([3, 40, 40]);
            let found =
                average_precision_by_libtorch(&tensor, &Tensor::from_slice(&masks).reshape([3, 40, 40])).unwrap();
            for i in 0..3 {
                let Score::Value(ours) = pixel_average_precision(&maps[i * n..][..n], &masks[i * n..][..n]) else {
                    panic!()
                };
                assert!((found[i] - ours).abs() < 1e-12, "{} {ours}", found[i]);
            }
        }
    }
}
