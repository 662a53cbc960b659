//! Metrics. Each is one file; [`all`] is where they are registered.
//!
//! A metric says what it needs ([`Needs`]) and makes an [`Evaluation`], which sees one batch after the other. What an
//! evaluation has summed up can be saved, and merged with what another one summed up over other images, on another worker,
//! so that a metric over a whole set needs no second look at any map. A metric that must ask the model or the explainer does
//! so through a [`Bench`]; this crate loads no plugin.

pub mod auroc;
pub mod average_drop;
pub mod average_increase;
pub mod average_precision;
pub mod average_sensitivity;
pub mod batch_cache;
pub mod completeness_gap;
pub mod deletion;
pub mod dice;
pub mod dice_otsu;
pub mod effective_complexity;
pub mod entropy;
pub mod equivariance;
mod facts;
pub mod froc;
pub mod gini;
pub mod hit;
pub mod impute;
pub mod infidelity;
pub mod insertion;
pub mod iou;
pub mod iou_otsu;
pub mod local_lipschitz;
mod map_metric;
pub mod mass_lift;
pub mod max_sensitivity;
pub mod mu_fidelity;
pub mod nodule_recall;
mod otsu;
pub mod parameter_randomisation;
mod perturbed;
pub mod pixel_auprc;
pub mod pixel_auprc_pooled;
pub mod pixel_auroc;
pub mod pixel_auroc_pooled;
pub mod pixels;
mod pooled;
pub mod random_logit;
pub mod relative_input_stability;
pub mod relative_output_stability;
pub mod relevance_mass;
pub mod relevance_rank;
mod removal;
pub mod road;
pub mod sensitivity_n;
pub mod shortcut_mass;
pub mod srg;
pub mod subsets;
pub mod threshold;
pub mod tolerant_hit;
pub mod top_k;
#[cfg(test)]
mod versions;

use self::batch_cache::BatchCache;
use crate::maps::{self, Fault, Flat};
use crate::stats::interval;
use crate::task::Task;
use crate::{Error, Result};
use lightbox_sdk::params::{ParamSpec, ParamValues};
use lightbox_sdk::spec::Reference;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::rc::Rc;
use tch::Tensor;

/// Whether a metric gives a value an image (of which the table shows the mean) or one of a whole set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// A value of each image.
    Image,
    /// One value of a whole set.
    Set,
}

/// Which direction is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Better {
    /// A greater value.
    Higher,
    /// A smaller value.
    Lower,
}

/// Least and greatest value; an end that is open is null in JSON.
pub mod bounds {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// Writes an open end as null.
    pub fn serialize<S: Serializer>(range: &[f64; 2], s: S) -> Result<S::Ok, S::Error> {
        range.map(|v| v.is_finite().then_some(v)).serialize(s)
    }

    /// Reads null as an open end: of the lower as minus infinity, of the upper as infinity.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<[f64; 2], D::Error> {
        let [low, high] = <[Option<f64>; 2]>::deserialize(d)?;
        Ok([low.unwrap_or(f64::NEG_INFINITY), high.unwrap_or(f64::INFINITY)])
    }
}

/// What `lightbox list metrics` and `lightbox info` say of a metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MetricSpec {
    /// Permanent: `pixel-auprc`.
    pub name: &'static str,
    /// A column's or table's heading.
    pub short: &'static str,
    /// In words, as a table's title.
    pub title: &'static str,
    /// classification, localisation, faithfulness, ...
    pub family: &'static str,
    /// Whether it has a value of each image or of a set.
    pub level: Level,
    /// What it computes.
    pub formula: &'static str,
    /// The direction.
    pub better: Better,
    /// Least and greatest value. A failed map counts as the worse of them; where that end is open, it is in no mean, but
    /// counted, and the last in every ranking.
    #[serde(with = "bounds")]
    pub range: [f64; 2],
    /// What a map that knows nothing scores.
    pub chance: &'static str,
    /// A constant map scores what chance does, so the table's column of chance is that map's score on the same images.
    pub chance_is_constant: bool,
    /// `share` (shown in percent) or a unit.
    pub unit: &'static str,
    /// Passes of the model an image.
    pub cost: &'static str,
    /// What it does where its formula says nothing.
    pub edge_cases: &'static str,
    /// Paper or code that it follows.
    pub reference: Reference,
    /// Raised whenever the metric's values change, so that a run that has values of an older one scores its maps anew.
    pub version: u32,
    /// Those that a spec can give.
    pub parameters: Vec<ParamSpec>,
}

