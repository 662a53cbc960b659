//! What a worker and a run say, one JSON object a line.

use serde::{Deserialize, Serialize};

/// A piece of work, the least that is repeated when a run continues.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "unit", rename_all = "kebab-case")]
pub enum Unit {
    /// Decode and resize all images to this side.
    Prepare {
        side: usize,
    },
    Train {
        model: String,
        fold: usize,
    },
    /// Classify and explain one block of the test images.
    Explain {
        model: String,
        fold: usize,
        block: usize,
    },
}

impl Unit {
    /// Names the unit in events and files.
    pub fn key(&self) -> String {
        match self {
            Unit::Prepare { side } => format!("prepare-{side}"),
            Unit::Train { model, fold } => format!("{}-fold{fold}-train", super::spec::file_name(model)),
            Unit::Explain { model, fold, block } => {
                format!("{}-fold{fold}-block{block:04}", super::spec::file_name(model))
            }
        }
    }

    pub fn model(&self) -> Option<&str> {
        match self {
            Unit::Prepare { .. } => None,
            Unit::Train { model, .. } | Unit::Explain { model, .. } => Some(model),
        }
    }
}

/// What the supervisor tells the worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    #[serde(flatten)]
    pub unit: Unit,
    /// Explainers that have failed on this unit's model.
    #[serde(default)]
    pub without: Vec<String>,
}

/// How a cell failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// It returned an error, a wrong shape, or panicked.
    Error,
    /// It ended the worker.
    Crash,
    /// It gave no sign within the limit.
    Timeout,
    /// Training diverged.
    Diverged,
}

/// A failed cell of the table; a whole row where no explainer is named.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub model: String,
    #[serde(default)]
    pub explainer: Option<String>,
    pub kind: FailureKind,
    pub reason: String,
}

/// Everything that happens.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    RunStarted {
        name: String,
        folder: String,
        device: String,
        units: usize,
        done: usize,
    },
    /// The worker waits for an order.
    Ready,
    UnitStarted {
        unit: String,
    },
    /// From now on the worker is in an explainer's code.
    CellStarted {
        unit: String,
        model: String,
        explainer: String,
    },
    /// ... and no longer.
    CellLeft {
        unit: String,
    },
    Progress {
        unit: String,
        done: usize,
        of: usize,
    },
    Epoch {
        unit: String,
        epoch: usize,
        of: usize,
        train_loss: f64,
        validation_loss: f64,
        validation_auroc: Option<f64>,
        learning_rate: f64,
        images_per_second: f64,
        seconds_left: f64,
        best: bool,
    },
    CellFailed(Failure),
    NotApplicable {
        model: String,
        explainer: String,
        reason: String,
    },
    UnitFinished {
        unit: String,
        seconds: f64,
        images: usize,
    },
    /// The unit, not an explainer of it, failed. `exit` is the code that the run ends with when it is fatal.
    UnitFailed {
        unit: String,
        reason: String,
        fatal: Option<u8>,
        diverged: bool,
    },
    WorkerLost {
        reason: String,
    },
    Note {
        text: String,
    },
    RunFinished {
        folder: String,
        failed_cells: usize,
        seconds: f64,
    },
}
