//! Average sensitivity: how far an explanation moves, on average, when the image is varied a little. Bhatt, Weller and Moura,
//! "Evaluating and Aggregating Feature-based Model Explanations", IJCAI 2020, arXiv:2005.00631, with the norms of
//! `max-sensitivity`.

use super::map_metric::{Ask, Asking, Found};
use super::perturbed::{NEEDS, base, change, score as vary};
use super::{Bench, MetricSpec, Reference};
use crate::Result;

/// See the file's head.
pub static AVERAGE_SENSITIVITY: Asking = Asking { spec, needs: NEEDS, axes: None, score };

fn spec() -> MetricSpec {
    MetricSpec {
        short: "average sensitivity",
        title: "Average sensitivity: mean move of the map under small noise on the image",
        formula: "mean over copies x' of |a(x') - a(x)| / |a(x)|, Euclidean norms",
        reference: Reference::new(
            "Bhatt, Weller, Moura",
            "Evaluating and Aggregating Feature-based Model Explanations",
            "IJCAI",
            2020,
            "arXiv:2005.00631",
        ),
        ..base("average-sensitivity")
    }
}

fn score(ask: &Ask<'_>, bench: &mut dyn Bench) -> Result<Found> {
    vary(ask, bench, false, change, crate::stats::mean)
}

#[cfg(test)]
mod tests {
    use super::super::perturbed::tests::value;
    use super::*;

    #[test]
    fn a_linear_explanation_moves_by_its_weights() {
        // E|w n|^2 = radius^2 / 3 sum w^2 = 10 radius^2; over |w x| = 9.274.
        let found = value(&AVERAGE_SENSITIVITY, 4000.0, 0.1);
        let root = (10.0f64 * 0.01).sqrt() / 86f64.sqrt();
        assert!(found < root && found > 0.9 * root, "{found} {root}");
    }
}
