//! What a model answers: its named outputs with their meaning, and the one function that turns logits into scores.

use super::Axis;
use serde::{Deserialize, Serialize};

/// What turns the logits of a model's classes into scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// One class of several: `exp(z_k) / sum_j exp(z_j)`.
    #[default]
    Softmax,
    /// Any number of several, each by itself: `1 / (1 + exp(-z_k))`.
    Sigmoid,
    /// The logit itself, as of a regression.
    Linear,
}

impl Activation {
    /// Scores of logits over classes, in double precision. This is the one place in which a score is computed: the SDK, the
    /// metrics and plugins call it.
    ///
    /// ```
    /// use lightbox_sdk::spec::Activation;
    /// assert_eq!(Activation::Softmax.scores(&[1.0, 1.0]), [0.5, 0.5]);
    /// assert_eq!(Activation::Sigmoid.scores(&[0.0, 0.0]), [0.5, 0.5]);
    /// assert_eq!(Activation::Linear.scores(&[3.0]), [3.0]);
    /// ```
    pub fn scores(self, logits: &[f64]) -> Vec<f64> {
        match self {
            Activation::Linear => logits.to_vec(),
            Activation::Sigmoid => logits.iter().map(|z| 1.0 / (1.0 + (-z).exp())).collect(),
            Activation::Softmax => {
                let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let powers: Vec<f64> = logits.iter().map(|z| (z - largest).exp()).collect();
                let sum: f64 = powers.iter().sum();
                powers.into_iter().map(|p| p / sum).collect()
            }
        }
    }

    /// The derivative of the score of `class` in each logit.
    pub fn slopes(self, logits: &[f64], class: usize) -> Vec<f64> {
        let scores = self.scores(logits);
        let own = scores[class];
        let slope = |k: usize| match (self, k == class) {
            (Activation::Softmax, same) => own * (f64::from(u8::from(same)) - scores[k]),
            (Activation::Sigmoid, true) => own * (1.0 - own),
            (Activation::Linear, true) => 1.0,
            (_, false) => 0.0,
        };
        (0..logits.len()).map(slope).collect()
    }

    /// Its name, as specs and messages write it.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Softmax => "softmax",
            Activation::Sigmoid => "sigmoid",
            Activation::Linear => "linear",
        }
    }
}

/// What an output's numbers mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Meaning {
    /// A logit a class, [B, classes].
    Classes {
        /// How many.
        classes: usize,
        /// What makes scores of them.
        activation: Activation,
    },
    /// A logit a class and place, [B, classes, grid...]: a segmentation.
    ClassMap {
        /// How many.
        classes: usize,
        /// What makes scores of the classes at a place.
        activation: Activation,
        /// Sizes of the grid, one a spatial axis.
        grid: Vec<usize>,
    },
    /// Candidates of a detector, [B, candidates, 4 + classes]: left, top, right and bottom in pixels of the input, then a
    /// logit a class.
    Boxes {
        /// How many classes.
        classes: usize,
        /// What makes scores of the classes of a candidate.
        activation: Activation,
        /// How many candidates an image has.
        candidates: usize,
    },
    /// Numbers of another meaning, of this shape after the batch.
    Numbers {
        /// Sizes after the batch's.
        shape: Vec<usize>,
    },
    /// Of a newer SDK.
    #[serde(other)]
    Other,
}

/// One of a model's outputs. The first is the one that is explained unless a target names another, and the one that
/// [`Response::logits`](crate::Response::logits) holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Output {
    /// Permanent, lower case: `logits`.
    pub name: String,
    /// What its numbers mean.
    #[serde(flatten)]
    pub meaning: Meaning,
}

impl Output {
    /// A logit a class.
    pub fn classes(name: &str, classes: usize, activation: Activation) -> Self {
        Output { name: name.into(), meaning: Meaning::Classes { classes, activation } }
    }

    /// A logit a class and place.
    pub fn class_map(name: &str, classes: usize, activation: Activation, grid: impl AsRef<[usize]>) -> Self {
        let grid = grid.as_ref().to_vec();
        Output { name: name.into(), meaning: Meaning::ClassMap { classes, activation, grid } }
    }

