//! Tolerant hit: whether the highest pixel lies in the mask or near it, within `radius` of the image's width. As the pointing
//! game of Zhang et al., ECCV 2016, arXiv:1608.00507, whose tolerance is 15 pixels.

use super::facts::Image;
use super::map_metric::{OfOneMap, share};
use super::{Masks, MetricSpec, Reference, Score};
use lightbox_sdk::params::Params;

/// See the file's head.
pub static TOLERANT_HIT: OfOneMap<Settings> = OfOneMap { masks: Masks::Finding, spec, score };

/// The parameters.
#[derive(Params)]
pub struct Settings {
    /// how near counts, of the image's width
    #[param(default = 0.05, range = (0.0, 1.0))]
    radius: f64,
}

fn spec() -> MetricSpec {
    MetricSpec {
        short: "tolerant hit",
        title: "Tolerant hit: the highest pixel lies in the mask or near it",
        formula: "|A and g+| / |A|, A the highest pixels, g+ the pixels within the radius of the mask",
        chance: "share of the pixels near the mask",
        chance_is_constant: true,
        edge_cases: "an empty or unknown mask is N/A; a map that is not finite is a failure; a constant map gives the share of pixels near the mask and is counted",
        reference: Reference::new(
            "Zhang et al.",
            "Top-down Neural Attention by Excitation Backprop",
            "ECCV",
            2016,
            "arXiv:1608.00507",
        ),
        parameters: Settings::specs(),
        ..share("tolerant-hit", "localisation")
    }
}

/// Whether each pixel is of the mask or within `reach` of one that is: rows of a disc about each, as their ends.
fn near(mask: &[u8], width: usize, reach: f64) -> Vec<bool> {
    let height = mask.len() / width;
    // For each row of the disc, how far it goes.
    let widths: Vec<usize> = (0..height.min(reach as usize + 1))
        .map(|dy| (0..width).take_while(|dx| (dy as f64).hypot(*dx as f64) <= reach).count().saturating_sub(1))
        .collect();
    let stride = width + 1;
    let mut ends = vec![0i32; height * stride];
    for i in (0..mask.len()).filter(|i| mask[*i] == 1) {
        let (y, x) = (i / width, i % width);
        for (dy, dx) in widths.iter().enumerate() {
            let rows = [y.checked_sub(dy), Some(y + dy).filter(|v| *v < height && dy > 0)];
            for row in rows.into_iter().flatten() {
                ends[row * stride + x.saturating_sub(*dx)] += 1;
                ends[row * stride + (x + dx + 1).min(width)] -= 1;
            }
        }
    }
    let rows = ends.chunks_exact(stride).flat_map(|row| {
        row[..width].iter().scan(0, |open, end| {
            *open += end;
            Some(*open > 0)
        })
    });
    rows.collect()
}

fn score(image: &Image<'_>, Settings { radius }: &Settings) -> Score {
    let (_, highest) = image.extremes();
    let width = image.width.max(1);
    let near = near(image.mask, width, radius * width as f64);
    let (mut all, mut hits) = (0usize, 0usize);
    for (values, near) in image.map.chunks(64).zip(near.chunks(64)) {
        if values.iter().fold(false, |any, v| any | (*v == highest)) {
            all += values.iter().filter(|v| **v == highest).count();
            hits += values.iter().zip(near).filter(|(v, near)| **v == highest && **near).count();
        }
    }
    Score::ok(hits as f64 / all.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::map_metric::tests::value;

    #[test]
    fn near_is_within_the_radius() {
        // The mask is the left upper corner of 4 x 4; the highest pixel two to the right, and one down.
        let mut map = [0f32; 16];
        map[6] = 1.0;
        let mut mask = [0u8; 16];
        mask[0] = 1;
        let at = |radius: f64| value(&TOLERANT_HIT, Settings { radius }, &map, &mask, 4);
        assert_eq!((at(0.0), at(0.5), at(0.56)), (Some(0.0), Some(0.0), Some(1.0)));
        // A constant map: the share of pixels that are near. Within one pixel of the corner there are three.
        assert_eq!(value(&TOLERANT_HIT, Settings { radius: 0.25 }, &[0.5; 16], &mask, 4), Some(3.0 / 16.0));
    }

    #[test]
    fn near_is_what_distances_say() {
        for (width, height) in [(9, 7), (5, 11), (1, 4)] {
            let mask: Vec<u8> = (0..width * height).map(|i| u8::from(i * 29 % 17 == 3)).collect();
            for reach in [0.0, 0.9, 1.0, 1.5, 2.3, 4.0, 100.0] {
                let place = |i: usize| ((i / width) as f64, (i % width) as f64);
                let far = |i: usize, j: usize| (place(i).0 - place(j).0).hypot(place(i).1 - place(j).1);
                let slow = |i: usize| (0..mask.len()).any(|j| mask[j] == 1 && far(i, j) <= reach);
                let wanted: Vec<bool> = (0..mask.len()).map(slow).collect();
                assert_eq!(near(&mask, width, reach), wanted, "{width} x {height}, {reach}");
            }
        }
    }
}
