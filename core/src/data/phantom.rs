//! Simulated chest radiographs with nodules of known place, and simulated nodules in real radiographs.
//!
//! Sizes and positions are drawn from a fit to NODE21's annotation (1,426 boxes of the 4,882 images in the splits that
//! F. Behrendt published, repository FinnBehrendt/node21-submit; Sogancioglu et al., IEEE TMI 2024): the geometric mean
//! of a box's sides is log-normal, so is its aspect ratio, and centres follow a 16 x 16 histogram. A test derives the
//! fit anew where the annotation is at hand.
//!
//! A nodule is a smooth bump, as of a sphere's projection: `contrast * sqrt(1 - r^2)` with `r` the elliptic radius,
//! softened at the rim, and up to 15 % irregularity. A phantom has body, lungs, heart, spine, ribs, vessels and noise of two
//! scales, all varied by image. Every image depends on the seed and its own number alone.

use super::image::{Image, Pixels};
use super::mask::BBox;
use super::{DataSpec, Sample, Source, SourceInfo, Truth};
use crate::task::Task;
use crate::{Error, Result};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::f64::consts::{PI, TAU};
use std::path::PathBuf;

/// What lists show of it.
pub const INFO: SourceInfo = SourceInfo {
    name: "phantom",
    title: "Simulated radiographs, or real ones without nodules, with inserted nodules of known place",
    keys: "count, nodules, pixels, contrast, scale, shortcut, seed, backgrounds",
};

/// Keys of `[data] source = "phantom"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Phantom {
    /// How many images.
    pub count: usize,
    /// Share of images with nodules. NODE21 has 1134 of 4882.
    pub nodules: f64,
    /// Height and width of a phantom, px.
    pub pixels: usize,
    /// Brightness of a nodule above its surroundings, least and greatest, in units of the full range.
    pub contrast: (f64, f64),
    /// Multiplies every nodule's size.
    pub scale: f64,
    /// The probability by which a marker in the corner follows the label rather than a coin: 0 plants no shortcut.
    pub shortcut: Option<f64>,
    /// Of all draws.
    pub seed: u64,
    /// Real radiographs to insert nodules into: another source, of which the images with label 0 are used.
    pub backgrounds: Option<Box<DataSpec>>,
}

impl Default for Phantom {
    fn default() -> Self {
        Phantom {
            count: 1000,
            nodules: 0.5,
            pixels: 256,
            contrast: (0.15, 0.35),
            scale: 1.0,
            shortcut: None,
            seed: 0,
            backgrounds: None,
        }
    }
}

/// More phantoms would not be listed in the memory of a usual machine.
const MOST: usize = 10_000_000;

/// Mean and standard deviation of ln(sqrt(width * height) / image side).
const LOG_SIZE: (f64, f64) = (-2.9432, 0.3874);
/// Mean and standard deviation of ln(width / height).
const LOG_ASPECT: (f64, f64) = (-0.0386, 0.1992);
/// Images with 1, 2 and 3 nodules, of those with any.
const NODULES: [u32; 3] = [926, 124, 84];
const CELLS: usize = 16;
/// Centres of the boxes, by row and column.
#[rustfmt::skip]
const CENTRES: [[u32; CELLS]; CELLS] = [
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 1, 3, 4, 2, 0, 0, 0, 4, 1, 1, 0, 0, 0],
    [0, 0, 1, 5, 12, 15, 1, 0, 0, 1, 1, 7, 7, 0, 0, 0],
    [0, 0, 1, 11, 24, 7, 7, 1, 1, 1, 9, 8, 10, 5, 0, 0],
    [0, 0, 10, 27, 20, 10, 11, 0, 0, 2, 10, 17, 22, 3, 0, 0],
    [0, 2, 10, 29, 30, 12, 5, 1, 0, 0, 12, 21, 20, 5, 1, 0],
    [0, 1, 9, 30, 24, 19, 4, 0, 0, 2, 4, 28, 31, 10, 0, 0],
    [0, 1, 23, 35, 35, 13, 1, 0, 0, 1, 2, 22, 20, 21, 0, 0],
    [0, 1, 19, 33, 21, 7, 5, 0, 0, 2, 7, 18, 34, 30, 1, 0],
    [0, 7, 24, 36, 28, 15, 10, 0, 0, 4, 14, 8, 37, 27, 3, 0],
    [1, 8, 23, 30, 13, 14, 4, 0, 0, 4, 11, 9, 25, 23, 9, 0],
    [0, 4, 14, 12, 6, 1, 1, 0, 0, 5, 3, 9, 8, 8, 5, 0],
    [0, 2, 1, 1, 3, 1, 0, 0, 0, 0, 2, 1, 0, 2, 0, 0],
    [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0],
    [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
];