impl MetricSpec {
    /// What a failed map counts as in a mean; none where that end of the range is open.
    pub fn worst(&self) -> Option<f64> {
        worst(self.better, self.range)
    }

    /// Values of all parameters. An unknown name or a value outside its range is an error.
    pub fn resolve(&self, given: &BTreeMap<String, Value>) -> Result<ParamValues> {
        ParamValues::resolve(&self.parameters, given).map_err(|e| Error::new(e.message))
    }
}

/// The worse end of a range, where it is not open.
pub fn worst(better: Better, range: [f64; 2]) -> Option<f64> {
    Some(if better == Better::Higher { range[0] } else { range[1] }).filter(|v| v.is_finite())
}

/// At which size a metric wants maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// The masks' and the model's input.
    Mask,
    /// The explainer's own.
    Native,
}

/// In which form a metric wants a map's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As the explainer made it.
    Raw,
    /// [0, 1] by the map's own range.
    MinMax,
}

/// What a metric needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// The maps, at a size and in a form. Without them the metric is about the model's predictions.
    pub maps: Option<(Size, Form)>,
    /// Whether it reads masks.
    pub masks: Masks,
    /// The model: [`Bench::run`].
    pub model: bool,
    /// The explainer: [`Bench::explain`].
    pub explainer: bool,
    /// Copies of the model with other parameters: [`Bench::fork`].
    pub fork: bool,
    /// Maps of validation images too: [`Evaluation::tune`].
    pub validation: bool,
}

/// Which masks a metric compares maps with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Masks {
    /// It reads none.
    None,
    /// Of the explained class.
    Finding,
    /// Of what was planted to mislead the model, where the data has it.
    Shortcut,
}

impl Needs {
    /// Whether it asks the model or the explainer.
    pub const fn asks(&self) -> bool {
        self.model || self.explainer || self.fork
    }

    /// Of a metric of predictions.
    pub const PREDICTIONS: Needs =
        Needs { maps: None, masks: Masks::None, model: false, explainer: false, fork: false, validation: false };

    /// Of a metric that looks at maps alone.
    pub const fn of_maps(size: Size, form: Form) -> Needs {
        Needs { maps: Some((size, form)), ..Needs::PREDICTIONS }
    }

    /// Of a metric that compares maps with masks.
    pub const fn masked(size: Size, form: Form) -> Needs {
        Needs { maps: Some((size, form)), masks: Masks::Finding, ..Needs::PREDICTIONS }
    }
}

/// How a value came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// There is a value.
    Ok,
    /// The metric does not apply to the image: no mask, or an empty one.
    NotApplicable,
    /// The map is not finite.
    Failed,
}

/// A metric's answer for an image or a set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Present when the status is ok, but for a map that counts in the value of a set ([`Score::counted`]).
    pub value: Option<f64>,
    /// Whether there is a value, or why not.
    pub status: Status,
    /// Why there is no value, or what is odd about it; empty for nothing.
    pub reason: &'static str,
}

impl Score {
    /// Why a constant map fails a metric.
    pub const CONSTANT: &'static str = "constant map";

    /// A value.
    pub fn ok(value: f64) -> Self {
        Score { value: Some(value), status: Status::Ok, reason: "" }
    }

    /// No value, since the metric does not apply.
    pub fn not_applicable(reason: &'static str) -> Self {
        Score { value: None, status: Status::NotApplicable, reason }
    }

    /// No value, since the map failed.
    pub fn failed(reason: &'static str) -> Self {
        Score { value: None, status: Status::Failed, reason }
    }

    /// A map that counts in the value of a set, with this fault; it has no value of its own.
    pub fn counted(fault: Fault) -> Self {
        match fault {
            Fault::NotFinite => Score::failed("the map is not finite"),
            fault => Score { value: None, ..Score::of(0.0, fault) },
        }
    }

