//! Intersection over union at a threshold that is frozen on validation images. Jaccard, "The distribution of the flora in the
//! alpine zone", New Phytologist 1912; of maps: Saporta et al., Nature Machine Intelligence 2022, arXiv:2103.13059.

use super::MetricSpec;
use super::Reference;
use super::map_metric::share;
use super::threshold::AtThreshold;

/// See the file's head.
pub static IOU: AtThreshold = AtThreshold {
    spec,
    candidates: false,
    image: Some(|entry, step| super::Score::ok(entry.overlaps[step].iou())),
    set: None,
};

fn spec() -> MetricSpec {
    MetricSpec {
        short: "IoU",
        title: "Intersection over union of the mask and the map above a frozen threshold",
        formula: "|P and g| / |P or g|, P the pixels at or above the threshold of the map scaled to [0, 1], g the mask",
        chance: "that of the controls",
        cost: "0; maps of up to a chunk of validation images a fold",
        edge_cases: "the threshold (0.1 to 0.9) is that of the greatest mean Dice coefficient on the fold's validation images; an empty or unknown mask is N/A, and all is without validation images with a mask; a map that is not finite is a failure and counts as 0; a constant map marks nothing, gives 0 and is counted",
        reference: Reference::new(
            "Saporta et al.",
            "Benchmarking saliency methods for chest X-ray interpretation",
            "Nature Machine Intelligence",
            2022,
            "arXiv:2103.13059",
        ),
        version: 2,
        ..share("iou", "localisation")
    }
}

#[cfg(test)]
mod tests {
    use super::super::threshold::tests::check;
    use super::*;

    #[test]
    fn is_over_the_union() {
        let validation: (&[f32], &[u8]) = (&[0.0, 0.5, 0.6, 1.0], &[0, 1, 1, 1]);
        let (images, set) = check(&IOU, &[validation], &[(&[0.0, 5.0, 6.0, 10.0], &[0, 0, 1, 1])], 2);
        assert_eq!((images[0].value, set), (Some(2.0 / 3.0), None));
    }
}
