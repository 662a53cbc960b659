//! What a run needs, what it has, and so which units are to be done.
//!
//! Everything that a unit makes has an identity: a hash of all that its content depends on. A result counts as there when a
//! record names it with the identity that is wanted now, so that what depends on a changed plugin, parameter or file is made
//! anew and everything else is kept.

use super::chunk::prepared::validation_images;
use super::folder::{Cells, Environment, Record, RunFolder, hash};
use super::spec::{MetricChoice, ModelChoice, RunSpec};
use super::unit::Failure;
use super::unit::{Unit, size_text};
use crate::choice::ExplainerChoice;
use crate::error::{Error, Result};
use lightbox_core::data::Sample;
use lightbox_core::data::split::Split;
use lightbox_core::metrics;
use lightbox_core::summary::CHANCE;
use serde::Serialize;
use std::collections::BTreeMap;

/// Identities of all that a run makes.
pub struct Identities {
    task: String,
    /// Of the task, what training sees.
    labels: String,
    data: String,
    seed: u64,
    /// By fold.
    folds: Vec<String>,
    /// By block of test images.
    blocks: Vec<String>,
    /// By fold: the validation images that metrics are tuned on; empty where there are none.
    validation: Vec<String>,
    models: BTreeMap<String, ModelIdentity>,
    /// Plugin and parameters, by label.
    explainers: BTreeMap<String, String>,
    /// By label.
    metrics: BTreeMap<String, String>,
}

struct ModelIdentity {
    size: [usize; 2],
    /// Plugin, parameters, classes.
    build: String,
    /// Weights (by fold) and training.
    weights: Vec<String>,
    trained: bool,
    shared: bool,
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::input(e.to_string()))
}

impl Identities {
    pub fn new(
        spec: &RunSpec,
        environment: &Environment,
        sizes: &[[usize; 2]],
        samples: &[Sample],
        split: &Split,
    ) -> Result<Self> {
        let names = |indices: &[usize]| hash(indices.iter().map(|&i| samples[i].id.as_str()));
        let file = |path: &std::path::Path| environment.files.get(path).cloned().unwrap_or_default();
        // A parameter that names a file counts by the file's content, wherever it lies.
        let by_content = |params: &BTreeMap<String, serde_json::Value>| {
            let content = |v: &serde_json::Value| {
                let found = v.as_str().map(|v| file(std::path::Path::new(v))).filter(|hash| !hash.is_empty());
                found.map_or_else(|| v.clone(), serde_json::Value::from)
            };
            let resolved: BTreeMap<&String, serde_json::Value> = params.iter().map(|(k, v)| (k, content(v))).collect();
            json(&resolved)
        };
        let data = hash([environment.data.clone(), json(&spec.data)?]);
        let mut models = BTreeMap::new();
        for (model, &size) in spec.models.iter().zip(sizes) {
            let plugin = &environment.plugin("model", &model.name)?.sha256;
            let build = [&model.name, plugin, &by_content(&model.params)?, &classes(spec, model).to_string()];
            let tf32 = spec.tf32.then(|| "tf32".to_string());
            let build = hash(build.into_iter().cloned().chain(tf32));
            let train = json(&model.train)?;
            let weights = (0..split.folds.len())
                .map(|fold| hash([model.weights_file(fold).map(|f| file(&f)).unwrap_or_default(), train.clone()]))
                .collect();
            let (trained, shared) = (model.train.is_some(), model.is_shared());
            models.insert(model.label().to_string(), ModelIdentity { size, build, weights, trained, shared });
        }
        let mut explainers = BTreeMap::new();
        for explainer in &spec.explainers {
            let plugin = &environment.plugin("explainer", &explainer.name)?.sha256;
            let id = hash([&explainer.name, plugin, &by_content(&explainer.params)?]);
            explainers.insert(explainer.label().to_string(), id);
        }
        let validation = |fold: usize| -> Result<String> {
            let images = validation_images(split, samples, &spec.task, fold, spec.block)?;
            Ok(if images.is_empty() { String::new() } else { names(&images) })
        };
        let metric = |m: &MetricChoice| {
            let version = metrics::find(&m.name)?.spec().version.to_string();
            Ok((m.label().to_string(), hash([m.name.clone(), version, json(&m.params)?])))
        };
        Ok(Identities {
            task: json(&spec.task)?,
            labels: json(&(&spec.task.kind, &spec.task.classes))?,
            data,
            seed: spec.seed,
            folds: split.folds.iter().map(|f| hash([names(&f.train), names(&f.validation)])).collect(),
            blocks: split.test.chunks(spec.block).map(names).collect(),
            validation: (0..split.folds.len()).map(validation).collect::<Result<_>>()?,
            models,
            explainers,
            metrics: spec.metrics.iter().map(metric).collect::<Result<_>>()?,
        })
    }