    /// The value of a map with this fault.
    pub fn of(value: f64, fault: Fault) -> Self {
        Score { reason: if fault == Fault::Constant { Score::CONSTANT } else { "" }, ..Score::ok(value) }
    }
}

/// What an evaluation sees of some images. Of maps and masks there is what the metric asked for.
pub struct Batch<'a> {
    /// [n, C, H, W] float32, normalised, on the model's device.
    pub images: &'a Tensor,
    /// The class that was explained, an image.
    pub targets: &'a [i64],
    /// Stable numbers of the images.
    pub ids: &'a [u64],
    /// [n, h, w] float32, on the device they were made on.
    pub maps: Option<&'a Tensor>,
    /// What is wrong with each map.
    pub faults: &'a [Fault],
    /// [n, H, W] uint8, 0 and 1, on the maps' device; all 0 where unknown.
    pub masks: Option<&'a Tensor>,
    /// Whether the mask is known, an image.
    pub known: &'a [bool],
    /// Whether the explainer's maps have a sign that means something.
    pub signed: bool,
    /// What metrics made for these images, whatever the explainer.
    pub scene: &'a BatchCache,
    /// What metrics made for these maps.
    pub cell: &'a BatchCache,
}

impl Batch<'_> {
    /// The maps' values, row by row, on the CPU, and the width of a row; copied from a GPU once for all metrics of a form.
    fn values(&self) -> Result<(Rc<Flat<f32>>, usize)> {
        let maps = self.maps.ok_or_else(|| Error::new("this metric was given no maps"))?;
        let width = maps.size().last().copied().unwrap_or(1) as usize;
        // Where they lie is which form they are: a cell's forms live as long as its cache.
        Ok((self.cell.get(&format!("values {:p}", maps.data_ptr()), || maps::values(maps))?, width))
    }

    /// The masks' values, as the maps'; once for all cells of a scene.
    fn marks(&self, of: Masks) -> Result<Rc<Flat<u8>>> {
        let masks = self.masks.ok_or_else(|| Error::new("this metric was given no masks"))?;
        self.scene.get(&format!("masks {of:?}"), || Flat::of(masks))
    }
}

/// What a model says of images.
pub struct Answer {
    /// [n, classes] float64, CPU.
    pub logits: Tensor,
    /// Softmax or sigmoid of them, as the task has it; [n, classes] float64, CPU.
    pub scores: Tensor,
}

/// Tells the metrics of a batch what the model has said of its images already, so that none runs it again. `scene` is the
/// batch's [`Batch::scene`].
pub fn remember(scene: &BatchCache, answer: impl FnOnce() -> Result<Answer>) -> Result<()> {
    scene.get(removal::PLAIN, answer).map(drop)
}

/// Makes the parameters that a copy of the model has in place of its own.
pub type Edits<'a> = &'a mut dyn FnMut() -> Result<Vec<(String, Tensor)>>;

/// The model and the explainer of a cell, as far as a metric may use them.
pub trait Bench {
    /// What the model says of normalised images [n, C, H, W].
    fn run(&mut self, images: &Tensor) -> Result<Answer>;

    /// The explainer's maps [n, h, w] of other images, explained for `targets`.
    fn explain(&mut self, images: &Tensor, targets: &[i64], ids: &[u64]) -> Result<Tensor>;

    /// Names of the model's parameters, in their order.
    fn parameters(&mut self) -> Result<Vec<(String, Tensor)>>;

