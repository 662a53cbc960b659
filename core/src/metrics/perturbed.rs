//! Copies of images with a little noise, and an explainer's maps of them: what the metrics of robustness read. The copies are
//! drawn from the run's seed and the image's id, and are the same for all explainers; the maps are made once an explainer.

use super::map_metric::{Ask, Found, share};
use super::{Batch, Bench, Better, Form, MetricSpec, Needs, Score, Size};
use crate::{Result, maps, seed};
use lightbox_sdk::params::Params;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::rc::Rc;
use tch::{Kind, Tensor};

#[derive(Params)]
struct Settings {
    /// of each image
    #[param(default = 8, range = (1, 10_000))]
    copies: usize,
    /// of the noise, uniform in [-radius, radius] of the normalised image
    #[param(default = 0.02, range = (0.0, 10.0))]
    radius: f64,
}

/// What these metrics' specifications share.
pub fn base(name: &'static str) -> MetricSpec {
    MetricSpec {
        better: Better::Lower,
        range: [0.0, f64::INFINITY],
        unit: "",
        chance: "0, of a map that does not look at the image",
        cost: "copies explanations, shared with the other metrics of robustness",
        edge_cases: "a map that is not finite, its own or a copy's, is a failure, and so is a map of zeros; a failure is in no mean",
        parameters: Settings::specs(),
        ..share(name, "robustness")
    }
}

/// What metrics that ask the explainer alone need.
pub const NEEDS: Needs = Needs { explainer: true, ..Needs::of_maps(Size::Native, Form::Raw) };

/// An image and one of its copies, with their maps, as lists of values.
pub struct Pair<'a> {
    pub image: &'a [f32],
    pub copy: &'a [f32],
    pub map: &'a [f32],
    pub copy_map: &'a [f32],
    /// All classes' logits.
    pub logits: &'a [f64],
    pub copy_logits: &'a [f64],
}

/// The copies of a batch's images: `[copies]` of [n, C, H, W].
fn copies(batch: &Batch<'_>, copies: usize, radius: f64, seed: u64) -> Result<Rc<Vec<Tensor>>> {
    batch.scene.get(&format!("copies {copies} {radius} {seed}"), || {
        let shape = batch.images.size();
        let n = shape[1..].iter().product::<i64>() as usize;
        let one = |k: usize| -> Result<Tensor> {
            let mut noise = Vec::with_capacity(batch.ids.len() * n);
            for id in batch.ids {
                let mut rng = ChaCha8Rng::seed_from_u64(seed::derive(seed, "copy", &[*id, k as u64]));
                noise.extend((0..n).map(|_| ((2.0 * rng.random::<f64>() - 1.0) * radius) as f32));
            }
            let noise = Tensor::f_from_slice(&noise)?.f_reshape(&shape)?.f_to_device(batch.images.device())?;
            Ok(batch.images.f_add(&noise)?)
        };
        (0..copies).map(one).collect()
    })
}

/// The mean or the greatest of `of` over an image's copies; none of them (`of` says which count) is not applicable.
pub fn score(
    ask: &Ask<'_>,
    bench: &mut dyn Bench,
    with_logits: bool,
    of: impl Fn(&Pair<'_>) -> Option<f64>,
    over: impl Fn(&[f64]) -> f64,
) -> Result<Found> {
    let batch = ask.batch;
    let Settings { copies: many, radius } = ask.settings()?;
    let copies = copies(batch, many, radius, ask.seed)?;
    let list = |t: &Tensor| maps::values(t);
    let own = batch.cell.get("native values", || list(ask.maps()?))?;
    let theirs = batch.cell.get(&format!("maps of copies {many} {radius} {}", ask.seed), || {
        let mut all = Vec::new();
        for copy in copies.iter() {
            bench.check()?;
            all.push(list(&bench.explain(copy, batch.targets, batch.ids)?)?);
        }
        Ok(all)
    })?;
    let logits =
        |t: &Tensor| -> Result<Vec<f64>> { Ok(Vec::<f64>::try_from(t.f_flatten(0, -1)?.f_to_kind(Kind::Double)?)?) };
    let (before, after) = match with_logits {
        false => (vec![], vec![vec![]; many]),
        true => {
            let before = logits(&super::removal::plain(batch, bench)?.logits)?;
            let after = batch.scene.get(&format!("logits of copies {many} {radius} {}", ask.seed), || {
                copies.iter().map(|copy| logits(&bench.run(copy)?.logits)).collect::<Result<Vec<_>>>()
            })?;
            (before, after.to_vec())
        }
    };
    let images = list(batch.images)?;
    let copies = copies.iter().map(list).collect::<Result<Vec<_>>>()?;
    let n = batch.targets.len().max(1);
    fn part<T>(all: &[T], n: usize, i: usize) -> &[T] {
        let size = all.len() / n;
        &all[i * size..][..size]
    }
    Ok(ask.each(|i| {
        let mut values = Vec::new();
        for k in 0..many {
            if theirs[k].len() != own.len() {
                return Score::failed("the map of a varied image has another size");
            }
            let pair = Pair {
                image: part(&images, n, i),
                copy: part(&copies[k], n, i),
                map: part(&own, n, i),
                copy_map: part(&theirs[k], n, i),
                logits: part(&before, n, i),
                copy_logits: part(&after[k], n, i),
            };
            if pair.copy_map.iter().any(|v| !v.is_finite()) {
                return Score::failed("the map of a varied image is not finite");
            }
            values.extend(of(&pair));
        }
        match values.is_empty() {
            true => Score::not_applicable("every varied image has another predicted class"),
            false if values.iter().any(|v| !v.is_finite()) => Score::failed("the map is zero everywhere"),
            false => Score::ok(over(&values)),
        }
    }))
}

/// The Euclidean norm of `a - b`.
pub fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum::<f64>().sqrt()
}

