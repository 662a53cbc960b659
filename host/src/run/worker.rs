//! The worker process: takes orders on stdin, executes units, says events on stdout, one JSON object a line.
//!
//! Models and explainers run here, so that one that crashes or hangs ends this process alone (the supervisor asks
//! plugins for their specifications only). Their own prints go to
//! stderr: stdout's descriptor is kept for events and 1 is made a copy of 2.

use super::events::{Event, Failure, FailureKind, Order, Unit};
use super::folder::{Environment, Folder, read_json};
use super::spec::{ModelChoice, RunSpec};
use super::train::Training;
use crate::device;
use crate::engine::{self, Engine, Maps};
use crate::error::{Error, Exit, Result};
use lightbox_core::checkpoint;
use lightbox_core::data::split::{Split, SplitSpec};
use lightbox_core::data::store::{self, Store};
use lightbox_core::data::{self, Source, resize};
use lightbox_core::metrics::average_precision::{Score, pixel_average_precision};
use lightbox_core::results::{self, Row, Status};
use lightbox_sdk::spec::{ModelOptions, Plan};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufRead, Write};
use std::os::fd::FromRawFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Everything that a worker has opened. Opened when first needed and kept.
pub struct Worker {
    folder: Folder,
    spec: RunSpec,
    environment: Environment,
    device: Device,
    source: Option<Arc<dyn Source>>,
    split: Option<Arc<Split>>,
    stores: Vec<(usize, Vec<f64>, Vec<f64>, Rc<Store>)>,
    engine: Option<(String, usize, HashSet<String>, Engine)>,
}

/// Runs until stdin ends.
pub fn main(folder: &Path, device: &str) -> Result<()> {
    crate::signals::install_worker();
    let out = unsafe { libc::dup(1) };
    unsafe { libc::dup2(2, 1) };
    let mut out = unsafe { File::from_raw_fd(out) };
    let mut say = move |event: Event| {
        let mut line = serde_json::to_vec(&event).unwrap_or_default();
        line.push(b'\n');
        // A supervisor that is gone has taken us with it, or will.
        let _ = out.write_all(&line);
    };
    let mut worker = Worker::open(Folder(folder.to_path_buf()), device)?;
    say(Event::Ready);
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let order: Order =
            serde_json::from_str(&line).map_err(|e| Error::new(Exit::Other, format!("malformed order: {e}")))?;
        let unit = order.unit.key();
        say(Event::UnitStarted { unit: unit.clone() });
        let started = Instant::now();
        match worker.execute(&order, &mut say) {
            Ok(images) => say(Event::UnitFinished { unit, seconds: started.elapsed().as_secs_f64(), images }),
            Err(e) => {
                let diverged = e.exit == Exit::Diverged;
                let fatal = matches!(e.exit, Exit::DiskFull) || matches!(order.unit, Unit::Prepare { .. });
                let fatal = fatal.then_some(e.exit as u8);
                say(Event::UnitFailed { unit, reason: e.message, fatal, diverged });
            }
        }
        say(Event::Ready);
    }
    Ok(())
}

/// The test images of a block.
pub fn block(split: &Split, size: usize, block: usize) -> &[usize] {
    let start = (block * size).min(split.test.len());
    &split.test[start..(start + size).min(split.test.len())]
}

impl Worker {
    pub fn open(folder: Folder, device: &str) -> Result<Self> {
        let text = String::from_utf8_lossy(&lightbox_core::files::read(&folder.spec())?).into_owned();
        let spec = RunSpec::parse(&text, &folder.0)?;
        let environment = read_json(&folder.environment())?;
        let device = device::choose(device)?;
        let (source, split, stores, engine) = Default::default();
        Ok(Worker { folder, spec, environment, device, source, split, stores, engine })
    }

    fn source(&mut self) -> Result<Arc<dyn Source>> {
        if let Some(source) = &self.source {
            return Ok(source.clone());
        }
        let source: Arc<dyn Source> = data::open(&self.spec.data)?.into();
        self.source = Some(source.clone());
        Ok(source)
    }

    fn split(&mut self) -> Result<Arc<Split>> {
        if let Some(split) = &self.split {
            return Ok(split.clone());
        }
        let files = Some(self.folder.0.join("splits"));
        let split = Arc::new(SplitSpec { files, ..self.spec.split.clone() }.split(self.source()?.samples())?);
        self.split = Some(split.clone());
        Ok(split)
    }

