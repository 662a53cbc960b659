//! What a run's folder says of its models, explainers and metrics, so that a report needs neither plugins nor data: names,
//! formulas, references. Part of `summary.json`.

use super::spec::RunSpec;
use crate::error::Result;
use crate::registry::Registry;
use lightbox_core::metrics::{self, MetricSpec};
use lightbox_sdk::spec::{Family, Reference};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunManifest {
    pub models: Vec<Described>,
    pub explainers: Vec<Described>,
    pub metrics: Vec<DescribedMetric>,
}

/// A model or an explainer of the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Described {
    pub label: String,
    pub name: String,
    pub version: String,
    pub title: String,
    /// Of explainers; `control` for those that know nothing of the model.
    pub family: String,
    pub formula: String,
    pub cost: String,
    pub notes: String,
    /// Who published it.
    pub reference: Reference,
    pub parameters: BTreeMap<String, serde_json::Value>,
}

/// A metric of the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DescribedMetric {
    pub label: String,
    /// As `lightbox info METRIC --json`.
    pub spec: serde_json::Value,
    /// Who published it.
    pub reference: Reference,
    pub parameters: BTreeMap<String, serde_json::Value>,
}

fn value<T: Serialize>(of: &T) -> Result<serde_json::Value> {
    serde_json::to_value(of).map_err(|e| crate::error::Error::input(e.to_string()))
}

impl RunManifest {
    pub fn new(spec: &RunSpec, registry: &Registry) -> Result<Self> {
        let mut about = RunManifest::default();
        for choice in &spec.models {
            let (_, model) = registry.model(&choice.name)?;
            about.models.push(Described {
                label: choice.label().into(),
                name: model.name.clone(),
                version: model.version.clone(),
                title: model.title.clone(),
                reference: model.reference.clone(),
                parameters: choice.params.clone(),
                ..Described::default()
            });
        }
        for choice in &spec.explainers {
            let (_, e) = registry.explainer(&choice.name)?;
            about.explainers.push(Described {
                label: choice.label().into(),
                name: e.name.clone(),
                version: e.version.clone(),
                title: e.title.clone(),
                family: if e.family == Family::Control { "control".into() } else { crate::list::family(e.family) },
                formula: e.formula.clone(),
                cost: e.cost.clone(),
                notes: e.notes.clone(),
                reference: e.reference.clone(),
                parameters: choice.params.clone(),
            });
        }
        for choice in &spec.metrics {
            let metric: MetricSpec = metrics::find(&choice.name)?.spec();
            let parameters = choice.params.clone();
            let (spec, reference) = (value(&metric)?, metric.reference);
            about.metrics.push(DescribedMetric { label: choice.label().into(), spec, reference, parameters });
        }
        Ok(about)
    }

    /// Labels of explainers that know nothing of the model.
    pub fn controls(&self) -> Vec<String> {
        self.explainers.iter().filter(|e| e.family == "control").map(|e| e.label.clone()).collect()
    }
}
