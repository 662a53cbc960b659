//! Shortcut mass: how much of a map's positive mass lies on what was planted to mislead the model (`data.shortcut` of
//! phantoms), over images that have it. Beside `relevance-mass`, the share on the finding, it says which of the two a map follows:
//! a faithful map of a model that takes the shortcut follows the shortcut. The controlled experiment of Adebayo et al.,
//! "Post hoc Explanations may be Ineffective for Detecting Unknown Spurious Correlation", ICLR 2022, arXiv:2212.04629.

use super::facts::Image;
use super::map_metric::{OfOneMap, share};
use super::{Better, Masks, MetricSpec, Reference, Score};

/// See the file's head.
pub static SHORTCUT_MASS: OfOneMap = OfOneMap { masks: Masks::Shortcut, spec, score };

fn spec() -> MetricSpec {
    MetricSpec {
        short: "shortcut mass",
        title: "Shortcut mass: share of the positive mass that lies on the planted shortcut",
        formula: "sum over h of max(a, 0) / sum of max(a, 0), h the shortcut's pixels",
        better: Better::Lower,
        chance: "share of the shortcut's pixels, of a map that is the same everywhere",
        edge_cases: "an image without the shortcut is N/A; a map that is not finite is a failure and counts as 1, and so is one that varies without a positive value; a constant map has the same mass everywhere and is counted",
        reference: Reference::new(
            "Adebayo, Muelly, Abelson, Kim",
            "Post hoc Explanations may be Ineffective for Detecting Unknown Spurious Correlation",
            "ICLR",
            2022,
            "arXiv:2212.04629",
        ),
        version: 2,
        ..share("shortcut-mass", "localisation")
    }
}

fn score(image: &Image<'_>, _: &()) -> Score {
    match image.mass_inside() {
        Some(mass) => Score::ok(mass),
        None => Score::failed("the map has no positive value"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::map_metric::tests::value;

    #[test]
    fn is_the_mass_on_its_pixels() {
        assert_eq!(value(&SHORTCUT_MASS, (), &[1.0, -5.0, 3.0, 0.0], &[1, 0, 0, 0], 2), Some(0.25));
        assert_eq!(value(&SHORTCUT_MASS, (), &[0.0; 4], &[1, 0, 0, 0], 2), Some(0.25));
    }
}
