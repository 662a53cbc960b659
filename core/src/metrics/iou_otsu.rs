//! Intersection over union at Otsu's threshold, as CheXlocalize's default (Saporta et al., "Benchmarking saliency methods for chest
//! X-ray interpretation", Nature Machine Intelligence 2022, arXiv:2103.13059); there an image drops out where the prediction is empty, here it
//! counts as 0.

use super::facts::Image;
use super::map_metric::{OfOneMap, share};
use super::{Masks, MetricSpec, Reference, Score};

/// See the file's head.
pub static IOU_OTSU: OfOneMap = OfOneMap { masks: Masks::Finding, spec, score };

fn spec() -> MetricSpec {
    MetricSpec {
        short: "IoU, Otsu",
        title: "Intersection over union of the mask and the map above its Otsu threshold",
        formula: "|P and g| / |P or g|, P the pixels above Otsu's threshold of the map (256 levels), g the mask",
        chance: "that of the controls",
        edge_cases: "an empty or unknown mask is N/A; a map that is not finite is a failure and counts as 0; a constant map marks nothing, gives 0 and is counted",
        reference: Reference::new(
            "Saporta et al.",
            "Benchmarking saliency methods for chest X-ray interpretation",
            "Nature Machine Intelligence",
            2022,
            "arXiv:2103.13059",
        ),
        version: 2,
        ..share("iou-otsu", "localisation")
    }
}

fn score(image: &Image<'_>, _: &()) -> Score {
    Score::ok(image.above_otsu().map_or(0.0, |o| o.iou()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::map_metric::tests::value;

    #[test]
    fn is_over_the_union() {
        assert_eq!(value(&IOU_OTSU, (), &[0.0, 0.1, 5.0, 6.0], &[0, 1, 1, 0], 2), Some(1.0 / 3.0));
        assert_eq!(value(&IOU_OTSU, (), &[0.5; 4], &[0, 1, 1, 0], 2), Some(0.0));
    }
}
