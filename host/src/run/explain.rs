//! The way of a batch: store -> images -> the shared run -> maps -> metrics -> rows. Maps stay on the device until they are
//! scored; one copy goes to the unit's file. Nothing turns back: only a new metric reads maps from a file.

use super::events::{Event, Failure, FailureKind};
use super::folder::CellRecord;
use super::plan::{self, Index};
use super::spec::MetricChoice;
use super::unit::Unit;
use super::worker::Worker;
use crate::engine::{self, Engine};
use crate::error::{Error, Exit, Result};
use lightbox_core::checkpoint::{self, State};
use lightbox_core::data::Sample;
use lightbox_core::data::store::Store;
use lightbox_core::maps::{self, Fault};
use lightbox_core::metrics::{self, Bench, Evaluation, Form, Level, Needs, Score, Size};
use lightbox_core::results::{self, Names, Prediction, Row};
use lightbox_core::summary::{CHANCE, Table};
use lightbox_core::task::{Explained, Task};
use lightbox_sdk::spec::Plan;
use lightbox_sdk::{Array, ErrorKind, FitBatch, Request};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use tch::{Device, Kind, Tensor};

/// The class to explain of an image, negative for the predicted; none where the task explains none of it.
fn target(task: &Task, sample: &Sample) -> Result<Option<i64>> {
    Ok(match task.explained()? {
        Explained::Class(class) => Some(class as i64),
        Explained::Predicted => Some(-1),
        Explained::Label => sample.classes.last().map(|c| *c as i64),
    })
}

/// Whether an image is explained: by default those where there is something to find.
fn is_explained(task: &Task, sample: &Sample, store: &Store, index: usize) -> Result<bool> {
    let Some(target) = target(task, sample)? else { return Ok(false) };
    if task.select == "all" {
        return Ok(true);
    }
    let marked = |class: usize| {
        let bit = sample.mask_bit(class);
        bit.is_some() && store.mask(index, bit).is_some_and(|m| m.contains(&1))
    };
    Ok(match target {
        -1 => sample.classes.iter().any(|&c| marked(c)),
        class => marked(class as usize),
    })
}

/// A cell at work: an explainer's map and its metrics.
struct Cell {
    explainer: String,
    output: String,
    evaluations: Vec<(MetricChoice, Needs, Box<dyn Evaluation>)>,
}

impl Cell {
    fn start(explainer: &str, output: &str, choices: &[&MetricChoice], seed: u64) -> Result<Self> {
        let mut evaluations = Vec::new();
        for choice in choices {
            let metric = metrics::find(&choice.name)?;
            let parameters = metric.spec().resolve(&choice.params)?;
            evaluations.push(((*choice).clone(), metric.needs(), metric.start(&parameters, seed)?));
        }
        Ok(Cell { explainer: explainer.into(), output: output.into(), evaluations })
    }
}

/// What all cells of a batch are scored with.
struct Scene<'a> {
    images: &'a Tensor,
    indices: &'a [usize],
    targets: &'a [i64],
    ids: &'a [u64],
    /// [n, side, side] uint8 on the maps' device.
    masks: Tensor,
    known: Vec<bool>,
    side: usize,
}

impl<'a> Scene<'a> {
    fn new(
        store: &Store,
        samples: &[Sample],
        images: &'a Tensor,
        indices: &'a [usize],
        targets: &'a [i64],
        ids: &'a [u64],
        side: usize,
    ) -> Result<Self> {
        let mut bytes = Vec::with_capacity(indices.len() * side * side);
        let mut known = Vec::new();
        for (&i, &target) in indices.iter().zip(targets) {
            let mask = store.mask(i, samples[i].mask_bit(target as usize));
            known.push(mask.is_some());
            bytes.extend(mask.unwrap_or_else(|| vec![0; side * side]));
        }
        let shape = [indices.len() as i64, side as i64, side as i64];
        let masks = Tensor::f_from_slice(&bytes)?.f_reshape(shape)?;
        Ok(Scene { images, indices, targets, ids, masks, known, side })
    }
}

/// The bench of a cell: its model, and its explainer by number.
struct CellBench<'a> {
    engine: &'a Engine,
    explainer: Option<usize>,
    task: &'a Task,
    batch: usize,
}

impl CellBench<'_> {
    fn core(e: impl std::fmt::Display) -> lightbox_core::Error {
        lightbox_core::Error::new(e.to_string())
    }
}