fn normal(rng: &mut ChaCha8Rng) -> f64 {
    (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt() * (TAU * rng.random::<f64>()).cos()
}

/// The index of a draw from integer weights.
fn pick(rng: &mut ChaCha8Rng, weights: impl Iterator<Item = u32> + Clone) -> usize {
    let mut at = rng.random_range(0..weights.clone().sum::<u32>());
    for (i, weight) in weights.enumerate() {
        if at < weight {
            return i;
        }
        at -= weight;
    }
    0
}

/// A nodule in fractions of the image.
#[derive(Debug, Clone)]
struct Nodule {
    cx: f64,
    cy: f64,
    width: f64,
    height: f64,
    contrast: f64,
    lobes: u32,
    phase: f64,
}

impl Nodule {
    fn draw(spec: &Phantom, rng: &mut ChaCha8Rng) -> Self {
        let cell = pick(rng, CENTRES.iter().flatten().copied());
        let cx = ((cell % CELLS) as f64 + rng.random::<f64>()) / CELLS as f64;
        let cy = ((cell / CELLS) as f64 + rng.random::<f64>()) / CELLS as f64;
        // Three deviations: larger or smaller boxes than NODE21's would be another disease.
        let size = (LOG_SIZE.0 + LOG_SIZE.1 * normal(rng).clamp(-3.0, 3.0)).exp() * spec.scale;
        let aspect = (LOG_ASPECT.0 + LOG_ASPECT.1 * normal(rng).clamp(-3.0, 3.0)).exp().sqrt();
        let (width, height) = (size * aspect, size / aspect);
        let contrast = spec.contrast.0 + (spec.contrast.1 - spec.contrast.0) * rng.random::<f64>();
        let inside = |c: f64, n: f64| c.clamp(n / 2.0, (1.0 - n / 2.0).max(n / 2.0));
        let (cx, cy) = (inside(cx, width), inside(cy, height));
        Nodule { cx, cy, width, height, contrast, lobes: rng.random_range(2..6), phase: TAU * rng.random::<f64>() }
    }

    /// Adds the nodule to an image in [0, 1].
    fn insert(&self, image: &mut [f32], (w, h): (usize, usize)) {
        let (rx, ry) = (self.width * w as f64 / 2.0, self.height * h as f64 / 2.0);
        let (cx, cy) = (self.cx * w as f64, self.cy * h as f64);
        let range =
            |c: f64, r: f64, n: usize| ((c - r).floor().max(0.0) as usize)..((c + r).ceil() as usize + 1).min(n);
        for y in range(cy, ry, h) {
            for x in range(cx, rx, w) {
                let (dx, dy) = ((x as f64 + 0.5 - cx) / rx, (y as f64 + 0.5 - cy) / ry);
                // The irregular outline stays inside the ellipse that is the mask.
                let wave = (f64::from(self.lobes) * dy.atan2(dx) + self.phase).cos();
                let r = dx.hypot(dy) / (0.925 + 0.075 * wave);
                if r < 1.0 {
                    let rim = ((1.0 - r) / 0.15).min(1.0);
                    image[y * w + x] += (self.contrast * (1.0 - r * r).sqrt() * rim) as f32;
                }
            }
        }
    }

    fn bbox(&self, (w, h): (usize, usize)) -> BBox {
        let (w, h) = (w as f64, h as f64);
        let (left, top) = (self.cx - self.width / 2.0, self.cy - self.height / 2.0);
        BBox::new(left * w, top * h, self.width * w, self.height * h)
    }
}

/// Smooth noise: random values on a coarse grid, bilinear between them.
fn smooth(rng: &mut ChaCha8Rng, n: usize, cells: usize) -> Vec<f32> {
    let grid: Vec<f32> = (0..cells * cells).map(|_| normal(rng) as f32).collect();
    super::resize::upsample(&grid, 1, (cells, cells), (n, n))
}

/// A chest without nodules, values in [0, 1], `n` x `n`.
fn chest(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
    let mut vary = |centre: f64, spread: f64| centre + spread * (2.0 * rng.random::<f64>() - 1.0);
    let lungs = [(vary(0.29, 0.02), -1.0), (vary(0.71, 0.02), 1.0)];
    let (lung_y, lung_rx, lung_ry) = (vary(0.50, 0.03), vary(0.165, 0.015), vary(0.34, 0.03));
    let (heart_x, heart_y, heart_r) = (vary(0.56, 0.02), vary(0.66, 0.02), vary(0.14, 0.02));
    let (ribs, slope, rib_phase, rib_depth) = (vary(9.0, 0.7), vary(0.45, 0.08), vary(0.0, 0.5), vary(0.045, 0.012));
    let (body, air, depth) = (vary(0.62, 0.05), vary(0.24, 0.04), vary(0.47, 0.02));
    let (coarse, medium) = (smooth(rng, n, 8), smooth(rng, n, (n / 8).max(2)));
    let step = |v: f64| 1.0 / (1.0 + (-v).exp());
    let mut image = Vec::with_capacity(n * n);
    for yi in 0..n {
        let y = (yi as f64 + 0.5) / n as f64;
        for xi in 0..n {
            let x = (xi as f64 + 0.5) / n as f64;
            // Body against air at the sides.
            let mut v = body * step((depth - (x - 0.5).abs()) * 60.0);
            let mut lung = 0.0;
            for (cx, side) in lungs {
                // The outer border bulges below, the apex is narrow.
                let dx = (x - cx - side * 0.02 * (y - lung_y)) / (lung_rx * (0.8 + 0.45 * (y - 0.2).clamp(0.0, 0.6)));
                let dy = (y - lung_y) / lung_ry;
                lung += step((1.0 - dx.hypot(dy)) * 14.0);
            }
            let lung = lung.min(1.0);
            v -= air * 1.4 * lung;
            // Ribs: arcs that fall outwards, seen through the lungs.
            let arc = (TAU * ribs * (y - slope * (x - 0.5).powi(2) * 2.0) + rib_phase).cos();
            v += rib_depth * (0.3 + 0.7 * lung) * (arc.max(0.0)).powi(2) * step((0.42 - (x - 0.5).abs()) * 40.0);
            // Spine and mediastinum, then the heart.
            v += 0.16 * (-((x - 0.5) / 0.055).powi(2)).exp();
            v += 0.16 * step((1.0 - ((x - heart_x) / heart_r).hypot((y - heart_y) / (heart_r * 1.1))) * 12.0);
            // Diaphragm.
            v += 0.22 * step((y - 0.86 + 0.05 * (PI * (x * 2.0).fract()).sin()) * 40.0) * (v * 2.0).min(1.0);
            let i = yi * n + xi;
            v += 0.035 * f64::from(coarse[i]) + 0.018 * f64::from(medium[i]);
            image.push(v as f32);
        }
    }
    for side in [-1.0, 1.0] {
        for _ in 0..14 {
            vessel(&mut image, n, side, rng);
        }
    }
    for v in &mut image {
        *v += 0.015 * normal(rng) as f32;
    }
    image
}

/// A pulmonary vessel: a bent line from the hilum outwards that thins and fades. End-on ones are what a reader of
/// radiographs takes for small nodules.
fn vessel(image: &mut [f32], n: usize, side: f64, rng: &mut ChaCha8Rng) {
    let mut vary = |centre: f64, spread: f64| centre + spread * (2.0 * rng.random::<f64>() - 1.0);
    let (x0, y0) = (0.5 + side * vary(0.10, 0.02), vary(0.46, 0.07));
    let (angle, length, bend) = (vary(0.0, 1.35), vary(0.17, 0.08), vary(0.0, 0.6));
    let (width, strength) = (vary(0.008, 0.003), vary(0.10, 0.05));
    let steps = (length * n as f64 * 2.0) as usize;
    for step in 0..steps {
        let t = step as f64 / steps as f64;
        let (dx, dy) = (t * length * (angle + bend * t).cos(), t * length * (angle + bend * t).sin());
        let (cx, cy) = ((x0 + side * dx) * n as f64, (y0 + dy * 1.3) * n as f64);
        let (sigma, peak) = ((width * (1.0 - 0.6 * t) * n as f64).max(0.4), strength * (1.0 - 0.7 * t));
        let reach = (2.5 * sigma).ceil() as i64;
        for y in cy as i64 - reach..=cy as i64 + reach {
            for x in cx as i64 - reach..=cx as i64 + reach {
                if (0..n as i64).contains(&x) && (0..n as i64).contains(&y) {
                    let square = (x as f64 + 0.5 - cx).powi(2) + (y as f64 + 0.5 - cy).powi(2);
                    // Half a pixel a step: neighbouring stamps overlap, so each adds a part.
                    let part = peak * (-square / (2.0 * sigma * sigma)).exp() / (4.0 * sigma);
                    image[y as usize * n + x as usize] += part as f32;
                }
            }
        }
    }
}

/// The bars of the corner marker, an `L`: left, top, width, height.
fn marker((w, h): (usize, usize)) -> [[usize; 4]; 2] {
    let unit = (w.min(h) / 32).max(1);
    [[unit, unit, unit, 4 * unit], [2 * unit, 4 * unit, 2 * unit, unit]]
}

/// The corner marker of a planted shortcut, of full brightness.
fn mark(image: &mut [f32], (w, h): (usize, usize)) {
    for [left, top, width, height] in marker((w, h)) {
        (top..top + height).for_each(|y| image[y * w + left..y * w + left + width].fill(1.0));
    }
}

struct Open {
    spec: Phantom,
    samples: Vec<Sample>,
    nodules: Vec<Vec<Nodule>>,
    marked: Vec<bool>,
    /// The source of the backgrounds and which of its images each phantom uses.
    backgrounds: Option<(Box<dyn Source>, Vec<usize>)>,
}

impl Phantom {
    pub(super) fn open(&self) -> Result<Box<dyn Source>> {
        let bad =
            |key: &str, value: String, wanted: &str| Err(Error::new(format!("{key} = {value}: {wanted} expected")));
        if self.count == 0 || self.count > MOST {
            return bad("count", self.count.to_string(), "1 to 10 000 000");
        }
        if !(0.0..=1.0).contains(&self.nodules) {
            return bad("nodules", self.nodules.to_string(), "a share from 0 to 1");
        }
        if !(16..=8192).contains(&self.pixels) {
            return bad("pixels", self.pixels.to_string(), "16 to 8192");
        }
        let (low, high) = self.contrast;
        if !(low.is_finite() && high.is_finite() && low <= high) {
            return bad("contrast", format!("({low}, {high})"), "the lesser first, both finite");
        }
        if !(self.scale > 0.0 && self.scale <= 10.0) {
            return bad("scale", self.scale.to_string(), "more than 0, at most 10");
        }
        if self.shortcut.is_some_and(|p| !(0.0..=1.0).contains(&p)) {
            return bad("shortcut", format!("{:?}", self.shortcut), "a probability");
        }
        let backgrounds = match &self.backgrounds {
            None => None,
            Some(spec) => {
                let source = super::open(spec, &Task::default())?;
                let free: Vec<usize> = (0..source.samples().len()).filter(|&i| !source.samples()[i].has(1)).collect();
                if free.is_empty() {
                    return Err(Error::new("the backgrounds hold no image with label 0"));
                }
                // All in turn, each round in an order of its own, so that a background's label is not always the same.
                let mut each = Vec::with_capacity(self.count + free.len());
                let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ 0x6261_636b);
                while each.len() < self.count {
                    let mut round = free.clone();
                    round.shuffle(&mut rng);
                    each.extend(round);
                }
                Some((source, each))
            }
        };
        let (mut samples, mut nodules, mut marked) = (vec![], vec![], vec![]);
        for i in 0..self.count {
            let mut rng = self.rng(i, 0);
            // Spread evenly, so that any count has the share asked for.
            let label = ((i + 1) as f64 * self.nodules).floor() > (i as f64 * self.nodules).floor();
            let many = if label { pick(&mut rng, NODULES.into_iter()) + 1 } else { 0 };
            let mine: Vec<Nodule> = (0..many).map(|_| Nodule::draw(self, &mut rng)).collect();
            let coin = rng.random::<bool>();
            marked.push(self.shortcut.is_some_and(|p| if rng.random::<f64>() < p { label } else { coin }));
            let patient = match &backgrounds {
                Some((source, each)) => source.samples()[each[i]].patient.clone(),
                None => format!("phantom-{i:07}"),
            };
            // Boxes are in pixels of the image, whose size is only known for phantoms; see `image` for backgrounds.
            let size = (self.pixels, self.pixels);
            let size = if backgrounds.is_some() { (1, 1) } else { size };
            let truth = Truth::Boxes(mine.iter().map(|n| n.bbox(size)).collect());
            samples.push(Sample::binary(format!("phantom-{i:07}.png"), patient, label.into(), truth));
            nodules.push(mine);
        }
        let mut open = Open { spec: self.clone(), samples, nodules, marked, backgrounds };
        open.scale_boxes()?;
        Ok(Box::new(open))
    }

    /// Stream `part` of image `i`.
    fn rng(&self, i: usize, part: u64) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(i as u64 * 2 + part);
        rng
    }
}

