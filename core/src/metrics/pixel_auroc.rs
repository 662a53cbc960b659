//! Pixel-wise AUROC of a map, an image: the chance that a pixel of the mask is above one outside it. Fawcett, "An introduction to
//! ROC analysis", Pattern Recognition Letters 2006. Oracle: scikit-learn `roc_auc_score`. Small findings make it high for any
//! map that is low on most of the image; `pixel-auprc` is the stricter.

use super::facts::Image;
use super::map_metric::{OfOneMap, share};
use super::{Masks, MetricSpec, Reference, Score};

/// See the file's head.
pub static PIXEL_AUROC: OfOneMap = OfOneMap { masks: Masks::Finding, spec, score };

fn spec() -> MetricSpec {
    MetricSpec {
        short: "pixel AUROC",
        title: "Pixel-wise AUROC of a map, mean over images",
        formula: "P(pixel of the mask > pixel outside) + P(equal) / 2, an image; then the mean",
        chance: "0.5",
        chance_is_constant: true,
        edge_cases: "an empty or unknown mask is N/A; a mask of all pixels is N/A; a map that is not finite is a failure; a constant map gives 0.5 and is counted",
        reference: Reference::new(
            "Fawcett",
            "An introduction to ROC analysis",
            "Pattern Recognition Letters",
            2006,
            "",
        ),
        ..share("pixel-auroc", "localisation")
    }
}

fn score(image: &Image<'_>, _: &()) -> Score {
    let value = image.ranks().and_then(|ranks| ranks.auroc);
    value.map_or(Score::not_applicable("the mask is the whole image"), Score::ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::map_metric::tests::value;

    #[test]
    fn is_the_share_of_pairs_in_order() {
        assert_eq!(value(&PIXEL_AUROC, (), &[0.1, 0.4, 0.4, 0.8], &[0, 0, 1, 1], 2), Some(0.875));
        assert_eq!(value(&PIXEL_AUROC, (), &[0.5; 4], &[0, 0, 1, 1], 2), Some(0.5));
        assert_eq!(value(&PIXEL_AUROC, (), &[0.1, 0.4, 0.4, 0.8], &[1; 4], 2), None);
    }
}
