//! XRAI: Kapishnikov et al., "XRAI: Better Attributions Through Regions", ICCV 2019, arXiv:1906.02825, with the conventions of
//! PAIR's `saliency` library.
//!
//! Integrated gradients from black and from white, their mean, the largest over channels; superpixels at six scales (Felzenszwalb
//! and Huttenlocher), each grown by five pixels; regions are taken greedily by the mean attribution of what they add
//! (algorithm 1), and a pixel's value is that mean when its region was taken. What no region took has its own mean.
//!
//! The library's black and white are the least and greatest value of the image; here they are the colours. Its superpixels are
//! made at 224 x 224; here at the model's size. A region must add `min_pixels` at 224 x 224, in proportion elsewhere.

use crate::input::bound;
use crate::integratedgradients::integrate;
use lightbox_sdk::ndarray::{Array2, Array3};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Kind;
use lightbox_sdk::tools::fill::{Fill, fill};
use lightbox_sdk::tools::path::Rule;
use lightbox_sdk::tools::segment;

register_explainer!(Xrai);

struct Xrai;

/// Of Felzenszwalb's segmentation.
const SCALES: [f64; 6] = [50.0, 100.0, 150.0, 250.0, 500.0, 1200.0];
const SIGMA: f64 = 0.8;
const MIN_SIZE: usize = 150;
/// Radius of the disc by which regions grow.
const GROW: i64 = 5;

/// Regions as lists of pixels, each grown by a disc.
fn regions(image: &Array3<f32>) -> Vec<Vec<usize>> {
    let (h, w, _) = image.dim();
    let mut all = Vec::new();
    for scale in SCALES {
        let labels = segment::felzenszwalb(image.view(), scale, SIGMA, MIN_SIZE);
        let mut parts = vec![Vec::new(); segment::count(&labels)];
        let mut last = vec![usize::MAX; h * w];
        let mut members = vec![Vec::new(); parts.len()];
        labels.iter().enumerate().for_each(|(i, l)| members[*l as usize].push(i));
        for (label, pixels) in members.into_iter().enumerate() {
            for i in pixels {
                let (y, x) = ((i / w) as i64, (i % w) as i64);
                for (dy, dx) in (-GROW..=GROW).flat_map(|dy| (-GROW..=GROW).map(move |dx| (dy, dx))) {
                    let (v, u) = (y + dy, x + dx);
                    if dy * dy + dx * dx <= GROW * GROW && v >= 0 && u >= 0 && v < h as i64 && u < w as i64 {
                        let at = v as usize * w + u as usize;
                        if last[at] != label {
                            last[at] = label;
                            parts[label].push(at);
                        }
                    }
                }
            }
        }
        all.extend(parts);
    }
    all
}

/// The greedy choice of regions: each time that whose new pixels have the largest mean, the first of equals.
fn choose(attribution: &[f64], regions: &[Vec<usize>], least: usize) -> Vec<f64> {
    let mut of_pixel = vec![Vec::new(); attribution.len()];
    for (r, region) in regions.iter().enumerate() {
        region.iter().for_each(|i| of_pixel[*i].push(r));
    }
    let mut sums: Vec<f64> = regions.iter().map(|r| r.iter().map(|i| attribution[*i]).sum()).collect();
    let mut counts: Vec<usize> = regions.iter().map(Vec::len).collect();
    let mut open: Vec<usize> = (0..regions.len()).collect();
    let (mut map, mut taken) = (vec![0f64; attribution.len()], vec![false; attribution.len()]);
    loop {
        open.retain(|r| counts[*r] >= least);
        let mean = |r: usize| sums[r] / counts[r] as f64;
        let mut best: Option<usize> = None;
        for &r in &open {
            if best.is_none_or(|b| mean(r) > mean(b)) {
                best = Some(r);
            }
        }
        let Some(best) = best else { break };
        let gain = mean(best);
        for &i in &regions[best] {
            if !taken[i] {
                (map[i], taken[i]) = (gain, true);
                for &r in &of_pixel[i] {
                    sums[r] -= attribution[i];
                    counts[r] -= 1;
                }
            }
        }
        open.retain(|r| *r != best);
    }
    let rest: Vec<f64> = taken.iter().zip(attribution).filter(|(t, _)| !**t).map(|(_, a)| *a).collect();
    let mean = rest.iter().sum::<f64>() / rest.len().max(1) as f64;
    map.into_iter().zip(taken).map(|(m, taken)| if taken { m } else { mean }).collect()
}

#[derive(Params)]
struct Settings {
    /// points on each of the two paths; the library's 100
    #[param(default = 50, range = (1, 100_000))]
    steps: usize,
    /// that a region must add to be taken
    #[param(default = 50, range = (1, 50_000), unit = "of 224 x 224")]
    min_pixels: usize,
}

impl Explainer for Xrai {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Kapishnikov et al.",
            "XRAI: Better Attributions Through Regions",
            "ICCV",
            2019,
            "arXiv:1906.02825",
        );
        ExplainerSpec::new("xrai", "XRAI", Family::Gradient, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .formula(
                "the mean attribution of the region that took the pixel, by integrated gradients from black and white",
            )
            .cost("1 F, then 2 x steps x (1 F, 1 B)")
            .notes("PAIR's library takes the image's least and greatest value for black and white.")
            .signed()
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        let needs = Needs { model: true, extra: Passes::both(2 * params.steps as u64), ..Needs::default() };
        bound(model, |input| Bound::new(needs, move |context| explain(context, &input, &params)))
    }
}

