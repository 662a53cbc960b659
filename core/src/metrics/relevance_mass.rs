//! Relevance mass accuracy: how much of a map's positive mass lies in the mask. Arras, Osman and Samek, "CLEVR-XAI",
//! Information Fusion 2022, arXiv:2003.07258, section 4.2. Negative values count as none. It depends on where zero is: a map of
//! probabilities has mass everywhere.

use super::facts::Image;
use super::map_metric::{OfOneMap, share};
use super::{Masks, MetricSpec, Reference, Score};

/// See the file's head.
pub static RELEVANCE_MASS: OfOneMap = OfOneMap { masks: Masks::Finding, spec, score };

fn spec() -> MetricSpec {
    MetricSpec {
        short: "mass",
        title: "Relevance mass accuracy: share of the positive mass that lies in the mask",
        formula: "sum over the mask of max(a, 0) / sum of max(a, 0)",
        chance: "share of mask pixels, of a map that is the same everywhere",
        edge_cases: "an empty or unknown mask is N/A; a map that is not finite is a failure, and so is one that varies without a positive value; a constant map has the same mass everywhere and is counted",
        reference: Reference::new("Arras, Osman, Samek", "CLEVR-XAI", "Information Fusion", 2022, "arXiv:2003.07258"),
        version: 2,
        ..share("relevance-mass", "localisation")
    }
}

fn score(image: &Image<'_>, _: &()) -> Score {
    match image.mass_inside() {
        Some(mass) => Score::ok(mass),
        None => Score::failed("the map has no positive value"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::map_metric::tests::value;

    #[test]
    fn negative_values_have_no_mass() {
        assert_eq!(value(&RELEVANCE_MASS, (), &[1.0, -5.0, 3.0, 0.0], &[0, 1, 1, 0], 2), Some(0.75));
        assert_eq!(value(&RELEVANCE_MASS, (), &[0.5; 4], &[0, 1, 0, 0], 2), Some(0.25));
        assert_eq!(value(&RELEVANCE_MASS, (), &[0.0, -1.0, 0.0, 0.0], &[0, 1, 0, 0], 2), None);
    }
}
