//! Relevance rank accuracy: of as many of the highest pixels as the mask has, the share in the mask. Arras, Osman and Samek,
//! "CLEVR-XAI: A Benchmark Dataset for the Ground Truth Evaluation of Neural Network Explanations", Information Fusion 2022,
//! arXiv:2003.07258, section 4.2. Equal pixels count by their expectation; Quantus 0.6 gives a map of zeros 1 where the mask lies
//! at the top.

use super::facts::Image;
use super::map_metric::{OfOneMap, share, share_of_highest};
use super::{Masks, MetricSpec, Reference, Score};

/// See the file's head.
pub static RELEVANCE_RANK: OfOneMap = OfOneMap { masks: Masks::Finding, spec, score };

fn spec() -> MetricSpec {
    MetricSpec {
        short: "rank accuracy",
        title: "Relevance rank accuracy: share of the |mask| highest pixels that lie in the mask",
        formula: "top-k with k = |g|, the pixels of the mask",
        chance: "share of mask pixels",
        chance_is_constant: true,
        edge_cases: "an empty or unknown mask is N/A; a map that is not finite is a failure; a constant map gives the share of mask pixels and is counted",
        reference: Reference::new("Arras, Osman, Samek", "CLEVR-XAI", "Information Fusion", 2022, "arXiv:2003.07258"),
        ..share("relevance-rank", "localisation")
    }
}

fn score(image: &Image<'_>, _: &()) -> Score {
    Score::ok(share_of_highest(image, image.marked()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::map_metric::tests::value;

    #[test]
    fn k_is_the_size_of_the_mask() {
        assert_eq!(value(&RELEVANCE_RANK, (), &[0.9, 0.1, 0.8, 0.3], &[1, 0, 0, 1], 2), Some(0.5));
        assert_eq!(value(&RELEVANCE_RANK, (), &[0.9, 0.1, 0.2, 0.3], &[1, 0, 0, 1], 2), Some(1.0));
        // Zeros say nothing, wherever the mask lies.
        assert_eq!(value(&RELEVANCE_RANK, (), &[0.0; 4], &[1, 1, 0, 0], 2), Some(0.5));
    }
}