impl Open {
    /// Brings the boxes of inserted nodules to their backgrounds' pixels. Files are read for their size once each.
    fn scale_boxes(&mut self) -> Result<()> {
        let Some((source, each)) = &self.backgrounds else { return Ok(()) };
        use rayon::prelude::*;
        let mut distinct = each.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let size = |&i: &usize| source.image(i).map(|g| (i, (g.width, g.height)));
        let sizes: std::collections::HashMap<usize, (usize, usize)> =
            distinct.par_iter().map(size).collect::<Result<_>>()?;
        for (i, sample) in self.samples.iter_mut().enumerate() {
            sample.truth = Truth::Boxes(self.nodules[i].iter().map(|n| n.bbox(sizes[&each[i]])).collect());
        }
        Ok(())
    }
}

impl Open {
    /// Image `i`, with the marker or without.
    fn made(&self, i: usize, marked: bool) -> Result<Image> {
        let (mut image, size) = match &self.backgrounds {
            Some((source, each)) => {
                let grey = source.image(each[i])?;
                (grey.unit_by(source.intensity())?, (grey.width, grey.height))
            }
            None => (chest(&mut self.spec.rng(i, 1), self.spec.pixels), (self.spec.pixels, self.spec.pixels)),
        };
        for nodule in &self.nodules[i] {
            nodule.insert(&mut image, size);
        }
        if marked {
            mark(&mut image, size);
        }
        let bytes = image.iter().map(|v| (v.clamp(0.0, 1.0) * 255.0 + 0.5) as u8).collect();
        Image::grey(size.0, size.1, Pixels::U8(bytes))
    }
}