    fn model(&self, label: &str) -> Result<ModelChoice> {
        let found = self.spec.models.iter().find(|m| m.label() == label);
        found.cloned().ok_or_else(|| Error::input(format!("the spec has no model {label}")))
    }

    fn options(&self, choice: &ModelChoice) -> ModelOptions {
        ModelOptions {
            device: device::name(self.device),
            classes: choice.classes,
            seed: self.spec.seed,
            params: choice.params.clone(),
        }
    }

    fn store(&mut self, model: &lightbox_sdk::spec::ModelSpec) -> Result<Rc<Store>> {
        let input = &model.input;
        let (side, mean, std) = (input.height, &input.mean, &input.std);
        if let Some((.., store)) = self.stores.iter().find(|(s, m, d, _)| *s == side && m == mean && d == std) {
            return Ok(store.clone());
        }
        // One budget for all of them.
        let held: usize = self.stores.iter().map(|(.., s)| s.layout()).filter(|l| l.resident).map(|l| l.bytes).sum();
        let budget = (self.spec.store_mib << 20).saturating_sub(held);
        let file = self.folder.prepared(input.height);
        let store = Rc::new(Store::open(&file, &input.mean, &input.std, self.device, budget)?);
        if store.layout().images != self.source()?.samples().len() {
            let file = self.folder.prepared(side);
            return Err(Error::input(format!("{}: not of this data source (hint: --restart)", file.display())));
        }
        self.stores.push((side, mean.clone(), std.clone(), store.clone()));
        Ok(store)
    }

    /// Executes one unit; the number of images it went through.
    fn execute(&mut self, order: &Order, say: &mut dyn FnMut(Event)) -> Result<usize> {
        match &order.unit {
            Unit::Prepare { side } => self.prepare(*side, &order.unit, say),
            Unit::Train { model, fold } => self.train(model, *fold, &order.unit, say),
            Unit::Explain { model, fold, block } => self.explain(model, *fold, *block, order, say),
        }
    }

    fn prepare(&mut self, side: usize, unit: &Unit, say: &mut dyn FnMut(Event)) -> Result<usize> {
        let (source, key) = (self.source()?, unit.key());
        let mut progress = |done, of| say(Event::Progress { unit: key.clone(), done, of });
        store::prepare(source.as_ref(), side, &self.folder.prepared(side), &mut progress)?;
        Ok(source.samples().len())
    }

    fn train(&mut self, label: &str, fold: usize, unit: &Unit, say: &mut dyn FnMut(Event)) -> Result<usize> {
        let choice = self.model(label)?;
        let Some(spec) = &choice.train else {
            return Err(Error::input(format!("model {label} has no [models.train]")));
        };
        let weights = choice.weights_file(fold);
        let file = self.environment.plugin("model", &choice.name)?.to_path_buf();
        let mut options = self.options(&choice);
        options.seed = self.spec.seed.wrapping_add(fold as u64);
        let (model, notes) = engine::load_model(&file, &choice.name, &options, weights.as_deref())?;
        notes.into_iter().for_each(|text| say(Event::Note { text: format!("{label}, fold {fold}: {text}") }));
        if weights.is_none() {
            say(Event::Note {
                text: format!("{label}, fold {fold}: no weights: training begins with seeded random values"),
            });
        }
        let store = self.store(&model.spec()?)?;
        let split = self.split()?;
        let labels: Vec<u8> = self.source()?.samples().iter().map(|s| s.label).collect();
        let training = Training {
            unit: unit.key(),
            spec,
            store: &store,
            labels: &labels,
            fold: &split.folds[fold],
            seed: self.spec.seed.wrapping_add(fold as u64),
            classes: choice.classes,
            folder: &self.folder.checkpoint(label, fold),
        };
        training.run(&model, say)
    }

