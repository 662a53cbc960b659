//! Effective complexity: how much of a map is not negligible. Nguyen and Martínez, "On quantitative aspects of model
//! interpretability", 2020, arXiv:2007.07584, as a share of the pixels and with a limit relative to the map's own largest value, so
//! that neither size nor scale matters. Quantus 0.6 counts values above 1e-5 after dividing by the largest of all images.

use super::facts::Image;
use super::map_metric::{OfOneMap, share};
use super::{Better, Masks, MetricSpec, Reference, Score};
use lightbox_sdk::params::Params;

/// See the file's head.
pub static EFFECTIVE_COMPLEXITY: OfOneMap<Settings> = OfOneMap { masks: Masks::None, spec, score };

/// The parameters.
#[derive(Params)]
pub struct Settings {
    /// above which a magnitude counts, of the largest
    #[param(default = 0.05, range = (0.0, 1.0))]
    limit: f64,
}

fn spec() -> MetricSpec {
    MetricSpec {
        short: "effective complexity",
        title: "Effective complexity: share of the pixels whose magnitude is not negligible",
        formula: "|{p: |a_p| > limit max |a|}| / N",
        better: Better::Lower,
        chance: "that of the control `noise`",
        edge_cases: "a map that is not finite is a failure; a constant map, of zeros too, gives 1 and is counted",
        reference: Reference::new(
            "Nguyen, Martínez",
            "On quantitative aspects of model interpretability",
            "",
            2020,
            "arXiv:2007.07584",
        ),
        parameters: Settings::specs(),
        version: 2,
        ..share("effective-complexity", "complexity")
    }
}

fn score(image: &Image<'_>, Settings { limit }: &Settings) -> Score {
    let (low, high) = image.extremes();
    let largest = low.abs().max(high.abs());
    if largest == 0.0 {
        return Score::ok(1.0); // Constant.
    }
    let limit = limit * f64::from(largest);
    let counts = image.map.iter().map(|v| usize::from(f64::from(v.abs()) > limit)).sum::<usize>();
    Score::ok(counts as f64 / image.map.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::map_metric::tests::value;

    #[test]
    fn counts_what_is_not_negligible() {
        assert_eq!(value(&EFFECTIVE_COMPLEXITY, Settings { limit: 0.05 }, &[-100.0, 6.0, 5.0, 0.0], &[], 2), Some(0.5));
        assert_eq!(value(&EFFECTIVE_COMPLEXITY, Settings { limit: 0.05 }, &[0.5; 4], &[], 2), Some(1.0));
        assert_eq!(value(&EFFECTIVE_COMPLEXITY, Settings { limit: 0.05 }, &[0.0; 4], &[], 2), Some(1.0));
    }
}
