//! Every metric's value on fixed input, with its version: who changes a value must raise the version, or runs would keep
//! values of the older one beside new ones.

use super::batch_cache::BatchCache;
use super::{Answer, Batch, Bench, Edits, Form, Level, Metric, Predictions, Score, Size, all};
use crate::Result;
use crate::maps;
use crate::task::Task;
use tch::{Kind, Tensor};

const SIDE: i64 = 16;
const IMAGES: i64 = 4;

/// A model that is not linear: the logit of class 1 is `sum(weights tanh(2 x))`, that of class 0 is 0. Its explanation is the
/// gradient times the image.
struct Curved(Tensor);

impl Bench for Curved {
    fn run(&mut self, images: &Tensor) -> Result<Answer> {
        let images = images.f_select(1, 0)?.f_to_kind(Kind::Double)?;
        let one = ((&images * 2).f_tanh()? * &self.0).f_sum_dim_intlist([1i64, 2].as_slice(), false, Kind::Double)?;
        let logits = Tensor::f_stack(&[one.f_zeros_like()?, one], 1)?;
        Ok(Answer { scores: logits.f_softmax(1, Kind::Double)?, logits })
    }

    fn explain(&mut self, images: &Tensor, targets: &[i64], _: &[u64]) -> Result<Tensor> {
        let x = images.f_select(1, 0)?.f_to_kind(Kind::Double)?;
        let slope: Tensor = 2 - 2 * (&x * 2).f_tanh()?.f_square()?;
        let signs: Vec<f64> = targets.iter().map(|t| if *t == 1 { 1.0 } else { -1.0 }).collect();
        let map = slope * x * &self.0 * Tensor::f_from_slice(&signs)?.f_reshape([-1, 1, 1])?;
        Ok(map.f_to_kind(Kind::Float)?)
    }

    fn parameters(&mut self) -> Result<Vec<(String, Tensor)>> {
        Ok(vec![("head.weight".into(), self.0.shallow_clone())])
    }

    fn fork(&mut self, _: &str, edits: Edits<'_>, f: &mut dyn FnMut(&mut dyn Bench) -> Result<()>) -> Result<()> {
        f(&mut Curved(edits()?[0].1.shallow_clone()))
    }

    fn batch_size(&self) -> usize {
        3
    }
}

/// Numbers in [-1, 1] that look like noise, [shape].
fn numbers(shape: &[i64], factor: i64) -> Tensor {
    let n: i64 = shape.iter().product();
    let values: Vec<f64> = (0..n).map(|i| ((i * factor + i * i % 31) % 101) as f64 / 50.0 - 1.0).collect();
    Tensor::from_slice(&values).reshape(shape)
}

/// The value of a metric with its defaults: of the set, or the mean over the images.
fn value(metric: &dyn Metric) -> f64 {
    let spec = metric.spec();
    let needs = metric.needs();
    let Some((size, form)) = needs.maps else {
        let scores: Vec<f64> = (0..40).map(|i| f64::from(i * 17 % 41) / 41.0).collect();
        let labels: Vec<u8> = (0..40).map(|i| u8::from(i % 3 == 0)).collect();
        let both = |f: &dyn Fn(f64) -> f64| scores.iter().map(|s| f(*s)).collect::<Vec<f64>>();
        let other = labels.iter().map(|l| 1 - l).collect();
        let task = Task { classes: vec!["a".into(), "b".into()], ..Task::default() };
        let (scores, labels) = ([both(&|s| 1.0 - s), both(&|s| s)], [other, labels.clone()]);
        let found = metric.predictions(&Predictions { task: &task, scores: &scores, labels: &labels });
        return found.unwrap().value.unwrap();
    };
    let mut bench = Curved(numbers(&[SIDE, SIDE], 29) * 0.1);
    // They speak for class 1, some more than others.
    let images = (numbers(&[IMAGES, 1, SIDE, SIDE], 37) + &bench.0 * 7.0).to_kind(Kind::Float);
    let targets = [1i64; IMAGES as usize];
    let masks = Tensor::zeros([IMAGES, SIDE, SIDE], (Kind::Uint8, tch::Device::Cpu));
    let _ = masks.narrow(1, 3, 6).narrow(2, 5, 7).fill_(1);
    let own = bench.explain(&images, &targets, &[]).unwrap() + numbers(&[IMAGES, SIDE, SIDE], 53) * 0.02;
    // A map looks at the mask a little.
    let own = (own + masks.to_kind(Kind::Float) * 0.006).to_kind(Kind::Float);
    let own = if size == Size::Mask { own } else { own.shallow_clone() };
    let own = if form == Form::MinMax { maps::min_max(&own).unwrap() } else { own };
    let batch = Batch {
        images: &images,
        targets: &targets,
        ids: &[3, 1, 4, 15],
        maps: Some(&own),
        faults: &maps::faults(&own).unwrap(),
        masks: Some(&masks),
        known: &[true; IMAGES as usize],
        signed: true,
        scene: &BatchCache::default(),
        cell: &BatchCache::default(),
    };
    let parameters = spec.resolve(&Default::default()).unwrap();
    let mut evaluation = metric.start(&parameters, 7).unwrap();
    let mut scores = evaluation.update(&batch, &mut bench).unwrap();
    if needs.validation {
        let state = evaluation.state().unwrap();
        evaluation.tune(&state).unwrap();
        scores = evaluation.images().unwrap().into_iter().map(|(.., score)| score).collect();
    }
    if spec.level == Level::Set {
        return evaluation.finish().unwrap().and_then(|s: Score| s.value).unwrap();
    }
    let values: Vec<f64> = scores.iter().map(|s| s.value.unwrap_or_else(|| panic!("{}: {s:?}", spec.name))).collect();
    crate::stats::mean(&values)
}

#[test]
fn a_value_that_moves_has_another_version() {
    let known = include_str!("versions.csv");
    let line = |m: &&dyn Metric| {
        let spec = m.spec();
        (spec.name, spec.version, value(*m))
    };
    let now: Vec<(&str, u32, f64)> = all().iter().map(line).collect();
    let table: String = now.iter().map(|(name, version, v)| format!("{name},{version},{v:.9}\n")).collect();
    let before: Vec<(&str, u32, f64)> = known
        .lines()
        .map(|l| {
            let parts: Vec<&str> = l.split(',').collect();
            (parts[0], parts[1].parse().unwrap(), parts[2].parse().unwrap())
        })
        .collect();
    for (name, version, v) in &now {
        let Some((_, old_version, old)) = before.iter().find(|b| b.0 == *name) else {
            panic!("{name} is new: write its line to core/src/metrics/versions.csv\n{table}")
        };
        let same = (v - old).abs() <= 1e-6 * old.abs().max(1e-3);
        match (same, version == old_version) {
            (true, true) => {}
            (false, true) => {
                panic!("{name} gives {v}, before {old}: raise its version, then write versions.csv\n{table}")
            }
            _ => panic!("{name} has another version than versions.csv: write it\n{table}"),
        }
    }
    assert_eq!(now.len(), before.len(), "versions.csv has a line too many");
}
