//! Hit, the pointing game: whether the highest pixel lies in the mask. Zhang et al., "Top-down Neural Attention by Excitation
//! Backprop", ECCV 2016, arXiv:1608.00507. Of several highest pixels the share in the mask counts, which is the expectation
//! under a random choice. Quantus 0.6 takes the first, and calls an empty mask and a map of zeros a hit.

use super::each::{Each, Image};
use super::{Better, Evaluation, Form, Level, Metric, MetricSpec, Needs, Score, Size};
use crate::Result;
use std::collections::BTreeMap;

pub struct Hit;

impl Metric for Hit {
    fn spec(&self) -> MetricSpec {
        MetricSpec {
            name: "hit",
            short: "hit",
            title: "Hit: the highest pixel lies in the mask",
            family: "localisation",
            level: Level::Image,
            formula: "|A and g| / |A|, A the highest pixels, g the mask",
            better: Better::Higher,
            range: [0.0, 1.0],
            chance: "share of mask pixels",
            chance_is_constant: true,
            unit: "share",
            cost: "0",
            edge_cases: "an empty or unknown mask is N/A; a map that is not finite is a failure; a constant map gives the share of mask pixels and is counted",
            reference: "Zhang et al.: Top-down Neural Attention by Excitation Backprop, ECCV 2016, arXiv:1608.00507",
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
    let highest = image.map.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
    let is_highest = image.map.iter().zip(image.mask).filter(|(v, _)| **v == highest);
    let (all, marked) = is_highest.fold((0, 0), |(all, marked), (_, m)| (all + 1, marked + usize::from(*m == 1)));
    Score::ok(marked as f64 / f64::from(all.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::each::tests::value;

    #[test]
    fn ties_are_shared() {
        assert_eq!(value(score, &[0.1, 0.9, 0.3, 0.2], &[0, 1, 0, 0], 2), Some(1.0));
        assert_eq!(value(score, &[0.1, 0.9, 0.9, 0.2], &[0, 1, 0, 0], 2), Some(0.5));
        assert_eq!(value(score, &[0.9, 0.1, 0.3, 0.2], &[0, 1, 0, 0], 2), Some(0.0));
        assert_eq!(value(score, &[0.0; 4], &[0, 1, 0, 0], 2), Some(0.25));
    }
}
