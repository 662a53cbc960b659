//! Area under the receiver operating characteristic, as the Mann-Whitney statistic with midranks for ties.
//! Hanley and McNeil, Radiology 143 (1982). Oracle: scikit-learn `roc_auc_score`.

use super::{Better, Evaluation, Level, Metric, MetricSpec, Needs, Predictions, Reference, Score, over_classes};
use crate::stats::interval;
use crate::{Error, Result};
use lightbox_sdk::params::ParamValues;

/// See the file's head.
pub struct Auroc;

impl Metric for Auroc {
    fn spec(&self) -> MetricSpec {
        MetricSpec {
            name: "auroc",
            short: "AUROC",
            title: "AUROC of the classification",
            family: "classification",
            level: Level::Set,
            formula: "P(score of a positive > score of a negative) + P(equal) / 2; the mean over classes where there are \
                      several",
            better: Better::Higher,
            range: [0.0, 1.0],
            chance: "0.5",
            chance_is_constant: false,
            unit: "share",
            cost: "0",
            edge_cases: "N/A when one class is absent or a score is NaN; a constant score gives 0.5",
            reference: Reference::new(
                "Hanley, McNeil",
                "The meaning and use of the area under a ROC curve",
                "Radiology",
                1982,
                "",
            ),
            version: 1,
            parameters: vec![],
        }
    }

    fn needs(&self) -> Needs {
        Needs::PREDICTIONS
    }

    fn start(&self, _: &ParamValues, _: u64) -> Result<Box<dyn Evaluation>> {
        Err(Error::new("auroc is a metric of predictions"))
    }

    fn predictions(&self, predictions: &Predictions<'_>) -> Result<Score> {
        Ok(over_classes(predictions, "a class is absent", auroc))
    }

    fn interval(&self, value: f64, variance: f64, positives: usize, negatives: usize) -> [f64; 2] {
        interval::of_auroc(value, variance, positives, negatives)
    }
}

/// `scores` and `labels` (0 or 1), one an image. `None` when a class is absent or a score is NaN.
///
/// ```
/// assert_eq!(lightbox_core::metrics::auroc::auroc(&[0.1, 0.4, 0.4, 0.8], &[0, 0, 1, 1]), Some(0.875));
/// ```
pub fn auroc(scores: &[f64], labels: &[u8]) -> Option<f64> {
    if scores.iter().any(|s| s.is_nan()) {
        return None;
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let (mut ranks, mut start) = (0.0, 0);
    while start < order.len() {
        let mut end = start + 1;
        while end < order.len() && scores[order[end]] == scores[order[start]] {
            end += 1;
        }
        let midrank = (start + 1 + end) as f64 / 2.0;
        ranks += midrank * order[start..end].iter().filter(|&&i| labels[i] == 1).count() as f64;
        start = end;
    }
    let positive = labels.iter().filter(|&&l| l == 1).count() as f64;
    let negative = labels.len() as f64 - positive;
    (positive > 0.0 && negative > 0.0).then(|| (ranks - positive * (positive + 1.0) / 2.0) / (positive * negative))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pair, as the definition has it.
    fn slow(scores: &[f64], labels: &[u8]) -> f64 {
        let (mut sum, mut pairs) = (0.0, 0.0);
        for (&p, _) in scores.iter().zip(labels).filter(|(_, l)| **l == 1) {
            for (&n, _) in scores.iter().zip(labels).filter(|(_, l)| **l == 0) {
                sum += if p > n {
                    1.0
                } else if p == n {
                    0.5
                } else {
                    0.0
                };
                pairs += 1.0;
            }
        }
        sum / pairs
    }

    #[test]
    fn equals_the_definition() {
        for levels in [1, 2, 7, 1000] {
            let scores: Vec<f64> = (0..200u64).map(|i| (i * 7919 % 1009 % levels) as f64).collect();
            let labels: Vec<u8> = (0..200u64).map(|i| u8::from(i * 31 % 7 < 2)).collect();
            assert!((auroc(&scores, &labels).unwrap() - slow(&scores, &labels)).abs() < 1e-12);
        }
        assert_eq!(auroc(&[1.0, 2.0], &[1, 1]), None);
        assert_eq!(auroc(&[1.0, f64::NAN], &[0, 1]), None);
        assert_eq!(auroc(&[-0.0, 0.0], &[0, 1]), Some(0.5));
    }
}
