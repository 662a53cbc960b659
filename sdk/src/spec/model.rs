//! How a model describes itself, is built, loaded and trained.

use super::{Axis, Output, Reference, Site};
use crate::params::ParamSpec;
use crate::spec::Activation;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// What a model takes: [B, channels, size...], float32, `(value in [0, 1] - mean) / std` a channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InputSpec {
    /// Channels of an image.
    pub channels: usize,
    /// Sizes of the spatial axes: height and width, or depth, height and width of a volume.
    pub size: Vec<usize>,
    /// Subtracted from each channel.
    pub mean: Vec<f64>,
    /// Then divides it.
    pub std: Vec<f64>,
}

impl InputSpec {
    /// Three channels of a square image with ImageNet's statistics.
    pub fn imagenet(size: usize) -> Self {
        let (mean, std) = (vec![0.485, 0.456, 0.406], vec![0.229, 0.224, 0.225]);
        InputSpec { channels: 3, size: vec![size, size], mean, std }
    }

    /// Height and width; an error for a model of volumes.
    pub fn flat(&self) -> Result<[usize; 2]> {
        let wrong = |s: &Vec<usize>| Error::unsupported(format!("an input of {} spatial axes, not two", s.len()));
        self.size.as_slice().try_into().map_err(|_| wrong(&self.size))
    }

    /// The shape of a batch: [batch, channels, size...].
    pub fn shape(&self, batch: usize) -> Vec<usize> {
        [&[batch, self.channels][..], &self.size].concat()
    }

    /// The meaning of its dimensions.
    pub fn axes(&self) -> Vec<Axis> {
        [vec![Axis::Batch, Axis::Channel], Axis::spatial(self.size.len())].concat()
    }

    /// The normalised values of black and of white, a channel each.
    pub fn range(&self) -> [Vec<f64>; 2] {
        [0.0, 1.0].map(|v| self.mean.iter().zip(&self.std).map(|(m, s)| (v - m) / s).collect())
    }
}

/// A model as it describes itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// Permanent, lower case: `densenet121`.
    pub name: String,
    /// For headings: `DenseNet-121`.
    pub title: String,
    /// Of the plugin.
    pub version: String,
    /// Who published it.
    pub reference: Reference,
    /// What it takes.
    pub input: InputSpec,
    /// Its outputs. The first is the one that is explained, unless a target names another.
    pub outputs: Vec<Output>,
    /// Its sites, in the order in which they are computed.
    pub sites: Vec<Site>,
    /// The site that class activation maps read by default: the tensor that is pooled.
    #[serde(default)]
    pub cam_site: Option<String>,
    /// The last attention layer, where there is one.
    #[serde(default)]
    pub attention_site: Option<String>,
    /// Modified backward rules that `run` understands; `rules.rs` says what each does.
    #[serde(default)]
    pub rules: Vec<String>,
    /// What can be set when it is made.
    #[serde(default)]
    pub parameters: Vec<ParamSpec>,
    /// It can be trained.
    #[serde(default)]
    pub trainable: bool,
    /// Its trainer knows [`TrainerOptions::precision`] `mixed`.
    #[serde(default)]
    pub mixed_precision: bool,
    /// It is made with its weights, so that a checkpoint is not needed: an exported program, a network of Python.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_weights: bool,
    /// The Python interpreter whose process holds the network as a module; none for all others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interpreter: Option<String>,
    /// Names of the first output's classes in their order, where the model's file says them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub class_names: Vec<String>,
    /// What else there is to know, in sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl ModelSpec {
    /// A specification without sites, for tests and as a start: version 0.1.0, no reference.
    pub fn new(name: &str, input: InputSpec, classes: usize) -> Self {
        ModelSpec {
            name: name.into(),
            title: name.into(),
            version: "0.1.0".into(),
            reference: Reference::default(),
            input,
            outputs: vec![Output::classes("logits", classes, Activation::Softmax)],
            sites: vec![],
            cam_site: None,
            attention_site: None,
            rules: vec![],
            parameters: vec![],
            trainable: false,
            mixed_precision: false,
            class_names: vec![],
            own_weights: false,
            interpreter: None,
            notes: vec![],
        }
    }

    /// Classes of the first output; 0 where it has none.
    pub fn classes(&self) -> usize {
        self.outputs.first().and_then(Output::class_count).unwrap_or(0)
    }

    /// The output of this name; otherwise an error that lists the known.
    pub fn output(&self, name: &str) -> Result<&Output> {
        self.outputs.iter().find(|o| o.name == name).ok_or_else(|| {
            let known: Vec<_> = self.outputs.iter().map(|o| o.name.as_str()).collect();
            Error::invalid(format!("model {} has no output {name} (known: {})", self.name, known.join(", ")))
        })
    }

    /// The same with another activation of its first output: a task says how its classes are meant.
    pub fn activated(mut self, by: Activation) -> Self {
        if let Some(first) = self.outputs.first_mut() {
            *first = first.clone().activated(by);
        }
        self
    }

    /// True when the model has this rule, with or without a number: of `linear:gamma=0.1` that is `linear:gamma`.
    pub fn has_rule(&self, rule: &str) -> bool {
        self.rules.iter().any(|r| r == rule.split('=').next().unwrap_or(rule))
    }

    /// An error when these rules, each of which the model has, are not ones that can be followed together: two for one operation,
    /// a number that is none, a number after a rule of the SDK's that takes none.
    pub fn check_rules(&self, rules: &[String]) -> Result<()> {
        let operation = |rule: &str| rule.split(':').next().unwrap_or_default().to_string();
        for (i, rule) in rules.iter().enumerate() {
            if let Some(other) = rules[..i].iter().find(|r| operation(r) == operation(rule)) {
                let operation = operation(rule);
                return Err(Error::invalid(format!("{operation} has one rule, and {other} and {rule} are asked for")));
            }
            let Some((name, number)) = rule.split_once('=') else { continue };
            if RULES_WITHOUT_NUMBER.contains(&name) {
                return Err(Error::invalid(format!("rule {name} takes no number")));
            }
            if number.parse::<f32>().ok().filter(|n| n.is_finite() && *n > 0.0).is_none() {
                return Err(Error::invalid(format!("rule {rule}: {number} is no number above 0")));
            }
        }
        Ok(())
    }

    /// Where a run can begin that has to reach `site`: the last site at which one can, before it or itself. In front of it
    /// lies whatever a patch of `site` must not miss: DeiT's `blocks.11.norm1` is not all that goes on from there,
    /// `blocks.10` is.
    pub fn entry(&self, site: &str) -> Option<&Site> {
        let at = self.sites.iter().position(|s| s.name == site)?;
        self.sites[..=at].iter().rev().find(|s| s.start)
    }

    /// The site of this name; otherwise an error that lists the known.
    pub fn site(&self, name: &str) -> Result<&Site> {
        self.sites.iter().find(|s| s.name == name).ok_or_else(|| {
            let known: Vec<_> = self.sites.iter().map(|s| s.name.as_str()).collect();
            Error::invalid(format!("model {} has no site {name} (known: {})", self.name, known.join(", ")))
        })
    }
}

