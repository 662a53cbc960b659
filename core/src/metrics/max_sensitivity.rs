//! Max-sensitivity: how far an explanation moves, at most, when the image is varied a little. Yeh et al., "On the (In)fidelity and
//! Sensitivity of Explanations", NeurIPS 2019, arXiv:1901.09392, definition 3.1, over the map's own norm as in Captum
//! `sensitivity_max`, which calls a map of zeros perfect; here it is a failure.

use super::map_metric::{Ask, Asking, Found};
use super::perturbed::{NEEDS, base, change, greatest, score as vary};
use super::{Bench, MetricSpec, Reference};
use crate::Result;

/// See the file's head.
pub static MAX_SENSITIVITY: Asking = Asking { spec, needs: NEEDS, axes: None, score };

fn spec() -> MetricSpec {
    MetricSpec {
        short: "max-sensitivity",
        title: "Max-sensitivity: greatest move of the map under small noise on the image",
        formula: "max over copies x' of |a(x') - a(x)| / |a(x)|, Euclidean norms",
        reference: Reference::new(
            "Yeh, Hsieh, Suggala, Inouye, Ravikumar",
            "On the (In)fidelity and Sensitivity of Explanations",
            "NeurIPS",
            2019,
            "arXiv:1901.09392",
        ),
        ..base("max-sensitivity")
    }
}

fn score(ask: &Ask<'_>, bench: &mut dyn Bench) -> Result<Found> {
    vary(ask, bench, false, change, greatest)
}

#[cfg(test)]
mod tests {
    use super::super::perturbed::tests::value;
    use super::super::{Metric, find};
    use super::*;

    #[test]
    fn is_the_greatest_and_grows_with_the_radius() {
        let average = find("average-sensitivity").unwrap();
        let (most, mean): (f64, f64) = (value(&MAX_SENSITIVITY, 8.0, 0.02), value(average, 8.0, 0.02));
        assert!(most > mean && mean > 0.0);
        // A linear explanation moves in proportion, and one copy's greatest is its mean.
        assert!((value(&MAX_SENSITIVITY, 8.0, 0.04) / most - 2.0).abs() < 1e-3);
        assert_eq!(value(&MAX_SENSITIVITY, 1.0, 0.02), value(average, 1.0, 0.02));
        // |w n| / |w x| <= 0.02 |w| / |w x|.
        assert!(most <= 0.02 * 30f64.sqrt() / (9.0 + 4.0 + 9.0 + 64.0f64).sqrt());
        assert_eq!(MAX_SENSITIVITY.spec().worst(), None);
    }
}
