//! Identities: what the content of each result depends on, as a hash.
//!
//! A result counts as there when a record names it with the identity that is wanted now, so that what depends on a changed
//! plugin, parameter or file is made anew and everything else is kept. Preflight derives them once; the supervisor writes
//! those of a unit into its order, and a worker uses these.

use super::chunk::prepared::validation_images;
use super::folder::{Environment, hash};
use super::spec::{MetricChoice, ModelChoice, RunSpec};
use super::unit::{Unit, size_text};
use crate::error::{Error, Exit, Result};
use lightbox_core::data::Sample;
use lightbox_core::data::split::Split;
use lightbox_core::metrics;
use lightbox_core::summary::CHANCE;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The identities of what a unit makes and of what it reads. By chunk of test images; the chunk after the last is the fold's
/// validation images.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct UnitIdentities {
    /// The model with its weights.
    #[serde(default)]
    model: String,
    #[serde(default)]
    predictions: BTreeMap<usize, String>,
    /// By explainer.
    #[serde(default)]
    fits: BTreeMap<String, String>,
    /// By explainer.
    #[serde(default)]
    maps: BTreeMap<String, BTreeMap<usize, String>>,
    /// By label.
    #[serde(default)]
    metrics: BTreeMap<String, String>,
    #[serde(default)]
    reduced: String,
}

impl UnitIdentities {
    fn missing(what: &str) -> Error {
        Error::new(Exit::Other, format!("the order of this unit has no identity of {what}"))
    }

    /// Of the model with its weights in the unit's fold and training.
    pub fn model(&self) -> Result<&str> {
        Some(self.model.as_str()).filter(|id| !id.is_empty()).ok_or_else(|| Self::missing("the model"))
    }

    /// Of a chunk's predictions.
    pub fn predictions(&self, chunk: usize) -> Result<&str> {
        let found = self.predictions.get(&chunk).map(String::as_str);
        found.ok_or_else(|| Self::missing(&format!("the predictions of chunk {chunk}")))
    }

    /// Of what an explainer learns of the training set.
    pub fn fit(&self, explainer: &str) -> Result<&str> {
        let found = self.fits.get(explainer).map(String::as_str);
        found.ok_or_else(|| Self::missing(&format!("the fit of {explainer}")))
    }

    /// Of an explainer's maps of a chunk.
    pub fn maps(&self, explainer: &str, chunk: usize) -> Result<&str> {
        let found = self.maps.get(explainer).and_then(|chunks| chunks.get(&chunk)).map(String::as_str);
        found.ok_or_else(|| Self::missing(&format!("the maps of {explainer} in chunk {chunk}")))
    }

    /// Whether the unit is about this explainer's maps.
    pub fn has_maps(&self, explainer: &str) -> bool {
        self.maps.contains_key(explainer)
    }

    /// The chunks of an explainer's maps.
    pub fn chunks(&self, explainer: &str) -> Vec<usize> {
        self.maps.get(explainer).map(|chunks| chunks.keys().copied().collect()).unwrap_or_default()
    }

    /// Of a metric with its parameters.
    pub fn metric(&self, label: &str) -> Result<&str> {
        self.metrics.get(label).map(String::as_str).ok_or_else(|| Self::missing(&format!("metric {label}")))
    }

    /// Of these metrics, by label.
    pub fn metrics_of(&self, choices: &[&MetricChoice]) -> Result<BTreeMap<String, String>> {
        choices.iter().map(|c| Ok((c.label().to_string(), self.metric(c.label())?.to_string()))).collect()
    }

    /// Of what a model, fold and training reduce to.
    pub fn reduced(&self) -> Result<&str> {
        Some(self.reduced.as_str()).filter(|id| !id.is_empty()).ok_or_else(|| Self::missing("what is reduced"))
    }
}

