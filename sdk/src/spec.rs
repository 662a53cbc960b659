//! What plugins say of themselves. All of it crosses as JSON: a new field needs a default, nothing else.

pub use crate::params::{ParamSpec, ParamType, Params};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// What a plugin library holds, as `lightbox list plugins` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    pub plugin: String,
    pub version: String,
    #[serde(default)]
    pub models: Vec<ModelSpec>,
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

/// What a site holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SiteKind {
    Input,
    Feature,
    Tokens,
    Attention,
    AttentionLogits,
    Query,
    Key,
    Value,
    Embedding,
    Logits,
    /// What a layer adds whatever its input, at every place: its gradient is that of the bias there.
    Bias,
    #[serde(other)]
    Other,
}

/// The meaning of a site's dimensions: B images, C channels, H height, W width, N tokens, Q queries, K keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layout {
    BCHW,
    BNC,
    BHQK,
    BC,
    #[serde(other)]
    Other,
}

/// A named place in a model where a value can be read, replaced or differentiated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Site {
    /// The checkpoint's own name of the module whose output this is, where it has one.
    pub name: String,
    pub kind: SiteKind,
    pub layout: Layout,
    /// Channels (BCHW, BNC, BC) or heads (BHQK).
    pub channels: usize,
    /// Rows and columns of the feature map or token grid at the default input size.
    #[serde(default)]
    pub grid: Option<[usize; 2]>,
    /// Roles of the tokens before the grid's: `cls`, `dist`.
    #[serde(default)]
    pub prefix: Vec<String>,
    /// Which of the network's repeated blocks it is in or the end of, in their order.
    #[serde(default)]
    pub depth: Option<usize>,
    /// Attention only: whose the queries are. `tokens` (every token, prefix first), `cls` (one class token) or
    /// `per-class` (one token a class).
    #[serde(default)]
    pub query: String,
    /// A run may begin here with given values: [`Request::start`](crate::Request::start).
    #[serde(default)]
    pub start: bool,
    #[serde(default)]
    pub text: String,
}

impl Site {
    /// A feature map, [B, channels, grid].
    pub fn feature(name: impl Into<String>, channels: usize, grid: [usize; 2]) -> Self {
        Site {
            name: name.into(),
            kind: SiteKind::Feature,
            layout: Layout::BCHW,
            channels,
            grid: Some(grid),
            prefix: Vec::new(),
            depth: None,
            query: String::new(),
            start: false,
            text: String::new(),
        }
    }

    /// A vector an image, [B, channels].
    pub fn vector(name: impl Into<String>, kind: SiteKind, channels: usize) -> Self {
        Site { kind, layout: Layout::BC, grid: None, ..Site::feature(name, channels, [1, 1]) }
    }

    /// Tokens, [B, prefix + grid, channels].
    pub fn tokens(name: impl Into<String>, channels: usize, grid: [usize; 2], prefix: &[&str]) -> Self {
        let prefix = prefix.iter().map(|p| p.to_string()).collect();
        Site { kind: SiteKind::Tokens, layout: Layout::BNC, prefix, ..Site::feature(name, channels, grid) }
    }

    /// Attention weights, [B, heads, queries, prefix + grid]; see [`Site::query`].
    pub fn attention(name: impl Into<String>, heads: usize, grid: [usize; 2], prefix: &[&str], query: &str) -> Self {
        let (kind, layout, query) = (SiteKind::Attention, Layout::BHQK, query.to_string());
        Site { kind, layout, query, ..Site::tokens(name, heads, grid, prefix) }
    }

    pub fn depth(mut self, depth: usize) -> Self {
        self.depth = Some(depth);
        self
    }

    pub fn text(mut self, text: &str) -> Self {
        self.text = text.into();
        self
    }

    /// A run may begin here.
    pub fn start(mut self) -> Self {
        self.start = true;
        self
    }
}

/// What a model takes: [B, channels, height, width], float32, `(value in [0, 1] - mean) / std` a channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InputSpec {
    pub channels: usize,
    pub height: usize,
    pub width: usize,
    pub mean: Vec<f64>,
    pub std: Vec<f64>,
}

