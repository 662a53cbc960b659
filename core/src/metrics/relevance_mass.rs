//! Relevance mass accuracy: how much of a map's positive mass lies in the mask. Arras, Osman and Samek, "CLEVR-XAI",
//! Information Fusion 2022, arXiv:2003.07258, section 4.2. Negative values count as none. It depends on where zero is: a map of
//! probabilities has mass everywhere.

use super::each::{Each, Image};
use super::{Better, Evaluation, Form, Level, Metric, MetricSpec, Needs, Score, Size};
use crate::Result;
use std::collections::BTreeMap;

pub struct RelevanceMass;

impl Metric for RelevanceMass {
    fn spec(&self) -> MetricSpec {
        MetricSpec {
            name: "relevance-mass",
            short: "mass",
            title: "Relevance mass accuracy: share of the positive mass that lies in the mask",
            family: "localisation",
            level: Level::Image,
            formula: "sum over the mask of max(a, 0) / sum of max(a, 0)",
            better: Better::Higher,
            range: [0.0, 1.0],
            chance: "share of mask pixels, of a map that is the same everywhere",
            chance_is_constant: false,
            unit: "share",
            cost: "0",
            edge_cases: "an empty or unknown mask is N/A; a map that is not finite is a failure, and so is one without a positive value",
            reference: "Arras, Osman, Samek: CLEVR-XAI, Information Fusion 2022, arXiv:2003.07258",
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
    let (mut inside, mut all) = (0f64, 0f64);
    for (v, m) in image.map.iter().zip(image.mask) {
        let mass = f64::from(v.max(0.0));
        all += mass;
        inside += if *m == 1 { mass } else { 0.0 };
    }
    if all > 0.0 { Score::ok(inside / all) } else { Score::failed("the map has no positive value") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::each::tests::value;

    #[test]
    fn negative_values_have_no_mass() {
        assert_eq!(value(score, &[1.0, -5.0, 3.0, 0.0], &[0, 1, 1, 0], 2), Some(0.75));
        assert_eq!(value(score, &[0.5; 4], &[0, 1, 0, 0], 2), Some(0.25));
        assert_eq!(value(score, &[0.0, -1.0, 0.0, 0.0], &[0, 1, 0, 0], 2), None);
    }
}
