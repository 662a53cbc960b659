//! Mass lift: how many times more of a map's positive mass lies in the mask than of an even spread. `relevance-mass` (Arras,
//! Osman and Samek, Information Fusion 2022, arXiv:2003.07258) over the mask's share of the pixels, so that images with small and
//! large findings compare.

use super::facts::Image;
use super::map_metric::{OfOneMap, share};
use super::{Masks, MetricSpec, Reference, Score};

/// See the file's head.
pub static MASS_LIFT: OfOneMap = OfOneMap { masks: Masks::Finding, spec, score };

fn spec() -> MetricSpec {
    MetricSpec {
        short: "mass lift",
        title: "Mass lift: share of the positive mass in the mask over the mask's share of the pixels",
        formula: "(sum over g of max(a, 0) / sum of max(a, 0)) / (|g| / N), g the mask",
        range: [0.0, f64::INFINITY],
        unit: "times chance",
        chance: "1",
        edge_cases: "an empty or unknown mask is N/A; a map that is not finite is a failure and counts as 0, and so is one that varies without a positive value; a constant map has the same mass everywhere and is counted",
        reference: Reference::new("Arras, Osman, Samek", "CLEVR-XAI", "Information Fusion", 2022, "arXiv:2003.07258"),
        version: 2,
        ..share("mass-lift", "localisation")
    }
}

fn score(image: &Image<'_>, _: &()) -> Score {
    let chance = image.marked() as f64 / image.map.len() as f64;
    match image.mass_inside() {
        Some(mass) => Score::ok(mass / chance),
        None => Score::failed("the map has no positive value"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::map_metric::tests::value;

    #[test]
    fn an_even_map_has_no_lift() {
        assert_eq!(value(&MASS_LIFT, (), &[0.5; 4], &[0, 1, 0, 0], 2), Some(1.0));
        assert_eq!(value(&MASS_LIFT, (), &[1.0, -5.0, 3.0, 0.0], &[0, 0, 1, 0], 2), Some(3.0));
        assert_eq!(value(&MASS_LIFT, (), &[-1.0; 4], &[0, 0, 1, 0], 2), Some(1.0));
        assert_eq!(value(&MASS_LIFT, (), &[-1.0, -2.0, -1.0, -1.0], &[0, 0, 1, 0], 2), None);
    }
}
