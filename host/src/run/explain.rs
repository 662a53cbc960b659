//! The way of a batch: store -> images -> the shared run -> maps -> metrics -> rows. Maps stay on the device until they are
//! scored; one copy goes to the unit's file. Nothing turns back: only a new metric reads maps from a file.

use super::beside::{Beside, Failure, Job, Scoring};
use super::events::{Event, FailureKind};
use super::folder::CellRecord;
use super::plan;
use super::scoring::{Cell, CellBench, Rows, Scene, asks, block_of, failed, is_explained, keep_states, score, target};
use super::spec::MetricChoice;
use super::spent::Spent;
use super::unit::Unit;
use super::worker::Worker;
use crate::engine;
use crate::error::{Error, Exit, Result};
use lightbox_core::checkpoint::{self, State};
use lightbox_core::metrics::memo::Memo;
use lightbox_core::results::{self, Names, Prediction};
use lightbox_core::summary::CHANCE;
use lightbox_sdk::spec::Plan;
use std::collections::{BTreeMap, HashSet};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// What a unit of this module made, for its record.
#[derive(Default)]
pub struct Made {
    pub images: usize,
    pub predictions: Option<String>,
    pub reduced: Option<String>,
    pub cells: BTreeMap<String, CellRecord>,
    pub spent: Spent,
}

