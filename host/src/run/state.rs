//! What a run needs and what it has, and so which units are to be done.

use super::folder::{Cells, RunFolder, hash};
use super::identities::Identities;
use super::index::Index;
use super::preflight::Resolved;
use super::spec::{MetricChoice, ModelChoice, RunSpec};
use super::unit::{Failure, Unit};
use crate::choice::ExplainerChoice;
use crate::error::Result;
use lightbox_core::metrics;
use lightbox_core::summary::CHANCE;
use std::collections::BTreeMap;

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

/// A run as it was resolved, and what has become of its cells.
pub struct RunState<'a> {
    pub resolved: &'a Resolved,
    pub cells: &'a Cells,
}

impl<'a> RunState<'a> {
    pub fn spec(&self) -> &'a RunSpec {
        &self.resolved.spec
    }

    pub fn identities(&self) -> &'a Identities {
        &self.resolved.identities
    }

    pub fn folds(&self) -> usize {
        self.resolved.split.folds.len()
    }

    /// Whether an explainer runs on a model.
    pub fn verdict(&self, model: &str, explainer: &ExplainerChoice) -> Result<Verdict<'a>> {
        if !explainer.models.is_empty() && !explainer.models.iter().any(|m| m == model) {
            return Ok(Verdict::NotApplicable("the spec gives it to other models".into()));
        }
        let id = self.identities().pair(model, Some(explainer.label()))?;
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
        let id = self.identities().pair(model, None)?;
        let failed = |f: &&Failure| f.explainer.is_none() && f.model == model && f.id == id;
        Ok(self.cells.failures.iter().find(failed))
    }

    /// Models with the explainers that have not been asked yet.
    pub fn surveys(&self) -> Result<Vec<Unit>> {
        let mut units = Vec::new();
        for model in self.spec().models.iter().map(ModelChoice::label) {
            let mut explainers = Vec::new();
            for explainer in &self.spec().explainers {
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
        for explainer in &self.spec().explainers {
            if let Verdict::Runs { fit } = self.verdict(model, explainer)? {
                all.push((explainer.label().to_string(), fit));
            }
        }
        Ok(all)
    }

    /// The identity of what a model, fold and training reduce to.
    pub fn reduced(&self, model: &str, fold: usize, training: usize) -> Result<String> {
        let ids = self.identities();
        let mut parts = vec!["reduced".to_string(), self.spec().agreement.to_string()];
        let running = self.running(model)?;
        for chunk in 0..ids.chunks() {
            parts.push(ids.predictions(model, fold, training, chunk)?);
            for explainer in running.iter().map(|(e, _)| e.as_str()).chain([CHANCE]) {
                parts.push(ids.maps(model, fold, training, chunk, explainer)?);
            }
        }
        if !tuned_metrics(self.spec())?.is_empty() && ids.validates(fold) {
            for (explainer, _) in &running {
                parts.push(ids.maps(model, fold, training, ids.chunks(), explainer)?);
            }
        }
        for metric in &self.spec().metrics {
            parts.extend([metric.label().to_string(), ids.metric(metric.label())]);
        }
        Ok(hash(parts))
    }

    /// All units of the run, and of them those that are to be done.
    pub fn units(&self, folder: &RunFolder, index: &Index, train_only: bool) -> Result<(usize, Vec<Unit>)> {
        let (spec, ids) = (self.spec(), self.identities());
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
            for (fold, training) in (0..self.folds()).flat_map(|f| (0..seeds).map(move |s| (f, s))) {
                let place = (model, fold, training);
                let name = || model.to_string();
                if choice.train.is_some() {
                    let done = folder.is_trained(model, fold, training, &ids.model(model, fold, training)?);
                    want(Unit::Train { model: name(), fold, training, size }, done);
                }
                if train_only {
                    continue;
                }
                for (explainer, _) in running.iter().filter(|(_, fit)| *fit) {
                    let id = ids.fit(model, fold, training, explainer)?;
                    let done = folder.fitted(&folder.fit(model, fold, training, explainer, &id))?.is_some();
                    want(Unit::Fit { model: name(), fold, training, size, explainer: explainer.clone() }, done);
                }
                // After the test images, where a metric is tuned, the fold's validation images.
                let validates = !tuned.is_empty() && !running.is_empty() && ids.validates(fold);
                for chunk in 0..ids.chunks() + usize::from(validates) {
                    let validating = chunk >= ids.chunks();
                    let predict = !validating
                        && index.predictions(place, chunk, &ids.predictions(model, fold, training, chunk)?).is_none();
                    let mut explainers = Vec::new();
                    // By the metrics that are missing: the explainers.
                    let mut rescore: BTreeMap<Vec<String>, Vec<String>> = BTreeMap::new();
                    let constant = if validating { None } else { Some(CHANCE) };
                    for explainer in running.iter().map(|(e, _)| e.as_str()).chain(constant) {
                        let maps = ids.maps(model, fold, training, chunk, explainer)?;
                        let wanted = match explainer {
                            CHANCE => &chance,
                            _ if validating => &tuned,
                            _ => &metrics,
                        };
                        if explainer != CHANCE && index.maps(place, chunk, explainer, &maps).is_none() {
                            explainers.push(explainer.to_string());
                            continue;
                        }
                        let missing = |m: &&&MetricChoice| {
                            let ids = (maps.as_str(), ids.metric(m.label()));
                            index.scores(place, chunk, explainer, m.label(), (ids.0, &ids.1)).is_none()
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
                    let unit = Unit::Explain { model: name(), fold, training, size, chunk, explainers, predict };
                    want(unit, done);
                    for (metrics, explainers) in rescore {
                        want(Unit::Score { model: name(), fold, training, size, chunk, explainers, metrics }, false);
                    }
                }
                let done = index.reduced(place, &self.reduced(model, fold, training)?).is_some();
                want(Unit::Reduce { model: name(), fold, training }, done);
            }
        }
        Ok((all, todo))
    }
}
