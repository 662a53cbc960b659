//! Hit, the pointing game: whether the highest pixel lies in the mask. Zhang et al., "Top-down Neural Attention by Excitation
//! Backprop", ECCV 2016, arXiv:1608.00507. Of several highest pixels the share in the mask counts, which is the expectation
//! under a random choice. Quantus 0.6 takes the first, and calls an empty mask and a map of zeros a hit.

use super::facts::Image;
use super::map_metric::{OfOneMap, share};
use super::pixels::Overlap;
use super::{Masks, MetricSpec, Reference, Score};

/// See the file's head.
pub static HIT: OfOneMap = OfOneMap { masks: Masks::Finding, spec, score };

fn spec() -> MetricSpec {
    MetricSpec {
        short: "hit",
        title: "Hit: the highest pixel lies in the mask",
        formula: "|A and g| / |A|, A the highest pixels, g the mask",
        chance: "share of mask pixels",
        chance_is_constant: true,
        edge_cases: "an empty or unknown mask is N/A; a map that is not finite is a failure; a constant map gives the share of mask pixels and is counted",
        reference: Reference::new(
            "Zhang et al.",
            "Top-down Neural Attention by Excitation Backprop",
            "ECCV",
            2016,
            "arXiv:1608.00507",
        ),
        ..share("hit", "localisation")
    }
}

fn score(image: &Image<'_>, _: &()) -> Score {
    let (_, highest) = image.extremes();
    let found = Overlap::of(image.map, image.mask, |v| v == highest);
    Score::ok(found.both as f64 / found.predicted.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::map_metric::tests::value;

    #[test]
    fn ties_are_shared() {
        assert_eq!(value(&HIT, (), &[0.1, 0.9, 0.3, 0.2], &[0, 1, 0, 0], 2), Some(1.0));
        assert_eq!(value(&HIT, (), &[0.1, 0.9, 0.9, 0.2], &[0, 1, 0, 0], 2), Some(0.5));
        assert_eq!(value(&HIT, (), &[0.9, 0.1, 0.3, 0.2], &[0, 1, 0, 0], 2), Some(0.0));
        assert_eq!(value(&HIT, (), &[0.0; 4], &[0, 1, 0, 0], 2), Some(0.25));
    }
}
