//! What a worker and a run say, one JSON object a line.

use super::identities::UnitIdentities;
use super::timings::Timings;
use super::unit::Failure;
use super::unit::Unit;
use serde::{Deserialize, Serialize};

/// What the supervisor tells a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    #[serde(flatten)]
    pub unit: Unit,
    /// Of what it makes and what it reads.
    pub identities: UnitIdentities,
}

/// An event with its time (seconds since 1970) and the worker that it comes from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stamped {
    pub time: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<usize>,
    #[serde(flatten)]
    pub event: Event,
}

/// Everything that happens.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    RunStarted {
        name: String,
        folder: String,
        devices: Vec<String>,
        workers: usize,
        units: usize,
        done: usize,
    },
    /// The worker waits for an order.
    Ready,
    /// A plugin has called the host.
    Alive,
    /// How far a plugin says that its call has come.
    Steps {
        done: u64,
        of: u64,
    },
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
    /// An explainer's answer to a model: whether it asks for a fit, or why it does not apply.
    Surveyed {
        model: String,
        explainer: String,
        fit: bool,
        not_applicable: Option<String>,
    },
    UnitFinished {
        unit: String,
        seconds: f64,
        images: usize,
        #[serde(default)]
        spent: Timings,
    },
    /// The unit, not an explainer of it, failed. `fatal` is the code that the run ends with then.
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
        #[serde(default)]
        spent: Timings,
    },
}

/// Seconds since 1970.
pub fn now() -> f64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0.0, |d| (d.as_secs_f64() * 1e3).round() / 1e3)
}
