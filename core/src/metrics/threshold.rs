//! Maps as segmentations and as detections, at a threshold that is chosen on validation images and then frozen. What is kept of
//! an image is what each threshold of a grid would give, so that choosing needs no second look at a map.
//!
//! A map is scaled to [0, 1] by its own range. Thresholds are 0.1, 0.2, ... 0.9; a pixel at or above one is predicted. The
//! chosen one gives the greatest mean Dice coefficient over the fold's validation images with a mask, the lowest of equals.
//! (CheXlocalize takes 0.2 to 0.8 by mean IoU, and drops empty predictions.) A candidate is an 8-connected region of
//! predicted pixels, scored by the peak of the map as it is; it finds a nodule (an 8-connected region of the mask) where its
//! peak lies in it.

use super::pixel_auprc::both;
use super::{Batch, Bench, Curve, Evaluation, Form, Masks, Metric, MetricSpec, Needs, Score, Size, State};
use crate::maps::{self, Fault};
use crate::{Error, Result};
use rayon::prelude::*;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// Thresholds in tenths: 1 to 9.
pub const STEPS: usize = 9;

/// How a prediction and a mask overlap, in pixels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overlap {
    pub predicted: usize,
    pub marked: usize,
    pub both: usize,
}

impl Overlap {
    pub fn of(predicted: impl Iterator<Item = bool>, mask: &[u8]) -> Self {
        let mut found = Overlap::default();
        for (p, m) in predicted.zip(mask) {
            let m = *m == 1;
            found.predicted += usize::from(p);
            found.marked += usize::from(m);
            found.both += usize::from(p && m);
        }
        found
    }

    /// 0 where the prediction is empty.
    pub fn iou(&self) -> f64 {
        self.both as f64 / (self.predicted + self.marked - self.both).max(1) as f64
    }

    pub fn dice(&self) -> f64 {
        2.0 * self.both as f64 / (self.predicted + self.marked).max(1) as f64
    }
}

/// The 8-connected regions of `inside`: each pixel's region from 1, 0 outside; and how many.
pub fn regions(inside: &[bool], width: usize) -> (Vec<u32>, u32) {
    let mut labels = vec![0u32; inside.len()];
    let (mut count, mut stack) = (0, Vec::new());
    let height = inside.len() / width.max(1);
    for start in 0..inside.len() {
        if !inside[start] || labels[start] != 0 {
            continue;
        }
        count += 1;
        labels[start] = count;
        stack.push(start);
        while let Some(i) = stack.pop() {
            let (y, x) = (i / width, i % width);
            for v in y.saturating_sub(1)..=(y + 1).min(height - 1) {
                for u in x.saturating_sub(1)..=(x + 1).min(width - 1) {
                    let j = v * width + u;
                    if inside[j] && labels[j] == 0 {
                        labels[j] = count;
                        stack.push(j);
                    }
                }
            }
        }
    }
    (labels, count)
}

/// A region of predicted pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The greatest value of the map in it.
    pub peak: f64,
    /// Whose peak it is: the nodule's number from 0; -1 for none.
    pub nodule: i64,
}

/// What is known of an image. Bits of `state`.
pub const KNOWN: i64 = 1;
pub const NOT_FINITE: i64 = 2;
pub const CONSTANT: i64 = 4;

/// What each threshold would give for one image.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub id: u64,
    pub state: i64,
    pub nodules: i64,
    /// By threshold.
    pub overlaps: [Overlap; STEPS],
    /// By threshold.
    pub candidates: Vec<Vec<Candidate>>,
}