    fn model_of(&self, model: &str) -> Result<&ModelIdentity> {
        self.models.get(model).ok_or_else(|| Error::input(format!("the spec has no model {model}")))
    }

    /// Of test images.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Whether there are validation images to tune metrics on: they are the block after the last.
    pub fn validates(&self, fold: usize) -> bool {
        self.validation.get(fold).is_some_and(|v| !v.is_empty())
    }

    fn block(&self, fold: usize, block: usize) -> &str {
        self.blocks.get(block).unwrap_or(&self.validation[fold])
    }

    /// Height and width of the model's input.
    pub fn size(&self, model: &str) -> Result<[usize; 2]> {
        Ok(self.model_of(model)?.size)
    }

    /// A model with its weights in a fold and training.
    pub fn model(&self, model: &str, fold: usize, seed: usize) -> Result<String> {
        let m = self.model_of(model)?;
        let mut parts = vec![m.build.clone(), m.weights[fold].clone()];
        // Initial values are drawn where there are no weights, and training draws too.
        if !m.shared {
            parts.extend([self.seed.to_string(), fold.to_string(), seed.to_string()]);
        }
        if m.trained {
            parts.extend([self.data.clone(), self.folds[fold].clone(), size_text(m.size), self.labels.clone()]);
        }
        Ok(hash(parts))
    }

    pub fn predictions(&self, model: &str, fold: usize, seed: usize, block: usize) -> Result<String> {
        let side = size_text(self.model_of(model)?.size);
        let id = self.model(model, fold, seed)?;
        Ok(hash(["predictions", &id, &self.data, &side, &self.task, self.block(fold, block)]))
    }

    pub fn fit(&self, model: &str, fold: usize, seed: usize, explainer: &str) -> Result<String> {
        let explainer = self.explainers.get(explainer).cloned().unwrap_or_default();
        let (id, seed) = (self.model(model, fold, seed)?, self.seed.to_string());
        Ok(hash(["fit", &id, &explainer, &self.data, &self.folds[fold], &self.task, &seed]))
    }

    /// The maps of an explainer on a block; [`CHANCE`] is one.
    pub fn maps(&self, model: &str, fold: usize, seed: usize, block: usize, explainer: &str) -> Result<String> {
        let m = self.model_of(model)?;
        let side = size_text(m.size);
        if explainer == CHANCE {
            // Which images are explained depends on the model where the predicted class is.
            let id = self.model(model, fold, seed)?;
            return Ok(hash([CHANCE, &id, &self.data, &side, &self.task, self.block(fold, block)]));
        }
        // The training set's masks, and a fit's batches, are the fold's.
        let fit = self.fit(model, fold, seed, explainer)?;
        Ok(hash(["maps", &fit, &side, self.block(fold, block)]))
    }

    /// A model and an explainer together, in any fold: what fails, or does not apply.
    pub fn pair(&self, model: &str, explainer: Option<&str>) -> Result<String> {
        let m = self.model_of(model)?;
        let explainer = explainer.and_then(|e| self.explainers.get(e)).cloned().unwrap_or_default();
        Ok(hash(["pair", &m.build, &m.weights.join(","), &explainer, &self.task]))
    }

    pub fn metric(&self, label: &str) -> String {
        self.metrics.get(label).cloned().unwrap_or_default()
    }
}

/// The outputs of a model: its own number, or the task's.
pub fn classes(spec: &RunSpec, model: &ModelChoice) -> usize {
    if model.classes > 0 { model.classes } else { spec.task.classes.len() }
}

