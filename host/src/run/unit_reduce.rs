//! Brings together what the chunks of a model, fold and training gave: metrics of predictions, metrics of a whole set, how
//! alike the explainers' maps are.

use super::folder::{AgreementRecord, CurveRecord, Record, read_json, write_lines};
use super::index::Index;
use super::scorer::TableRows;
use super::state;
use super::unit::Unit;
use super::unit_result::UnitResult;
use super::worker::Worker;
use crate::choice::ExplainerChoice;
use crate::engine::image_id;
use crate::error::{Error, Exit, Result};
use lightbox_core::agreement;
use lightbox_core::checkpoint::{self, State};
use lightbox_core::maps_file::MapsFile;
use lightbox_core::metrics::{self, Evaluation};
use lightbox_core::predictions::Table;
use lightbox_core::results::{self, Names};
use lightbox_core::summary::CHANCE;
use std::collections::{BTreeMap, HashMap};

impl Worker {
    /// How alike the maps of the explainers are, over the first explained images of each chunk.
    fn agreement(&self, running: &[&str], index: &Index, place: (&str, usize, usize)) -> Result<AgreementRecord> {
        let (ids, chunks) = (&self.identities, self.plan.chunks());
        let each = self.plan.spec.agreement.div_ceil(chunks.max(1));
        // By explainer and output: prints by image.
        let mut found: Vec<((String, String), BTreeMap<i64, agreement::Print>)> = Vec::new();
        for chunk in (0..chunks).filter(|_| each > 0 && running.len() > 1) {
            for &name in running {
                let id = ids.maps(name, chunk)?;
                let Some(stem) = index.maps(place, chunk, name, id) else { continue };
                let record: Record = read_json(&self.folder.unit(stem, "json"))?;
                let outputs = record.cells.get(name).map(|c| c.outputs.clone()).unwrap_or_default();
                let file = self.folder.maps(stem, name);
                if !file.is_file() {
                    continue;
                }
                let file = MapsFile::open(&file)?;
                let n = file.images.len().min(each);
                let (maps, rows) = (file.rows(0, n)?, &file.images[..n]);
                for (k, output) in outputs.iter().enumerate() {
                    let prints = agreement::prints(&maps.f_select(1, k as i64)?)?;
                    let key = (name.to_string(), output.clone());
                    if !found.iter().any(|(k, _)| *k == key) {
                        found.push((key.clone(), BTreeMap::new()));
                    }
                    let Some((_, mine)) = found.iter_mut().find(|(k, _)| *k == key) else { continue };
                    // An image with several targets counts by its first.
                    for (image, print) in rows.iter().zip(prints).filter_map(|(i, p)| p.map(|p| (*i, p))) {
                        mine.entry(image).or_insert(print);
                    }
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

    /// Brings together the chunks of a model, fold and training.
    pub fn reduce(&mut self, unit: &Unit, stem: &str) -> Result<UnitResult> {
        let Unit::Reduce { model: label, fold, training } = unit else {
            return Err(Error::new(Exit::Other, "no unit that reduces"));
        };
        let place = (label.as_str(), *fold, *training);
        let (resolved, source) = (self.plan.clone(), self.source()?);
        let (spec, identities, chunks) = (&resolved.spec, &self.identities, resolved.chunks());
        let index = Index::new(&self.folder.records_of(label, *fold, *training)?);
        let mut rows = TableRows { names: Names::default(), rows: vec![], samples: source.samples(), place };
        let (mut names, mut predictions) = (Names::default(), Vec::new());
        for chunk in 0..chunks {
            let id = identities.predictions(chunk)?;
            let Some(stem) = index.predictions(place, chunk, id) else { continue };
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
        let labels = spec.explainers.iter().map(ExplainerChoice::label);
        let running: Vec<&str> = labels.filter(|e| identities.has_maps(e)).collect();
        let chance = state::chance_metrics(spec)?;
        let mut opened: BTreeMap<String, State> = BTreeMap::new();
        let by_id: HashMap<u64, usize> =
            source.samples().iter().enumerate().map(|(i, s)| (image_id(&s.id), i)).collect();
        let mut curves = Vec::new();
        for choice in state::map_metrics(spec)? {
            let metric = metrics::find(&choice.name)?;
            let parameters = metric.spec().resolve(&choice.params)?;
            let has_chance = chance.iter().any(|c| c.label() == choice.label()) && !spec.explainers.is_empty();
            for explainer in running.iter().copied().chain(has_chance.then_some(CHANCE)) {
                // By output: what all chunks have summed up, and what the validation images gave.
                let mut merged: BTreeMap<String, Box<dyn Evaluation>> = BTreeMap::new();
                let mut validation: BTreeMap<String, State> = BTreeMap::new();
                // The chunk after the last is the validation images'.
                let tuned = metric.needs().validation;
                for chunk in identities.chunks(explainer).into_iter().filter(|chunk| tuned || *chunk < chunks) {
                    let ids = (identities.maps(explainer, chunk)?, identities.metric(choice.label())?);
                    let found = index.scores(place, chunk, explainer, choice.label(), ids);
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
                    if chunk >= chunks {
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
                    for (id, target, score) in evaluation.images()? {
                        let image =
                            by_id.get(&id).ok_or_else(|| Error::new(Exit::Other, "an image is not the data's"))?;
                        rows.push(
                            &source.samples()[*image].id,
                            target as i32,
                            explainer,
                            &output,
                            choice.label(),
                            score,
                        );
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
        let alike = self.agreement(&running, &index, place)?;
        if !alike.maps.is_empty() {
            write_lines(&self.folder.unit(stem, "agreement.jsonl"), &[alike])?;
        }
        if !curves.is_empty() {
            write_lines(&self.folder.unit(stem, "curves.jsonl"), &curves)?;
        }
        results::write_scores(&self.folder.unit(stem, "scores.parquet"), &rows.names, &rows.rows)?;
        let reduced = Some(identities.reduced()?.to_string());
        Ok(UnitResult { images: table.images.len(), reduced, ..UnitResult::default() })
    }
}