impl Entry {
    /// `map` is finite; `mask` 0 and 1.
    fn new(id: u64, known: bool, fault: Fault, map: &[f32], mask: &[u8], width: usize, with_candidates: bool) -> Self {
        let mut state = if known { KNOWN } else { 0 };
        state |= match fault {
            Fault::None => 0,
            Fault::NotFinite => NOT_FINITE,
            Fault::Constant => CONSTANT,
        };
        let marked = mask.iter().map(|m| *m == 1).collect::<Vec<bool>>();
        let (nodule_of, nodules) = if with_candidates { regions(&marked, width) } else { (vec![], 0) };
        let mut entry = Entry { id, state, nodules: nodules.into(), overlaps: Default::default(), candidates: vec![] };
        let mut scaled = map.to_vec();
        maps::min_max_of(&mut scaled);
        for step in 0..STEPS {
            let limit = (step + 1) as f32 / 10.0;
            // A map that is not finite or is constant predicts nothing.
            let predicted: Vec<bool> = scaled.iter().map(|v| fault == Fault::None && *v >= limit).collect();
            entry.overlaps[step] = Overlap::of(predicted.iter().copied(), mask);
            if !with_candidates {
                continue;
            }
            let (labels, count) = regions(&predicted, width);
            let mut peaks: Vec<Option<usize>> = vec![None; count as usize];
            for (i, label) in labels.iter().enumerate().filter(|(_, l)| **l > 0) {
                let peak = &mut peaks[*label as usize - 1];
                if peak.is_none_or(|p| map[i] > map[p]) {
                    *peak = Some(i);
                }
            }
            let candidate = |p: usize| Candidate { peak: f64::from(map[p]), nodule: i64::from(nodule_of[p]) - 1 };
            entry.candidates.push(peaks.into_iter().flatten().map(candidate).collect());
        }
        entry
    }

    /// Why the image has no overlap to speak of.
    fn without(&self) -> Option<Score> {
        super::pixel_auprc::no_mask(Masks::Finding, self.state & KNOWN != 0, self.overlaps[0].marked > 0).or(match self
            .state
        {
            s if s & NOT_FINITE != 0 => Some(Score::failed("the map is not finite")),
            s if s & CONSTANT != 0 => Some(Score::failed(Score::CONSTANT)),
            _ => None,
        })
    }
}

/// All entries as tensors.
fn save(entries: &[Entry]) -> Result<State> {
    let ids: Vec<i64> = entries.iter().map(|e| e.id as i64).collect();
    let mut facts: Vec<i64> = Vec::new();
    let (mut places, mut peaks): (Vec<i64>, Vec<f64>) = (vec![], vec![]);
    for (row, e) in entries.iter().enumerate() {
        facts.extend([e.state, e.nodules, e.overlaps[0].marked as i64]);
        e.overlaps.iter().for_each(|o| facts.extend([o.predicted as i64, o.both as i64]));
        for (step, candidates) in e.candidates.iter().enumerate() {
            for c in candidates {
                places.extend([row as i64, step as i64, c.nodule]);
                peaks.push(c.peak);
            }
        }
    }
    Ok(vec![
        ("ids".into(), Tensor::f_from_slice(&ids)?),
        ("facts".into(), Tensor::f_from_slice(&facts)?.f_reshape([ids.len() as i64, (3 + 2 * STEPS) as i64])?),
        ("places".into(), Tensor::f_from_slice(&places)?.f_reshape([peaks.len() as i64, 3])?),
        ("peaks".into(), Tensor::f_from_slice(&peaks)?),
    ])
}

fn read(state: &State) -> Result<Vec<Entry>> {
    let broken = || Error::new("a saved state of thresholds is broken");
    let find = |name: &str| state.iter().find(|(n, _)| n == name).map(|(_, t)| t).ok_or_else(broken);
    let numbers = |name: &str| -> Result<Vec<i64>> {
        Ok(Vec::<i64>::try_from(find(name)?.f_to_kind(Kind::Int64)?.f_flatten(0, -1)?)?)
    };
    let (ids, facts, places) = (numbers("ids")?, numbers("facts")?, numbers("places")?);
    let peaks = Vec::<f64>::try_from(find("peaks")?.f_to_kind(Kind::Double)?)?;
    let width = 3 + 2 * STEPS;
    if facts.len() != ids.len() * width || places.len() != 3 * peaks.len() {
        return Err(broken());
    }
    let mut entries: Vec<Entry> = Vec::with_capacity(ids.len());
    for (id, facts) in ids.iter().zip(facts.chunks(width)) {
        let marked = facts[2] as usize;
        let overlap =
            |k: usize| Overlap { predicted: facts[3 + 2 * k] as usize, marked, both: facts[4 + 2 * k] as usize };
        let (overlaps, candidates) = (std::array::from_fn(overlap), vec![vec![]; STEPS]);
        entries.push(Entry { id: *id as u64, state: facts[0], nodules: facts[1], overlaps, candidates });
    }
    for (place, peak) in places.chunks(3).zip(peaks) {
        let entry = entries.get_mut(place[0] as usize).ok_or_else(broken)?;
        let list = entry.candidates.get_mut(place[1] as usize).ok_or_else(broken)?;
        list.push(Candidate { peak, nodule: place[2] });
    }
    Ok(entries)
}

