//! What several metrics read of one map and its mask, each found once: extremes, what the order of the pixels says of the mask,
//! the overlap above Otsu's threshold, the mass inside.

use super::otsu;
use super::pixels::{Overlap, Pixels};
use super::{Masks, Score};
use crate::maps;
use std::sync::OnceLock;

/// One finite map and its mask, row by row.
pub struct Image<'a> {
    pub map: &'a [f32],
    /// 0 and 1; empty for a metric without masks.
    pub mask: &'a [u8],
    pub width: usize,
    facts: &'a Facts,
}

/// What several metrics read of a map and its mask, each found once.
#[derive(Default)]
pub struct Facts {
    extremes: OnceLock<(f32, f32)>,
    ranks: OnceLock<Option<Ranks>>,
    above_otsu: OnceLock<Option<Overlap>>,
    mass_inside: OnceLock<Option<f64>>,
}

/// What the order of a map's pixels says of a mask.
#[derive(Debug, Clone, Copy)]
pub struct Ranks {
    pub average_precision: f64,
    /// None where the mask is the whole image.
    pub auroc: Option<f64>,
}

impl<'a> Image<'a> {
    /// A map with its mask, and a place for what is found of it.
    pub fn new(map: &'a [f32], mask: &'a [u8], width: usize, facts: &'a Facts) -> Self {
        Image { map, mask, width, facts }
    }

    /// Pixels of the mask.
    pub fn marked(&self) -> usize {
        self.mask.iter().map(|m| usize::from(*m)).sum()
    }

    /// The least and the greatest value.
    pub fn extremes(&self) -> (f32, f32) {
        *self.facts.extremes.get_or_init(|| maps::extremes(self.map))
    }

    /// None where the mask is empty.
    pub fn ranks(&self) -> Option<Ranks> {
        let of = |pixels: Pixels| Ranks { average_precision: pixels.average_precision(), auroc: pixels.auroc() };
        *self.facts.ranks.get_or_init(|| Pixels::of(self.map, self.mask).map(of))
    }

    /// The mask and the pixels above Otsu's threshold; none of a constant map.
    pub fn above_otsu(&self) -> Option<Overlap> {
        *self.facts.above_otsu.get_or_init(|| otsu::overlap(self.map, self.mask, self.extremes()))
    }

    /// The share of the positive values that lies in the mask; none where no value is positive. A constant map has the same
    /// mass everywhere.
    pub fn mass_inside(&self) -> Option<f64> {
        *self.facts.mass_inside.get_or_init(|| mass_inside(self.map, self.mask))
    }
}

/// The share of the positive mass in the mask; none where there is no positive value. Of a constant map, the mask's share of the
/// pixels.
fn mass_inside(map: &[f32], mask: &[u8]) -> Option<f64> {
    if map.iter().all(|v| *v == map[0]) {
        return Some(mask.iter().map(|m| f64::from(*m)).sum::<f64>() / map.len() as f64);
    }
    let mass = |v: f32| if v > 0.0 { f64::from(v) } else { 0.0 };
    let all = maps::sum(map, mass);
    let marked = map.iter().zip(mask).filter(|(_, m)| **m == 1);
    (all > 0.0).then(|| marked.map(|(v, _)| mass(*v)).sum::<f64>() / all)
}

/// Why a mask cannot be compared with; `None` where it can.
pub(super) fn no_mask(of: Masks, known: bool, marked: bool) -> Option<Score> {
    match (known, marked) {
        (true, true) => None,
        _ if of == Masks::Shortcut => Some(Score::not_applicable("no shortcut")),
        (false, _) => Some(Score::not_applicable("no mask")),
        (_, false) => Some(Score::not_applicable("empty mask")),
    }
}
