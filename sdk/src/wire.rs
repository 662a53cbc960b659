//! The messages between a host and its plugins: what crosses the ABI, and what processes will say to each other.
//!
//! A message is a JSON object, its *header*, and a list of arrays. Where a header has a number that stands for an array, it is
//! the array's place in that list. docs/wire.md describes every message with an example, which a test reads and prints.
//!
//! A field that one side does not know is ignored. What changes a result is named under `requires`, too, and a side that does
//! not know one of those names refuses the message.

use crate::spec::{ImageRecord, ModelSpec, TargetKind};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// An array's place in the message's list.
pub type Place = usize;

/// Binds an explainer to a model. The answer is a [`Plan`](crate::spec::Plan).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BindMessage {
    /// Kinds of targets other than classes, as `target:region`, and activations other than softmax, as `activation:sigmoid`.
    #[serde(default)]
    pub requires: Vec<String>,
    /// The model's description, with the activation that the task gives its classes. It crosses here, once.
    pub model: ModelSpec,
    /// The kinds of targets that will be explained; empty for classes.
    #[serde(default)]
    pub targets: Vec<TargetKind>,
    /// Values of the explainer's parameters; the rest take their defaults.
    #[serde(default)]
    pub params: BTreeMap<String, Value>,
}

/// A target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum TargetMessage {
    /// [`Target::Class`](crate::Target::Class).
    Class {
        /// The class.
        class: usize,
    },
    /// [`Target::Region`](crate::Target::Region).
    Region {
        /// The class.
        class: usize,
        /// Float32 at the input's size.
        mask: Place,
    },
    /// [`Target::Box`](crate::Target::Box).
    Box {
        /// The class.
        class: usize,
        /// Left, top, right, bottom.
        area: [f64; 4],
        /// The candidate of the model.
        #[serde(default)]
        candidate: Option<usize>,
    },
    /// [`Target::Output`](crate::Target::Output).
    Output {
        /// The output.
        name: String,
        /// Its place without the batch.
        index: Vec<usize>,
    },
}

/// Asks for the maps of a batch. The answer is a [`MapsMessage`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExplainMessage {
    /// As in [`BindMessage`].
    #[serde(default)]
    pub requires: Vec<String>,
    /// [B, C, size...] float32, normalised.
    pub images: Place,
    /// What is explained, a row.
    pub targets: Vec<TargetMessage>,
    /// The first output, float32.
    pub logits: Place,
    /// The model's further outputs.
    #[serde(default)]
    pub outputs: BTreeMap<String, Place>,
    /// Stable numbers of the images.
    pub ids: Vec<u64>,
    /// The run's seed.
    pub seed: u64,
    /// How many images the model may be run on at a time; 0 for the batch's size.
    #[serde(default)]
    pub at_once: usize,
    /// Values of sites that were asked for.
    #[serde(default)]
    pub values: BTreeMap<String, Place>,
    /// Gradients of the targets' logits.
    #[serde(default)]
    pub gradients: BTreeMap<String, Place>,
    /// Gradients of the other classes that were asked for, in their order.
    #[serde(default)]
    pub others: Vec<BTreeMap<String, Place>>,
    /// What the data source says, a row; or none.
    #[serde(default)]
    pub records: Vec<ImageRecord>,
    /// The folder of the plugin's file.
    #[serde(default)]
    pub plugin_folder: Option<PathBuf>,
    /// [H, W] float32, if it was asked for.
    #[serde(default)]
    pub mean_mask: Option<Place>,
    /// What the fit handed back.
    #[serde(default)]
    pub fitted: BTreeMap<String, Place>,
}

/// Maps of a batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MapsMessage {
    /// [B, size...] float32, or [B, K, size...] with K names.
    pub maps: Place,
    /// Names of several maps.
    #[serde(default)]
    pub names: Vec<String>,
}

/// Asks an explainer to learn from the training set. The answer is a [`NamedMessage`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FitMessage {
    /// The class that will be explained; none where that differs by image.
    #[serde(default)]
    pub class: Option<usize>,
    /// Of the explainer and training.
    pub seed: u64,
}

/// Arrays by name, in an order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NamedMessage {
    /// Name and place.
    pub arrays: Vec<(String, Place)>,
}

/// A change to a site's value: `value * scale + shift`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PatchMessage {
    /// The site.
    pub site: String,
    /// Multiplies the value.
    pub scale: Option<Place>,
    /// Is then added.
    pub shift: Option<Place>,
}

