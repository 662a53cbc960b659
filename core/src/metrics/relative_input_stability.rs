//! Relative input stability: the relative change of an explanation over that of the image, at most. Agarwal et al., "Rethinking
//! Stability for Attribution-based Explanations", 2022, arXiv:2203.06877, equation 2. Copies with another predicted class do
//! not count. Values below a thousandth of the largest count as that in a denominator: as the paper has it, one pixel near 0 decides
//! the value (in Quantus 0.6 by factors of 10^3 to 10^5).

use super::map_metric::{Ask, Asking, Found};
use super::perturbed::{NEEDS, Pair, base, greatest, relative, relative_change, score as vary};
use super::{Bench, MetricSpec, Needs, Reference};
use crate::Result;

/// See the file's head.
pub static RELATIVE_INPUT_STABILITY: Asking = Asking { spec, needs: Needs { model: true, ..NEEDS }, axes: None, score };

fn spec() -> MetricSpec {
    MetricSpec {
        short: "RIS",
        title: "Relative input stability: greatest relative change of the map over that of the image",
        formula: "max over copies x' of the same class of |(a(x') - a(x)) / a(x)| / max(|(x' - x) / x|, 1e-6), Euclidean norms of ratios of values",
        cost: "copies explanations and copies forward, shared with the other metrics of robustness",
        edge_cases: "in a ratio of values the one below counts as at least a thousandth of its largest, so that zeros of a map do not divide: on maps with many zeros that floor is much of the value, which is one draw of a skewed law; N/A where every copy has another predicted class; a map that is not finite, its own or a copy's, is a failure, and so is a map of zeros; a failure is in no mean",
        reference: Reference::new(
            "Agarwal, Johnson, Pawelczyk, Krishna, Saxena, Zitnik, Lakkaraju",
            "Rethinking Stability for Attribution-based Explanations",
            "",
            2022,
            "arXiv:2203.06877",
        ),
        ..base("relative-input-stability")
    }
}

fn ratio(pair: &Pair<'_>) -> Option<f64> {
    let double = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
    relative(pair, relative_change(&double(pair.image), &double(pair.copy)))
}

fn score(ask: &Ask<'_>, bench: &mut dyn Bench) -> Result<Found> {
    vary(ask, bench, true, ratio, greatest)
}

#[cfg(test)]
mod tests {
    use super::super::perturbed::tests::value;
    use super::*;

    #[test]
    fn an_explanation_in_proportion_to_the_image_changes_as_much() {
        // (w x' - w x) / (w x) is (x' - x) / x.
        assert!((value(&RELATIVE_INPUT_STABILITY, 5.0, 0.02) - 1.0).abs() < 1e-3);
    }
}