    /// Calls `f` with a bench of a copy of the model in which some parameters are replaced. `key` names the copy: a bench may
    /// keep it, and then does not ask for the parameters again.
    fn fork(&mut self, key: &str, edits: Edits<'_>, f: &mut dyn FnMut(&mut dyn Bench) -> Result<()>) -> Result<()>;

    /// Images that the model takes at once.
    fn batch_size(&self) -> usize;

    /// An error when the user wants to stop; also a sign of life.
    fn check(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A bench for metrics that ask nothing.
pub struct NoBench;

impl Bench for NoBench {
    fn run(&mut self, _: &Tensor) -> Result<Answer> {
        Err(Error::new("this metric did not ask for the model"))
    }
    fn explain(&mut self, _: &Tensor, _: &[i64], _: &[u64]) -> Result<Tensor> {
        Err(Error::new("this metric did not ask for the explainer"))
    }
    fn parameters(&mut self) -> Result<Vec<(String, Tensor)>> {
        Err(Error::new("this metric did not ask for the model"))
    }
    fn fork(&mut self, _: &str, _: Edits<'_>, _: &mut dyn FnMut(&mut dyn Bench) -> Result<()>) -> Result<()> {
        Err(Error::new("this metric did not ask for copies of the model"))
    }
    fn batch_size(&self) -> usize {
        1
    }
}

/// What an evaluation has summed up: named tensors, CPU.
pub type State = Vec<(String, Tensor)>;

/// A curve that stands behind a metric's values, for the report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// What the axes show.
    pub x: String,
    /// What the vertical axis is.
    pub y: String,
    /// Points (x, y), from left to right.
    pub points: Vec<[f64; 2]>,
}

/// A metric at work on the maps of one cell (a model, fold and explainer).
pub trait Evaluation: Send {
    /// Takes a batch. A metric of [`Level::Image`] answers for each image, now or, where it is tuned on validation images,
    /// in the end ([`Evaluation::images`]); one of [`Level::Set`] says which images count ([`Score::counted`]), or nothing.
    fn update(&mut self, batch: &Batch<'_>, bench: &mut dyn Bench) -> Result<Vec<Score>>;

    /// What was summed up so far; empty where there is nothing to sum.
    fn state(&self) -> Result<State> {
        Ok(Vec::new())
    }

    /// Adds what another evaluation summed up over other images. The order does not matter.
    fn merge(&mut self, state: &State) -> Result<()> {
        let _ = state;
        Ok(())
    }

    /// Takes what an evaluation summed up over validation images; after all merging, before the end. An empty state where
    /// there are none.
    fn tune(&mut self, state: &State) -> Result<()> {
        let _ = state;
        Ok(())
    }

    /// The value of the set; `None` for a metric of [`Level::Image`].
    fn finish(&self) -> Result<Option<Score>> {
        Ok(None)
    }

    /// Values that are known in the end only: of an image, by its id, and the class that was explained.
    fn images(&self) -> Result<Vec<(u64, i64, Score)>> {
        Ok(Vec::new())
    }

    /// The curve behind the values, where there is one.
    fn curve(&self) -> Result<Option<Curve>> {
        Ok(None)
    }
}

/// What predictions are scored with: a test set's scores and labels.
pub struct Predictions<'a> {
    /// The task of the run.
    pub task: &'a Task,
    /// By class, then by image: the score in [0, 1].
    pub scores: &'a [Vec<f64>],
    /// By class, then by image: 1 where the class holds.
    pub labels: &'a [Vec<u8>],
}

/// A metric. One file, one line in `ALL`.
pub trait Metric: Send + Sync {
    /// Name, formula, range and reference.
    fn spec(&self) -> MetricSpec;

    /// What it needs of a run.
    fn needs(&self) -> Needs;

    /// Begins with resolved parameters. `seed` is the run's; random draws depend on it and the image's id alone.
    fn start(&self, parameters: &ParamValues, seed: u64) -> Result<Box<dyn Evaluation>>;

    /// The value of predictions, for a metric of them.
    fn predictions(&self, predictions: &Predictions<'_>) -> Result<Score> {
        let _ = predictions;
        Err(Error::new(format!("{} is a metric of maps", self.spec().name)))
    }

    /// The 95 % interval of a metric of predictions, from 0 to 1: `variance` is the jackknife's, over so many patients with and
    /// without the (rarest) class.
    fn interval(&self, value: f64, variance: f64, positives: usize, negatives: usize) -> [f64; 2] {
        interval::of_share(value, variance, positives.min(negatives))
    }
}

/// The mean over a task's scored classes of a value a class; not applicable when one class has none.
fn over_classes(p: &Predictions<'_>, reason: &'static str, f: impl Fn(&[f64], &[u8]) -> Option<f64>) -> Score {
    let classes = p.task.scored();
    let values: Vec<f64> = classes.iter().filter_map(|&c| f(&p.scores[c], &p.labels[c])).collect();
    match values.len() == classes.len() {
        true => Score::ok(values.iter().sum::<f64>() / values.len() as f64),
        false => Score::not_applicable(reason),
    }
}

/// All metrics, in the names' order.
static ALL: &[&dyn Metric] = &[
    &average_precision::Auprc,
    &auroc::Auroc,
    &average_drop::AVERAGE_DROP,
    &average_increase::AVERAGE_INCREASE,
    &average_sensitivity::AVERAGE_SENSITIVITY,
    &completeness_gap::COMPLETENESS_GAP,
    &deletion::DELETION,
    &dice::DICE,
    &dice_otsu::DICE_OTSU,
    &effective_complexity::EFFECTIVE_COMPLEXITY,
    &entropy::ENTROPY,
    &equivariance::EQUIVARIANCE,
    &froc::FROC,
    &gini::GINI,
    &hit::HIT,
    &infidelity::INFIDELITY,
    &insertion::INSERTION,
    &iou::IOU,
    &iou_otsu::IOU_OTSU,
    &local_lipschitz::LOCAL_LIPSCHITZ,
    &mass_lift::MASS_LIFT,
    &max_sensitivity::MAX_SENSITIVITY,
    &mu_fidelity::MU_FIDELITY,
    &nodule_recall::NODULE_RECALL,
    &parameter_randomisation::PARAMETER_RANDOMISATION,
    &pixel_auprc::PixelAuprc,
    &pixel_auprc_pooled::PixelAuprcPooled,
    &pixel_auroc::PIXEL_AUROC,
    &pixel_auroc_pooled::PixelAurocPooled,
    &random_logit::RANDOM_LOGIT,
    &relative_input_stability::RELATIVE_INPUT_STABILITY,
    &relative_output_stability::RELATIVE_OUTPUT_STABILITY,
    &relevance_mass::RELEVANCE_MASS,
    &relevance_rank::RELEVANCE_RANK,
    &road::ROAD,
    &sensitivity_n::SENSITIVITY_N,
    &shortcut_mass::SHORTCUT_MASS,
    &srg::SRG,
    &tolerant_hit::TOLERANT_HIT,
    &top_k::TOP_K,
];

/// All metrics, in the names' order.
pub fn all() -> &'static [&'static dyn Metric] {
    ALL
}

/// The metric of this name; otherwise an error that lists the known.
pub fn find(name: &str) -> Result<&'static dyn Metric> {
    let found = all().iter().copied().find(|m| m.spec().name == name);
    found.ok_or_else(|| {
        let known: Vec<&str> = all().iter().map(|m| m.spec().name).collect();
        Error::new(format!("no metric is named {name} (known: {})", known.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_checked_and_filled() {
        let spec = deletion::DELETION.spec();
        let given = |name: &str, value: Value| spec.resolve(&[(name.to_string(), value)].into());
        assert_eq!(given("baseline", "blur".into()).unwrap().values()["baseline"], "blur");
        let error = |name: &str, value: Value| given(name, value).unwrap_err().to_string();
        let text = "parameter baseline: \"blurr\" is not one of mean, blur, zero, noisy";
        assert_eq!(error("baseline", "blurr".into()), text);
        assert!(given("baseline", 1.into()).is_err());
        assert_eq!(given("steps", 5.into()).unwrap().values()["steps"], 5);
        // A whole number of a TOML file may be written 5.0, and is the same number.
        assert_eq!(given("steps", 5.0.into()).unwrap(), given("steps", 5.into()).unwrap());
        assert_eq!(spec.resolve(&BTreeMap::new()).unwrap(), given("steps", 16.into()).unwrap());
        assert!(error("steps", 0.into()).contains("parameter steps: 0 is not an integer from 1 to"));
        assert!(error("step", 5.into()).contains("unknown parameter step (known: steps"));
        assert!(find("auprx").err().unwrap().to_string().contains("no metric is named auprx (known: auprc, auroc"));
    }

    #[test]
    fn names_are_sorted_and_a_failure_is_the_worst_value() {
        let names: Vec<&str> = all().iter().map(|m| m.spec().name).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        assert_eq!(names, sorted);
        assert_eq!(find("pixel-auprc").unwrap().spec().worst(), Some(0.0));
        assert_eq!(find("deletion").unwrap().spec().worst(), Some(1.0));
        assert_eq!(find("infidelity").unwrap().spec().worst(), None);
    }
}