fn explain(context: &Context<'_>, input: &str, params: &Settings) -> Result<Maps> {
    let images = context.image_tensor()?;
    let [b, channels, h, w]: [i64; 4] =
        images.size().try_into().map_err(|s| Error::invalid(format!("images of shape {s:?}")))?;
    let steps = Rule::Trapezoid.steps(params.steps);
    let black = integrate(context, input, &fill(context, Fill::Black)?, &steps)?;
    let white = integrate(context, input, &fill(context, Fill::White)?, &steps)?;
    let both = black.f_add(&white)?.f_div_scalar(2.0)?.f_amax([1i64].as_slice(), false)?;
    let (h, w, channels) = (h as usize, w as usize, channels as usize);
    let least = (params.min_pixels as f64 * (h * w) as f64 / (224.0 * 224.0)).ceil() as usize;
    let mut maps = Array3::<f32>::zeros((b as usize, h, w));
    for i in 0..b {
        context.check_cancelled()?;
        let attribution = Vec::<f64>::try_from(both.f_get(i)?.f_to_kind(Kind::Double)?.f_flatten(0, -1)?)?;
        let pixels = images.f_get(i)?.f_permute([1, 2, 0])?.f_contiguous()?.f_flatten(0, -1)?;
        let pixels = Vec::<f32>::try_from(pixels)?;
        let range = pixels.iter().fold([f32::MAX, f32::MIN], |[l, g], v| [l.min(*v), g.max(*v)]);
        let width = if range[1] > range[0] { range[1] - range[0] } else { 1.0 };
        let scaled = pixels.iter().map(|v| (v - range[0]) / width * 2.0 - 1.0).collect();
        let image = Array3::from_shape_vec((h, w, channels), scaled)?;
        let map = choose(&attribution, &regions(&image), least.max(1));
        let map = Array2::from_shape_vec((h, w), map.into_iter().map(|v| v as f32).collect())?;
        maps.index_axis_mut(lightbox_sdk::ndarray::Axis(0), i as usize).assign(&map);
    }
    Ok(Array::from_ndarray(maps)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The library's loop as it stands there: masks, and means over what is new.
    fn slow(attribution: &[f64], regions: &[Vec<usize>], least: usize) -> Vec<f64> {
        let mut taken = vec![false; attribution.len()];
        let mut out = vec![f64::NEG_INFINITY; attribution.len()];
        let mut open: Vec<usize> = (0..regions.len()).collect();
        loop {
            let fresh = |r: usize, taken: &[bool]| -> Vec<usize> {
                let mut new: Vec<usize> = regions[r].iter().copied().filter(|i| !taken[*i]).collect();
                new.sort_unstable();
                new
            };
            open.retain(|r| fresh(*r, &taken).len() >= least);
            let mean = |pixels: &[usize]| pixels.iter().map(|i| attribution[*i]).sum::<f64>() / pixels.len() as f64;
            let gains: Vec<f64> = open.iter().map(|r| mean(&fresh(*r, &taken))).collect();
            let Some(best) = (0..open.len()).reduce(|a, b| if gains[b] > gains[a] { b } else { a }) else { break };
            for i in fresh(open[best], &taken) {
                (out[i], taken[i]) = (gains[best], true);
            }
            open.remove(best);
        }
        let rest: Vec<usize> = (0..taken.len()).filter(|i| !taken[*i]).collect();
        let mean = rest.iter().map(|i| attribution[*i]).sum::<f64>() / rest.len().max(1) as f64;
        rest.iter().for_each(|i| out[*i] = mean);
        out
    }

    #[test]
    fn the_choice_is_the_librarys_loop() {
        let noise = |i: usize| ((i as f64 * 12.9898).sin() * 43758.5453).fract();
        let attribution: Vec<f64> = (0..400).map(noise).collect();
        let region =
            |r: usize| (0..400).filter(|i| noise(i * 31 + r * 977 + 5).abs() < 0.02 * (r % 9) as f64).collect();
        let regions: Vec<Vec<usize>> = (0..40).map(region).collect();
        for least in [1, 12] {
            let (found, wanted) = (choose(&attribution, &regions, least), slow(&attribution, &regions, least));
            assert!(found.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-9));
            let mut values: Vec<u64> = found.iter().map(|v| v.to_bits()).collect();
            values.sort_unstable();
            values.dedup();
            assert!(values.len() > 5);
        }
    }

    #[test]
    fn regions_grow_and_cover_the_image() {
        let image = Array3::from_shape_fn((40, 40, 3), |(_, x, _)| if x < 20 { -1.0 } else { 1.0 });
        let regions = regions(&image);
        // Two halves at each of six scales, five columns wider.
        assert_eq!(regions.len(), 12);
        assert!(regions.iter().all(|r| r.len() == 40 * 25));
    }
}
