//! Dice's coefficient at a threshold that is frozen on validation images. Dice, "Measures of the Amount of Ecologic Association
//! Between Species", Ecology 1945.

use super::MetricSpec;
use super::Reference;
use super::map_metric::share;
use super::threshold::AtThreshold;

/// See the file's head.
pub static DICE: AtThreshold = AtThreshold {
    spec,
    candidates: false,
    image: Some(|entry, step| super::Score::ok(entry.overlaps[step].dice())),
    set: None,
};

/// Tested in `threshold.rs`, whose choice it is made by.
fn spec() -> MetricSpec {
    MetricSpec {
        short: "Dice",
        title: "Dice coefficient of the mask and the map above a frozen threshold",
        formula: "2 |P and g| / (|P| + |g|), P the pixels at or above the threshold of the map scaled to [0, 1], g the mask",
        chance: "that of the controls",
        cost: "0; maps of up to a chunk of validation images a fold",
        edge_cases: "the threshold (0.1 to 0.9) is that of the greatest mean value on the fold's validation images; an empty or unknown mask is N/A, and all is without validation images with a mask; a map that is not finite is a failure and counts as 0; a constant map marks nothing, gives 0 and is counted",
        reference: Reference::new(
            "Dice",
            "Measures of the Amount of Ecologic Association Between Species",
            "Ecology",
            1945,
            "",
        ),
        version: 2,
        ..share("dice", "localisation")
    }
}
