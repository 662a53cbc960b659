//! Entropy: how evenly a map's magnitude is spread, of that of an even spread. Bhatt, Weller and Moura, "Evaluating and
//! Aggregating Feature-based Model Explanations", IJCAI 2020, arXiv:2005.00631 (complexity), over ln N, so that maps of several
//! sizes compare. Oracle: Quantus `Complexity`, which is not divided.

use super::facts::Image;
use super::map_metric::{OfOneMap, share};
use super::{Better, Masks, MetricSpec, Reference, Score};
use crate::maps;

/// See the file's head.
pub static ENTROPY: OfOneMap = OfOneMap { masks: Masks::None, spec, score };

fn spec() -> MetricSpec {
    MetricSpec {
        short: "entropy",
        title: "Entropy of the magnitudes",
        formula: "- sum p ln p / ln N, p the magnitudes over their sum",
        better: Better::Lower,
        chance: "that of the control `noise`",
        edge_cases: "a map that is not finite is a failure; a constant map, of zeros too, gives 1 and is counted",
        reference: Reference::new(
            "Bhatt, Weller, Moura",
            "Evaluating and Aggregating Feature-based Model Explanations",
            "IJCAI",
            2020,
            "arXiv:2005.00631",
        ),
        version: 2,
        ..share("entropy", "complexity")
    }
}

fn score(image: &Image<'_>, _: &()) -> Score {
    let all = maps::sum(image.map, |v| f64::from(v.abs()));
    if all <= 0.0 {
        return Score::ok(1.0); // Constant.
    }
    let entropy = maps::sum(image.map, |v| {
        let p = f64::from(v.abs()) / all;
        if p > 0.0 { -p * p.ln() } else { 0.0 }
    });
    Score::ok(entropy / (image.map.len().max(2) as f64).ln())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::map_metric::tests::value;

    #[test]
    fn an_even_map_has_all_and_a_point_none() {
        assert!((value(&ENTROPY, (), &[0.5; 4], &[], 2).unwrap() - 1.0).abs() < 1e-12);
        assert_eq!(value(&ENTROPY, (), &[0.0, 0.0, -3.0, 0.0], &[], 2), Some(0.0));
        // Two halves of eight pixels: ln 2 / ln 8.
        let half = value(&ENTROPY, (), &[1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], &[], 4).unwrap();
        assert!((half - 2f64.ln() / 8f64.ln()).abs() < 1e-12);
        assert_eq!(value(&ENTROPY, (), &[0.0; 4], &[], 2), Some(1.0));
    }
}