impl Bench for CellBench<'_> {
    fn run(&mut self, images: &Tensor) -> lightbox_core::Result<Tensor> {
        self.task.scores(&self.engine.classify(images).map_err(Self::core)?)
    }

    fn explain(&mut self, images: &Tensor, targets: &[i64], ids: &[u64]) -> lightbox_core::Result<Tensor> {
        let index = self.explainer.ok_or_else(|| Self::core("chance has no explainer"))?;
        let batch = self.engine.run(images, targets, ids, &[index], &mut |_| {}).map_err(Self::core)?;
        if batch.tampered.is_some() {
            return Err(Self::core(engine::tampered(&self.engine.explainers[index].label)));
        }
        let outcome = batch.maps.into_iter().next().ok_or_else(|| Self::core("the explainer does not apply"))?;
        outcome.1.map_err(Self::core)?.output(0).map_err(Self::core)
    }

    fn parameters(&mut self) -> lightbox_core::Result<Vec<(String, Tensor)>> {
        let named = self.engine.parameters().map_err(Self::core)?;
        named.into_iter().map(|(name, a)| Ok((name, a.share_tensor().map_err(Self::core)?))).collect()
    }

    fn fork(
        &mut self,
        edits: Vec<(String, Tensor)>,
        f: &mut dyn FnMut(&mut dyn Bench) -> lightbox_core::Result<()>,
    ) -> lightbox_core::Result<()> {
        let mut named = Vec::new();
        for (name, tensor) in &edits {
            named.push((name.clone(), Array::from_tensor(tensor).map_err(Self::core)?));
        }
        let mut fork = self.engine.fork(&named).map_err(Self::core)?;
        if let Some(index) = self.explainer {
            let explainer = &self.engine.explainers[index];
            fork.copy_explainer(explainer).map_err(Self::core)?;
        }
        let explainer = self.explainer.map(|_| 0);
        f(&mut CellBench { engine: &fork, explainer, task: self.task, batch: self.batch })
    }

    fn batch_size(&self) -> usize {
        self.batch
    }

    fn check(&mut self) -> lightbox_core::Result<()> {
        self.engine.check().map_err(Self::core)
    }
}

/// Scores maps [n, h, w] of a cell. Each form of them is made once, whatever the number of metrics.
fn score(cell: &mut Cell, raw: &Tensor, scene: &Scene<'_>, bench: &mut dyn Bench, rows: &mut Rows<'_>) -> Result<()> {
    let faults = maps::faults(raw)?;
    // What is not finite is scored by nobody; zeros keep the others' arithmetic whole.
    let clean = if faults.contains(&Fault::NotFinite) { raw.f_nan_to_num(0.0, 0.0, 0.0)? } else { raw.shallow_clone() };
    let masks = scene.masks.f_to_device(raw.device())?;
    let mut forms: Vec<((Size, Form), Tensor)> = Vec::new();
    for (choice, needs, evaluation) in &mut cell.evaluations {
        let Some((size, form)) = needs.maps else { continue };
        if !forms.iter().any(|(k, _)| *k == (size, form)) {
            let sized = match size {
                Size::Native => clean.shallow_clone(),
                Size::Mask => match forms.iter().find(|((s, f), _)| *s == size && *f == Form::Raw) {
                    Some((_, made)) => made.shallow_clone(),
                    None => maps::upsample(&clean, (scene.side, scene.side))?,
                },
            };
            let made = if form == Form::MinMax { maps::min_max(&sized)? } else { sized };
            forms.push(((size, form), made));
        }
        let made = forms.iter().find(|(k, _)| *k == (size, form)).map(|(_, t)| t);
        let batch = metrics::Batch {
            images: scene.images,
            targets: scene.targets,
            ids: scene.ids,
            maps: made,
            faults: &faults,
            masks: needs.masks.then_some(&masks),
            known: &scene.known,
        };
        let scores = evaluation.update(&batch, bench)?;
        for ((&i, &target), score) in scene.indices.iter().zip(scene.targets).zip(scores) {
            rows.add(i, target, &cell.explainer, &cell.output, choice.label(), score);
        }
    }
    Ok(())
}

/// The rows of a unit.
struct Rows<'a> {
    names: Names,
    rows: Vec<Row>,
    samples: &'a [Sample],
    place: (&'a str, usize, usize),
}