/// The threshold of the greatest mean Dice coefficient, by its place; none without an image that has a mask.
fn choose(validation: &[Entry]) -> Option<usize> {
    let usable: Vec<&Entry> = validation.iter().filter(|e| e.overlaps[0].marked > 0).collect();
    let mean = |step: usize| usable.iter().map(|e| e.overlaps[step].dice()).sum::<f64>();
    let mut best = 0;
    for step in 1..STEPS {
        if mean(step) > mean(best) {
            best = step;
        }
    }
    (!usable.is_empty()).then_some(best)
}

/// A metric of maps at a frozen threshold.
pub struct AtThreshold {
    pub spec: fn() -> MetricSpec,
    /// Whether it looks at candidates.
    pub candidates: bool,
    /// The value of an image at a threshold, for a metric of images.
    pub image: Option<fn(&Entry, usize) -> Score>,
    /// The value of a set at a threshold and its curve, for one of sets.
    pub set: Option<fn(&[Entry], usize) -> (Score, Option<Curve>)>,
}

pub const NO_VALIDATION: &str = "no validation image has a mask to choose the threshold on";

impl Metric for AtThreshold {
    fn spec(&self) -> MetricSpec {
        (self.spec)()
    }

    fn needs(&self) -> Needs {
        Needs { validation: true, ..Needs::masked(Size::Mask, Form::Raw) }
    }

    fn start(&self, _: &BTreeMap<String, f64>, _: u64) -> Result<Box<dyn Evaluation>> {
        let (candidates, image, set) = (self.candidates, self.image, self.set);
        Ok(Box::new(Tuned { candidates, image, set, entries: vec![], threshold: None }))
    }
}

struct Tuned {
    candidates: bool,
    image: Option<fn(&Entry, usize) -> Score>,
    set: Option<fn(&[Entry], usize) -> (Score, Option<Curve>)>,
    entries: Vec<Entry>,
    threshold: Option<usize>,
}

impl Evaluation for Tuned {
    fn update(&mut self, batch: &Batch<'_>, _: &mut dyn Bench) -> Result<Vec<Score>> {
        let with = self.candidates;
        let made = batch.cell.get(&format!("thresholds {with}"), || {
            let (maps, masks) = both(batch)?;
            let width = maps.size().last().copied().unwrap_or(1) as usize;
            let values = batch.cell.get("values", || maps::values(&maps.f_to_device(Device::Cpu)?))?;
            let marks = Vec::<u8>::try_from(masks.f_to_device(Device::Cpu)?.f_flatten(0, -1)?)?;
            let size = values.len() / batch.ids.len().max(1);
            let values = values.as_slice();
            let (ids, known, faults) = (batch.ids, batch.known, batch.faults);
            let one = |i: usize| {
                let (map, mask) = (&values[i * size..][..size], &marks[i * size..][..size]);
                Entry::new(ids[i], known[i], faults[i], map, mask, width, with)
            };
            Ok((0..ids.len()).into_par_iter().map(one).collect::<Vec<Entry>>())
        })?;
        self.entries.extend(made.iter().cloned());
        Ok(vec![])
    }

    fn state(&self) -> Result<State> {
        save(&self.entries)
    }

    fn merge(&mut self, state: &State) -> Result<()> {
        self.entries.extend(read(state)?);
        // Blocks come in any order.
        self.entries.sort_by_key(|e| e.id);
        Ok(())
    }

    fn tune(&mut self, state: &State) -> Result<()> {
        self.threshold = if state.is_empty() { None } else { choose(&read(state)?) };
        Ok(())
    }

    fn finish(&self) -> Result<Option<Score>> {
        let Some(set) = self.set else { return Ok(None) };
        let none = Score::not_applicable(NO_VALIDATION);
        Ok(Some(self.threshold.map_or(none, |step| set(&self.entries, step).0)))
    }

    fn images(&self) -> Result<Vec<(u64, Score)>> {
        let Some(image) = self.image else { return Ok(vec![]) };
        let score = |e: &Entry| match (e.without(), self.threshold) {
            (Some(score), _) => score,
            (None, None) => Score::not_applicable(NO_VALIDATION),
            (None, Some(step)) => image(e, step),
        };
        Ok(self.entries.iter().map(|e| (e.id, score(e))).collect())
    }

    fn curve(&self) -> Result<Option<Curve>> {
        Ok(self.set.zip(self.threshold).and_then(|(set, step)| set(&self.entries, step).1))
    }
}