/// What a gradient is of; see [`Objective`](crate::Objective).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObjectiveMessage {
    /// `[B]` int64.
    Class(Place),
    /// `[B]` int64: the class that is left out.
    RunnerUp(Place),
    /// An output, and weights of its shape.
    Output(String, Place),
    /// A site, and weights of its shape.
    Site(String, Place),
}

/// Runs a model. The answer is a [`ResponseMessage`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestMessage {
    /// Those of its fields that change what is computed, where they are used: `patches`, `objectives`, `grads`, `rules`,
    /// `start`, `pairs`, `products`, `objective:output`, `objective:runner-up`.
    #[serde(default)]
    pub requires: Vec<String>,
    /// [B, C, size...] float32, normalised.
    pub images: Place,
    /// The site at which the run begins, and its value.
    #[serde(default)]
    pub start: Option<(String, Place)>,
    /// Changes of sites' values.
    #[serde(default)]
    pub patches: Vec<PatchMessage>,
    /// Sites whose values are handed back.
    #[serde(default)]
    pub values: Vec<String>,
    /// Sets of objectives; each gives a set of gradients.
    #[serde(default)]
    pub objectives: Vec<Vec<ObjectiveMessage>>,
    /// Sites to differentiate at.
    #[serde(default)]
    pub grads: Vec<String>,
    /// Sites whose Hessian is multiplied, and the directions.
    #[serde(default)]
    pub products: Vec<(String, Place)>,
    /// Modified backward rules.
    #[serde(default)]
    pub rules: Vec<String>,
    /// The batch is of pairs.
    #[serde(default)]
    pub pairs: bool,
}

/// What a run of a model gives back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResponseMessage {
    /// The first output, float32.
    pub logits: Place,
    /// The further outputs.
    #[serde(default)]
    pub outputs: BTreeMap<String, Place>,
    /// Values of sites.
    pub values: BTreeMap<String, Place>,
    /// A set a set of objectives.
    pub grads: Vec<BTreeMap<String, Place>>,
    /// A set a set of objectives.
    #[serde(default)]
    pub products: Vec<BTreeMap<String, Place>>,
}

/// A batch of the training set: the answer to the call `fit-batch`, under `batch`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FitBatchMessage {
    /// [B, C, H, W] float32, normalised.
    pub images: Place,
    /// [B, classes] float32.
    pub labels: Place,
    /// [B, H, W] uint8.
    pub masks: Place,
    /// `[B]` bool.
    pub known: Place,
    /// Stable numbers of the images.
    pub ids: Vec<u64>,
    /// What the data source says of each image.
    #[serde(default)]
    pub records: Vec<ImageRecord>,
    /// Values of the sites that were asked for.
    pub values: Vec<(String, Place)>,
    /// [B, classes] float32.
    pub logits: Place,
}

/// What a plugin asks of the host during a call, by name. The headers of calls and answers:
///
/// | call | header | answer |
/// |---|---|---|
/// | `cancelled` | `{}` | `{"cancelled": false}` |
/// | `log` | `{"line": "..."}` | `{}` |
/// | `progress` | `{"done": 3, "of": 8}` | `{}` |
/// | `read-image` | `{"path": "..."}` | `{"image": 0}` |
/// | `fit-batch` | `{"rewind": false}` | `{"batch": {...}}`, a [`FitBatchMessage`], or `{}` after the last |
pub const HOST_CALLS: [&str; 5] = ["cancelled", "log", "progress", "read-image", "fit-batch"];

/// What a bound explainer must know to explain these targets of this model.
pub(crate) fn bind_requires(model: &ModelSpec, targets: &[TargetKind]) -> Vec<String> {
    let mut requires = target_requires(targets);
    let activation = model.outputs.first().map(|o| o.activation().name()).unwrap_or("softmax");
    if activation != "softmax" {
        requires.push(format!("activation:{activation}"));
    }
    requires
}

/// The part of it that the kinds of targets ask for.
pub(crate) fn target_requires(targets: &[TargetKind]) -> Vec<String> {
    let name = |kind: &TargetKind| match kind {
        TargetKind::Class | TargetKind::Other => None,
        TargetKind::Region => Some("target:region".to_string()),
        TargetKind::Box => Some("target:box".to_string()),
        TargetKind::Output => Some("target:output".to_string()),
    };
    targets.iter().filter_map(name).collect()
}

/// The names that [`bind_requires`] may give.
pub(crate) const KNOWN_BINDS: [&str; 5] =
    ["target:region", "target:box", "target:output", "activation:sigmoid", "activation:linear"];
