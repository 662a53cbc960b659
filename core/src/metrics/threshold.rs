//! Maps as segmentations and as detections, at a threshold that is chosen on validation images and then frozen. What is kept of
//! an image is what each threshold of a grid would give, so that choosing needs no second look at a map.
//!
//! A map is scaled to [0, 1] by its own range. Thresholds are 0.1, 0.2, ... 0.9; a pixel at or above one is predicted. The
//! chosen one gives the greatest mean Dice coefficient over the fold's validation images with a mask, the lowest of equals.
//! (CheXlocalize takes 0.2 to 0.8 by mean IoU, and drops empty predictions.) A candidate is an 8-connected region of
//! predicted pixels, scored by the peak of the map as it is; it finds a nodule (an 8-connected region of the mask) where its
//! peak lies in it.

use super::pixels::Overlap;
use super::{Batch, Bench, Curve, Evaluation, Form, Masks, Metric, MetricSpec, Needs, Score, Size, State};
use crate::maps::{self, Fault};
use crate::{Error, Result};
use lightbox_sdk::params::ParamValues;
use rayon::prelude::*;
use tch::{Kind, Tensor};

/// Thresholds in tenths: 1 to 9.
pub const STEPS: usize = 9;

/// 8-connected regions of pixels, as runs within rows.
pub struct Regions {
    runs: Vec<Run>,
    /// Of its pixels.
    pub count: usize,
}

/// Pixels from `start` up to `end`, and their region: numbered from 0 by the regions' first pixels.
struct Run {
    start: usize,
    end: usize,
    region: usize,
}

impl Regions {
    /// Of the pixels that are `inside`, row by row.
    pub fn of(inside: &[bool], width: usize) -> Self {
        let (mut runs, mut above) = (Vec::<Run>::new(), 0..0);
        // Until all are known, a run's region is an earlier run that it is connected with, or itself.
        for (y, row) in inside.chunks_exact(width.max(1)).enumerate() {
            let (first, mut x) = (runs.len(), 0);
            while let Some(skipped) = row[x..].iter().position(|p| *p) {
                let length = row[x + skipped..].iter().position(|p| !p).unwrap_or(width - x - skipped);
                let start = y * width + x + skipped;
                let (end, region) = (start + length, runs.len());
                x += skipped + length;
                runs.push(Run { start, end, region });
                // Runs of the row above that touch it, corners too; the last one may touch the next run as well.
                while above.start < above.end && runs[above.start].end + width < start {
                    above.start += 1;
                }
                for other in above.clone() {
                    if runs[other].start + width > end {
                        break;
                    }
                    join(&mut runs, other, region);
                }
            }
            above = first..runs.len();
        }
        let mut count = 0;
        for i in 0..runs.len() {
            let earlier = runs[i].region;
            runs[i].region = if earlier == i { count } else { runs[earlier].region };
            count += usize::from(earlier == i);
        }
        Regions { runs, count }
    }

    /// The region of a pixel.
    fn at(&self, pixel: usize) -> Option<usize> {
        let run = self.runs.get(self.runs.partition_point(|r| r.end <= pixel))?;
        (run.start <= pixel).then_some(run.region)
    }

    /// The first of the highest pixels of each region.
    fn peaks(&self, map: &[f32]) -> Vec<usize> {
        let mut peaks: Vec<Option<usize>> = vec![None; self.count];
        for run in &self.runs {
            let peak = &mut peaks[run.region];
            for i in run.start..run.end {
                if peak.is_none_or(|p| map[i] > map[p]) {
                    *peak = Some(i);
                }
            }
        }
        peaks.into_iter().flatten().collect()
    }
}

/// The first run of a run's region, as far as is known.
fn root(runs: &mut [Run], mut at: usize) -> usize {
    while runs[at].region != at {
        runs[at].region = runs[runs[at].region].region;
        at = runs[at].region;
    }
    at
}

fn join(runs: &mut [Run], a: usize, b: usize) {
    let (a, b) = (root(runs, a), root(runs, b));
    runs[a.max(b)].region = a.min(b);
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
/// The state of a map with a value that is not finite.
pub const NOT_FINITE: i64 = 2;
/// The state of a constant map.
pub const CONSTANT: i64 = 4;

/// What each threshold would give for one image.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The image's number.
    pub id: u64,
    /// The class that was explained.
    pub target: i64,
    /// Bits: [`KNOWN`], [`NOT_FINITE`], [`CONSTANT`].
    pub state: i64,
    /// How many findings its mask has.
    pub nodules: i64,
    /// By threshold.
    pub overlaps: [Overlap; STEPS],
    /// By threshold.
    pub candidates: Vec<Vec<Candidate>>,
}

