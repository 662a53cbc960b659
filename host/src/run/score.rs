//! What needs no new maps: stored maps of a block scored by further metrics, and the blocks of a fold brought together.

use super::events::{Event, FailureKind};
use super::explain::Made;
use super::folder::{AgreementRecord, CellRecord, CurveRecord, Record, read_json, write_lines};
use super::plan::{self, Index, Plan};
use super::scoring::{Cell, CellBench, Rows, Scene, asks, block_of, failed, is_explained, keep_states, score, target};
use super::spec::MetricChoice;
use super::unit::Unit;
use super::worker::Worker;
use crate::engine;
use crate::error::{Error, Exit, Result};
use lightbox_core::agreement;
use lightbox_core::checkpoint::{self, State};
use lightbox_core::metrics::memo::Memo;
use lightbox_core::metrics::{self, Bench, Evaluation, NoBench};
use lightbox_core::predictions::Table;
use lightbox_core::results::{self, Names};
use lightbox_core::summary::CHANCE;
use lightbox_core::task::Explained;
use std::collections::{BTreeMap, HashMap};

impl Worker {
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
        // Only a metric that asks the model needs one, and its explainers.
        let real: Vec<String> = explainers.iter().filter(|e| *e != CHANCE).cloned().collect();
        let ask = choices.iter().any(|m| asks(m));
        // The predicted class is the model's answer too.
        let needs_model = ask || spec.task.explained()? == Explained::Predicted;
        if needs_model {
            self.open_engine(label, fold, seed, if ask { &real } else { &[] })?;
        }
        let (store, task, identities) = (self.store_of(label)?, spec.task.clone(), self.identities()?);
        let index = Index::new(&self.folder.records_of(label, fold, seed)?);
        let device = self.device;
        let engine = needs_model.then(|| self.opened()).transpose()?;
        let indices = block_of(&split, samples, &task, fold, spec.block, block)?;
        let mut rows = Rows { names: Names::default(), rows: vec![], samples, place: (label, fold, seed) };
        let mut made = Made { images: indices.len(), ..Made::default() };
        let mut states: State = Vec::new();
        // Explainers of a block have the same batches, whose classes are asked for once.
        let mut explained: HashMap<Vec<usize>, Vec<i64>> = HashMap::new();
        'explainers: for name in explainers {
            let id = identities.maps(label, fold, seed, block, name)?;
            let missing = || Error::new(Exit::Other, format!("the maps of {label} x {name} are not there"));
            let (images, stored, outputs) = if name == CHANCE {
                let mut shown = Vec::new();
                for &i in &indices {
                    if is_explained(&task, &samples[i], &store, i)? {
                        shown.push(i as i64);
                    }
                }
                (shown, None, vec![String::new()])
            } else {
                let stem = index.maps((label, fold, seed), block, name, &id).ok_or_else(missing)?;
                let record: Record = read_json(&self.folder.unit(stem, "json"))?;
                let outputs = record.cells.get(name).ok_or_else(missing)?.outputs.clone();
                let file = self.folder.unit(stem, "maps.safetensors");
                let mut picked = checkpoint::pick(&file, &["images", &format!("maps.{name}")])?;
                let (maps, images) = (picked.pop().flatten(), picked.pop().flatten());
                let images = Vec::<i64>::try_from(images.ok_or_else(missing)?)?;
                // A block in which nothing is explained has none.
                let maps = if images.is_empty() { None } else { Some(maps.ok_or_else(missing)?) };
                (images, maps, outputs)
            };
            let explainer = |k: usize| Some((engine?.explainers.iter().position(|e| e.label == *name)?, k));
            let mut cells = Vec::new();
            for output in &outputs {
                cells.push(Cell::start(name, output, self.signed(name)?, &choices, spec.seed)?);
            }
            for (at, part) in images.chunks(spec.batch_size).enumerate() {
                self.voice.say(Event::Progress { unit: unit.key(), done: at * spec.batch_size, of: images.len() });
                let part: Vec<usize> = part.iter().map(|i| *i as usize).collect();
                let batch = store.batch(&part)?;
                if !explained.contains_key(&part) {
                    let mut targets = Vec::new();
                    for &i in &part {
                        targets.push(target(&task, &samples[i])?.unwrap_or(-1));
                    }
                    if targets.contains(&-1) {
                        let model = engine.ok_or_else(|| Error::new(Exit::Other, "no model is open"))?;
                        let first = model.classify(&batch)?.f_argmax(1, false)?;
                        let first = Vec::<i64>::try_from(first)?;
                        targets.iter_mut().zip(first).filter(|(t, _)| **t < 0).for_each(|(t, f)| *t = f);
                    }
                    explained.insert(part.clone(), targets);
                }
                let targets = &explained[&part];
                let (scene, shared) = (Scene::new(&store, samples, &batch, &part, targets)?, Memo::default());
                for (k, cell) in cells.iter_mut().enumerate() {
                    let map = match &stored {
                        Some(all) => {
                            let rows = all.f_narrow(0, (at * spec.batch_size) as i64, part.len() as i64)?;
                            rows.f_select(1, k as i64)?.f_to_device(device)?
                        }
                        None => scene.flat()?,
                    };
                    let (mut asked, mut none);
                    let bench: &mut dyn Bench = match engine {
                        Some(engine) => {
                            asked = CellBench { engine, explainer: explainer(k), task: &task, batch: spec.batch_size };
                            &mut asked
                        }
                        None => {
                            none = NoBench;
                            &mut none
                        }
                    };
                    let (unit, model) = (unit.key(), label.to_string());
                    if name != CHANCE {
                        self.voice.say(Event::CellStarted { unit: unit.clone(), model, explainer: name.clone() });
                    }
                    let scored = score(cell, &map, &scene, &shared, bench);
                    self.voice.say(Event::CellLeft { unit });
                    match scored {
                        Ok(()) => {}
                        Err(e) if crate::signals::interrupted() => {
                            return Err(Error::new(Exit::Interrupted, e.message));
                        }
                        Err(e) if e.exit == Exit::DiskFull || name == CHANCE => {
                            return Err(e);
                        }
                        Err(e) => {
                            // The explainer's own failure; the others' scores stand.
                            self.voice.say(failed(label, name, FailureKind::Error, e.message));
                            continue 'explainers;
                        }
                    }
                }
            }
            cells.iter_mut().for_each(|cell| rows.take(cell));
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

