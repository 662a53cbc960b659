//! Scores stored maps of a chunk by metrics that they have not been scored by.

use super::chunk::prepared::{Prepared, Row, Rows, images_of};
use super::events::Event;
use super::folder::{CellRecord, Record, read_json};
use super::index::Index;
use super::scorer::{Cell, CellBench, Scene, TableRows, asks, failed, keep_states, score};
use super::spec::MetricChoice;
use super::unit::FailureKind;
use super::unit::Unit;
use super::unit_result::UnitResult;
use super::worker::Worker;
use crate::engine::predicted;
use crate::error::{Error, Exit, Result};
use lightbox_core::checkpoint::{self, State};
use lightbox_core::maps_file::MapsFile;
use lightbox_core::metrics::batch_cache::BatchCache;
use lightbox_core::metrics::{Bench, NoBench};
use lightbox_core::results::{self, Names};
use lightbox_core::summary::CHANCE;
use lightbox_core::task::Explained;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// The rows of a file of maps.
fn stored_rows(file: Option<&MapsFile>) -> Rows {
    let row = |(image, class): (&i64, &i64)| Row { image: *image as usize, class: usize::try_from(*class).ok() };
    Rows(file.map_or(vec![], |f| f.images.iter().zip(&f.targets).map(row).collect()))
}

impl Worker {
    /// Scores the stored maps of a chunk by further metrics.
    pub fn score(&mut self, unit: &Unit, stem: &str) -> Result<UnitResult> {
        let Unit::Score { model: label, fold, training, chunk, explainers, metrics: wanted, .. } = unit else {
            return Err(Error::new(Exit::Other, "no unit of scores"));
        };
        let (label, fold, training, chunk) = (label.as_str(), *fold, *training, *chunk);
        let (source, plan) = (self.source()?, self.plan.clone());
        let (samples, spec, split) = (source.samples(), &plan.spec, &plan.split);
        let choices: Vec<&MetricChoice> =
            spec.metrics.iter().filter(|m| wanted.iter().any(|w| w == m.label())).collect();
        // Only a metric that asks the model needs one, and its explainers.
        let real: Vec<String> = explainers.iter().filter(|e| *e != CHANCE).cloned().collect();
        let ask = choices.iter().any(|m| asks(m));
        // The predicted class is the model's answer too.
        let needs_model = ask || spec.task.explained()? == Explained::Predicted;
        if needs_model {
            self.open_engine(label, fold, training, if ask { &real } else { &[] })?;
        }
        let (store, task, identities) = (self.store_of(label)?, spec.task.clone(), self.identities.clone());
        let index = Index::new(&self.folder.records_of(label, fold, training)?);
        let device = self.device;
        let engine = needs_model.then(|| self.opened()).transpose()?;
        let mut rows = TableRows { names: Names::default(), rows: vec![], samples, place: (label, fold, training) };
        let images = images_of(split, samples, &task, fold, spec.chunk, chunk)?.len();
        let mut made = UnitResult { images, ..UnitResult::default() };
        let mut states: State = Vec::new();
        // Explainers of a chunk have the same batches, whose classes are asked for once.
        let mut classes: HashMap<Vec<usize>, Vec<i64>> = HashMap::new();
        'explainers: for name in explainers {
            let id = identities.maps(name, chunk)?.to_string();
            let missing = || Error::new(Exit::Other, format!("the maps of {label} x {name} are not there"));
            let (shown, stored, outputs) = if name == CHANCE {
                let prepared = Prepared::new(spec, split, samples, &store, (fold, chunk), false)?;
                (prepared.rows, None, vec![String::new()])
            } else {
                let stem = index.maps((label, fold, training), chunk, name, &id).ok_or_else(missing)?;
                let record: Record = read_json(&self.folder.unit(stem, "json"))?;
                let cell = record.cells.get(name).ok_or_else(missing)?;
                // A chunk in which nothing is explained has no file.
                let file = (cell.images > 0).then(|| MapsFile::open(&self.folder.maps(stem, name))).transpose()?;
                (stored_rows(file.as_ref()), file, cell.outputs.clone())
            };
            let explainer = |k: usize| Some((engine?.explainers.iter().position(|e| e.label == *name)?, k));
            let mut cells = Vec::new();
            for output in &outputs {
                cells.push(Cell::start(name, output, plan.signed.contains(name), &choices, spec.seed)?);
            }
            for (at, part) in shown.0.chunks(spec.batch_size).enumerate() {
                let (first, part) = (at * spec.batch_size, Rows(part.to_vec()));
                self.sink.say(Event::Progress { unit: unit.key(), done: first, of: shown.len() });
                let batch = store.batch(&part.images())?;
                let mut targets: Vec<i64> = part.0.iter().map(|r| r.class.map_or(-1, |c| c as i64)).collect();
                if targets.contains(&-1) {
                    let found = match classes.entry(part.images()) {
                        Entry::Occupied(known) => known.into_mut(),
                        Entry::Vacant(place) => {
                            let model = engine.ok_or_else(|| Error::new(Exit::Other, "no model is open"))?;
                            let first = predicted(&model.classify(&batch)?)?;
                            place.insert(first.into_iter().map(|c| c as i64).collect::<Vec<i64>>())
                        }
                    };
                    targets.iter_mut().zip(&*found).filter(|(t, _)| **t < 0).for_each(|(t, f)| *t = *f);
                }
                let scene = Scene::new(&store, samples, &batch, &part, &targets)?;
                let shared = BatchCache::default();
                let maps = stored.as_ref().map(|file| file.rows(first, part.len())).transpose()?;
                for (k, cell) in cells.iter_mut().enumerate() {
                    let map = match &maps {
                        Some(maps) => maps.f_select(1, k as i64)?.f_to_device(device)?,
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
                        self.sink.say(Event::CellStarted { unit: unit.clone(), model, explainer: name.clone() });
                    }
                    let scored = score(cell, &map, &scene, &shared, bench);
                    self.sink.say(Event::CellLeft { unit });
                    match scored {
                        Ok(()) => {}
                        Err(e) if crate::signals::interrupted() => {
                            return Err(Error::new(Exit::Interrupted, e.message));
                        }
                        Err(e) if e.exit == Exit::DiskFull || name == CHANCE => return Err(e),
                        Err(e) => {
                            // The explainer's own failure; the others' scores stand.
                            self.sink.say(failed(label, name, FailureKind::Error, e.to_string()));
                            continue 'explainers;
                        }
                    }
                }
            }
            cells.iter_mut().for_each(|cell| rows.take(cell));
            cells.iter().try_for_each(|cell| keep_states(cell, &mut states))?;
            let scores = identities.metrics_of(&choices)?;
            made.cells.insert(name.clone(), CellRecord { id, outputs, scores, ..CellRecord::default() });
        }
        if !states.is_empty() {
            checkpoint::write(&self.folder.unit(stem, "states.safetensors"), &states)?;
        }
        results::write_scores(&self.folder.unit(stem, "scores.parquet"), &rows.names, &rows.rows)?;
        Ok(made)
    }
}
