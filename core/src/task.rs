//! What a model is asked: which classes there are, how many of them an image may have, and which one is explained.

use crate::{Error, Result};
use lightbox_sdk::spec::Activation;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind as Type, Tensor};

/// How many classes an image has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// With the finding (class 1) or without (class 0): two outputs, softmax.
    #[default]
    Binary,
    /// Exactly one of several: softmax.
    MultiClass,
    /// Any number of several, each by itself: sigmoid.
    MultiLabel,
}

/// The `[task]` section of a spec.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Task {
    /// How classes go together.
    pub kind: Kind,
    /// The classes' names in the order of the model's outputs. Empty: `negative` and `positive`, or those of the source.
    pub classes: Vec<String>,
    /// `label` (the image's own class; of a multi-label task each of its classes, on its own, also called `each-positive`), `predicted` (the class that the
    /// model ranks first), or a class by name or number. Empty: class 1 of a binary task, otherwise `label`.
    pub explain: String,
    /// Explain `masked` images (those with a mask of the explained class), or `all` of the test set.
    pub select: String,
    /// Classify each test image with the planted shortcut painted in and out too (binary tasks, data with one).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub intervene: bool,
}

impl Default for Task {
    fn default() -> Self {
        Task { kind: Kind::Binary, classes: vec![], explain: String::new(), select: "masked".into(), intervene: false }
    }
}

/// Which class of an image is explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Explained {
    /// The image's own class.
    Label,
    /// Each of the image's own classes: an explanation a class.
    EachLabel,
    /// The class that the model ranks first.
    Predicted,
    /// The same class of every image.
    Class(usize),
}

impl Task {
    /// The task with its classes, where the source says them. Errors: a class that does not exist, fewer than two.
    pub fn resolve(&self, source: Vec<String>) -> Result<Self> {
        let mut task = self.clone();
        if task.classes.is_empty() {
            task.classes = match task.kind {
                Kind::Binary => vec!["negative".into(), "positive".into()],
                _ => source,
            };
        }
        let n = task.classes.len();
        if n < 2 || (task.kind == Kind::Binary && n != 2) {
            let wanted = if task.kind == Kind::Binary { "two" } else { "at least two" };
            return Err(Error::new(format!("the task has {n} classes, {wanted} expected")).hint("task.classes"));
        }
        if !["masked", "all"].contains(&task.select.as_str()) {
            return Err(Error::new(format!("task.select = \"{}\": masked or all expected", task.select)));
        }
        task.explained()?;
        Ok(task)
    }

    /// Which class is explained.
    pub fn explained(&self) -> Result<Explained> {
        let index = |name: &str| self.classes.iter().position(|c| c == name);
        match (self.explain.as_str(), self.kind) {
            ("", Kind::Binary) => Ok(Explained::Class(1)),
            ("" | "label", Kind::MultiClass) | ("label", Kind::Binary) => Ok(Explained::Label),
            ("" | "label" | "each-positive", Kind::MultiLabel) => Ok(Explained::EachLabel),
            ("predicted", _) => Ok(Explained::Predicted),
            (name, _) => {
                let number = name.parse::<usize>().ok().filter(|n| *n < self.classes.len());
                index(name).or(number).map(Explained::Class).ok_or_else(|| {
                    let known = self.classes.join(", ");
                    Error::new(format!("task.explain = \"{name}\": label, predicted or a class expected ({known})"))
                })
            }
        }
    }

    /// What turns the logits of the task's classes into scores: softmax, or sigmoid of a multi-label task.
    pub fn activation(&self) -> Activation {
        if self.kind == Kind::MultiLabel { Activation::Sigmoid } else { Activation::Softmax }
    }

    /// The classes' scores [B, classes] of logits of that shape, float64 in [0, 1], CPU, by [`Activation::scores`].
    ///
    /// Errors: logits of another number of dimensions.
    pub fn scores(&self, logits: &Tensor) -> Result<Tensor> {
        let size = logits.size();
        if size.len() != 2 {
            return Err(Error::new(format!("logits of shape {size:?}, expected [B, classes]")));
        }
        let flat = logits.f_to_device(Device::Cpu)?.f_to_kind(Type::Double)?.f_contiguous()?.f_flatten(0, -1)?;
        let flat = Vec::<f64>::try_from(flat)?;
        let activation = self.activation();
        let scores: Vec<f64> = flat.chunks(size[1].max(1) as usize).flat_map(|row| activation.scores(row)).collect();
        Ok(Tensor::f_from_slice(&scores)?.f_reshape(size)?)
    }

    /// The classes that classification metrics are averaged over: class 1 of a binary task, else all.
    pub fn scored(&self) -> Vec<usize> {
        if self.kind == Kind::Binary { vec![1] } else { (0..self.classes.len()).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: Kind, explain: &str, wanted: Result<Explained, &str>) {
        let task = Task { kind, explain: explain.into(), ..Task::default() };
        let names = ["cat", "dog", "bird"].map(String::from).to_vec();
        match (task.resolve(names).and_then(|t| t.explained()), wanted) {
            (Ok(found), Ok(wanted)) => assert_eq!(found, wanted),
            (Err(e), Err(part)) => assert!(e.to_string().contains(part), "{e}"),
            (found, wanted) => panic!("{found:?} {wanted:?}"),
        }
    }

    #[test]
    fn what_is_explained() {
        check(Kind::Binary, "", Ok(Explained::Class(1)));
        check(Kind::Binary, "negative", Ok(Explained::Class(0)));
        check(Kind::MultiClass, "", Ok(Explained::Label));
        check(Kind::MultiClass, "dog", Ok(Explained::Class(1)));
        check(Kind::MultiLabel, "2", Ok(Explained::Class(2)));
        check(Kind::MultiLabel, "predicted", Ok(Explained::Predicted));
        check(Kind::MultiLabel, "", Ok(Explained::EachLabel));
        check(Kind::MultiClass, "cow", Err("task.explain = \"cow\": label, predicted or a class expected"));
    }
}