impl InputSpec {
    /// Three channels with ImageNet's statistics.
    pub fn imagenet(size: usize) -> Self {
        let (mean, std) = (vec![0.485, 0.456, 0.406], vec![0.229, 0.224, 0.225]);
        InputSpec { channels: 3, height: size, width: size, mean, std }
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
    pub title: String,
    pub version: String,
    pub reference: Reference,
    pub input: InputSpec,
    pub classes: usize,
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
    #[serde(default)]
    pub parameters: Vec<ParamSpec>,
    #[serde(default)]
    pub trainable: bool,
    /// Its trainer knows [`TrainerOptions::precision`] `mixed`.
    #[serde(default)]
    pub mixed_precision: bool,
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
            classes,
            sites: vec![],
            cam_site: None,
            attention_site: None,
            rules: vec![],
            parameters: vec![],
            trainable: false,
            mixed_precision: false,
        }
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

/// The family of an explainer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Class activation maps.
    Cam,
    Attention,
    Gradient,
    Perturbation,
    Relevance,
    /// Maps that know nothing of the model. A method that does not beat them has said nothing.
    Control,
    #[serde(other)]
    Other,
}

/// An explainer as it describes itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExplainerSpec {
    /// Permanent, lower case: `gradcam`.
    pub name: String,
    pub title: String,
    pub version: String,
    pub reference: Reference,
    pub family: Family,
    /// True where negative values mean evidence against the class.
    #[serde(default)]
    pub signed: bool,
    /// The map as an equation, in plain text: `relu(sum_c w_c A_c)`.
    #[serde(default)]
    pub formula: String,
    /// What it takes an image, in its parameters' names: `1 F, 1 B` for the shared run alone; F a forward pass, B a backward
    /// pass, P a forward pass of the part after a site. [`Needs::extra`] says it in numbers for a model.
    #[serde(default)]
    pub cost: String,
    /// Sentences for the reference: what the method claims, where it differs from the paper or from the peers.
    #[serde(default)]
    pub notes: String,
    #[serde(default)]
    pub parameters: Vec<ParamSpec>,
    /// The explainer reads CPU memory only, and gets copies in a CUDA run; so does what it runs the model with. The SDK
    /// sets it in a plugin built without its feature `tch`.
    #[serde(default)]
    pub cpu_only: bool,
}

impl ExplainerSpec {
    /// Version 0.1.0, unsigned, without parameters; `citation` and `id` as in [`Reference`].
    pub fn new(name: &str, title: &str, family: Family, citation: &str, id: &str) -> Self {
        ExplainerSpec {
            name: name.into(),
            title: title.into(),
            version: "0.1.0".into(),
            reference: Reference { citation: citation.into(), id: id.into() },
            family,
            signed: false,
            formula: String::new(),
            cost: String::new(),
            notes: String::new(),
            parameters: vec![],
            cpu_only: false,
        }
    }

    pub fn version(self, version: &str) -> Self {
        ExplainerSpec { version: version.into(), ..self }
    }

    /// See [`ExplainerSpec::formula`].
    pub fn formula(self, formula: &str) -> Self {
        ExplainerSpec { formula: formula.into(), ..self }
    }

    /// See [`ExplainerSpec::cost`].
    pub fn cost(self, cost: &str) -> Self {
        ExplainerSpec { cost: cost.into(), ..self }
    }

    /// See [`ExplainerSpec::notes`].
    pub fn notes(self, notes: &str) -> Self {
        ExplainerSpec { notes: notes.into(), ..self }
    }

    /// Negative values mean evidence against the class.
    pub fn signed(self) -> Self {
        ExplainerSpec { signed: true, ..self }
    }

    /// Adds parameters.
    pub fn parameters(mut self, parameters: impl IntoIterator<Item = ParamSpec>) -> Self {
        self.parameters.extend(parameters);
        self
    }
}

