//! Gini index: how few pixels hold a map's magnitude. Chalasani et al., "Concise Explanations of Neural Networks using Adversarial
//! Training", ICML 2020, arXiv:1810.06583. Oracle: Quantus `Sparseness` (which adds 1e-7 to every value).

use super::facts::Image;
use super::map_metric::{OfOneMap, share};
use super::{Masks, MetricSpec, Reference, Score};
use crate::maps;

/// See the file's head.
pub static GINI: OfOneMap = OfOneMap { masks: Masks::None, spec, score };

fn spec() -> MetricSpec {
    MetricSpec {
        short: "Gini",
        title: "Gini index of the magnitudes",
        formula: "sum_i (2 i - N - 1) a_(i) / (N sum a), a the sorted magnitudes",
        chance: "that of the control `noise`",
        edge_cases: "a map that is not finite is a failure; a constant map, of zeros too, gives 0 and is counted",
        reference: Reference::new(
            "Chalasani et al.",
            "Concise Explanations of Neural Networks using Adversarial Training",
            "ICML",
            2020,
            "arXiv:1810.06583",
        ),
        version: 2,
        ..share("gini", "complexity")
    }
}

/// Bits that a pass of the sort looks at.
const DIGIT: u32 = 11;

/// The magnitudes in ascending order: of floats without a sign the bits have the order of the values, so they are sorted by
/// three digits of those, the lowest first.
fn ascending(map: &[f32]) -> Vec<f32> {
    let digit = |v: u32, pass: usize| (v >> (DIGIT * pass as u32)) as usize & ((1 << DIGIT) - 1);
    let mut values: Vec<u32> = map.iter().map(|v| v.abs().to_bits()).collect();
    let mut counts = vec![[0u32; 1 << DIGIT]; 3];
    for &v in &values {
        counts.iter_mut().enumerate().for_each(|(pass, counts)| counts[digit(v, pass)] += 1);
    }
    let mut sorted = vec![0; values.len()];
    for (pass, counts) in counts.iter_mut().enumerate() {
        let mut place = 0;
        counts.iter_mut().for_each(|n| place += std::mem::replace(n, place));
        for &v in &values {
            let place = &mut counts[digit(v, pass)];
            sorted[*place as usize] = v;
            *place += 1;
        }
        std::mem::swap(&mut values, &mut sorted);
    }
    values.into_iter().map(f32::from_bits).collect()
}

fn score(image: &Image<'_>, _: &()) -> Score {
    let (n, all) = (image.map.len() as f64, maps::sum(image.map, |v| f64::from(v.abs())));
    if all <= 0.0 {
        return Score::ok(0.0); // Constant.
    }
    let terms = ascending(image.map).into_iter().enumerate();
    let weighted: f64 = terms.map(|(i, v)| (2.0 * (i as f64 + 1.0) - n - 1.0) * f64::from(v)).sum();
    Score::ok(weighted / (n * all))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::map_metric::tests::value;

    #[test]
    fn is_half_the_mean_difference_of_pairs() {
        let map = [0.3f32, -1.2, 0.0, 2.0, 0.7];
        // The definition: the mean absolute difference over twice the mean.
        let of = |i: usize| f64::from(map[i].abs());
        let pairs: f64 = (0..25).map(|k| (of(k / 5) - of(k % 5)).abs()).sum();
        let wanted = pairs / 25.0 / (2.0 * (0..5).map(of).sum::<f64>() / 5.0);
        assert!((value(&GINI, (), &map, &[], 5).unwrap() - wanted).abs() < 1e-12);
        assert!(value(&GINI, (), &[0.5; 4], &[], 2).unwrap().abs() < 1e-12);
        assert_eq!(value(&GINI, (), &[0.0, 0.0, 0.0, 2.0], &[], 2), Some(0.75));
        assert_eq!(value(&GINI, (), &[0.0; 4], &[], 2), Some(0.0));
    }

    #[test]
    fn magnitudes_are_sorted() {
        let mut map: Vec<f32> = (0..5000).map(|i| ((i * 7919) % 4999) as f32 * 0.37 - 900.0).collect();
        map.extend([0.0, -0.0, f32::MIN_POSITIVE / 8.0, f32::MAX, -f32::MAX, 1e-30]);
        let mut wanted: Vec<f32> = map.iter().map(|v| v.abs()).collect();
        wanted.sort_unstable_by(f32::total_cmp);
        assert_eq!(ascending(&map), wanted);
    }
}