/// How a model is to be built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelOptions {
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// Number of outputs; the model's own default where it is 0.
    pub classes: usize,
    /// Seed of the initial parameters.
    pub seed: u64,
    /// Values for the model's parameters; the rest take their defaults.
    pub params: BTreeMap<String, Value>,
}

impl Default for ModelOptions {
    fn default() -> Self {
        ModelOptions { device: "cpu".into(), classes: 0, seed: 0, params: BTreeMap::new() }
    }
}

/// What became of a checkpoint's entries.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadReport {
    /// How many parameters were taken.
    pub loaded: usize,
    /// Parameters of the model that keep their initial values because the classes differ.
    pub new: Vec<String>,
    /// Entries of the file that the model does not have.
    pub unused: Vec<String>,
    /// Sentences for the user.
    pub notes: Vec<String>,
}

/// How a model is to be trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainerOptions {
    /// `adamw` or `sgd` (momentum 0.9).
    pub optimizer: String,
    /// Of the optimiser, above 0.
    pub learning_rate: f64,
    /// Of the optimiser, 0 or more.
    pub weight_decay: f64,
    /// `cross-entropy` (one class an image), or `binary-cross-entropy` (each class by itself; targets [B, classes]).
    pub loss: String,
    /// Weight of each class in the loss; empty for ones.
    pub class_weights: Vec<f64>,
    /// `float32`, or `mixed`: forward and backward in float16 where it is safe, on CUDA only.
    pub precision: String,
}

impl Default for TrainerOptions {
    fn default() -> Self {
        TrainerOptions {
            optimizer: "adamw".into(),
            learning_rate: 1e-3,
            weight_decay: 1e-2,
            loss: "cross-entropy".into(),
            class_weights: vec![],
            precision: "float32".into(),
        }
    }
}

/// Rules whose batch is of pairs: its first half are images, its second half their baselines. A request that names one says
/// that it has pairs, [`Request::pairs`](crate::Request::pairs).
pub const PAIR_RULES: [&str; 2] = ["relu:rescale", "pool:rescale"];

/// Rules of [`rules`](crate::model::Request::rules) that the SDK knows and that take no number.
#[doc(hidden)]
pub const RULES_WITHOUT_NUMBER: [&str; 13] = [
    "relu:guided",
    "relu:deconv",
    "relu:rescale",
    "pool:rescale",
    "conv:zplus",
    "input:zbox",
    "attention:detach",
    "activation:identity",
    "linear:zplus",
    "norm:detach",
    "softmax:detach",
    "product:uniform",
    "gate:detach",
];