/// Adds the seconds of a call to a part.
fn timed<T>(part: &mut f64, call: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let value = call();
    *part += started.elapsed().as_secs_f64();
    value
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
        let indices = block_of(&split, samples, &task, fold, spec.block, block)?;
        // The fold's validation images, on which some metrics are tuned: what they score is no result.
        let validating = block >= identities.blocks();

        let mut shown = Vec::new();
        let mut rest = Vec::new();
        for &i in &indices {
            let explained = is_explained(&task, &samples[i], &store, i)?;
            if explained { shown.push(i) } else { rest.push(i) }
        }
        let choices = if validating { plan::tuned_metrics(&spec)? } else { plan::map_metrics(&spec)? };
        let chance = plan::chance_metrics(&spec)?;
        let with_chance = predict && !spec.explainers.is_empty();
        let (asking, plain): (Vec<&MetricChoice>, Vec<&MetricChoice>) = choices.iter().partition(|c| asks(c));
        let explainers = engine.explainers.iter().map(|e| (e.label.clone(), e.spec.signed)).collect();
        let plain = plain.into_iter().cloned().collect();
        let scoring = Scoring::new(plain, with_chance.then_some(&chance[..]), explainers, spec.seed, voice.clone())?;
        let mut beside = Beside::start(scoring, self.spare)?;
        // Those that ask the model are this thread's.
        let mut cells: BTreeMap<usize, Vec<Cell>> = BTreeMap::new();
        let mut stored: BTreeMap<usize, (Vec<String>, Vec<Tensor>)> = BTreeMap::new();
        let mut seconds: BTreeMap<usize, f64> = BTreeMap::new();
        let mut predictions: Vec<(usize, Vec<f64>, Vec<f64>)> = Vec::new();
        let mut rows = Rows { names: Names::default(), rows: vec![], samples, place: (label, fold, seed) };
        let mut broken: HashSet<usize> = HashSet::new();
        for (index, explainer) in engine.explainers.iter().enumerate() {
            if let Plan::NotApplicable { reason } = &explainer.plan {
                // The survey heard otherwise.
                broken.insert(index);
                let text = format!("it does not apply in fold {fold}: {reason}");
                voice.say(failed(label, &explainer.label, FailureKind::Error, text));
            }
        }
        // Images that explainers ran the model on for the maps themselves; metrics may ask them again.
        let mut ran: Vec<u64> = vec![0; engine.explainers.len()];
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
        let fail = |broken: &mut HashSet<usize>, failures: Vec<Failure>| {
            for (index, error) in failures {
                // One that has failed since has said so.
                if broken.insert(index) {
                    voice.say(failed(label, &engine.explainers[index].label, FailureKind::Error, error.message));
                }
            }
        };
        let batches = |of: &[usize]| of.chunks(spec.batch_size).map(<[usize]>::to_vec).collect::<Vec<_>>();
        let key = unit.key();
        let mut spent = Spent::default();
        let mut fetched = store.batches(batches(&shown));
        while let Some(batch) = timed(&mut spent.data, || fetched.next()) {
            let (indices, mut images) = batch?;
            let ids: Vec<u64> = indices.iter().map(|&i| engine::image_id(&samples[i].id)).collect();
            let mut targets = Vec::new();
            for &i in &indices {
                targets.push(target(&task, &samples[i])?.unwrap_or(-1));
            }
            // Once, and once more for each explainer that wrote to what it was given.
            let result = loop {
                let active: Vec<usize> = (0..engine.explainers.len()).filter(|i| !broken.contains(i)).collect();
                let before: Vec<u64> = (0..ran.len()).map(|i| engine.runs(i)).collect();
                let result = engine.run(&images, &targets, &ids, &active, &mut |explainer| {
                    let (unit, model, explainer) = (key.clone(), label.to_string(), explainer.label.clone());
                    voice.say(Event::CellStarted { unit, model, explainer });
                })?;
                voice.say(Event::CellLeft { unit: key.clone() });
                spent.model += result.model_seconds;
                spent.explainers += result.seconds.iter().map(|(_, s)| s).sum::<f64>();
                ran.iter_mut().enumerate().for_each(|(i, n)| *n += engine.runs(i) - before[i]);
                let Some(culprit) = result.tampered else { break result };
                broken.insert(culprit);
                let name = &engine.explainers[culprit].label;
                voice.say(failed(label, name, FailureKind::Tampered, engine::tampered(name).to_string()));
                images = store.batch(&indices)?;
            };
            if predict {
                predicted(&indices, &result.logits, &mut predictions)?;
            }
            let scene = timed(&mut spent.metrics, || Scene::new(&store, samples, &images, &indices, &result.targets))?;
            let (shared, mut job) = (Memo::default(), Job { scene: scene.share(), maps: vec![] });
            for (index, outcome) in result.maps {
                let name = engine.explainers[index].label.clone();
                *seconds.entry(index).or_default() +=
                    result.seconds.iter().find(|(i, _)| *i == index).map_or(0.0, |(_, s)| *s);
                let take = || -> Result<()> {
                    let outputs = outcome?;
                    let kept = stored.entry(index).or_insert_with(|| (outputs.names.clone(), vec![]));
                    if kept.0 != outputs.names {
                        let text = format!("explainer {name} names its maps {:?}, before {:?}", outputs.names, kept.0);
                        return Err(Error::plugin(text));
                    }
                    let mut mapped = Vec::new();
                    for (k, output) in outputs.names.iter().enumerate() {
                        let mine = cells.entry(index).or_default();
                        if mine.len() == k {
                            let signed = engine.explainers[index].spec.signed;
                            mine.push(Cell::start(&name, output, signed, &asking, spec.seed)?);
                        }
                        let explainer = Some((index, k));
                        let mut bench = CellBench { engine, explainer, task: &task, batch: spec.batch_size };
                        let map = outputs.output(k)?;
                        timed(&mut spent.metrics, || score(&mut mine[k], &map, &scene, &shared, &mut bench))?;
                        mapped.push((output.clone(), map));
                    }
                    let copy = outputs.maps.f_to_device(Device::Cpu)?;
                    let side = |t: &Tensor| t.size()[2..].to_vec();
                    if let Some(first) = kept.1.first().filter(|first| side(first) != side(&copy)) {
                        let (now, before) = (side(&copy), side(first));
                        let text = format!("explainer {name} gives maps of {now:?}, before of {before:?}");
                        return Err(Error::plugin(text));
                    }
                    kept.1.push(copy);
                    job.maps.push((index, mapped));
                    Ok(())
                };
                // A metric may ask the explainer again: it is the one at work.
                let (unit, model) = (key.clone(), label.to_string());
                voice.say(Event::CellStarted { unit: unit.clone(), model, explainer: name.clone() });
                let taken = take();
                voice.say(Event::CellLeft { unit });
                match taken {
                    Ok(()) => {}
                    Err(e) if crate::signals::interrupted() => return Err(Error::new(Exit::Interrupted, e.message)),
                    Err(e) if e.exit == Exit::DiskFull => return Err(e),
                    Err(e) => {
                        broken.insert(index);
                        voice.say(failed(label, &name, FailureKind::Error, e.message));
                    }
                }
            }
            fail(&mut broken, timed(&mut spent.metrics, || beside.take(job))?);
            done += indices.len();
            voice.say(Event::Progress { unit: key.clone(), done, of });
        }
        let mut fetched = store.batches(batches(if predict { &rest } else { &[] }));
        while let Some(batch) = timed(&mut spent.data, || fetched.next()) {
            let (indices, images) = batch?;
            let logits = timed(&mut spent.model, || engine.classify(&images))?;
            predicted(&indices, &logits, &mut predictions)?;
            done += indices.len();
            voice.say(Event::Progress { unit: key.clone(), done, of });
        }

        let (mut scoring, failures) = timed(&mut spent.metrics, || beside.finish())?;
        fail(&mut broken, failures);
        let mut made = Made { images: done, ..Made::default() };
        let mut states: State = Vec::new();
        let explained: Vec<i64> = shown.iter().map(|&i| i as i64).collect();
        let mut file: State = vec![("images".into(), Tensor::f_from_slice(&explained)?)];
        for (index, explainer) in engine.explainers.iter().enumerate() {
            let name = &explainer.label;
            if broken.contains(&index) {
                continue;
            }
            // Of a block without an image to explain there are no maps, and that is all of them.
            let (outputs, tensors) = stored.remove(&index).unwrap_or_default();
            if !tensors.is_empty() {
                file.push((format!("maps.{name}"), Tensor::f_cat(&tensors, 0)?));
            }
            let id = identities.maps(label, fold, seed, block, name)?;
            let scores = choices.iter().map(|c| (c.label().to_string(), identities.metric(c.label()))).collect();
            for mut cell in [&mut scoring.cells, &mut cells].into_iter().filter_map(|c| c.remove(&index)).flatten() {
                rows.take(&mut cell);
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
                    runs: ran[index],
                    images: shown.len(),
                },
            );
        }
        if let Some(mut cell) = scoring.chance {
            rows.take(&mut cell);
            keep_states(&cell, &mut states)?;
            let id = identities.maps(label, fold, seed, block, CHANCE)?;
            let scores = chance.iter().map(|c| (c.label().to_string(), identities.metric(c.label()))).collect();
            made.cells.insert(CHANCE.into(), CellRecord { id, scores, ..CellRecord::default() });
        }
        let folder = &self.folder;
        let writing = Instant::now();
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
        spent.files += writing.elapsed().as_secs_f64();
        made.spent = spent;
        Ok(made)
    }
}