/// Passes through the model, for one image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Passes {
    /// Forward passes that begin with an image.
    pub forward: u64,
    /// Forward passes that begin at a site.
    pub partial: u64,
    /// Backward passes, one an objective.
    pub backward: u64,
}

impl Passes {
    /// Forward passes alone.
    pub fn forward(forward: u64) -> Self {
        Passes { forward, ..Passes::default() }
    }

    /// As many backward passes as forward ones.
    pub fn both(forward: u64) -> Self {
        Passes { forward, backward: forward, ..Passes::default() }
    }

    /// Forward passes that begin at a site.
    pub fn partial(partial: u64) -> Self {
        Passes { partial, ..Passes::default() }
    }

    /// `factor` times as many.
    pub fn times(self, factor: u64) -> Self {
        Passes { forward: self.forward * factor, partial: self.partial * factor, backward: self.backward * factor }
    }
}

impl std::ops::Add for Passes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Passes {
            forward: self.forward + other.forward,
            partial: self.partial + other.partial,
            backward: self.backward + other.backward,
        }
    }
}

/// `2 F, 3 P, 1 B`; `-` for none.
impl std::fmt::Display for Passes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [(self.forward, "F"), (self.partial, "P"), (self.backward, "B")];
        let parts: Vec<String> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        f.write_str(if parts.is_empty() { "-".into() } else { parts.join(", ") }.as_str())
    }
}

/// A class whose logit the shared run differentiates besides the target's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OtherClass {
    /// This class, for every image.
    Class(usize),
    /// The class that each image ranks at this place by its logit; 0 is the highest.
    Rank(usize),
}

/// What the data source says of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageRecord {
    /// Unique in the data source: usually the file's name.
    pub name: String,
    /// `None` where the source has no patient numbers.
    pub patient: Option<String>,
    /// The source's further columns: those of a table that are no image, label, patient, box or mask.
    pub columns: BTreeMap<String, String>,
}

/// What [`Explainer::fit`](crate::Explainer::fit) is to see.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FitNeeds {
    /// Values of these sites with each batch.
    pub values: Vec<String>,
    /// At most so many images of the training set, from its front; 0 for all.
    pub images: usize,
}

/// Rules of [`rules`](crate::model::Request::rules) that the SDK knows and that take no number.
pub(crate) const RULES_WITHOUT_NUMBER: [&str; 13] = [
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

/// What an explainer may require of a host.
pub const KNOWN_NEEDS: [&str; 3] = ["rules", "fit", "others"];

/// What an explainer wants from the run that all explainers of a model share.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Needs {
    /// Values of these sites.
    pub values: Vec<String>,
    /// Gradients of each image's target logit with respect to these sites.
    pub gradients: Vec<String>,
    /// Other classes whose logits are differentiated in the same run, with respect to the sites of `gradients`:
    /// [`Context::gradient_of`](crate::Context::gradient_of).
    pub others: Vec<OtherClass>,
    /// The mean of the training set's masks.
    pub mean_mask: bool,
    /// The explainer will call the model itself.
    pub model: bool,
    /// How often, for one image: the passes beyond the shared run. The most, where it depends on the image.
    pub extra: Passes,
    /// The gradients are to be taken under these modified rules; each must be in [`ModelSpec::rules`], with `=NUMBER` after it
    /// where the rule takes another number. Explainers with the
    /// same rules share a run.
    pub rules: Vec<String>,
    /// Batches of the training set before the first explanation.
    pub fit: Option<FitNeeds>,
    /// Set by the SDK: what a host must know to serve these needs. One that does not know a name refuses.
    pub requires: Vec<String>,
}

impl Needs {
    /// Names what is used of [`KNOWN_NEEDS`].
    pub(crate) fn with_requires(mut self) -> Self {
        let used =
            [("rules", !self.rules.is_empty()), ("fit", self.fit.is_some()), ("others", !self.others.is_empty())];
        for (name, _) in used.iter().filter(|(_, used)| *used) {
            if !self.requires.iter().any(|r| r == name) {
                self.requires.push(name.to_string());
            }
        }
        self
    }