impl Rows<'_> {
    fn add(&mut self, image: usize, target: i64, explainer: &str, output: &str, metric: &str, score: Score) {
        let id = self.samples[image].id.clone();
        self.push(&id, target as i32, explainer, output, metric, score);
    }

    fn push(&mut self, image: &str, target: i32, explainer: &str, output: &str, metric: &str, score: Score) {
        let names = &mut self.names;
        let (model, fold, seed) = self.place;
        let row = Row {
            image: names.number(image),
            model: names.number(model),
            fold: fold as i32,
            seed: seed as i32,
            explainer: names.number(explainer),
            output: names.number(output),
            metric: names.number(metric),
            target,
            value: None,
            status: metrics::Status::Ok,
            reason: 0,
        };
        self.rows.push(row.with(score, names));
    }
}

fn failed(model: &str, explainer: &str, kind: FailureKind, reason: String) -> Event {
    let (model, explainer, id) = (model.to_string(), Some(explainer.to_string()), String::new());
    Event::CellFailed(Failure { model, explainer, kind, reason, id })
}

/// What a unit of this module made, for its record.
#[derive(Default)]
pub struct Made {
    pub images: usize,
    pub predictions: Option<String>,
    pub reduced: Option<String>,
    pub cells: BTreeMap<String, CellRecord>,
}

/// The unit's name of a state: explainer, output, metric and what is kept, separated by a character that no label has.
fn state_name(parts: [&str; 4]) -> String {
    parts.join("\u{1f}")
}