impl Entry {
    /// `map` is finite; `mask` 0 and 1.
    fn new(
        (id, target): (u64, i64),
        known: bool,
        fault: Fault,
        map: &[f32],
        mask: &[u8],
        width: usize,
        with_candidates: bool,
    ) -> Self {
        let mut state = if known { KNOWN } else { 0 };
        state |= match fault {
            Fault::None => 0,
            Fault::NotFinite => NOT_FINITE,
            Fault::Constant => CONSTANT,
        };
        let nodules = with_candidates.then(|| {
            let marked: Vec<bool> = mask.iter().map(|m| *m == 1).collect();
            Regions::of(&marked, width)
        });
        let count = nodules.as_ref().map_or(0, |n| n.count as i64);
        let mut entry = Entry { id, target, state, nodules: count, overlaps: Default::default(), candidates: vec![] };
        let mut scaled = map.to_vec();
        maps::min_max_of(&mut scaled);
        for step in 0..STEPS {
            // A map that is not finite or is constant predicts nothing: no value reaches a limit that is no number.
            let limit = if fault == Fault::None { (step + 1) as f32 / 10.0 } else { f32::NAN };
            let predicted = |v: f32| v >= limit;
            entry.overlaps[step] = Overlap::of(&scaled, mask, predicted);
            let Some(nodules) = &nodules else { continue };
            let inside: Vec<bool> = scaled.iter().map(|v| predicted(*v)).collect();
            let nodule = |p: usize| nodules.at(p).map_or(-1, |n| n as i64);
            let candidate = |p: usize| Candidate { peak: f64::from(map[p]), nodule: nodule(p) };
            entry.candidates.push(match fault {
                // The worst: a false alarm before all others.
                Fault::NotFinite => vec![Candidate { peak: f64::INFINITY, nodule: -1 }],
                _ => Regions::of(&inside, width).peaks(map).into_iter().map(candidate).collect(),
            });
        }
        entry
    }

    /// Why the image has no overlap to speak of.
    fn without(&self) -> Option<Score> {
        super::facts::no_mask(Masks::Finding, self.state & KNOWN != 0, self.overlaps[0].marked > 0).or(
            match self.state {
                s if s & NOT_FINITE != 0 => Some(Score::failed("the map is not finite")),
                _ => None,
            },
        )
    }
}

