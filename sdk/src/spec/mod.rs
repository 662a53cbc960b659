//! What plugins say of themselves. All of it crosses as JSON: a new field needs a default, nothing else.

mod explainer;
mod model;
mod output;
mod site;

pub use crate::params::{ParamSpec, ParamType, ParamValues};
pub use explainer::{
    Contrast, ExplainerSpec, Family, FitNeeds, ImageRecord, KNOWN_NEEDS, Needs, Passes, Plan, TargetKind,
};
pub use model::{InputSpec, LoadReport, ModelOptions, ModelSpec, PAIR_RULES, RULES_WITHOUT_NUMBER, TrainerOptions};
pub use output::{Activation, Meaning, Output};
pub use site::{AttentionBlock, AttentionPart, Axis, Role, Site, axes_text};

use serde::{Deserialize, Serialize};

/// What a plugin library holds, as `lightbox list plugins` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    /// The crate's name.
    pub plugin: String,
    /// The crate's version.
    pub version: String,
    /// Models, each as its default options make it.
    #[serde(default)]
    pub models: Vec<ModelSpec>,
    /// Explainers.
    #[serde(default)]
    pub explainers: Vec<ExplainerSpec>,
}

/// Where a method or model comes from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// Authors, title, venue, year.
    pub citation: String,
    /// `10.1109/...` or `arXiv:...`; empty where there is none.
    #[serde(default)]
    pub id: String,
}