impl Source for Open {
    fn samples(&self) -> &[Sample] {
        &self.samples
    }

    fn image(&self, i: usize) -> Result<Image> {
        self.made(i, self.marked[i])
    }

    fn with_shortcut(&self, i: usize, present: bool) -> Result<Option<Image>> {
        self.spec.shortcut.map(|_| self.made(i, present)).transpose()
    }

    fn has_shortcut(&self, i: usize) -> bool {
        self.marked[i]
    }

    fn files(&self, i: usize) -> Vec<PathBuf> {
        self.backgrounds.as_ref().map_or(vec![], |(source, each)| source.files(each[i]))
    }

    fn shortcut(&self, i: usize, size: (usize, usize)) -> Vec<BBox> {
        let bar = |[x, y, w, h]: [usize; 4]| BBox::new(x as f64, y as f64, w as f64, h as f64);
        if self.marked[i] { marker(size).map(bar).to_vec() } else { vec![] }
    }

    fn knows_patients(&self) -> bool {
        self.backgrounds.as_ref().is_none_or(|(source, _)| source.knows_patients())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::node21;

    #[test]
    fn an_image_depends_on_its_seed_and_number_alone() {
        let small = Phantom { count: 4, pixels: 64, ..Phantom::default() }.open().unwrap();
        let large = Phantom { count: 9, pixels: 64, ..Phantom::default() }.open().unwrap();
        let other = Phantom { count: 4, pixels: 64, seed: 1, ..Phantom::default() }.open().unwrap();
        assert_eq!(small.image(3).unwrap(), large.image(3).unwrap());
        assert_eq!(small.samples()[3], large.samples()[3]);
        assert_ne!(small.image(3).unwrap(), other.image(3).unwrap());
    }

    #[test]
    fn nodules_are_bright_inside_their_boxes_and_nowhere_else() {
        let with = Phantom { count: 6, pixels: 128, nodules: 1.0, ..Phantom::default() }.open().unwrap();
        let without = Phantom { count: 6, pixels: 128, nodules: 0.0, ..Phantom::default() }.open().unwrap();
        for i in 0..6 {
            let Truth::Boxes(boxes) = &with.samples()[i].truth else { panic!() };
            let (a, b) = (with.image(i).unwrap().unit().unwrap(), without.image(i).unwrap().unit().unwrap());
            let inside = |x: usize, y: usize| {
                let (x, y) = (x as f64 + 0.5, y as f64 + 0.5);
                boxes.iter().any(|b| x > b.x && x < b.x + b.width && y > b.y && y < b.y + b.height)
            };
            let changed = (0..128 * 128).filter(|&p| a[p] != b[p]);
            let (mut count, mut outside) = (0, 0);
            for p in changed {
                count += 1;
                outside += usize::from(!inside(p % 128, p / 128));
            }
            assert!(count > 8 && outside == 0, "image {i}: {count} changed, {outside} outside");
        }
    }

    #[test]
    fn a_shortcut_follows_the_label() {
        let spec = Phantom { count: 40, pixels: 64, shortcut: Some(1.0), ..Phantom::default() };
        let source = spec.open().unwrap();
        for (i, sample) in source.samples().iter().enumerate() {
            let image = source.image(i).unwrap().unit().unwrap();
            assert_eq!(image[2 * 64 + 2] == 1.0, sample.has(1), "image {i}");
        }
    }

    #[test]
    fn bad_keys_are_named() {
        let error = Phantom { nodules: 1.5, ..Phantom::default() }.open().err().unwrap().to_string();
        assert_eq!(error, "nodules = 1.5: a share from 0 to 1 expected");
    }

    #[test]
    fn the_fit_is_that_of_the_published_annotation() {
        let splits = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/node21-splits");
        if !splits.is_dir() {
            let _ = std::io::Write::write_fmt(
                &mut std::io::stderr(),
                format_args!("skipped: {} is absent\n", splits.display()),
            );
            return;
        }
        let (mut sizes, mut aspects, mut centres, mut many) = (vec![], vec![], [[0u32; CELLS]; CELLS], [0u32; 3]);
        for sample in node21::annotations(&splits).unwrap().0 {
            let Truth::Boxes(boxes) = sample.truth else { continue };
            if !boxes.is_empty() {
                many[boxes.len() - 1] += 1;
            }
            for b in boxes {
                sizes.push(((b.width * b.height).sqrt() / 1024.0).ln());
                aspects.push((b.width / b.height).ln());
                let cell = |v: f64| ((v / 1024.0 * CELLS as f64) as usize).min(CELLS - 1);
                centres[cell(b.y + b.height / 2.0)][cell(b.x + b.width / 2.0)] += 1;
            }
        }
        let check = |values: &[f64], fit: (f64, f64)| {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let std = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
            assert!((mean - fit.0).abs() < 5e-4 && (std - fit.1).abs() < 5e-4, "{mean} {std}");
        };
        check(&sizes, LOG_SIZE);
        check(&aspects, LOG_ASPECT);
        assert_eq!(centres, CENTRES);
        assert_eq!(many, NODULES);
    }
}