    /// The model of a fold with its explainers, less those that have failed.
    fn engine(&mut self, label: &str, fold: usize, order: &Order, say: &mut dyn FnMut(Event)) -> Result<&Engine> {
        let without: HashSet<String> = order.without.iter().cloned().collect();
        let usable = matches!(&self.engine, Some((l, f, w, _)) if l == label && *f == fold && *w == without);
        if !usable {
            self.engine = None;
            let choice = self.model(label)?;
            let weights = match &choice.train {
                Some(_) => Some(self.folder.checkpoint(label, fold).join("best.safetensors")),
                None => choice.weights_file(fold),
            };
            let file = self.environment.plugin("model", &choice.name)?.to_path_buf();
            let options = self.options(&choice);
            let (model, notes) = engine::load_model(&file, &choice.name, &options, weights.as_deref())?;
            notes.into_iter().for_each(|text| say(Event::Note { text: format!("{label}, fold {fold}: {text}") }));
            if weights.is_none() {
                let text = format!("{label}: no weights and no training: the model has its random initial values");
                say(Event::Note { text });
            }
            let mut engine = Engine::new(model, self.device, self.spec.seed)?;
            let (store, split) = (self.store(&engine.spec)?, self.split()?);
            if let Some(mask) = store.mean_mask(&split.folds[fold].train) {
                engine.set_mean_mask(mask, engine.spec.input.height)?;
            }
            for explainer in self.spec.explainers.iter().filter(|e| !without.contains(e.label())) {
                let unit = order.unit.key();
                let name = explainer.label().to_string();
                say(Event::CellStarted { unit: unit.clone(), model: label.into(), explainer: name.clone() });
                let file = self.environment.plugin("explainer", &explainer.name)?;
                let prepared = engine.prepare(file, explainer);
                say(Event::CellLeft { unit });
                match prepared {
                    Ok(()) => {
                        if let Some(Plan::NotApplicable { reason }) = engine.explainers.last().map(|e| &e.plan) {
                            let reason = reason.clone();
                            say(Event::NotApplicable { model: label.into(), explainer: name, reason });
                        }
                    }
                    Err(e) => say(failed(label, &name, e.message)),
                }
            }
            self.engine = Some((label.into(), fold, without, engine));
        }
        match &self.engine {
            Some((.., engine)) => Ok(engine),
            None => Err(Error::new(Exit::Other, "no engine")),
        }
    }