#[cfg(test)]
pub mod tests {
    use super::super::memo::Memo;
    use super::super::{NoBench, Status};
    use super::*;

    /// Scores maps [h, w] against masks, the threshold chosen on `validation` (maps and masks): images' and the set's.
    pub fn check(
        metric: &AtThreshold,
        validation: &[(&[f32], &[u8])],
        test: &[(&[f32], &[u8])],
        width: usize,
    ) -> (Vec<Score>, Option<Score>) {
        let see = |parts: &[&[(&[f32], &[u8])]]| {
            let mut states = Vec::new();
            let mut id = 0;
            for part in parts {
                let mut evaluation = metric.start(&BTreeMap::new(), 0).unwrap();
                let n = part.len() as i64;
                let shape = [n, -1, width as i64];
                let flat =
                    |f: &dyn Fn(&(&[f32], &[u8])) -> Tensor| Tensor::cat(&part.iter().map(f).collect::<Vec<_>>(), 0);
                let maps = flat(&|(m, _)| Tensor::from_slice(m)).reshape(shape);
                let masks = flat(&|(_, m)| Tensor::from_slice(m)).reshape(shape);
                let faults = maps::faults(&maps).unwrap();
                let maps = maps.nan_to_num(0.0, 0.0, 0.0);
                let ids: Vec<u64> = (id..id + n as u64).collect();
                id += n as u64;
                let batch = Batch {
                    images: &maps,
                    targets: &vec![1; ids.len()],
                    ids: &ids,
                    maps: Some(&maps),
                    faults: &faults,
                    masks: Some(&masks),
                    known: &vec![true; ids.len()],
                    signed: false,
                    scene: &Memo::default(),
                    cell: &Memo::default(),
                };
                assert!(evaluation.update(&batch, &mut NoBench).unwrap().is_empty());
                states.push(evaluation.state().unwrap());
            }
            states
        };
        let mut end = metric.start(&BTreeMap::new(), 0).unwrap();
        let halves = test.split_at(test.len() / 2);
        let parts: Vec<&[(&[f32], &[u8])]> = [halves.0, halves.1].into_iter().filter(|p| !p.is_empty()).collect();
        // The order of blocks does not matter.
        for state in see(&parts).iter().rev() {
            end.merge(state).unwrap();
        }
        let tuned = if validation.is_empty() { vec![vec![]] } else { see(&[validation]) };
        end.tune(&tuned[0]).unwrap();
        let images = end.images().unwrap();
        assert!(images.windows(2).all(|w| w[0].0 < w[1].0));
        (images.into_iter().map(|(_, s)| s).collect(), end.finish().unwrap())
    }

    #[test]
    fn corners_connect() {
        let inside = [true, false, false, true, false, true, false, false, false, false, false, true];
        let (labels, count) = regions(&inside, 4);
        assert_eq!((labels, count), (vec![1, 0, 0, 2, 0, 1, 0, 0, 0, 0, 0, 3], 3));
    }

    #[test]
    fn the_threshold_is_the_validations() {
        // On validation the mask is where the map is at least 0.5; on the test image that is too much by one pixel.
        let validation: (&[f32], &[u8]) = (&[0.0, 0.5, 0.6, 1.0], &[0, 1, 1, 1]);
        let test: (&[f32], &[u8]) = (&[0.0, 5.0, 6.0, 10.0], &[0, 0, 1, 1]);
        let (images, _) = check(&super::super::dice::DICE, &[validation], &[test], 2);
        assert_eq!(images[0].value, Some(0.8));
        let (images, _) = check(&super::super::dice::DICE, &[], &[test], 2);
        assert_eq!((images[0].status, images[0].reason), (Status::NotApplicable, NO_VALIDATION));
        let broken: (&[f32], &[u8]) = (&[0.0, f32::NAN, 1.0, 0.0], &[0, 0, 1, 1]);
        let flat: (&[f32], &[u8]) = (&[0.5; 4], &[0, 0, 1, 1]);
        let empty: (&[f32], &[u8]) = (&[0.0, 5.0, 6.0, 10.0], &[0; 4]);
        let (images, _) = check(&super::super::dice::DICE, &[validation], &[broken, flat, empty], 2);
        let status: Vec<Status> = images.iter().map(|s| s.status).collect();
        assert_eq!(status, [Status::Failed, Status::Failed, Status::NotApplicable]);
    }
}