    /// How alike the maps of the explainers are, over the first explained images of each block.
    fn agreement(&self, plan: &Plan<'_>, index: &Index, place: (&str, usize, usize)) -> Result<AgreementRecord> {
        let (label, fold, seed) = place;
        let ids = plan.identities;
        let running = plan.running(label)?;
        let each = self.spec.agreement.div_ceil(ids.blocks().max(1));
        // By explainer and output: prints by image.
        let mut found: Vec<((String, String), BTreeMap<i64, agreement::Print>)> = Vec::new();
        for block in (0..ids.blocks()).filter(|_| each > 0 && running.len() > 1) {
            for (name, _) in &running {
                let id = ids.maps(label, fold, seed, block, name)?;
                let Some(stem) = index.maps(place, block, name, &id) else { continue };
                let record: Record = read_json(&self.folder.unit(stem, "json"))?;
                let outputs = record.cells.get(name).map(|c| c.outputs.clone()).unwrap_or_default();
                let file = self.folder.unit(stem, "maps.safetensors");
                let picked = checkpoint::pick(&file, &["images", &format!("maps.{name}")])?;
                let [Some(images), Some(maps)] = picked.as_slice() else { continue };
                let images = Vec::<i64>::try_from(images)?;
                let n = images.len().min(each);
                for (k, output) in outputs.iter().enumerate() {
                    let prints = agreement::prints(&maps.f_narrow(0, 0, n as i64)?.f_select(1, k as i64)?)?;
                    let key = (name.clone(), output.clone());
                    if !found.iter().any(|(k, _)| *k == key) {
                        found.push((key.clone(), BTreeMap::new()));
                    }
                    let Some((_, mine)) = found.iter_mut().find(|(k, _)| *k == key) else { continue };
                    mine.extend(images.iter().zip(prints).filter_map(|(i, p)| p.map(|p| (*i, p))));
                }
            }
        }
        let mut images: Vec<i64> = found.iter().flat_map(|(_, prints)| prints.keys().copied()).collect();
        images.sort_unstable();
        images.dedup();
        let mut sums = agreement::Sums::new(found.len());
        for image in &images {
            sums.add(&found.iter().map(|(_, prints)| prints.get(image)).collect::<Vec<_>>());
        }
        let maps = found.into_iter().map(|(key, _)| key).collect();
        let agreement::Sums { correlation, overlap, counts, .. } = sums;
        Ok(AgreementRecord { maps, images: images.len(), correlation, overlap, counts })
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
        let plan = Plan { spec: &spec, identities: &identities, cells: &cells, folds };
        let index = Index::new(&self.folder.records_of(label, *fold, *seed)?);
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
        let by_id: HashMap<u64, usize> =
            source.samples().iter().enumerate().map(|(i, s)| (engine::image_id(&s.id), i)).collect();
        let mut curves = Vec::new();
        for choice in plan::map_metrics(&spec)? {
            let metric = metrics::find(&choice.name)?;
            let parameters = metric.spec().resolve(&choice.params)?;
            let has_chance = chance.iter().any(|c| c.label() == choice.label()) && !spec.explainers.is_empty();
            for explainer in running.iter().map(|(e, _)| e.as_str()).chain(has_chance.then_some(CHANCE)) {
                // By output: what all blocks have summed up, and what the validation images gave.
                let mut merged: BTreeMap<String, Box<dyn Evaluation>> = BTreeMap::new();
                let mut validation: BTreeMap<String, State> = BTreeMap::new();
                let tuned = metric.needs().validation && identities.validates(*fold);
                for block in 0..identities.blocks() + usize::from(tuned) {
                    let maps = identities.maps(label, *fold, *seed, block, explainer)?;
                    let ids = (maps.as_str(), identities.metric(choice.label()));
                    let found = index.scores(place, block, explainer, choice.label(), (ids.0, &ids.1));
                    let Some(stem) = found else { continue };
                    if !opened.contains_key(stem) {
                        let file = self.folder.unit(stem, "states.safetensors");
                        opened.insert(stem.into(), if file.is_file() { checkpoint::read_own(&file)? } else { vec![] });
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
                    if block >= identities.blocks() {
                        validation = states;
                        continue;
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
                for (output, mut evaluation) in merged {
                    if metric.needs().validation {
                        evaluation.tune(&validation.remove(&output).unwrap_or_default())?;
                    }
                    for (id, score) in evaluation.images()? {
                        let image =
                            by_id.get(&id).ok_or_else(|| Error::new(Exit::Other, "an image is not the data's"))?;
                        rows.push(&source.samples()[*image].id, -1, explainer, &output, choice.label(), score);
                    }
                    if let Some(score) = evaluation.finish()? {
                        rows.push("", -1, explainer, &output, choice.label(), score);
                    }
                    if let Some(curve) = evaluation.curve()? {
                        let (explainer, metric) = (explainer.to_string(), choice.label().to_string());
                        curves.push(CurveRecord { explainer, output, metric, curve });
                    }
                }
            }
        }
        let alike = self.agreement(&plan, &index, place)?;
        if !alike.maps.is_empty() {
            write_lines(&self.folder.unit(stem, "agreement.jsonl"), &[alike])?;
        }
        if !curves.is_empty() {
            write_lines(&self.folder.unit(stem, "curves.jsonl"), &curves)?;
        }
        results::write_scores(&self.folder.unit(stem, "scores.parquet"), &rows.names, &rows.rows)?;
        let reduced = Some(plan.reduced(label, *fold, *seed)?);
        Ok(Made { images: table.images.len(), reduced, ..Made::default() })
    }
}
