//! Dice's coefficient at Otsu's threshold: `iou-otsu`'s prediction, compared by Dice, "Measures of the Amount of Ecologic
//! Association Between Species", Ecology 1945.

use super::facts::Image;
use super::map_metric::{OfOneMap, share};
use super::{Masks, MetricSpec, Reference, Score};

/// See the file's head.
pub static DICE_OTSU: OfOneMap = OfOneMap { masks: Masks::Finding, spec, score };

fn spec() -> MetricSpec {
    MetricSpec {
        short: "Dice, Otsu",
        title: "Dice coefficient of the mask and the map above its Otsu threshold",
        formula: "2 |P and g| / (|P| + |g|), P the pixels above Otsu's threshold of the map (256 levels), g the mask",
        chance: "that of the controls",
        edge_cases: "an empty or unknown mask is N/A; a map that is not finite is a failure and counts as 0; a constant map marks nothing, gives 0 and is counted",
        reference: Reference::new(
            "Dice",
            "Measures of the Amount of Ecologic Association Between Species",
            "Ecology",
            1945,
            "",
        ),
        version: 2,
        ..share("dice-otsu", "localisation")
    }
}

fn score(image: &Image<'_>, _: &()) -> Score {
    Score::ok(image.above_otsu().map_or(0.0, |o| o.dice()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::map_metric::tests::value;

    #[test]
    fn is_twice_the_overlap_over_both() {
        assert_eq!(value(&DICE_OTSU, (), &[0.0, 0.1, 5.0, 6.0], &[0, 1, 1, 0], 2), Some(0.5));
    }
}