/// What the identities of all results of a run are derived from.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Identities {
    task: String,
    /// Of the task, what training sees.
    labels: String,
    data: String,
    seed: u64,
    /// By fold.
    folds: Vec<String>,
    /// By chunk of test images.
    chunks: Vec<String>,
    /// By fold: the validation images that metrics are tuned on; empty where there are none.
    validation: Vec<String>,
    models: BTreeMap<String, ModelIdentity>,
    /// Plugin and parameters, by label.
    explainers: BTreeMap<String, String>,
    /// By label.
    metrics: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
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
            let images = validation_images(split, samples, &spec.task, fold, spec.chunk)?;
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
            chunks: split.test.chunks(spec.chunk).map(names).collect(),
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
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Whether there are validation images to tune metrics on: they are the chunk after the last.
    pub fn validates(&self, fold: usize) -> bool {
        self.validation.get(fold).is_some_and(|v| !v.is_empty())
    }

    fn chunk(&self, fold: usize, chunk: usize) -> &str {
        self.chunks.get(chunk).unwrap_or(&self.validation[fold])
    }

    /// Height and width of the model's input.
    pub fn size(&self, model: &str) -> Result<[usize; 2]> {
        Ok(self.model_of(model)?.size)
    }

    /// A model with its weights in a fold and training.
    pub fn model(&self, model: &str, fold: usize, training: usize) -> Result<String> {
        let m = self.model_of(model)?;
        let mut parts = vec![m.build.clone(), m.weights[fold].clone()];
        // Initial values are drawn where there are no weights, and training draws too.
        if !m.shared {
            parts.extend([self.seed.to_string(), fold.to_string(), training.to_string()]);
        }
        if m.trained {
            parts.extend([self.data.clone(), self.folds[fold].clone(), size_text(m.size), self.labels.clone()]);
        }
        Ok(hash(parts))
    }

    pub fn predictions(&self, model: &str, fold: usize, training: usize, chunk: usize) -> Result<String> {
        let side = size_text(self.model_of(model)?.size);
        let id = self.model(model, fold, training)?;
        Ok(hash(["predictions", &id, &self.data, &side, &self.task, self.chunk(fold, chunk)]))
    }

    pub fn fit(&self, model: &str, fold: usize, training: usize, explainer: &str) -> Result<String> {
        let explainer = self.explainers.get(explainer).cloned().unwrap_or_default();
        let (id, seed) = (self.model(model, fold, training)?, self.seed.to_string());
        Ok(hash(["fit", &id, &explainer, &self.data, &self.folds[fold], &self.task, &seed]))
    }

    /// The maps of an explainer on a chunk; [`CHANCE`] is one.
    pub fn maps(&self, model: &str, fold: usize, training: usize, chunk: usize, explainer: &str) -> Result<String> {
        let m = self.model_of(model)?;
        let side = size_text(m.size);
        if explainer == CHANCE {
            // Which images are explained depends on the model where the predicted class is.
            let id = self.model(model, fold, training)?;
            return Ok(hash([CHANCE, &id, &self.data, &side, &self.task, self.chunk(fold, chunk)]));
        }
        // The training set's masks, and a fit's batches, are the fold's.
        let fit = self.fit(model, fold, training, explainer)?;
        Ok(hash(["maps", &fit, &side, self.chunk(fold, chunk)]))
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

    /// What a unit's order says. `running` are the explainers that run on the unit's model, and `reduced` is the identity of
    /// what it reduces to.
    pub fn of(&self, unit: &Unit, running: &[String], reduced: Option<String>) -> Result<UnitIdentities> {
        let Some((model, fold, training)) = unit.place() else { return Ok(UnitIdentities::default()) };
        let mut ids = UnitIdentities { model: self.model(model, fold, training)?, ..UnitIdentities::default() };
        ids.metrics.clone_from(&self.metrics);
        let (chunks, explainers): (Vec<usize>, Vec<&str>) = match unit {
            Unit::Fit { explainer, .. } => (vec![], vec![explainer]),
            Unit::Explain { chunk, explainers, .. } | Unit::Score { chunk, explainers, .. } => {
                (vec![*chunk], explainers.iter().map(String::as_str).chain([CHANCE]).collect())
            }
            Unit::Reduce { .. } => {
                let chunks = self.chunks() + usize::from(self.validates(fold));
                ((0..chunks).collect(), running.iter().map(String::as_str).chain([CHANCE]).collect())
            }
            _ => (vec![], vec![]),
        };
        for &chunk in &chunks {
            ids.predictions.insert(chunk, self.predictions(model, fold, training, chunk)?);
        }
        for explainer in explainers {
            if explainer != CHANCE {
                ids.fits.insert(explainer.into(), self.fit(model, fold, training, explainer)?);
            }
            let mut of_chunks = BTreeMap::new();
            for &chunk in &chunks {
                of_chunks.insert(chunk, self.maps(model, fold, training, chunk, explainer)?);
            }
            ids.maps.insert(explainer.into(), of_chunks);
        }
        ids.reduced = reduced.unwrap_or_default();
        Ok(ids)
    }
}