impl Worker {
    /// Classifies, explains and scores a block.
    pub fn explain(&mut self, unit: &Unit, stem: &str) -> Result<Made> {
        let Unit::Explain { model: label, fold, seed, block, explainers, predict, .. } = unit else {
            return Err(Error::new(Exit::Other, "no unit of explanations"));
        };
        let (label, fold, seed, block, predict) = (label.as_str(), *fold, *seed, *block, *predict);
        let (source, split) = (self.source()?, self.split()?);
        let samples = source.samples();
        self.open_engine(label, fold, seed, explainers)?;
        let (store, spec, task) = (self.store_of(label)?, self.spec.clone(), self.spec.task.clone());
        let (voice, identities) = (self.voice.clone(), self.identities()?);
        let engine = self.opened()?;
        let side = engine.spec.input.height;
        let indices = plan_block(&split.test, spec.block, block);

        let mut shown = Vec::new();
        let mut rest = Vec::new();
        for &i in indices {
            let explained = is_explained(&task, &samples[i], &store, i)?;
            if explained { shown.push(i) } else { rest.push(i) }
        }
        let choices = plan::map_metrics(&spec)?;
        let chance = plan::chance_metrics(&spec)?;
        let with_chance = predict && !spec.explainers.is_empty();
        let mut chance_cell = Cell::start(CHANCE, "", &chance, spec.seed)?;
        let mut cells: BTreeMap<usize, Vec<Cell>> = BTreeMap::new();
        let mut stored: BTreeMap<usize, (Vec<String>, Vec<Tensor>)> = BTreeMap::new();
        let mut seconds: BTreeMap<usize, f64> = BTreeMap::new();
        let mut predictions: Vec<(usize, Vec<f64>, Vec<f64>)> = Vec::new();
        let mut rows = Rows { names: Names::default(), rows: vec![], samples, place: (label, fold, seed) };
        let mut broken: HashSet<usize> = HashSet::new();
        let runs_before: Vec<u64> = (0..engine.explainers.len()).map(|i| engine.runs(i)).collect();
        let (mut done, of) = (0, shown.len() + if predict { rest.len() } else { 0 });
        let predicted =
            |indices: &[usize], logits: &Tensor, into: &mut Vec<(usize, Vec<f64>, Vec<f64>)>| -> Result<()> {
                let scores = task.scores(logits)?;
                for (at, &i) in indices.iter().enumerate() {
                    let list = |t: &Tensor| -> Result<Vec<f64>> {
                        Ok(Vec::<f64>::try_from(t.f_get(at as i64)?.f_to_kind(Kind::Double)?)?)
                    };
                    let (score, logit) = (list(&scores)?, list(logits)?);
                    if logit.iter().any(|v| !v.is_finite()) {
                        let id = &samples[i].id;
                        return Err(Error::plugin(format!(
                            "model {label}: its logits are not finite on {id} (hint: are there NaN in the weights?)"
                        )));
                    }
                    into.push((i, score, logit));
                }
                Ok(())
            };
        let batches = |of: &[usize]| of.chunks(spec.batch_size).map(<[usize]>::to_vec).collect::<Vec<_>>();
        let key = unit.key();
        for batch in store.batches(batches(&shown)) {
            let (indices, mut images) = batch?;
            let ids: Vec<u64> = indices.iter().map(|&i| engine::image_id(&samples[i].id)).collect();
            let mut targets = Vec::new();
            for &i in &indices {
                targets.push(target(&task, &samples[i])?.unwrap_or(-1));
            }
            // Once, and once more for each explainer that wrote to what it was given.
            let result = loop {
                let active: Vec<usize> = (0..engine.explainers.len()).filter(|i| !broken.contains(i)).collect();
                let result = engine.run(&images, &targets, &ids, &active, &mut |explainer| {
                    let (unit, model, explainer) = (key.clone(), label.to_string(), explainer.label.clone());
                    voice.say(Event::CellStarted { unit, model, explainer });
                })?;
                voice.say(Event::CellLeft { unit: key.clone() });
                let Some(culprit) = result.tampered else { break result };
                broken.insert(culprit);
                let name = &engine.explainers[culprit].label;
                voice.say(failed(label, name, FailureKind::Tampered, engine::tampered(name).to_string()));
                images = store.batch(&indices)?;
            };
            if predict {
                predicted(&indices, &result.logits, &mut predictions)?;
            }
            let scene = Scene::new(&store, samples, &images, &indices, &result.targets, &ids, side)?;
            if with_chance {
                let flat =
                    Tensor::f_zeros([indices.len() as i64, side as i64, side as i64], (Kind::Float, Device::Cpu))?;
                score(&mut chance_cell, &flat, &scene, &mut metrics::NoBench, &mut rows)?;
            }
            for (index, outcome) in result.maps {
                let name = engine.explainers[index].label.clone();
                *seconds.entry(index).or_default() +=
                    result.seconds.iter().find(|(i, _)| *i == index).map_or(0.0, |(_, s)| *s);
                let take = || -> std::result::Result<(), (FailureKind, Error)> {
                    let outputs = outcome.map_err(|e| match e.kind {
                        ErrorKind::Cancelled => (FailureKind::Error, Error::new(Exit::Interrupted, e.to_string())),
                        _ => (FailureKind::Error, Error::from(e)),
                    })?;
                    let plain = |e: Error| (FailureKind::Error, e);
                    let kept = stored.entry(index).or_insert_with(|| (outputs.names.clone(), vec![]));
                    if kept.0 != outputs.names {
                        let text = format!("explainer {name} names its maps {:?}, before {:?}", outputs.names, kept.0);
                        return Err(plain(Error::plugin(text)));
                    }
                    for (k, output) in outputs.names.iter().enumerate() {
                        let mine = cells.entry(index).or_default();
                        if mine.len() == k {
                            mine.push(Cell::start(&name, output, &choices, spec.seed).map_err(plain)?);
                        }
                        let explainer = Some(index);
                        let mut bench = CellBench { engine, explainer, task: &task, batch: spec.batch_size };
                        let map = outputs.output(k).map_err(plain)?;
                        score(&mut mine[k], &map, &scene, &mut bench, &mut rows).map_err(plain)?;
                    }
                    let copy = outputs.maps.f_to_device(Device::Cpu).map_err(|e| plain(e.into()))?;
                    let side = |t: &Tensor| t.size()[2..].to_vec();
                    if let Some(first) = kept.1.first().filter(|first| side(first) != side(&copy)) {
                        let (now, before) = (side(&copy), side(first));
                        let text = format!("explainer {name} gives maps of {now:?}, before of {before:?}");
                        return Err(plain(Error::plugin(text)));
                    }
                    kept.1.push(copy);
                    Ok(())
                };
                // A metric may ask the explainer again: it is the one at work.
                let (unit, model) = (key.clone(), label.to_string());
                voice.say(Event::CellStarted { unit: unit.clone(), model, explainer: name.clone() });
                let taken = take();
                voice.say(Event::CellLeft { unit });
                match taken {
                    Ok(()) => {}
                    Err((_, e)) if e.exit == Exit::Interrupted || crate::signals::interrupted() => return Err(e),
                    Err((kind, e)) => {
                        broken.insert(index);
                        voice.say(failed(label, &name, kind, e.message));
                    }
                }
            }
            done += indices.len();
            voice.say(Event::Progress { unit: key.clone(), done, of });
        }
        for batch in store.batches(batches(if predict { &rest } else { &[] })) {
            let (indices, images) = batch?;
            predicted(&indices, &engine.classify(&images)?, &mut predictions)?;
            done += indices.len();
            voice.say(Event::Progress { unit: key.clone(), done, of });
        }

        let mut made = Made { images: done, ..Made::default() };
        let mut states: State = Vec::new();
        let explained: Vec<i64> = shown.iter().map(|&i| i as i64).collect();
        let mut file: State = vec![("images".into(), Tensor::f_from_slice(&explained)?)];
        for (index, explainer) in engine.explainers.iter().enumerate() {
            let name = &explainer.label;
            if broken.contains(&index) || !matches!(explainer.plan, Plan::Run(_)) {
                let number = rows.names.number(name);
                rows.rows.retain(|r| r.explainer != number);
                continue;
            }
            // Of a block without an image to explain there are no maps, and that is all of them.
            let (outputs, tensors) = stored.remove(&index).unwrap_or_default();
            if !tensors.is_empty() {
                file.push((format!("maps.{name}"), Tensor::f_cat(&tensors, 0)?));
            }
            let id = identities.maps(label, fold, seed, block, name)?;
            let scores = choices.iter().map(|c| (c.label().to_string(), identities.metric(c.label()))).collect();
            for cell in cells.remove(&index).unwrap_or_default() {
                keep_states(&cell, &mut states)?;
            }
            let choice = spec.explainers.iter().find(|e| e.label() == name);
            let plugin = choice.map(|c| self.environment.plugin("explainer", &c.name)).transpose()?;
            made.cells.insert(
                name.clone(),
                CellRecord {
                    id,
                    maps: true,
                    outputs,
                    scores,
                    plugin: plugin.map_or(String::new(), |p| p.sha256.clone()),
                    version: plugin.map_or(String::new(), |p| p.version.clone()),
                    seconds: seconds.get(&index).copied().unwrap_or_default(),
                    runs: engine.runs(index) - runs_before[index],
                },
            );
        }
        if with_chance {
            keep_states(&chance_cell, &mut states)?;
            let id = identities.maps(label, fold, seed, block, CHANCE)?;
            let scores = chance.iter().map(|c| (c.label().to_string(), identities.metric(c.label()))).collect();
            made.cells.insert(CHANCE.into(), CellRecord { id, scores, ..CellRecord::default() });
        }
        let folder = &self.folder;
        if predict {
            made.predictions = Some(identities.predictions(label, fold, seed, block)?);
            let (mut names, mut list) = (Names::default(), Vec::new());
            predictions.sort_by_key(|(i, ..)| *i);
            for (i, scores, logits) in &predictions {
                for (c, class) in task.classes.iter().enumerate() {
                    list.push(Prediction {
                        image: names.number(&samples[*i].id),
                        model: names.number(label),
                        fold: fold as i32,
                        seed: seed as i32,
                        class: names.number(class),
                        label: samples[*i].has(c),
                        score: scores[c],
                        logit: logits[c],
                    });
                }
            }
            results::write_predictions(&folder.unit(stem, "predictions.parquet"), &names, &list)?;
        }
        checkpoint::write(&folder.unit(stem, "maps.safetensors"), &file)?;
        if !states.is_empty() {
            checkpoint::write(&folder.unit(stem, "states.safetensors"), &states)?;
        }
        results::write_scores(&folder.unit(stem, "scores.parquet"), &rows.names, &rows.rows)?;
        Ok(made)
    }

