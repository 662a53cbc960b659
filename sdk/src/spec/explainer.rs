//! How an explainer describes itself, and what it asks of a host.

use super::Reference;
use crate::params::ParamSpec;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The family of an explainer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Class activation maps.
    Cam,
    /// Attention in transformers.
    Attention,
    /// Gradients at the image.
    Gradient,
    /// What the model says of changed images.
    Perturbation,
    /// Relevance that is propagated backwards.
    Relevance,
    /// Maps that know nothing of the model. A method that does not beat them has said nothing.
    Control,
    /// Of a newer SDK, or none of these.
    #[serde(other)]
    Other,
}

/// An explainer as it describes itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExplainerSpec {
    /// Permanent, lower case: `gradcam`.
    pub name: String,
    /// For headings: `GradCAM`.
    pub title: String,
    /// Of the plugin.
    pub version: String,
    /// Who published it.
    pub reference: Reference,
    /// What it belongs to.
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
    /// Set by the SDK, from [`Explainer::Params`](crate::Explainer::Params).
    #[serde(default)]
    pub parameters: Vec<ParamSpec>,
    /// The explainer reads CPU memory only, and gets copies in a CUDA run; so does what it runs the model with. The SDK
    /// sets it in a plugin built without its feature `tch`.
    #[serde(default)]
    pub cpu_only: bool,
    /// Kinds of targets that it can explain; all where it is empty. The SDK answers "not applicable" for others.
    #[serde(default)]
    pub targets: Vec<TargetKind>,
    /// It works on images of any number of spatial axes; otherwise on two alone, and the SDK answers "not applicable" for a
    /// model of volumes.
    #[serde(default)]
    pub any_dimensions: bool,
}

impl ExplainerSpec {
    /// Version 0.1.0, unsigned, without parameters.
    pub fn new(name: &str, title: &str, family: Family, reference: Reference) -> Self {
        ExplainerSpec {
            name: name.into(),
            title: title.into(),
            version: "0.1.0".into(),
            reference,
            family,
            signed: false,
            formula: String::new(),
            cost: String::new(),
            notes: String::new(),
            parameters: vec![],
            cpu_only: false,
            targets: vec![],
            any_dimensions: false,
        }
    }

    /// Sets the version.
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

    /// It explains targets of these kinds alone.
    pub fn targets(self, kinds: &[TargetKind]) -> Self {
        ExplainerSpec { targets: kinds.to_vec(), ..self }
    }

    /// It works on images of any number of spatial axes.
    pub fn any_dimensions(self) -> Self {
        ExplainerSpec { any_dimensions: true, ..self }
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
pub enum Contrast {
    /// This class, for every image.
    Class(usize),
    /// The class that each image ranks at this place by its logit; 0 is the highest.
    Rank(usize),
    /// The highest of the classes that are not the target.
    RunnerUp,
}

/// The kinds of [`Target`](crate::Target).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetKind {
    /// A class of an image.
    Class,
    /// A class in a region.
    Region,
    /// A class in a box.
    Box,
    /// A number of an output.
    Output,
    /// Of a newer SDK.
    #[serde(other)]
    Other,
}

impl TargetKind {
    /// As sentences name it.
    pub fn text(self) -> &'static str {
        match self {
            TargetKind::Class => "a class",
            TargetKind::Region => "a region",
            TargetKind::Box => "a box",
            TargetKind::Output => "a number of an output",
            TargetKind::Other => "of a kind that this SDK does not know",
        }
    }
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

/// What an explainer's fit is to see of the training set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FitNeeds {
    /// Values of these sites with each batch.
    pub values: Vec<String>,
    /// At most so many images of the training set, from its front; 0 for all.
    pub images: usize,
}

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
    pub others: Vec<Contrast>,
    /// The mean of the training set's masks.
    pub mean_mask: bool,
    /// The explainer will call the model itself.
    pub model: bool,
    /// How often, for one image: the passes beyond the shared run. The most, where it depends on the image.
    pub extra: Passes,
    /// The gradients are to be taken under these modified rules; each must be in [`ModelSpec::rules`](super::ModelSpec::rules), with `=NUMBER` after it
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
        let number = |o: &Contrast| match *o {
            Contrast::Class(n) | Contrast::Rank(n) => n,
            // There must be another class than the target.
            Contrast::RunnerUp => 1,
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

/// What an explainer answered when it was bound to a model: what it needs, or why it does not apply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "plan", rename_all = "kebab-case")]
pub enum Plan {
    /// It runs, with these needs.
    Run(Needs),
    /// It does not apply.
    NotApplicable {
        /// Why; a sentence without a full stop.
        reason: String,
    },
    /// Of a newer SDK; the host treats it as not applicable.
    #[serde(other)]
    Other,
}

impl Plan {
    /// Why it does not apply.
    pub fn not_applicable(reason: impl Into<String>) -> Self {
        Plan::NotApplicable { reason: reason.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_plugins_words_are_read() {
        assert_eq!(serde_json::from_str::<Plan>(r#"{"plan":"later","when":3}"#).unwrap(), Plan::Other);
        assert_eq!(serde_json::from_str::<TargetKind>("\"voxel\"").unwrap(), TargetKind::Other);
    }

    #[test]
    fn a_contrast_must_exist() {
        let needs =
            |others: &[Contrast]| Needs { others: others.to_vec(), gradients: vec!["x".into()], ..Needs::default() };
        assert!(needs(&[Contrast::Class(1), Contrast::RunnerUp]).check_others(2).is_ok());
        assert!(needs(&[Contrast::RunnerUp]).check_others(1).is_err());
        assert!(needs(&[Contrast::Rank(2)]).check_others(2).is_err());
        assert!(Needs { gradients: vec![], ..needs(&[Contrast::Rank(0)]) }.check_others(2).is_err());
    }
}