/// The outputs of a model: its own number, or the task's.
pub fn classes(spec: &RunSpec, model: &ModelChoice) -> usize {
    if model.classes > 0 { model.classes } else { spec.task.classes.len() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::events::Order;

    fn identities() -> Identities {
        let model = ModelIdentity {
            size: [8, 8],
            build: "build".into(),
            weights: vec!["w0".into(), "w1".into()],
            trained: true,
            shared: false,
        };
        Identities {
            folds: vec!["f0".into(), "f1".into()],
            chunks: vec!["c0".into(), "c1".into()],
            validation: vec!["v0".into(), String::new()],
            models: BTreeMap::from([("m".to_string(), model)]),
            explainers: BTreeMap::from([("e".to_string(), "E".to_string()), ("f".to_string(), "F".to_string())]),
            metrics: BTreeMap::from([("auroc".to_string(), "A".to_string())]),
            ..Identities::default()
        }
    }

    #[test]
    fn an_order_carries_what_its_unit_asks_for_and_no_more() {
        let all = identities();
        let explainers = vec!["e".to_string()];
        let (model, size) = ("m".to_string(), [8, 8]);
        let unit = Unit::Explain { model, fold: 1, training: 0, size, chunk: 1, explainers, predict: true };
        let ids = all.of(&unit, &[], None).unwrap();
        assert_eq!(ids.maps("e", 1).unwrap(), all.maps("m", 1, 0, 1, "e").unwrap());
        assert_eq!(ids.maps(CHANCE, 1).unwrap(), all.maps("m", 1, 0, 1, CHANCE).unwrap());
        assert_eq!(ids.predictions(1).unwrap(), all.predictions("m", 1, 0, 1).unwrap());
        assert_eq!(ids.fit("e").unwrap(), all.fit("m", 1, 0, "e").unwrap());
        assert_eq!(ids.metric("auroc").unwrap(), "A");
        assert!(ids.maps("e", 0).is_err() && ids.maps("f", 1).is_err() && ids.reduced().is_err());
        let text = serde_json::to_string(&Order { unit: unit.clone(), identities: ids.clone() }).unwrap();
        let back: Order = serde_json::from_str(&text).unwrap();
        assert_eq!((back.unit, back.identities), (unit, ids));
    }

    #[test]
    fn what_is_reduced_goes_over_all_chunks_and_the_validation_images() {
        let all = identities();
        let running = ["e".to_string(), "f".to_string()];
        for (fold, chunks) in [(0, vec![0, 1, 2]), (1, vec![0, 1])] {
            let unit = Unit::Reduce { model: "m".into(), fold, training: 0 };
            let ids = all.of(&unit, &running, Some("R".into())).unwrap();
            assert_eq!((ids.chunks("e"), ids.chunks("f"), ids.chunks("g")), (chunks.clone(), chunks, vec![]));
            assert_eq!(ids.reduced().unwrap(), "R");
            assert!(ids.has_maps(CHANCE) && !ids.has_maps("g"));
        }
    }
}