/// The Euclidean norm.
pub fn norm(a: &[f32]) -> f64 {
    a.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// How far the map moved, of the map's own norm. Infinite for a map of zeros.
pub fn change(pair: &Pair<'_>) -> Option<f64> {
    let size = norm(pair.map);
    Some(if size > 0.0 { distance(pair.map, pair.copy_map) / size } else { f64::INFINITY })
}

pub fn greatest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// The norm of the change of each value, of that value; one below a thousandth of the largest counts as that.
pub fn relative_change(before: &[f64], after: &[f64]) -> f64 {
    let least = 1e-3 * before.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let one = |(b, a): (&f64, &f64)| ((a - b) / b.abs().max(least)).powi(2);
    before.iter().zip(after).map(one).sum::<f64>().sqrt()
}

/// The relative change of the map over that of another quantity; none where the predicted class is another.
pub fn relative(pair: &Pair<'_>, of: f64) -> Option<f64> {
    let first = |logits: &[f64]| (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
    let double = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
    (first(pair.logits) == first(pair.copy_logits))
        .then(|| relative_change(&double(pair.map), &double(pair.copy_map)) / of.max(1e-6))
}

#[cfg(test)]
pub mod tests {
    use super::super::removal::tests::{Linear, check};
    use super::super::{Metric, Status};
    use super::*;
    use serde_json::Value;
    use tch::Device;

    pub const IMAGE: [f32; 4] = [3.0, 1.0, -1.0, 2.0];
    pub const WEIGHTS: [f32; 4] = [1.0, 2.0, 3.0, 4.0];

    /// The value on one image of the linear model's explanation, whose map is weights times image.
    pub fn value(metric: &dyn Metric, copies: f64, radius: f64) -> f64 {
        let map: Vec<f32> = IMAGE.iter().zip(WEIGHTS).map(|(x, w)| x * w).collect();
        let given = [("copies", Value::from(copies)), ("radius", Value::from(radius))];
        check(metric, &given, &[&IMAGE], &[&map], 2, &mut Linear::new(&WEIGHTS))[0].value.unwrap()
    }

    #[test]
    fn copies_are_near_and_the_same_whatever_the_batch() {
        use super::super::batch_cache::BatchCache;
        let images = Tensor::zeros([3, 1, 4, 4], (Kind::Float, Device::Cpu));
        let make = |images: &Tensor, ids: &[u64]| {
            let cache = BatchCache::default();
            let batch = Batch {
                images,
                targets: &vec![1; ids.len()],
                ids,
                maps: None,
                faults: &[],
                masks: None,
                known: &[],
                signed: true,
                scene: &cache,
                cell: &cache,
            };
            copies(&batch, 2, 0.02, 5).unwrap()
        };
        let (all, one) = (make(&images, &[4, 5, 6]), make(&images.narrow(0, 0, 1), &[6]));
        assert_eq!(all[1].narrow(0, 2, 1), one[1]);
        assert_ne!(one[0], one[1]);
        assert_ne!(all[0].get(0), all[0].get(1));
        let most = all[0].abs().max().double_value(&[]);
        assert!(most <= 0.02 && most > 0.015, "{most}");
    }

    #[test]
    fn a_map_of_zeros_fails_and_relative_changes_have_a_floor() {
        let metric = super::super::find("max-sensitivity").unwrap();
        let score = check(metric, &[], &[&IMAGE], &[&[0.0, 0.0, 0.0, 0.0]], 2, &mut Linear::new(&WEIGHTS))[0];
        assert_eq!((score.status, score.value), (Status::Failed, None));
        assert!((relative_change(&[2.0, 0.0], &[1.0, 0.002]) - (0.25f64 + 1.0).sqrt()).abs() < 1e-12);
    }
}