/// All entries as tensors.
fn save(entries: &[Entry]) -> Result<State> {
    let ids: Vec<i64> = entries.iter().map(|e| e.id as i64).collect();
    let targets: Vec<i64> = entries.iter().map(|e| e.target).collect();
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
        ("targets".into(), Tensor::f_from_slice(&targets)?),
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
    let (ids, targets) = (numbers("ids")?, numbers("targets")?);
    let (facts, places) = (numbers("facts")?, numbers("places")?);
    let peaks = Vec::<f64>::try_from(find("peaks")?.f_to_kind(Kind::Double)?)?;
    let width = 3 + 2 * STEPS;
    if targets.len() != ids.len() || facts.len() != ids.len() * width || places.len() != 3 * peaks.len() {
        return Err(broken());
    }
    let mut entries: Vec<Entry> = Vec::with_capacity(ids.len());
    for ((id, target), facts) in ids.iter().zip(targets).zip(facts.chunks(width)) {
        let marked = facts[2] as usize;
        let overlap =
            |k: usize| Overlap { predicted: facts[3 + 2 * k] as usize, marked, both: facts[4 + 2 * k] as usize };
        let (overlaps, candidates) = (std::array::from_fn(overlap), vec![vec![]; STEPS]);
        entries.push(Entry { id: *id as u64, target, state: facts[0], nodules: facts[1], overlaps, candidates });
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
    /// What it says of itself.
    pub spec: fn() -> MetricSpec,
    /// Whether it looks at candidates.
    pub candidates: bool,
    /// The value of an image at a threshold, for a metric of images.
    pub image: Option<fn(&Entry, usize) -> Score>,
    /// The value of a set at a threshold and its curve, for one of sets.
    pub set: Option<fn(&[Entry], usize) -> (Score, Option<Curve>)>,
}

/// Why there is no value.
pub const NO_VALIDATION: &str = "no validation image has a mask to choose the threshold on";

impl Metric for AtThreshold {
    fn spec(&self) -> MetricSpec {
        (self.spec)()
    }

    fn needs(&self) -> Needs {
        Needs { validation: true, ..Needs::masked(Size::Mask, Form::Raw) }
    }

    fn start(&self, _: &ParamValues, _: u64) -> Result<Box<dyn Evaluation>> {
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
            let ((values, width), marks) = (batch.values()?, batch.marks(Masks::Finding)?);
            let (values, marks): (&[f32], &[u8]) = (&values, &marks);
            let size = values.len() / batch.ids.len().max(1);
            let (ids, targets, known, faults) = (batch.ids, batch.targets, batch.known, batch.faults);
            let one = |i: usize| {
                let (map, mask) = (&values[i * size..][..size], &marks[i * size..][..size]);
                Entry::new((ids[i], targets[i]), known[i], faults[i], map, mask, width, with)
            };
            Ok((0..ids.len()).into_par_iter().with_min_len(maps::at_least(size)).map(one).collect::<Vec<Entry>>())
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
        self.entries.sort_by_key(|e| (e.id, e.target));
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

    fn images(&self) -> Result<Vec<(u64, i64, Score)>> {
        let Some(image) = self.image else { return Ok(vec![]) };
        let score = |e: &Entry| match (e.without(), self.threshold) {
            (Some(score), _) => score,
            (None, None) => Score::not_applicable(NO_VALIDATION),
            (None, Some(step)) if e.state & CONSTANT != 0 => Score { reason: Score::CONSTANT, ..image(e, step) },
            (None, Some(step)) => image(e, step),
        };
        Ok(self.entries.iter().map(|e| (e.id, e.target, score(e))).collect())
    }

    fn curve(&self) -> Result<Option<Curve>> {
        Ok(self.set.zip(self.threshold).and_then(|(set, step)| set(&self.entries, step).1))
    }
}

/// What tests of metrics at a threshold share.
#[cfg(test)]
pub mod tests {
    use super::super::batch_cache::BatchCache;
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
                let mut evaluation = metric.start(&ParamValues::default(), 0).unwrap();
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
                    scene: &BatchCache::default(),
                    cell: &BatchCache::default(),
                };
                assert!(evaluation.update(&batch, &mut NoBench).unwrap().is_empty());
                states.push(evaluation.state().unwrap());
            }
            states
        };
        let mut end = metric.start(&ParamValues::default(), 0).unwrap();
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
        (images.into_iter().map(|(.., s)| s).collect(), end.finish().unwrap())
    }

    /// Each pixel's region from 1, 0 outside, by filling from each first pixel; and how many there are.
    fn flooded(inside: &[bool], width: usize) -> (Vec<usize>, usize) {
        let (mut labels, mut count, mut stack) = (vec![0; inside.len()], 0, Vec::new());
        let height = inside.len() / width;
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

    fn labels(regions: &Regions, pixels: usize) -> Vec<usize> {
        (0..pixels).map(|p| regions.at(p).map_or(0, |n| n + 1)).collect()
    }

    #[test]
    fn corners_connect() {
        let inside = [true, false, false, true, false, true, false, false, false, false, false, true];
        let regions = Regions::of(&inside, 4);
        assert_eq!((labels(&regions, 12), regions.count), (vec![1, 0, 0, 2, 0, 1, 0, 0, 0, 0, 0, 3], 3));
    }

    #[test]
    fn regions_are_those_of_filling() {
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        for width in [1, 2, 7, 16, 33] {
            for share in [0.0, 0.1, 0.3, 0.45, 0.6, 0.9, 1.0] {
                for _ in 0..20 {
                    let inside: Vec<bool> = (0..width * 19).map(|_| rng.random::<f64>() < share).collect();
                    let regions = Regions::of(&inside, width);
                    let (slow, count) = flooded(&inside, width);
                    assert_eq!((labels(&regions, slow.len()), regions.count), (slow.clone(), count));
                    let map: Vec<f32> = slow.iter().map(|_| rng.random_range(0..4) as f32).collect();
                    let highest = |n: usize| {
                        let of = (0..slow.len()).filter(|i| slow[*i] == n);
                        of.reduce(|best, i| if map[i] > map[best] { i } else { best }).unwrap()
                    };
                    assert_eq!(regions.peaks(&map), (1..=count).map(highest).collect::<Vec<_>>());
                }
            }
        }
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
        assert_eq!(status, [Status::Failed, Status::Ok, Status::NotApplicable]);
        assert_eq!((images[1].value, images[1].reason), (Some(0.0), Score::CONSTANT));
    }
}
