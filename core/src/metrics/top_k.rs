//! Top-k intersection: how many of the highest pixels lie in the mask. Theiner et al., "Interpretable Semantic Photo Geolocation",
//! WACV 2022, arXiv:2104.14995. k is a share of the pixels; equal pixels count by their expectation under a random order.
//! Quantus 0.6 takes them in the order of their numbers.

use super::facts::Image;
use super::map_metric::{OfOneMap, share, share_of_highest};
use super::{Masks, MetricSpec, Reference, Score};
use lightbox_sdk::params::Params;

/// See the file's head.
pub static TOP_K: OfOneMap<Settings> = OfOneMap { masks: Masks::Finding, spec, score };

/// The parameters.
#[derive(Params)]
pub struct Settings {
    /// k, of the image's pixels; at least one pixel
    #[param(default = 0.01, range = (0.0, 1.0))]
    share: f64,
}

fn spec() -> MetricSpec {
    MetricSpec {
        short: "top-k",
        title: "Top-k: share of the highest pixels that lie in the mask",
        formula: "(|g and a > t| + (k - |a > t|) |g and a = t| / |a = t|) / k, t the k-th highest value",
        chance: "share of mask pixels",
        chance_is_constant: true,
        edge_cases: "an empty or unknown mask is N/A; a map that is not finite is a failure; a constant map gives the share of mask pixels and is counted; a mask smaller than k bounds the value by its size over k",
        reference: Reference::new(
            "Theiner, Mueller-Budack, Ewerth",
            "Interpretable Semantic Photo Geolocation",
            "WACV",
            2022,
            "arXiv:2104.14995",
        ),
        parameters: Settings::specs(),
        ..share("top-k", "localisation")
    }
}

fn score(image: &Image<'_>, Settings { share }: &Settings) -> Score {
    Score::ok(share_of_highest(image, (share * image.map.len() as f64).round() as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::map_metric::tests::value;

    #[test]
    fn a_share_of_the_pixels_is_looked_at() {
        let (map, mask) = ([0.9, 0.1, 0.8, 0.3, 0.2, 0.7, 0.0, 0.5], [1, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(value(&TOP_K, Settings { share: 0.0 }, &map, &mask, 4), Some(1.0));
        assert_eq!(value(&TOP_K, Settings { share: 0.25 }, &map, &mask, 4), Some(0.5));
        assert_eq!(value(&TOP_K, Settings { share: 0.5 }, &map, &mask, 4), Some(0.5));
        assert_eq!(value(&TOP_K, Settings { share: 1.0 }, &map, &mask, 4), Some(0.25));
    }
}