    /// Scores the stored maps of a block by further metrics.
    pub fn score(&mut self, unit: &Unit, stem: &str) -> Result<Made> {
        let Unit::Score { model: label, fold, seed, block, explainers, metrics: wanted, .. } = unit else {
            return Err(Error::new(Exit::Other, "no unit of scores"));
        };
        let (label, fold, seed, block) = (label.as_str(), *fold, *seed, *block);
        let (source, split) = (self.source()?, self.split()?);
        let samples = source.samples();
        let spec = self.spec.clone();
        let choices: Vec<&MetricChoice> =
            spec.metrics.iter().filter(|m| wanted.iter().any(|w| w == m.label())).collect();
        let asks = |m: &&&MetricChoice| {
            metrics::find(&m.name).is_ok_and(|m| [m.needs().model, m.needs().explainer, m.needs().fork].contains(&true))
        };
        // Only a metric that asks the model needs one, and its explainers.
        let real: Vec<String> = explainers.iter().filter(|e| *e != CHANCE).cloned().collect();
        let ask = choices.iter().any(|m| asks(&m));
        self.open_engine(label, fold, seed, if ask { &real } else { &[] })?;
        let (store, task, identities) = (self.store_of(label)?, spec.task.clone(), self.identities()?);
        let index = Index::new(&self.folder.records()?);
        let engine = self.opened()?;
        let side = engine.spec.input.height;
        let indices = plan_block(&split.test, spec.block, block);
        let mut rows = Rows { names: Names::default(), rows: vec![], samples, place: (label, fold, seed) };
        let mut made = Made { images: indices.len(), ..Made::default() };
        let mut states: State = Vec::new();
        'explainers: for name in explainers {
            let id = identities.maps(label, fold, seed, block, name)?;
            let missing = || Error::new(Exit::Other, format!("the maps of {label} x {name} are not there"));
            let (images, stored, outputs) = if name == CHANCE {
                let mut shown = Vec::new();
                for &i in indices {
                    if is_explained(&task, &samples[i], &store, i)? {
                        shown.push(i as i64);
                    }
                }
                (shown, None, vec![String::new()])
            } else {
                let stem = index.maps((label, fold, seed), block, name, &id).ok_or_else(missing)?;
                let record: super::folder::Record = super::folder::read_json(&self.folder.unit(stem, "json"))?;
                let outputs = record.cells.get(name).ok_or_else(missing)?.outputs.clone();
                let file = checkpoint::read(&self.folder.unit(stem, "maps.safetensors"))?;
                let find = |key: &str| file.iter().find(|(n, _)| n == key).map(|(_, t)| t.shallow_clone());
                let images = Vec::<i64>::try_from(find("images").ok_or_else(missing)?)?;
                (images, find(&format!("maps.{name}")), outputs)
            };
            let explainer = engine.explainers.iter().position(|e| e.label == *name);
            let mut cells = Vec::new();
            for output in &outputs {
                cells.push(Cell::start(name, output, &choices, spec.seed)?);
            }
            for (at, part) in images.chunks(spec.batch_size).enumerate() {
                self.voice.say(Event::Progress { unit: unit.key(), done: at * spec.batch_size, of: images.len() });
                let part: Vec<usize> = part.iter().map(|i| *i as usize).collect();
                let ids: Vec<u64> = part.iter().map(|&i| engine::image_id(&samples[i].id)).collect();
                let batch = store.batch(&part)?;
                let mut targets = Vec::new();
                for &i in &part {
                    targets.push(target(&task, &samples[i])?.unwrap_or(-1));
                }
                if targets.contains(&-1) {
                    let first = engine.classify(&batch)?.f_argmax(1, false)?;
                    let first = Vec::<i64>::try_from(first)?;
                    targets.iter_mut().zip(first).filter(|(t, _)| **t < 0).for_each(|(t, f)| *t = f);
                }
                let scene = Scene::new(&store, samples, &batch, &part, &targets, &ids, side)?;
                for (k, cell) in cells.iter_mut().enumerate() {
                    let map = match &stored {
                        Some(all) => {
                            let rows = all.f_narrow(0, (at * spec.batch_size) as i64, part.len() as i64)?;
                            rows.f_select(1, k as i64)?.f_to_device(engine.device())?
                        }
                        None => {
                            Tensor::f_zeros([part.len() as i64, side as i64, side as i64], (Kind::Float, Device::Cpu))?
                        }
                    };
                    let mut bench = CellBench { engine, explainer, task: &task, batch: spec.batch_size };
                    let (unit, model) = (unit.key(), label.to_string());
                    if name != CHANCE {
                        self.voice.say(Event::CellStarted { unit: unit.clone(), model, explainer: name.clone() });
                    }
                    let scored = score(cell, &map, &scene, &mut bench, &mut rows);
                    self.voice.say(Event::CellLeft { unit });
                    match scored {
                        Ok(()) => {}
                        Err(e) if e.exit == Exit::Interrupted || crate::signals::interrupted() || name == CHANCE => {
                            return Err(e);
                        }
                        Err(e) => {
                            // The explainer's own failure; the others' scores stand.
                            self.voice.say(failed(label, name, FailureKind::Error, e.message));
                            let number = rows.names.number(name);
                            rows.rows.retain(|r| r.explainer != number);
                            continue 'explainers;
                        }
                    }
                }
            }
            cells.iter().try_for_each(|cell| keep_states(cell, &mut states))?;
            let scores = choices.iter().map(|c| (c.label().to_string(), identities.metric(c.label()))).collect();
            made.cells.insert(name.clone(), CellRecord { id, outputs, scores, ..CellRecord::default() });
        }
        if !states.is_empty() {
            checkpoint::write(&self.folder.unit(stem, "states.safetensors"), &states)?;
        }
        results::write_scores(&self.folder.unit(stem, "scores.parquet"), &rows.names, &rows.rows)?;
        Ok(made)
    }

    /// Brings together the blocks of a model, fold and training.
    pub fn reduce(&mut self, unit: &Unit, stem: &str) -> Result<Made> {
        let Unit::Reduce { model: label, fold, seed } = unit else {
            return Err(Error::new(Exit::Other, "no unit that reduces"));
        };
        let place = (label.as_str(), *fold, *seed);
        let (spec, identities, source) = (self.spec.clone(), self.identities()?, self.source()?);
        let cells = self.folder.cells()?;
        let folds = self.split()?.folds.len();
        let plan = plan::Plan { spec: &spec, identities: &identities, cells: &cells, folds };
        let index = Index::new(&self.folder.records()?);
        let mut rows = Rows { names: Names::default(), rows: vec![], samples: source.samples(), place };
        let (mut names, mut predictions) = (Names::default(), Vec::new());
        for block in 0..identities.blocks() {
            let id = identities.predictions(label, *fold, *seed, block)?;
            let Some(stem) = index.predictions(place, block, &id) else { continue };
            let file = self.folder.unit(stem, "predictions.parquet");
            results::read_predictions(&file, &mut names, &mut |p| predictions.push(p))?;
        }
        let table = Table::new(&predictions, &spec.task, &names);
        for choice in &spec.metrics {
            let metric = metrics::find(&choice.name)?;
            if metric.needs().maps.is_none() {
                rows.push("", -1, "", "", choice.label(), metric.predictions(&table.view(&spec.task))?);
            }
        }
        let running = plan.running(label)?;
        let chance = plan::chance_metrics(&spec)?;
        let mut opened: BTreeMap<String, State> = BTreeMap::new();
        for choice in plan::map_metrics(&spec)?.into_iter().filter(|m| plan::is_set(m)) {
            let metric = metrics::find(&choice.name)?;
            let parameters = metric.spec().resolve(&choice.params)?;
            let has_chance = chance.iter().any(|c| c.label() == choice.label()) && !spec.explainers.is_empty();
            for explainer in running.iter().map(|(e, _)| e.as_str()).chain(has_chance.then_some(CHANCE)) {
                // By output: what all blocks have summed up.
                let mut merged: BTreeMap<String, Box<dyn Evaluation>> = BTreeMap::new();
                for block in 0..identities.blocks() {
                    let maps = identities.maps(label, *fold, *seed, block, explainer)?;
                    let ids = (maps.as_str(), identities.metric(choice.label()));
                    let found = index.scores(place, block, explainer, choice.label(), (ids.0, &ids.1));
                    let Some(stem) = found else { continue };
                    if !opened.contains_key(stem) {
                        let file = self.folder.unit(stem, "states.safetensors");
                        opened.insert(stem.into(), if file.is_file() { checkpoint::read(&file)? } else { vec![] });
                    }
                    let mut states: BTreeMap<String, State> = BTreeMap::new();
                    for (name, tensor) in &opened[stem] {
                        let parts: Vec<&str> = name.split('\u{1f}').collect();
                        if let [e, output, metric, field] = parts[..]
                            && (e, metric) == (explainer, choice.label())
                        {
                            states.entry(output.into()).or_default().push((field.into(), tensor.shallow_clone()));
                        }
                    }
                    for (output, state) in states {
                        if !merged.contains_key(&output) {
                            merged.insert(output.clone(), metric.start(&parameters, spec.seed)?);
                        }
                        if let Some(evaluation) = merged.get_mut(&output) {
                            evaluation.merge(&state)?;
                        }
                    }
                }
                for (output, evaluation) in merged {
                    if let Some(score) = evaluation.finish()? {
                        rows.push("", -1, explainer, &output, choice.label(), score);
                    }
                }
            }
        }
        results::write_scores(&self.folder.unit(stem, "scores.parquet"), &rows.names, &rows.rows)?;
        let reduced = Some(plan.reduced(label, *fold, *seed)?);
        Ok(Made { images: table.images.len(), reduced, ..Made::default() })
    }

    /// Lets an explainer see the training set, and stores what it hands back.
    pub fn fit(&mut self, unit: &Unit) -> Result<usize> {
        let Unit::Fit { model: label, fold, seed, explainer, .. } = unit else {
            return Err(Error::new(Exit::Other, "no unit of a fit"));
        };
        let (fold, seed) = (*fold, *seed);
        let (source, split, spec) = (self.source()?, self.split()?, self.spec.clone());
        let samples = source.samples();
        self.open_engine(label, fold, seed, std::slice::from_ref(explainer))?;
        let (store, identities, voice) = (self.store_of(label)?, self.identities()?, self.voice.clone());
        let engine = self.opened()?;
        let Some(needs) = engine.explainers.first().and_then(|e| e.fit().cloned()) else {
            return Err(Error::plugin(format!("explainer {explainer} did not ask for a fit")));
        };
        let explained = spec.task.explained()?;
        let target = if let Explained::Class(class) = explained { Some(class as i64) } else { None };
        let train = &split.folds[fold].train;
        let train = &train[..if needs.images == 0 { train.len() } else { needs.images.min(train.len()) }];
        let (classes, side, at) = (engine.spec.classes, engine.spec.input.height, RefCell::new(0));
        let key = unit.key();
        let next = |rewind: bool| -> std::result::Result<Option<FitBatch>, lightbox_sdk::Error> {
            let other = |e: &dyn std::fmt::Display| lightbox_sdk::Error::invalid(e.to_string());
            let mut at = at.borrow_mut();
            if rewind {
                *at = 0;
            }
            let indices = &train[*at..(*at + spec.batch_size).min(train.len())];
            if indices.is_empty() {
                return Ok(None);
            }
            *at += indices.len();
            voice.say(Event::Progress { unit: key.clone(), done: *at, of: train.len() });
            let images = Array::from_tensor(&store.batch(indices).map_err(|e| other(&e))?)?;
            let response =
                engine.request(&Request { values: needs.values.clone(), ..Request::forward(images.clone()) });
            let response = response.map_err(|e| other(&e))?;
            let n = indices.len();
            let label = |i: &usize, c: usize| f32::from(u8::from(samples[*i].has(c)));
            let labels = indices.iter().flat_map(|i| (0..classes).map(move |c| label(i, c))).collect();
            let mut masks = Vec::with_capacity(n * side * side);
            for &i in indices {
                let class = target.map_or_else(|| samples[i].stratum(), |t| t as usize);
                masks.extend(store.mask(i, samples[i].mask_bit(class)).unwrap_or_else(|| vec![0; side * side]));
            }
            let cpu_only = engine.explainers.first().is_some_and(|e| e.spec.cpu_only);
            let place = |a: &Array| if cpu_only { a.to_cpu() } else { Ok(a.clone()) };
            let values = response.values.iter().map(|(name, a)| Ok((name.clone(), place(a)?)));
            Ok(Some(FitBatch {
                images: place(&images)?,
                labels: Array::from_vec(&[n, classes], labels)?,
                masks: Array::from_vec(&[n, side, side], masks)?,
                known: Array::from_vec(&[n], indices.iter().map(|&i| store.known(i)).collect::<Vec<bool>>())?,
                ids: indices.iter().map(|&i| engine::image_id(&samples[i].id)).collect(),
                values: values.collect::<std::result::Result<_, lightbox_sdk::Error>>()?,
                logits: place(&response.logits)?,
            }))
        };
        let (model, name) = (label.clone(), explainer.clone());
        voice.say(Event::CellStarted { unit: key.clone(), model, explainer: name });
        let fitted = engine.fit(0, target, fold as u64, seed as u64, &next);
        voice.say(Event::CellLeft { unit: key.clone() });
        let fitted = match fitted {
            Ok(fitted) => fitted,
            Err(e) if crate::signals::interrupted() => return Err(Error::new(Exit::Interrupted, e.message)),
            Err(e) => {
                voice.say(failed(label, explainer, FailureKind::Error, e.message));
                return Ok(0);
            }
        };
        let mut state: State = Vec::new();
        for (name, array) in &fitted {
            state.push((name.clone(), array.share_tensor()?));
        }
        let id = identities.fit(label, fold, seed, explainer)?;
        checkpoint::write(&self.folder.fit(label, fold, seed, explainer, &id), &state)?;
        Ok(train.len())
    }
}

fn keep_states(cell: &Cell, into: &mut State) -> Result<()> {
    for (choice, _, evaluation) in &cell.evaluations {
        if metrics::find(&choice.name)?.spec().level == Level::Set {
            for (field, tensor) in evaluation.state()? {
                into.push((state_name([&cell.explainer, &cell.output, choice.label(), &field]), tensor));
            }
        }
    }
    Ok(())
}

/// The test images of a block.
pub fn plan_block(test: &[usize], size: usize, block: usize) -> &[usize] {
    let start = (block * size).min(test.len());
    &test[start..(start + size).min(test.len())]
}
