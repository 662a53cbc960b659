//! What metrics of images share: those that are a function of one map, with its mask or without (on the CPU, an image a
//! thread), and those that ask the model or the explainer.

use super::facts::{Facts, Image, no_mask};
use super::pixels::Overlap;
use super::removal::usable;
use super::{
    Batch, Bench, Better, Curve, Evaluation, Form, Level, Masks, Metric, MetricSpec, Needs, Reference, Score, Size,
    State,
};
use crate::maps::{self, Fault};
use crate::{Error, Result};
use lightbox_sdk::params::{ParamValues, Params};
use rayon::prelude::*;
use tch::Tensor;

/// A metric that is such a function, with its parameters.
pub struct OfOneMap<P = ()> {
    pub masks: Masks,
    pub spec: fn() -> MetricSpec,
    pub score: fn(&Image<'_>, &P) -> Score,
}

impl<P: Params + Sync> Metric for OfOneMap<P> {
    fn spec(&self) -> MetricSpec {
        (self.spec)()
    }

    fn needs(&self) -> Needs {
        Needs { masks: self.masks, ..Needs::of_maps(Size::Mask, Form::Raw) }
    }

    fn start(&self, parameters: &ParamValues, _: u64) -> Result<Box<dyn Evaluation>> {
        let settings = P::read(parameters).map_err(|e| Error::new(e.message))?;
        Ok(Box::new(Each { masks: self.masks, score: self.score, settings }))
    }
}

/// What specifications of such metrics share: a share from 0 to 1 an image, more is better, no pass of the model.
pub fn share(name: &'static str, family: &'static str) -> MetricSpec {
    MetricSpec {
        name,
        short: name,
        title: name,
        family,
        level: Level::Image,
        formula: "",
        better: Better::Higher,
        range: [0.0, 1.0],
        chance: "",
        chance_is_constant: false,
        unit: "share",
        cost: "0",
        edge_cases: "",
        reference: Reference::default(),
        version: 1,
        parameters: vec![],
    }
}

/// Scores each image of a batch on the CPU. An empty or unknown mask is not applicable, a map that is not finite a failure.
pub fn each_image(
    batch: &Batch<'_>,
    of: Masks,
    score: impl Fn(&Image<'_>) -> Score + Send + Sync,
) -> Result<Vec<Score>> {
    let n = batch.known.len();
    let ((values, width), masked) = (batch.values()?, of != Masks::None);
    let marks = if masked { Some(batch.marks(of)?) } else { None };
    let all_facts = batch.cell.get(&format!("facts {of:?} {:p}", values.as_ptr()), || {
        Ok(std::iter::repeat_with(Facts::default).take(n).collect::<Vec<_>>())
    })?;
    let (values, marks): (&[f32], &[u8]) = (&values, marks.as_ref().map_or(&[], |m| m));
    let (faults, known, all_facts) = (batch.faults, batch.known, all_facts.as_slice());
    let size = values.len() / n.max(1);
    let one = |i: usize| {
        let map = &values[i * size..][..size];
        let mask = if masked { &marks[i * size..][..size] } else { &[] };
        if masked && let Some(score) = no_mask(of, known[i], mask.contains(&1)) {
            return score;
        }
        if faults[i] == Fault::NotFinite {
            return Score::failed(NOT_FINITE);
        }
        let score = score(&Image::new(map, mask, width, &all_facts[i]));
        match faults[i] {
            Fault::Constant if score.value.is_some() => Score { reason: Score::CONSTANT, ..score },
            _ => score,
        }
    };
    Ok((0..n).into_par_iter().with_min_len(maps::at_least(size)).map(one).collect())
}

/// The evaluation by such a function.
struct Each<P> {
    masks: Masks,
    score: fn(&Image<'_>, &P) -> Score,
    settings: P,
}

impl<P: Send + Sync> Evaluation for Each<P> {
    fn update(&mut self, batch: &Batch<'_>, _: &mut dyn Bench) -> Result<Vec<Score>> {
        each_image(batch, self.masks, |image| (self.score)(image, &self.settings))
    }
}

/// A metric that asks the model or the explainer: a value an image, from a whole batch.
pub struct Asking {
    pub spec: fn() -> MetricSpec,
    pub needs: Needs,
    /// What the axes of the curve behind the values show, if there is one; x goes from 0 to 1.
    pub axes: Option<(&'static str, &'static str)>,
    pub score: fn(&Ask<'_>, &mut dyn Bench) -> Result<Found>,
}

/// What is asked.
pub struct Ask<'a> {
    pub batch: &'a Batch<'a>,
    pub parameters: &'a ParamValues,
    pub seed: u64,
}

impl Ask<'_> {
    /// The parameters as the metric's own type.
    pub fn settings<P: Params>(&self) -> Result<P> {
        P::read(self.parameters).map_err(|e| Error::new(e.message))
    }

    /// The maps, as the metric wants them.
    pub fn maps(&self) -> Result<&Tensor> {
        self.batch.maps.ok_or_else(|| Error::new("this metric was given no maps"))
    }

    /// Values of an image that can be scored; others are failures.
    pub fn each(&self, one: impl Fn(usize) -> Score) -> Found {
        let mut scores = vec![Score::failed(NOT_FINITE); self.batch.faults.len()];
        usable(self.batch).into_iter().for_each(|i| scores[i] = one(i));
        Found { scores, curves: vec![] }
    }
}

/// The answers, an image each.
pub struct Found {
    pub scores: Vec<Score>,
    /// Values at equal distances, an image; none of one that cannot be scored.
    pub curves: Vec<Vec<f64>>,
}

/// The correlation of two maps' values of which one or both may say nothing: one constant map correlates with nothing, and two
/// are the same map.
pub fn of_two_maps(a: &[f64], b: &[f64], correlation: impl Fn(&[f64], &[f64]) -> Option<f64>) -> f64 {
    let constant = |v: &[f64]| v.iter().all(|x| *x == v[0]);
    match constant(a) && constant(b) {
        true => 1.0,
        false => correlation(a, b).unwrap_or(0.0),
    }
}

pub const NOT_FINITE: &str = "the map is not finite";

impl Metric for Asking {
    fn spec(&self) -> MetricSpec {
        (self.spec)()
    }

    fn needs(&self) -> Needs {
        self.needs
    }

    fn start(&self, parameters: &ParamValues, seed: u64) -> Result<Box<dyn Evaluation>> {
        let (score, axes) = (self.score, self.axes);
        Ok(Box::new(Asked { score, axes, parameters: parameters.clone(), seed, sum: vec![], curves: 0 }))
    }
}

struct Asked {
    score: fn(&Ask<'_>, &mut dyn Bench) -> Result<Found>,
    axes: Option<(&'static str, &'static str)>,
    parameters: ParamValues,
    seed: u64,
    /// Of the curves, and how many.
    sum: Vec<f64>,
    curves: i64,
}

impl Asked {
    fn add(&mut self, curve: &[f64], times: i64) {
        self.sum.resize(self.sum.len().max(curve.len()), 0.0);
        self.sum.iter_mut().zip(curve).for_each(|(s, v)| *s += v);
        self.curves += times;
    }
}

impl Evaluation for Asked {
    fn update(&mut self, batch: &Batch<'_>, bench: &mut dyn Bench) -> Result<Vec<Score>> {
        let ask = Ask { batch, parameters: &self.parameters, seed: self.seed };
        let found = (self.score)(&ask, bench)?;
        found.curves.iter().filter(|c| !c.is_empty()).for_each(|c| self.add(c, 1));
        let kept = found.scores.into_iter().zip(batch.faults).map(|(score, fault)| match fault {
            Fault::NotFinite => Score::failed(NOT_FINITE),
            // It says nothing, which is neither evidence nor a failure.
            Fault::Constant if score.value.is_some() => Score { reason: Score::CONSTANT, ..score },
            _ => score,
        });
        Ok(kept.collect())
    }

    fn state(&self) -> Result<State> {
        if self.curves == 0 {
            return Ok(vec![]);
        }
        Ok(vec![
            ("sum".into(), Tensor::f_from_slice(&self.sum)?),
            ("curves".into(), Tensor::f_from_slice(&[self.curves])?),
        ])
    }

    fn merge(&mut self, state: &State) -> Result<()> {
        let find = |name: &str| state.iter().find(|(n, _)| n == name).map(|(_, t)| t);
        if let (Some(sum), Some(curves)) = (find("sum"), find("curves")) {
            let sum = Vec::<f64>::try_from(sum)?;
            self.add(&sum, curves.f_int64_value(&[0])?);
        }
        Ok(())
    }

    fn curve(&self) -> Result<Option<Curve>> {
        let (Some((x, y)), true) = (self.axes, self.curves > 0) else { return Ok(None) };
        let steps = (self.sum.len() - 1).max(1) as f64;
        let points = self.sum.iter().enumerate().map(|(k, s)| [k as f64 / steps, s / self.curves as f64]).collect();
        Ok(Some(Curve { x: x.into(), y: y.into(), points }))
    }
}

/// How many of the `k` highest pixels lie in the mask, in expectation where equal pixels come in a random order, over k.
pub fn share_of_highest(image: &Image<'_>, k: usize) -> f64 {
    let k = k.clamp(1, image.map.len().max(1));
    let mut sorted = image.map.to_vec();
    let (_, limit, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    let limit = *limit;
    let above = Overlap::of(image.map, image.mask, |v| v > limit);
    let equal = Overlap::of(image.map, image.mask, |v| v == limit);
    let drawn = (k - above.predicted) as f64 * equal.both as f64 / equal.predicted as f64;
    (above.both as f64 + drawn) / k as f64
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// What a function says of a map and a mask.
    pub fn of<T>(map: &[f32], mask: &[u8], width: usize, f: impl Fn(&Image<'_>) -> T) -> T {
        f(&Image::new(map, mask, width, &Facts::default()))
    }

    /// The value of a metric's function on a map and a mask, or `None`.
    pub fn value<P>(metric: &OfOneMap<P>, settings: P, map: &[f32], mask: &[u8], width: usize) -> Option<f64> {
        of(map, mask, width, |image| (metric.score)(image, &settings).value)
    }

    /// The mean over all orders of equal pixels, by shuffling.
    fn slow(map: &[f32], mask: &[u8], k: usize) -> f64 {
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let draw = |rng: &mut rand_chacha::ChaCha8Rng| {
            let mut order: Vec<(f32, u64, usize)> =
                map.iter().enumerate().map(|(i, v)| (*v, rng.random(), i)).collect();
            order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            order[..k].iter().filter(|o| mask[o.2] == 1).count() as f64 / k as f64
        };
        (0..4000).map(|_| draw(&mut rng)).sum::<f64>() / 4000.0
    }

    #[test]
    fn the_share_is_the_expectation_over_ties() {
        let map = [3.0, 1.0, 2.0, 2.0, 2.0, 0.0, 3.0, 2.0];
        let mask = [0, 1, 1, 0, 1, 0, 1, 0];
        for k in 1..=8 {
            let found = of(&map, &mask, 4, |image| share_of_highest(image, k));
            assert!((found - slow(&map, &mask, k)).abs() < 0.02, "{k}: {found}");
        }
        // A constant map: the share of the mask, whatever k.
        let flat = [0.5f32; 8];
        assert!((of(&flat, &mask, 4, |image| share_of_highest(image, 3)) - 0.5).abs() < 1e-12);
    }
}