    /// Passes of the run that serves these needs, which explainers with the same rules share.
    pub fn shared(&self) -> Passes {
        let backward = if self.gradients.is_empty() { 0 } else { 1 + self.others.len() as u64 };
        Passes { forward: 1, partial: 0, backward }
    }

    /// An error when a class is named that a model of so many classes does not have, or one without a site.
    pub fn check_others(&self, classes: usize) -> Result<()> {
        let number = |o: &OtherClass| match *o {
            OtherClass::Class(n) | OtherClass::Rank(n) => n,
        };
        match self.others.iter().find(|o| number(o) >= classes) {
            Some(bad) => Err(Error::invalid(format!("the plan names {bad:?}, the model has {classes} classes"))),
            None if !self.others.is_empty() && self.gradients.is_empty() => {
                Err(Error::invalid("the plan names other classes and no site whose gradient they are to have"))
            }
            None => Ok(()),
        }
    }

    /// An error when something is required that this side does not know.
    pub fn check_requires(&self) -> Result<()> {
        crate::message::check_requires("the explainer", &self.requires, &KNOWN_NEEDS)
    }
}

/// An explainer's answer to a model: what it needs, or why it does not apply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "plan", rename_all = "kebab-case")]
pub enum Plan {
    Run(Needs),
    NotApplicable {
        reason: String,
    },
    /// Of a newer SDK; the host treats it as not applicable.
    #[serde(other)]
    Other,
}

impl Plan {
    pub fn not_applicable(reason: impl Into<String>) -> Self {
        Plan::NotApplicable { reason: reason.into() }
    }
}

/// How a model is to be trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainerOptions {
    /// `adamw` or `sgd` (momentum 0.9).
    pub optimizer: String,
    pub learning_rate: f64,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn check(given: &[(&str, Value)]) -> Result<Params> {
        let specs = [
            ParamSpec::number("sigma", 0.25, (0.0, 2.0), "fraction of the image", ""),
            ParamSpec::integer("steps", 8, (1, 64), "", ""),
            ParamSpec::choice("mode", "max", &["max", "mean"], ""),
            ParamSpec::flag("relu", true, ""),
        ];
        Params::resolve(&specs, &given.iter().map(|(k, v)| (k.to_string(), v.clone())).collect())
    }

    #[test]
    fn parameters_are_checked_and_filled() {
        let p = check(&[("sigma", "1.5".into()), ("relu", "false".into())]).unwrap();
        assert_eq!((p.number("sigma").unwrap(), p.integer("steps").unwrap()), (1.5, 8));
        assert_eq!((p.text("mode").unwrap(), p.flag("relu").unwrap()), ("max", false));
        let error = |given: &[(&str, Value)]| check(given).unwrap_err().to_string();
        assert_eq!(error(&[("sigma", 3.into())]), "parameter sigma: 3 is not a number from 0 to 2");
        assert_eq!(error(&[("mode", "min".into())]), "parameter mode: \"min\" is not one of max, mean");
        assert_eq!(error(&[("depth", 1.into())]), "unknown parameter depth (known: sigma, steps, mode, relu)");
    }

    #[test]
    fn an_unbounded_parameter_crosses() {
        let spec = ParamSpec::number("x", 1.0, (0.0, f64::INFINITY), "", "");
        let back: ParamSpec = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
        assert_eq!(back, spec);
    }

    #[test]
    fn a_newer_plugins_words_are_read() {
        let text = r#"{"name":"x","type":"colour","default":[1,2],"text":""}"#;
        assert_eq!(serde_json::from_str::<ParamSpec>(text).unwrap().kind, ParamType::Other);
        assert_eq!(serde_json::from_str::<Plan>(r#"{"plan":"later","when":3}"#).unwrap(), Plan::Other);
        let text = r#"{"name":"x","kind":"codebook","layout":"BXYZ","channels":3,"colour":"red"}"#;
        let site: Site = serde_json::from_str(text).unwrap();
        assert_eq!((site.kind, site.layout), (SiteKind::Other, Layout::Other));
    }
}