/// Metrics of maps.
pub fn map_metrics(spec: &RunSpec) -> Result<Vec<&MetricChoice>> {
    let of_maps = |m: &&MetricChoice| metrics::find(&m.name).is_ok_and(|m| m.needs().maps.is_some());
    Ok(spec.metrics.iter().filter(of_maps).collect())
}

/// Metrics of maps that are tuned on validation images.
pub fn tuned_metrics(spec: &RunSpec) -> Result<Vec<&MetricChoice>> {
    let tuned = |m: &&MetricChoice| metrics::find(&m.name).is_ok_and(|m| m.needs().validation);
    Ok(spec.metrics.iter().filter(tuned).collect())
}

/// Metrics of maps whose value for a constant map is what chance gives.
pub fn chance_metrics(spec: &RunSpec) -> Result<Vec<&MetricChoice>> {
    let chance = |m: &&MetricChoice| metrics::find(&m.name).is_ok_and(|m| m.spec().chance_is_constant);
    Ok(map_metrics(spec)?.into_iter().filter(chance).collect())
}

/// Where results are, by what they are of.
#[derive(Default)]
pub struct Index {
    /// Model, fold, training, block -> identity and record.
    predictions: BTreeMap<(String, usize, usize, usize), Vec<(String, String)>>,
    /// ..., explainer.
    maps: BTreeMap<(String, usize, usize, usize, String), Vec<(String, String)>>,
    /// ..., metric -> identities of maps and metric, record.
    scores: BTreeMap<(String, usize, usize, usize, String, String), Vec<(String, String, String)>>,
    reduced: BTreeMap<(String, usize, usize), Vec<(String, String)>>,
}

impl Index {
    pub fn new(records: &BTreeMap<String, Record>) -> Self {
        let mut index = Index::default();
        for (stem, record) in records {
            let Some((model, fold, seed)) = record.unit.place() else { continue };
            let (Unit::Explain { block, .. } | Unit::Score { block, .. }) = &record.unit else {
                let entry = index.reduced.entry((model.into(), fold, seed)).or_default();
                entry.extend(record.reduced.iter().map(|id| (id.clone(), stem.clone())));
                continue;
            };
            let place = (model.to_string(), fold, seed, *block);
            if let Some(id) = &record.predictions {
                index.predictions.entry(place.clone()).or_default().push((id.clone(), stem.clone()));
            }
            for (explainer, cell) in &record.cells {
                let (model, fold, seed, block) = place.clone();
                if cell.maps {
                    let key = (model.clone(), fold, seed, block, explainer.clone());
                    index.maps.entry(key).or_default().push((cell.id.clone(), stem.clone()));
                }
                for (metric, id) in &cell.scores {
                    let key = (model.clone(), fold, seed, block, explainer.clone(), metric.clone());
                    index.scores.entry(key).or_default().push((cell.id.clone(), id.clone(), stem.clone()));
                }
            }
        }
        index
    }

    /// The record that holds these predictions.
    pub fn predictions(&self, place: (&str, usize, usize), block: usize, id: &str) -> Option<&str> {
        let found = self.predictions.get(&(place.0.into(), place.1, place.2, block))?;
        found.iter().find(|(i, _)| i == id).map(|(_, stem)| stem.as_str())
    }

    /// The record that holds these maps.
    pub fn maps(&self, place: (&str, usize, usize), block: usize, explainer: &str, id: &str) -> Option<&str> {
        let found = self.maps.get(&(place.0.into(), place.1, place.2, block, explainer.into()))?;
        found.iter().find(|(i, _)| i == id).map(|(_, stem)| stem.as_str())
    }

    /// The record that holds these maps' scores by a metric.
    pub fn scores(
        &self,
        place: (&str, usize, usize),
        block: usize,
        explainer: &str,
        metric: &str,
        ids: (&str, &str),
    ) -> Option<&str> {
        let found = self.scores.get(&(place.0.into(), place.1, place.2, block, explainer.into(), metric.into()))?;
        found.iter().find(|(m, k, _)| (m.as_str(), k.as_str()) == ids).map(|(.., stem)| stem.as_str())
    }

