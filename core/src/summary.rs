//! The summary of a run: one cell a model, explainer, map and metric, from the rows of all units (`aggregate.rs` makes it).
//! Everything that is shown (terminal, CSV, Markdown, LaTeX, JSON, pictures) reads a [`Summary`].
//!
//! A cell's value is the mean over folds and trainings of its value there; of a metric an image, that is the mean over the
//! images. An image whose map failed counts as the worst value of the metric's range, so that a method does not gain by
//! failing (where that end is open it is in no mean, but counted); an image to which the metric does not apply is in neither
//! the mean nor the chance beside it.

use crate::metrics::{Level, Metric, MetricSpec};
use crate::task::Task;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// The explainer that stands for chance: a constant map.
pub const CHANCE: &str = "chance";
/// Above this share of failures a cell is marked.
pub const MARKED: f64 = 0.01;

/// A metric of the run.
#[derive(Clone)]
pub struct MetricColumn {
    /// Its label in the spec.
    pub label: String,
    /// The metric.
    pub metric: &'static dyn Metric,
    /// What it says of itself.
    pub spec: MetricSpec,
}

/// What a run set out to do: rows, columns and what stands below the tables.
pub struct Plan {
    /// Of the run.
    pub name: String,
    /// Above the tables.
    pub title: String,
    /// What is classified and explained.
    pub task: Task,
    /// Of the run; the draws of intervals hang on it.
    pub seed: u64,
    /// How many.
    pub folds: usize,
    /// Trainings a fold.
    pub seeds: usize,
    /// Labels; true where every fold has the same weights.
    pub models: Vec<(String, bool)>,
    /// Labels, and the names of the maps that are shown (empty: all).
    pub explainers: Vec<(String, Vec<String>)>,
    /// Its columns of the table.
    pub metrics: Vec<MetricColumn>,
    /// Labels of explainers that know nothing of the model.
    pub controls: Vec<String>,
    /// What is known of each image, by its name.
    pub images: HashMap<String, ImageFacts>,
    /// Sentences below the first table.
    pub notes: Vec<String>,
}

/// What the summary needs to know of an image.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImageFacts {
    /// As the data source names it.
    pub patient: String,
    /// Its class's number: what draws are stratified by.
    pub class: usize,
    /// Its classes in words; empty for none.
    pub classes: String,
    /// The finding's share of the image's pixels, where there is one and its mask is known.
    pub size: Option<f64>,
}

/// A cell that has no value, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Absent {
    /// Its label.
    pub model: String,
    /// None: the whole row.
    pub explainer: Option<String>,
    /// Failed; otherwise it does not apply.
    pub failed: bool,
    /// Why.
    pub reason: String,
}

/// A value in one fold of one training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FoldValue {
    /// From 0.
    pub fold: i32,
    /// The number of the training, from 0.
    pub training: i32,
    /// The metric's.
    pub value: f64,
}

/// What a cell holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum State {
    /// There is a number.
    Value {
        /// Over folds and trainings.
        mean: f64,
        /// The mean over the maps that did not fail, where some did and it is another.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        without_failures: Option<f64>,
        /// Sample deviation over folds of the means over trainings; none for one fold, or where all folds have the same
        /// weights and value.
        #[schemars(range(min = 0))]
        fold_std: Option<f64>,
        /// Mean over folds of the sample deviation over trainings; none for one training.
        #[schemars(range(min = 0))]
        seed_std: Option<f64>,
        /// 95 % over images, by patient within classes (`stats::interval`), of the mean over folds and trainings. None for pooled
        /// metrics and for fewer than eight patients.
        interval: Option<[f64; 2]>,
        /// Of each fold and training.
        folds: Vec<FoldValue>,
        /// Images that count, a fold and training.
        images: usize,
        /// Patients that the interval is over; 0 for pooled metrics.
        patients: usize,
        /// Maps, over all folds and trainings, and how many of them failed or were constant.
        maps: usize,
        /// How many maps failed.
        failed: usize,
        /// How many maps were constant.
        constant: usize,
    },
    /// The explainer or metric does not apply.
    NotApplicable {
        /// Why.
        #[schemars(length(min = 1))]
        reason: String,
    },
    /// The explainer or the whole model failed.
    Failed {
        /// Why.
        #[schemars(length(min = 1))]
        reason: String,
    },
}

