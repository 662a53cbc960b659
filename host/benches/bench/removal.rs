//! Deletion and insertion curves of DenseNet121 against Quantus, which removes pixels highest first and lowest first: inserting
//! the highest k of a map leaves what removing the lowest others does.

use crate::rounds::alternate;
use crate::table::Table;
use crate::{Bench, Result, highest, images, timed};
use lightbox::engine::Engine;
use lightbox_core::maps;
use lightbox_core::metrics::batch_cache::BatchCache;
use lightbox_core::metrics::{self, Answer, Batch, NoBench};
use serde_json::Value;
use serde_json::json;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

const STEPS: usize = 12;
/// Quantus wants the pixels of all steps and channels to come out even.
const SIDE: i64 = 192;

/// The model that the metrics ask, scored by softmax.
struct Asked<'a>(&'a Engine, usize);

impl metrics::Bench for Asked<'_> {
    fn run(&mut self, images: &Tensor) -> lightbox_core::Result<Answer> {
        let logits = self.0.classify(images).map_err(|e| lightbox_core::Error::new(e.to_string()))?;
        let logits = logits.f_to_kind(Kind::Double)?;
        Ok(Answer { scores: logits.f_softmax(1, Kind::Double)?, logits })
    }

    fn explain(&mut self, images: &Tensor, targets: &[i64], ids: &[u64]) -> lightbox_core::Result<Tensor> {
        NoBench.explain(images, targets, ids)
    }

    fn parameters(&mut self) -> lightbox_core::Result<Vec<(String, Tensor)>> {
        NoBench.parameters()
    }

    fn fork(
        &mut self,
        key: &str,
        edits: metrics::Edits<'_>,
        f: &mut dyn FnMut(&mut dyn metrics::Bench) -> lightbox_core::Result<()>,
    ) -> lightbox_core::Result<()> {
        NoBench.fork(key, edits, f)
    }

    fn batch_size(&self) -> usize {
        self.1
    }
}

pub fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    let n = 8i64;
    let (engine, mut state) = bench.engine("densenet121", SIDE, &[])?;
    let x = images(n, SIDE)?;
    let map = Tensor::f_rand([n, SIDE, SIDE], (Kind::Float, Device::Cpu))?;
    state.push(("images".into(), x.shallow_clone()));
    state.push(("maps".into(), map.shallow_clone()));
    let classes = highest(&engine, &x)?;
    let job = json!({ "targets": classes, "steps": STEPS, "device": bench.name() });
    let mut peer = bench.peer("removal", job, &state)?;
    let (x, map) = (x.to_device(bench.device), map.to_device(bench.device));
    let given: BTreeMap<String, Value> =
        [("steps".to_string(), STEPS.into()), ("baseline".to_string(), "zero".into())].into();
    let curves = || -> Result<Vec<Vec<f64>>> {
        let (scene, cell) = (BatchCache::default(), BatchCache::default());
        let mut all = Vec::new();
        for name in ["deletion", "insertion"] {
            let metric = metrics::find(name)?;
            let mut evaluation = metric.start(&metric.spec().resolve(&given)?, 0)?;
            let batch = Batch {
                images: &x,
                targets: &classes,
                ids: &(0..n as u64).collect::<Vec<_>>(),
                maps: Some(&map),
                faults: &maps::faults(&map)?,
                masks: None,
                known: &vec![true; n as usize],
                signed: false,
                scene: &scene,
                cell: &cell,
            };
            let scores = evaluation.update(&batch, &mut Asked(&engine, n as usize))?;
            all.push(scores.iter().map(|s| s.value.unwrap_or(f64::NAN)).collect());
        }
        Ok(all)
    };
    let rounds = alternate(bench.rounds(3), &mut peer, "quantus", || timed(bench.device, curves))?;
    let work = format!("deletion and insertion, {STEPS} steps, densenet121, {n} images of {SIDE} x {SIDE}");
    rounds.add(table, work, Some(2.0), Some(1e-3), |values, theirs| {
        // [2, n, steps]: the scores after each step; the image's own come first.
        let own = engine.classify(&x)?.f_to_kind(Kind::Double)?.f_softmax(1, Kind::Double)?;
        let mut worst = 0f64;
        for (order, values) in values.iter().enumerate() {
            for (i, value) in values.iter().enumerate() {
                let mut points = vec![own.f_double_value(&[i as i64, classes[i]])?];
                points.extend(Vec::<f64>::try_from(theirs.f_get(order as i64)?.f_get(i as i64)?)?);
                let area: f64 = points.windows(2).map(|p| (p[0] + p[1]) / 2.0).sum::<f64>() / STEPS as f64;
                worst = worst.max((area - value).abs() / area);
            }
        }
        Ok(worst)
    })
}
