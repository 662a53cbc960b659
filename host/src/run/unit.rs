//! Units: the pieces of work of a run, the least that is repeated when it continues. Each says what it needs.

use super::spec::file_name;
use serde::{Deserialize, Serialize};

/// How a cell failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// It returned an error, a wrong shape, or panicked.
    #[default]
    Error,
    /// It ended the worker.
    Crash,
    /// It gave no sign within the limit.
    Timeout,
    /// It wrote to what it was given.
    Tampered,
    /// Training diverged.
    Diverged,
}

/// A failed cell of the table; a whole row where no explainer is named.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub model: String,
    #[serde(default)]
    pub explainer: Option<String>,
    pub kind: FailureKind,
    pub reason: String,
    /// Of what it was: another build or other parameters are another cell.
    #[serde(default)]
    pub id: String,
    /// Not the cell's own: workers were lost at it, and nobody knows why. It is not kept, so the same command tries again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub transient: bool,
}

/// A piece of work.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "unit", rename_all = "kebab-case")]
pub enum Unit {
    /// Ask every explainer for its plan on a model.
    Survey {
        model: String,
        explainers: Vec<String>,
    },
    /// Decode and resize all images to this height and width.
    Prepare {
        size: [usize; 2],
    },
    Train {
        model: String,
        fold: usize,
        training: usize,
        size: [usize; 2],
    },
    /// Let an explainer see the training set.
    Fit {
        model: String,
        fold: usize,
        training: usize,
        size: [usize; 2],
        explainer: String,
    },
    /// Classify (with `predict`), explain and score one chunk of the test images.
    Explain {
        model: String,
        fold: usize,
        training: usize,
        size: [usize; 2],
        chunk: usize,
        explainers: Vec<String>,
        predict: bool,
    },
    /// Score stored maps of a chunk by metrics that they have not been scored by.
    Score {
        model: String,
        fold: usize,
        training: usize,
        size: [usize; 2],
        chunk: usize,
        explainers: Vec<String>,
        metrics: Vec<String>,
    },
    /// Bring together what the chunks of a model, fold and training gave: metrics of predictions and pooled ones.
    Reduce {
        model: String,
        fold: usize,
        training: usize,
    },
}

/// Height and width as part of names: `224`, or `512x384` where they differ.
pub fn size_text([height, width]: [usize; 2]) -> String {
    if height == width { height.to_string() } else { format!("{height}x{width}") }
}

/// A model in a fold and training, as part of names.
pub fn training_name(model: &str, fold: usize, training: usize) -> String {
    let training = if training > 0 { format!("-training{training}") } else { String::new() };
    format!("{}-fold{fold}{training}", file_name(model))
}

impl Unit {
    /// Names the unit in events and files. Two units of a run may have one key when they do different parts of a chunk.
    pub fn key(&self) -> String {
        match self {
            Unit::Survey { model, .. } => format!("{}-survey", file_name(model)),
            Unit::Prepare { size } => format!("prepare-{}", size_text(*size)),
            Unit::Train { model, fold, training, .. } => format!("{}-train", training_name(model, *fold, *training)),
            Unit::Fit { model, fold, training, explainer, .. } => {
                format!("{}-fit-{}", training_name(model, *fold, *training), file_name(explainer))
            }
            Unit::Explain { model, fold, training, chunk, .. } => {
                format!("{}-chunk{chunk:04}", training_name(model, *fold, *training))
            }
            Unit::Score { model, fold, training, chunk, .. } => {
                format!("{}-chunk{chunk:04}-score", training_name(model, *fold, *training))
            }
            Unit::Reduce { model, fold, training } => format!("{}-reduce", training_name(model, *fold, *training)),
        }
    }

    pub fn model(&self) -> Option<&str> {
        match self {
            Unit::Prepare { .. } => None,
            Unit::Survey { model, .. }
            | Unit::Train { model, .. }
            | Unit::Fit { model, .. }
            | Unit::Explain { model, .. }
            | Unit::Score { model, .. }
            | Unit::Reduce { model, .. } => Some(model),
        }
    }

    /// Model, fold and training: a worker keeps what it has opened for them.
    pub fn place(&self) -> Option<(&str, usize, usize)> {
        match self {
            Unit::Survey { .. } | Unit::Prepare { .. } => None,
            Unit::Train { model, fold, training, .. }
            | Unit::Fit { model, fold, training, .. }
            | Unit::Explain { model, fold, training, .. }
            | Unit::Score { model, fold, training, .. }
            | Unit::Reduce { model, fold, training } => Some((model, *fold, *training)),
        }
    }

    fn size(&self) -> Option<[usize; 2]> {
        match self {
            Unit::Train { size, .. }
            | Unit::Fit { size, .. }
            | Unit::Explain { size, .. }
            | Unit::Score { size, .. } => Some(*size),
            _ => None,
        }
    }

    /// Whether this unit can only run after `other`.
    pub fn needs(&self, other: &Unit) -> bool {
        let same = self.place().is_some() && self.place() == other.place();
        match (self, other) {
            (_, Unit::Prepare { size }) => self.size() == Some(*size),
            (Unit::Fit { .. }, Unit::Train { .. }) => same,
            (Unit::Explain { .. }, Unit::Train { .. }) => same,
            (Unit::Score { .. }, Unit::Train { .. }) => same,
            (Unit::Explain { explainers, .. }, Unit::Fit { explainer, .. }) => same && explainers.contains(explainer),
            // A metric may ask the explainer again.
            (Unit::Score { explainers, .. }, Unit::Fit { explainer, .. }) => same && explainers.contains(explainer),
            (Unit::Reduce { .. }, Unit::Explain { .. } | Unit::Score { .. }) => same,
            _ => false,
        }
    }
}
