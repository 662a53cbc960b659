//! Gini index: how few pixels hold a map's magnitude. Chalasani et al., "Concise Explanations of Neural Networks using Adversarial
//! Training", ICML 2020, arXiv:1810.06583. Oracle: Quantus `Sparseness` (which adds 1e-7 to every value).

use super::each::{Image, OfOneMap, share};
use super::{Masks, MetricSpec, Score};

pub static GINI: OfOneMap = OfOneMap { masks: Masks::None, spec, score };

fn spec() -> MetricSpec {
    MetricSpec {
        short: "Gini",
        title: "Gini index of the magnitudes",
        formula: "sum_i (2 i - N - 1) a_(i) / (N sum a), a the sorted magnitudes",
        chance: "that of the control `noise`",
        edge_cases: "a map that is not finite is a failure, and so is a map of zeros; a constant map gives 0 and is counted",
        reference: "Chalasani et al.: Concise Explanations of Neural Networks using Adversarial Training, ICML 2020, arXiv:1810.06583",
        ..share("gini", "complexity")
    }
}

fn score(image: &Image<'_>, _: f64) -> Score {
    let mut sorted: Vec<f64> = image.map.iter().map(|v| f64::from(v.abs())).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let (n, all) = (sorted.len() as f64, sorted.iter().sum::<f64>());
    if all <= 0.0 {
        return Score::failed("the map is zero everywhere");
    }
    let weighted: f64 = sorted.iter().enumerate().map(|(i, v)| (2.0 * (i as f64 + 1.0) - n - 1.0) * v).sum();
    Score::ok(weighted / (n * all))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::each::tests::value;

    #[test]
    fn is_half_the_mean_difference_of_pairs() {
        let map = [0.3f32, -1.2, 0.0, 2.0, 0.7];
        // The definition: the mean absolute difference over twice the mean.
        let of = |i: usize| f64::from(map[i].abs());
        let pairs: f64 = (0..25).map(|k| (of(k / 5) - of(k % 5)).abs()).sum();
        let wanted = pairs / 25.0 / (2.0 * (0..5).map(of).sum::<f64>() / 5.0);
        assert!((value(&GINI, 0.0, &map, &[], 5).unwrap() - wanted).abs() < 1e-12);
        assert!(value(&GINI, 0.0, &[0.5; 4], &[], 2).unwrap().abs() < 1e-12);
        assert_eq!(value(&GINI, 0.0, &[0.0, 0.0, 0.0, 2.0], &[], 2), Some(0.75));
        assert_eq!(value(&GINI, 0.0, &[0.0; 4], &[], 2), None);
    }
}
