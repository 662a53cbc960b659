//! Relative output stability: the relative change of an explanation over that of the logits, at most. Agarwal et al., "Rethinking
//! Stability for Attribution-based Explanations", 2022, arXiv:2203.06877, equation 5, with the floors of
//! `relative-input-stability`.

use super::map_metric::{Ask, Asking, Found};
use super::perturbed::{NEEDS, Pair, base, greatest, relative, score as vary};
use super::{Bench, MetricSpec, Needs, Reference};
use crate::Result;

/// See the file's head.
pub static RELATIVE_OUTPUT_STABILITY: Asking =
    Asking { spec, needs: Needs { model: true, ..NEEDS }, axes: None, score };

fn spec() -> MetricSpec {
    MetricSpec {
        short: "ROS",
        title: "Relative output stability: greatest relative change of the map over the change of the logits",
        formula: "max over copies x' of the same class of |(a(x') - a(x)) / a(x)| / max(|f(x') - f(x)|, 1e-6), f the logits, Euclidean norms",
        cost: "copies explanations and copies forward, shared with the other metrics of robustness",
        edge_cases: "in a ratio of values the one below counts as at least a thousandth of its largest, so that zeros of a map do not divide: on maps with many zeros that floor is much of the value, which is one draw of a skewed law; N/A where every copy has another predicted class; a map that is not finite, its own or a copy's, is a failure, and so is a map of zeros; a failure is in no mean",
        reference: Reference::new(
            "Agarwal, Johnson, Pawelczyk, Krishna, Saxena, Zitnik, Lakkaraju",
            "Rethinking Stability for Attribution-based Explanations",
            "",
            2022,
            "arXiv:2203.06877",
        ),
        ..base("relative-output-stability")
    }
}

fn ratio(pair: &Pair<'_>) -> Option<f64> {
    let moved: f64 = pair.logits.iter().zip(pair.copy_logits).map(|(a, b)| (a - b).powi(2)).sum();
    relative(pair, moved.sqrt())
}

fn score(ask: &Ask<'_>, bench: &mut dyn Bench) -> Result<Found> {
    vary(ask, bench, true, ratio, greatest)
}

#[cfg(test)]
mod tests {
    use super::super::perturbed::tests::{IMAGE, WEIGHTS, value};
    use super::*;

    #[test]
    fn is_the_maps_change_over_the_logits() {
        let (before, after) = ([0.0, 10.0], [0.0, 10.5]);
        let map: Vec<f32> = IMAGE.iter().zip(WEIGHTS).map(|(x, w)| x * w).collect();
        let moved: Vec<f32> = map.iter().map(|v| v * 1.1).collect();
        let mut pair =
            Pair { image: &IMAGE, copy: &IMAGE, map: &map, copy_map: &moved, logits: &before, copy_logits: &after };
        // Four values change by a tenth: 0.2 over 0.5.
        assert!((ratio(&pair).unwrap() - 0.4).abs() < 1e-5);
        pair.copy_logits = &[11.0, 10.5];
        assert_eq!(ratio(&pair), None);
        assert!(value(&RELATIVE_OUTPUT_STABILITY, 3.0, 0.02) > 0.0);
    }
}