    fn explain(
        &mut self,
        label: &str,
        fold: usize,
        number: usize,
        order: &Order,
        say: &mut dyn FnMut(Event),
    ) -> Result<usize> {
        let (source, split, unit) = (self.source()?, self.split()?, &order.unit);
        let (batch_size, target, folder) = (self.spec.batch_size, self.spec.target, self.folder.clone());
        let indices = block(&split, self.spec.block, number).to_vec();
        self.engine(label, fold, order, say)?;
        let Some((.., model)) = self.engine.as_ref().map(|(.., e)| ((), e.spec.clone())) else {
            return Err(Error::new(Exit::Other, "no engine"));
        };
        let store = self.store(&model)?;
        let Some((.., engine)) = &self.engine else { return Err(Error::new(Exit::Other, "no engine")) };
        let side = engine.spec.input.height;

        // Maps are scored where there is something to find; the other images are only classified.
        let explained = |i: usize| source.samples()[i].label == 1 && store.mask(i).is_some_and(|m| m.contains(&1));
        let (positive, rest): (Vec<usize>, Vec<usize>) = indices.iter().partition(|&&i| explained(i));
        let mut rows: BTreeMap<usize, Vec<Row>> = BTreeMap::new();
        let mut maps: Vec<(String, Tensor)> = Vec::new();
        let mut broken: HashSet<usize> = HashSet::new();
        let mut done = 0;
        let row = |i: usize, explainer: &str, metric: &str, value: Option<f64>, status: Status| {
            let s = &source.samples()[i];
            let (image, patient, label_) = (s.id.clone(), s.patient.clone(), i32::from(s.label));
            let (explainer, metric) = (explainer.to_string(), metric.to_string());
            Row {
                image,
                patient,
                label: label_,
                model: label.into(),
                fold: fold as i32,
                explainer,
                metric,
                value,
                status,
            }
        };
        let score = |logits: &Tensor, rows: &mut BTreeMap<usize, Vec<Row>>, indices: &[usize]| -> Result<()> {
            let scores = logits.f_to_kind(Kind::Double)?.f_softmax(1, Kind::Double)?.f_select(1, 1)?;
            for (&i, value) in indices.iter().zip(Vec::<f64>::try_from(&scores)?) {
                if !value.is_finite() {
                    let id = &source.samples()[i].id;
                    return Err(Error::plugin(format!(
                        "model {label}: its logits are not finite on {id} (hint: are there NaN in the weights?)"
                    )));
                }
                rows.entry(i).or_default().insert(0, row(i, "", "score", Some(value), Status::Ok));
            }
            Ok(())
        };
        let batches = |of: &[usize]| of.chunks(batch_size).map(<[usize]>::to_vec).collect::<Vec<_>>();
        let mut collected: BTreeMap<String, Vec<Maps>> = BTreeMap::new();
        for batch in store.batches(batches(&positive)) {
            let (indices, images) = batch?;
            let ids: Vec<u64> = indices.iter().map(|&i| engine::image_id(&source.samples()[i].id)).collect();
            let targets = vec![target; indices.len()];
            let active: Vec<usize> = (0..engine.explainers.len()).filter(|i| !broken.contains(i)).collect();
            let key = unit.key();
            let result = engine.run(&images, Some(&targets), &ids, &active, &mut |explainer| {
                let (unit, model, explainer) = (key.clone(), label.to_string(), explainer.label.clone());
                say(Event::CellStarted { unit, model, explainer });
            })?;
            say(Event::CellLeft { unit: unit.key() });
            score(&result.logits, &mut rows, &indices)?;
            for (index, outcome) in result.maps {
                let name = &engine.explainers[index].label;
                match outcome {
                    Err(e) => {
                        broken.insert(index);
                        say(failed(label, name, e.to_string()));
                    }
                    Ok(batch) => {
                        let scores = score_maps(&batch, &indices, &store, side);
                        for (&i, s) in indices.iter().zip(scores) {
                            let (value, status) = match s {
                                Score::Value(v) => (Some(v), Status::Ok),
                                Score::NotApplicable => (None, Status::NotApplicable),
                                Score::Failed => (None, Status::Failed),
                            };
                            rows.entry(i).or_default().push(row(i, name, "pixel-auprc", value, status));
                        }
                        collected.entry(name.clone()).or_default().push(batch);
                    }
                }
            }
            done += indices.len();
            say(Event::Progress { unit: unit.key(), done, of: positive.len() + rest.len() });
        }
        for batch in store.batches(batches(&rest)) {
            let (indices, images) = batch?;
            score(&engine.classify(&images)?, &mut rows, &indices)?;
            done += indices.len();
            say(Event::Progress { unit: unit.key(), done, of: positive.len() + rest.len() });
        }
        for (index, explainer) in engine.explainers.iter().enumerate() {
            let failed = broken.contains(&index);
            for rows in rows.values_mut().filter(|_| failed) {
                rows.retain(|r| r.explainer != explainer.label);
            }
            if let Some(batches) = collected.remove(&explainer.label).filter(|_| !failed) {
                let tensors = batches.iter().map(|m| {
                    let shape = [m.n as i64, m.height as i64, m.width as i64];
                    Tensor::f_from_slice(&m.values)?.f_reshape(shape)
                });
                let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
                maps.push((explainer.label.clone(), Tensor::f_cat(&tensors, 0)?));
            }
        }
        let explained: Vec<i64> = positive.iter().map(|&i| i as i64).collect();
        maps.push(("images".into(), Tensor::f_from_slice(&explained)?));
        checkpoint::write(&folder.maps(unit), &maps)?;
        results::write(&folder.rows(unit), &rows.into_values().flatten().collect::<Vec<_>>())?;
        Ok(indices.len())
    }
}

fn failed(model: &str, explainer: &str, reason: String) -> Event {
    let (model, explainer, kind) = (model.to_string(), Some(explainer.to_string()), FailureKind::Error);
    Event::CellFailed(Failure { model, explainer, kind, reason })
}

/// Brings maps to the masks' resolution (bilinear, align_corners = false) and scores them, on all cores.
fn score_maps(maps: &Maps, indices: &[usize], store: &Store, side: usize) -> Vec<Score> {
    let masks: Vec<Option<&[u8]>> = indices.iter().map(|&i| store.mask(i)).collect();
    let one = |(at, mask): (usize, &Option<&[u8]>)| {
        let map = maps.image(at);
        let Some(mask) = mask else { return Score::NotApplicable };
        if map.iter().any(|v| !v.is_finite()) {
            return Score::Failed;
        }
        pixel_average_precision(&resize::upsample(map, 1, (maps.height, maps.width), (side, side)), mask)
    };
    masks.par_iter().enumerate().map(one).collect()
}