/// A cell of the summary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Cell {
    /// Its label.
    pub model: String,
    /// Empty for metrics of predictions.
    pub explainer: String,
    /// The name of one of several maps; empty otherwise.
    pub output: String,
    /// Its label.
    pub metric: String,
    /// What it holds.
    #[serde(flatten)]
    pub state: State,
}

/// A column of maps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Column {
    /// Its label.
    pub explainer: String,
    /// The name of one of several maps; empty otherwise.
    pub output: String,
}

impl Column {
    /// What stands above the column.
    pub fn title(&self) -> String {
        if self.output.is_empty() { self.explainer.clone() } else { format!("{} {}", self.explainer, self.output) }
    }
}

/// A metric as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ShownMetric {
    /// Its label in the spec.
    pub label: String,
    /// As a column's title.
    pub short: String,
    /// Of an image or of a set.
    pub level: Level,
    /// The direction.
    pub better: crate::metrics::Better,
    /// Lowest and highest possible value; an open end is infinite, null in JSON.
    #[serde(with = "crate::metrics::bounds")]
    #[schemars(with = "[Option<f64>; 2]")]
    pub range: [f64; 2],
    /// Of its values.
    pub unit: String,
    /// classification, localisation, faithfulness, ...
    pub family: String,
    /// False for metrics of predictions.
    pub of_maps: bool,
    /// Whether a constant map's value is shown beside it.
    pub has_chance: bool,
}

/// All that a run found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Summary {
    /// Of the run.
    pub name: String,
    /// Above the tables.
    pub title: String,
    /// How many.
    #[schemars(range(min = 1))]
    pub folds: usize,
    /// Trainings a fold.
    #[schemars(range(min = 1))]
    pub seeds: usize,
    /// Labels, in the spec's order.
    pub models: Vec<String>,
    /// Explainers with their maps, in the spec's order.
    pub columns: Vec<Column>,
    /// In the spec's order.
    pub metrics: Vec<ShownMetric>,
    /// One a model, column and metric.
    pub cells: Vec<Cell>,
    /// Metrics of predictions by class, in tasks of several classes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub class_values: Vec<ClassValue>,
    /// Metrics of maps by class, in tasks of several classes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub class_means: Vec<ClassMean>,
    /// What a planted shortcut does to each model, where the run's task asks for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interventions: Vec<crate::intervention::Effect>,
    /// What explanations took, where the run's spec asks for it: measured, so other in every run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seconds: Vec<Seconds>,
    /// Sentences below the tables.
    pub notes: Vec<String>,
}

/// A metric of predictions of one class of several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClassValue {
    /// Its label.
    pub model: String,
    /// Its label.
    pub metric: String,
    /// The class's name.
    pub class: String,
    /// Mean over folds and trainings; none where the class is absent from the test set or in all of it.
    pub value: Option<f64>,
    /// Test images with the class.
    pub images: usize,
}

/// The mean of a metric of maps over the explanations of one class of several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClassMean {
    /// Its label.
    pub model: String,
    /// Its label.
    pub metric: String,
    /// The column of maps, as its place in the summary's list.
    pub column: usize,
    /// The class's name.
    pub class: String,
    /// Mean over the class's explanations.
    pub mean: f64,
}

/// Seconds an image in an explainer's own code and its runs of the model, beyond the run that all share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Seconds {
    /// Its label.
    pub model: String,
    /// Its label.
    pub explainer: String,
    /// An image.
    #[schemars(range(min = 0))]
    pub seconds: f64,
}
