//! Tolerant hit: whether the highest pixel lies in the mask or near it, within `radius` of the image's width. As the pointing
//! game of Zhang et al., ECCV 2016, arXiv:1608.00507, whose tolerance is 15 pixels.

use super::each::{Image, OfOneMap, share};
use super::{Masks, MetricSpec, Parameter, Score};

pub static TOLERANT_HIT: OfOneMap = OfOneMap { masks: Masks::Finding, spec, score };

fn spec() -> MetricSpec {
    MetricSpec {
        short: "tolerant hit",
        title: "Tolerant hit: the highest pixel lies in the mask or near it",
        formula: "|A and g+| / |A|, A the highest pixels, g+ the pixels within the radius of the mask",
        chance: "share of the pixels near the mask",
        chance_is_constant: true,
        edge_cases: "an empty or unknown mask is N/A; a map that is not finite is a failure; a constant map gives the share of pixels near the mask and is counted",
        reference: "Zhang et al.: Top-down Neural Attention by Excitation Backprop, ECCV 2016, arXiv:1608.00507",
        parameters: vec![Parameter::number("radius", 0.05, 0.0, 1.0, "how near counts, of the image's width")],
        ..share("tolerant-hit", "localisation")
    }
}

fn score(image: &Image<'_>, radius: f64) -> Score {
    let highest = image.map.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
    let width = image.width.max(1);
    let reach = radius * width as f64;
    let marked: Vec<(f64, f64)> = (0..image.mask.len())
        .filter(|i| image.mask[*i] == 1)
        .map(|i| ((i / width) as f64, (i % width) as f64))
        .collect();
    let near = |i: usize| {
        let (y, x) = ((i / width) as f64, (i % width) as f64);
        image.mask[i] == 1 || marked.iter().any(|(v, u)| (y - v).hypot(x - u) <= reach)
    };
    let all: Vec<usize> = (0..image.map.len()).filter(|i| image.map[*i] == highest).collect();
    let hits = all.iter().filter(|i| near(**i)).count();
    Score::ok(hits as f64 / all.len().max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::each::tests::value;

    #[test]
    fn near_is_within_the_radius() {
        // The mask is the left upper corner of 4 x 4; the highest pixel two to the right, and one down.
        let mut map = [0f32; 16];
        map[6] = 1.0;
        let mut mask = [0u8; 16];
        mask[0] = 1;
        let at = |radius: f64| value(&TOLERANT_HIT, radius, &map, &mask, 4);
        assert_eq!((at(0.0), at(0.5), at(0.56)), (Some(0.0), Some(0.0), Some(1.0)));
        // A constant map: the share of pixels that are near. Within one pixel of the corner there are three.
        assert_eq!(value(&TOLERANT_HIT, 0.25, &[0.5; 16], &mask, 4), Some(3.0 / 16.0));
    }
}
