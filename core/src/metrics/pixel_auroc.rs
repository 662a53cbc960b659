//! Pixel-wise AUROC of a map, an image: the chance that a pixel of the mask is above one outside it. Fawcett, "An introduction to
//! ROC analysis", Pattern Recognition Letters 2006. Oracle: scikit-learn `roc_auc_score`. Small findings make it high for any
//! map that is low on most of the image; `pixel-auprc` is the stricter.

use super::each::{Each, Image};
use super::{Better, Evaluation, Form, Level, Metric, MetricSpec, Needs, Score, Size};
use crate::Result;
use std::collections::BTreeMap;

pub struct PixelAuroc;

impl Metric for PixelAuroc {
    fn spec(&self) -> MetricSpec {
        MetricSpec {
            name: "pixel-auroc",
            short: "pixel AUROC",
            title: "Pixel-wise AUROC of a map, mean over images",
            family: "localisation",
            level: Level::Image,
            formula: "P(pixel of the mask > pixel outside) + P(equal) / 2, an image; then the mean",
            better: Better::Higher,
            range: [0.0, 1.0],
            chance: "0.5",
            chance_is_constant: true,
            unit: "share",
            cost: "0",
            edge_cases: "an empty or unknown mask is N/A; a mask of all pixels is N/A; a map that is not finite is a failure; a constant map gives 0.5 and is counted",
            reference: "Fawcett: An introduction to ROC analysis, Pattern Recognition Letters 2006",
            parameters: vec![],
        }
    }

    fn needs(&self) -> Needs {
        Needs::masked(Size::Mask, Form::Raw)
    }

    fn start(&self, _: &BTreeMap<String, f64>, _: u64) -> Result<Box<dyn Evaluation>> {
        Ok(Box::new(Each { masked: true, score }))
    }
}

fn score(image: &Image<'_>) -> Score {
    let scores: Vec<f64> = image.map.iter().map(|v| f64::from(*v)).collect();
    match super::auroc::auroc(&scores, image.mask) {
        Some(value) => Score::ok(value),
        None => Score::not_applicable("the mask is the whole image"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::each::tests::value;

    #[test]
    fn is_the_share_of_pairs_in_order() {
        assert_eq!(value(score, &[0.1, 0.4, 0.4, 0.8], &[0, 0, 1, 1], 2), Some(0.875));
        assert_eq!(value(score, &[0.5; 4], &[0, 0, 1, 1], 2), Some(0.5));
        assert_eq!(value(score, &[0.1, 0.4, 0.4, 0.8], &[1; 4], 2), None);
    }
}
