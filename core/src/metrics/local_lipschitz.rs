//! Local Lipschitz estimate: the greatest move of an explanation over the move of the image. Alvarez-Melis and Jaakkola, "On the
//! Robustness of Interpretability Methods", 2018, arXiv:1806.08049, equation 2. It has the map's units: compare explainers
//! whose maps have one scale, or read the sensitivities.

use super::map_metric::{Ask, Asking, Found};
use super::perturbed::{NEEDS, Pair, base, distance, greatest, score as vary};
use super::{Bench, MetricSpec, Reference};
use crate::Result;

/// See the file's head.
pub static LOCAL_LIPSCHITZ: Asking = Asking { spec, needs: NEEDS, axes: None, score };

fn spec() -> MetricSpec {
    MetricSpec {
        short: "Lipschitz",
        title: "Local Lipschitz estimate: greatest move of the map over that of the image",
        formula: "max over copies x' of |a(x') - a(x)| / |x' - x|, Euclidean norms",
        edge_cases: "a map that is not finite, its own or a copy's, is a failure, and in no mean; with radius 0 no image moves, and every map fails",
        reference: Reference::new(
            "Alvarez-Melis, Jaakkola",
            "On the Robustness of Interpretability Methods",
            "",
            2018,
            "arXiv:1806.08049",
        ),
        ..base("local-lipschitz")
    }
}

fn ratio(pair: &Pair<'_>) -> Option<f64> {
    Some(distance(pair.map, pair.copy_map) / distance(pair.image, pair.copy))
}

fn score(ask: &Ask<'_>, bench: &mut dyn Bench) -> Result<Found> {
    vary(ask, bench, false, ratio, greatest)
}

#[cfg(test)]
mod tests {
    use super::super::perturbed::tests::value;
    use super::*;

    #[test]
    fn of_a_linear_explanation_it_nears_its_largest_weight() {
        // |w n| / |n| lies between the least and the largest weight, 1 and 4.
        let (few, many) = (value(&LOCAL_LIPSCHITZ, 2.0, 0.1), value(&LOCAL_LIPSCHITZ, 2000.0, 0.1));
        assert!(few > 1.0 && few <= many && many > 3.9 && many <= 4.001, "{few} {many}");
    }
}