    /// Candidates of a detector.
    pub fn boxes(name: &str, classes: usize, activation: Activation, candidates: usize) -> Self {
        Output { name: name.into(), meaning: Meaning::Boxes { classes, activation, candidates } }
    }

    /// Sizes after the batch's, at the default input size.
    pub fn shape(&self) -> Vec<usize> {
        match &self.meaning {
            Meaning::Classes { classes, .. } => vec![*classes],
            Meaning::ClassMap { classes, grid, .. } => [vec![*classes], grid.clone()].concat(),
            Meaning::Boxes { classes, candidates, .. } => vec![*candidates, 4 + classes],
            Meaning::Numbers { shape } => shape.clone(),
            Meaning::Other => vec![],
        }
    }

    /// The meaning of its dimensions.
    pub fn axes(&self) -> Vec<Axis> {
        match &self.meaning {
            Meaning::Classes { .. } => vec![Axis::Batch, Axis::Class],
            Meaning::ClassMap { grid, .. } => [vec![Axis::Batch, Axis::Class], Axis::spatial(grid.len())].concat(),
            Meaning::Boxes { .. } => vec![Axis::Batch, Axis::Candidate, Axis::Value],
            Meaning::Numbers { shape } => [vec![Axis::Batch], vec![Axis::Other; shape.len()]].concat(),
            Meaning::Other => vec![],
        }
    }

    /// How many classes it has; none for numbers of another meaning.
    pub fn class_count(&self) -> Option<usize> {
        match self.meaning {
            Meaning::Classes { classes, .. } | Meaning::ClassMap { classes, .. } | Meaning::Boxes { classes, .. } => {
                Some(classes)
            }
            Meaning::Numbers { .. } | Meaning::Other => None,
        }
    }

    /// What makes scores of its logits.
    pub fn activation(&self) -> Activation {
        match self.meaning {
            Meaning::Classes { activation, .. }
            | Meaning::ClassMap { activation, .. }
            | Meaning::Boxes { activation, .. } => activation,
            Meaning::Numbers { .. } | Meaning::Other => Activation::Linear,
        }
    }

    /// The same with another activation: a task says how its classes are meant.
    pub fn activated(mut self, by: Activation) -> Self {
        match &mut self.meaning {
            Meaning::Classes { activation, .. }
            | Meaning::ClassMap { activation, .. }
            | Meaning::Boxes { activation, .. } => *activation = by,
            Meaning::Numbers { .. } | Meaning::Other => {}
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_stable_and_each_kind_is_its_own() {
        let large = Activation::Softmax.scores(&[1000.0, 1001.0]);
        assert!((large[1] - 1.0 / (1.0 + (-1f64).exp())).abs() < 1e-12);
        let each = Activation::Sigmoid.scores(&[1000.0, -1000.0, 0.0]);
        assert_eq!(each, [1.0, 0.0, 0.5]);
        // Two classes' softmax is the sigmoid of their difference, and no sum of sigmoids is 1.
        let (a, b) = (Activation::Softmax.scores(&[0.3, -0.4]), Activation::Sigmoid.scores(&[0.7]));
        assert!((a[0] - b[0]).abs() < 1e-12);
    }

    #[test]
    fn an_output_says_its_shape_and_a_newer_meaning_is_read() {
        let map = Output::class_map("map", 3, Activation::Sigmoid, [4, 5]);
        assert_eq!(map.shape(), [3, 4, 5]);
        assert_eq!(Output::boxes("b", 2, Activation::Softmax, 7).shape(), [7, 6]);
        let text = serde_json::to_string(&map).unwrap();
        assert_eq!(text, r#"{"name":"map","kind":"class-map","classes":3,"activation":"sigmoid","grid":[4,5]}"#);
        let newer: Output = serde_json::from_str(r#"{"name":"x","kind":"depth","scale":3}"#).unwrap();
        assert_eq!(newer.meaning, Meaning::Other);
    }
}