    pub fn reduced(&self, place: (&str, usize, usize), id: &str) -> Option<&str> {
        let found = self.reduced.get(&(place.0.into(), place.1, place.2))?;
        found.iter().find(|(i, _)| i == id).map(|(_, stem)| stem.as_str())
    }
}

/// What stands in the way of a cell.
pub enum Verdict<'a> {
    Runs {
        fit: bool,
    },
    NotApplicable(String),
    Failed(&'a Failure),
    /// Nobody has asked the explainer yet.
    Unknown,
}

/// All that says what is to be done.
pub struct Plan<'a> {
    pub spec: &'a RunSpec,
    pub identities: &'a Identities,
    pub cells: &'a Cells,
    pub folds: usize,
}

impl<'a> Plan<'a> {
    /// Whether an explainer runs on a model.
    pub fn verdict(&self, model: &str, explainer: &ExplainerChoice) -> Result<Verdict<'a>> {
        if !explainer.models.is_empty() && !explainer.models.iter().any(|m| m == model) {
            return Ok(Verdict::NotApplicable("the spec gives it to other models".into()));
        }
        let id = self.identities.pair(model, Some(explainer.label()))?;
        let failed = |f: &&Failure| f.explainer.as_deref() == Some(explainer.label()) && f.model == model && f.id == id;
        if let Some(failure) = self.cells.failures.iter().find(failed) {
            return Ok(Verdict::Failed(failure));
        }
        Ok(match self.cells.surveys.get(&id) {
            None => Verdict::Unknown,
            Some(survey) => match &survey.not_applicable {
                Some(reason) => Verdict::NotApplicable(reason.clone()),
                None => Verdict::Runs { fit: survey.fit },
            },
        })
    }

    /// The failure of a whole model.
    pub fn model_failure(&self, model: &str) -> Result<Option<&'a Failure>> {
        let id = self.identities.pair(model, None)?;
        let failed = |f: &&Failure| f.explainer.is_none() && f.model == model && f.id == id;
        Ok(self.cells.failures.iter().find(failed))
    }

    /// Models with the explainers that have not been asked yet.
    pub fn surveys(&self) -> Result<Vec<Unit>> {
        let mut units = Vec::new();
        for model in self.spec.models.iter().map(ModelChoice::label) {
            let mut explainers = Vec::new();
            for explainer in &self.spec.explainers {
                if matches!(self.verdict(model, explainer)?, Verdict::Unknown) {
                    explainers.push(explainer.label().to_string());
                }
            }
            if !explainers.is_empty() && self.model_failure(model)?.is_none() {
                units.push(Unit::Survey { model: model.into(), explainers });
            }
        }
        Ok(units)
    }

    /// The explainers that run on a model, and whether each asks for a fit.
    pub fn running(&self, model: &str) -> Result<Vec<(String, bool)>> {
        let mut all = Vec::new();
        for explainer in &self.spec.explainers {
            if let Verdict::Runs { fit } = self.verdict(model, explainer)? {
                all.push((explainer.label().to_string(), fit));
            }
        }
        Ok(all)
    }

    /// The identity of what a model, fold and training reduce to.
    pub fn reduced(&self, model: &str, fold: usize, seed: usize) -> Result<String> {
        let ids = self.identities;
        let mut parts = vec!["reduced".to_string(), self.spec.agreement.to_string()];
        let running = self.running(model)?;
        for block in 0..ids.blocks() {
            parts.push(ids.predictions(model, fold, seed, block)?);
            for explainer in running.iter().map(|(e, _)| e.as_str()).chain([CHANCE]) {
                parts.push(ids.maps(model, fold, seed, block, explainer)?);
            }
        }
        if !tuned_metrics(self.spec)?.is_empty() && ids.validates(fold) {
            for (explainer, _) in &running {
                parts.push(ids.maps(model, fold, seed, ids.blocks(), explainer)?);
            }
        }
        for metric in &self.spec.metrics {
            parts.extend([metric.label().to_string(), ids.metric(metric.label())]);
        }
        Ok(hash(parts))
    }

    /// All units of the run, and of them those that are to be done.
    pub fn units(&self, folder: &RunFolder, index: &Index, train_only: bool) -> Result<(usize, Vec<Unit>)> {
        let (spec, ids) = (self.spec, self.identities);
        let (mut all, mut todo) = (0, Vec::new());
        let mut want = |unit: Unit, done: bool| {
            all += 1;
            if !done {
                todo.push(unit);
            }
        };
        let mut sizes = Vec::new();
        for model in spec.models.iter().map(ModelChoice::label) {
            let size = ids.size(model)?;
            if !sizes.contains(&size) {
                sizes.push(size);
                want(Unit::Prepare { size }, folder.prepared(size).is_file());
            }
        }
        let metrics = map_metrics(spec)?;
        let chance = chance_metrics(spec)?;
        let tuned = tuned_metrics(spec)?;
        for choice in &spec.models {
            let model = choice.label();
            if self.model_failure(model)?.is_some() {
                continue;
            }
            let (size, running) = (ids.size(model)?, self.running(model)?);
            // A model without training has one training.
            let seeds = if choice.train.is_some() { spec.seeds } else { 1 };
            for (fold, seed) in (0..self.folds).flat_map(|f| (0..seeds).map(move |s| (f, s))) {
                let place = (model, fold, seed);
                let name = || model.to_string();
                if choice.train.is_some() {
                    let done = folder.is_trained(model, fold, seed, &ids.model(model, fold, seed)?);
                    want(Unit::Train { model: name(), fold, seed, size }, done);
                }
                if train_only {
                    continue;
                }
                for (explainer, _) in running.iter().filter(|(_, fit)| *fit) {
                    let id = ids.fit(model, fold, seed, explainer)?;
                    let done = folder.fitted(&folder.fit(model, fold, seed, explainer, &id))?.is_some();
                    want(Unit::Fit { model: name(), fold, seed, size, explainer: explainer.clone() }, done);
                }
                // After the test images, where a metric is tuned, the fold's validation images.
                let validates = !tuned.is_empty() && !running.is_empty() && ids.validates(fold);
                for block in 0..ids.blocks() + usize::from(validates) {
                    let validating = block >= ids.blocks();
                    let predict = !validating
                        && index.predictions(place, block, &ids.predictions(model, fold, seed, block)?).is_none();
                    let mut explainers = Vec::new();
                    // By the metrics that are missing: the explainers.
                    let mut rescore: BTreeMap<Vec<String>, Vec<String>> = BTreeMap::new();
                    let constant = if validating { None } else { Some(CHANCE) };
                    for explainer in running.iter().map(|(e, _)| e.as_str()).chain(constant) {
                        let maps = ids.maps(model, fold, seed, block, explainer)?;
                        let wanted = match explainer {
                            CHANCE => &chance,
                            _ if validating => &tuned,
                            _ => &metrics,
                        };
                        if explainer != CHANCE && index.maps(place, block, explainer, &maps).is_none() {
                            explainers.push(explainer.to_string());
                            continue;
                        }
                        let missing = |m: &&&MetricChoice| {
                            let ids = (maps.as_str(), ids.metric(m.label()));
                            index.scores(place, block, explainer, m.label(), (ids.0, &ids.1)).is_none()
                        };
                        let missing: Vec<String> = wanted.iter().filter(missing).map(|m| m.label().into()).collect();
                        // Chance comes with the classification, where that is still to be done.
                        if !missing.is_empty() && !spec.explainers.is_empty() {
                            rescore.entry(missing).or_default().push(explainer.to_string());
                        }
                    }
                    if predict {
                        rescore.retain(|_, e| *e != [CHANCE]);
                    }
                    let done = !predict && explainers.is_empty();
                    let unit = Unit::Explain { model: name(), fold, seed, size, block, explainers, predict };
                    want(unit, done);
                    for (metrics, explainers) in rescore {
                        want(Unit::Score { model: name(), fold, seed, size, block, explainers, metrics }, false);
                    }
                }
                let done = index.reduced(place, &self.reduced(model, fold, seed)?).is_some();
                want(Unit::Reduce { model: name(), fold, seed }, done);
            }
        }
        Ok((all, todo))
    }
}
