//! The spec of a run: TOML, resolved to every default before anything starts.

use crate::choice::ExplainerChoice;
use crate::engine::Missing;
use crate::error::{Error, Result};
use crate::registry::programs;
use lightbox_core::data::{DataSpec, split::SplitSpec};
use lightbox_core::metrics;
use lightbox_core::summary::CHANCE;
use lightbox_core::task::{Kind, Task};
use lightbox_sdk::spec::TrainerOptions;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

/// A whole run. Paths are relative to the spec's own folder, the output to the current one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    /// The folder that relative paths of plugins' parameters go from: the spec's.
    #[serde(skip)]
    pub base: PathBuf,
    /// Parameters that `--set` gave: the label of a model or explainer, and the parameter's name.
    #[serde(skip)]
    pub commanded: Vec<(String, String)>,
    /// Letters, digits, `-` and `_`; the default output is `runs/NAME`.
    pub name: String,
    #[serde(default)]
    pub title: String,
    /// Sentences for below the table.
    #[serde(default)]
    pub notes: Vec<String>,
    #[serde(default)]
    pub output: PathBuf,
    #[serde(default)]
    pub seed: u64,
    /// How many times each model is trained, with seeds of its own.
    #[serde(default = "one")]
    pub seeds: usize,
    /// Threads of each worker; 0 for one a core. They change the rounding of training, so a run keeps them.
    #[serde(default)]
    pub threads: usize,
    /// auto, cpu, cuda or cuda:N.
    #[serde(default = "auto")]
    pub device: String,
    /// The interpreter of plugins in Python, relative to the spec, or a name on the path; what each file asks for otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub python: Option<PathBuf>,
    /// On CUDA, compute products of matrices and convolutions of float32 values in TF32.
    #[serde(default)]
    pub tf32: bool,
    /// Images a batch when explaining.
    #[serde(default = "thirty_two")]
    pub batch_size: usize,
    /// Test images a unit: what is lost at most when the run is killed.
    #[serde(default = "two_hundred")]
    #[serde(alias = "block")]
    pub chunk: usize,
    /// Device memory for images, MiB. A larger set streams from disk.
    #[serde(default = "two_thousand")]
    pub store_mib: usize,
    /// A plugin that gives no sign (a call to the host, a run of the model) for so long is stopped, s.
    #[serde(default = "limit")]
    pub limit_seconds: u64,
    /// Test images on the sheet of overlays.
    #[serde(default = "six")]
    pub pictures: usize,
    /// Test images a model, fold and training whose maps are compared between explainers; 0 for none.
    #[serde(default = "two_hundred")]
    pub agreement: usize,
    /// Show in the table what an explanation takes, in seconds an image. They are measured, so other in every run.
    #[serde(default)]
    pub seconds: bool,
    pub data: DataSpec,
    #[serde(default)]
    pub task: Task,
    #[serde(default)]
    pub split: SplitSpec,
    #[serde(default)]
    pub models: Vec<ModelChoice>,
    #[serde(default)]
    pub explainers: Vec<ExplainerChoice>,
    #[serde(default = "usual_metrics")]
    pub metrics: Vec<MetricChoice>,
}

/// A metric as a spec names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricChoice {
    pub name: String,
    /// The name where it is empty.
    #[serde(default)]
    pub label: String,
    #[serde(default)]
    pub params: BTreeMap<String, Value>,
}

impl MetricChoice {
    pub fn label(&self) -> &str {
        if self.label.is_empty() { &self.name } else { &self.label }
    }
}

fn usual_metrics() -> Vec<MetricChoice> {
    let one = |name: &str| MetricChoice { name: name.into(), label: String::new(), params: BTreeMap::new() };
    ["auprc", "auroc", "pixel-auprc", "pixel-auprc-pooled"].map(one).to_vec()
}

fn auto() -> String {
    "auto".into()
}
fn one() -> usize {
    1
}
fn six() -> usize {
    6
}
fn thirty_two() -> usize {
    32
}
fn two_hundred() -> usize {
    200
}
fn two_thousand() -> usize {
    2000
}
fn limit() -> u64 {
    300
}
/// A model of the run: with weights, to be trained, or (neither) with its seeded initial values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelChoice {
    /// A model of a plugin, or the path of an exported program (`.pt2`), which `file` is another word for.
    #[serde(alias = "file")]
    pub name: String,
    /// The name where it is empty; of a program the file's without folder and ending.
    #[serde(default)]
    pub label: String,
    /// A checkpoint; `{fold}` stands for the fold's number. With `train`, training starts from it. `random`: seeded random
    /// values, as a control; `own`: those that the plugin makes the model with, as it is where it has such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// Whether a head that the checkpoint does not give keeps random values; otherwise, without `train`, that is an error.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub random_head: bool,
    /// Outputs of its head; 0 for the task's classes. More than those may be, as a checkpoint's head has them.
    #[serde(default)]
    pub classes: usize,
    /// The model's own parameters, `lightbox info MODEL`.
    #[serde(default)]
    pub params: BTreeMap<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train: Option<TrainSpec>,
}

/// What stands for a checkpoint where the values are to be random.
pub const RANDOM: &str = "random";
/// What stands for a checkpoint where the plugin makes the model with its weights.
pub const OWN: &str = "own";

impl ModelChoice {
    /// True where every fold and training has the same weights.
    pub fn is_shared(&self) -> bool {
        let shared = |w: &String| w != RANDOM && !w.contains("{fold}");
        self.train.is_none() && !self.random_head && self.weights.as_ref().map_or(self.is_program(), shared)
    }

    /// What becomes of parameters that a checkpoint does not give.
    pub fn missing(&self) -> Missing {
        if self.train.is_some() || self.random_head { Missing::Random } else { Missing::Refused }
    }

    /// What of the model is random and is not trained, in words; none where nothing is.
    pub fn random_part(&self) -> Option<&'static str> {
        match (&self.train, self.weights.as_deref()) {
            (Some(_), _) => None,
            (None, None) if self.is_program() => None,
            (None, None | Some(RANDOM)) => Some("random weights"),
            (None, Some(_)) => self.random_head.then_some("random head"),
        }
    }

    /// The checkpoint of a fold.
    pub fn weights_file(&self, fold: usize) -> Option<PathBuf> {
        self.weights
            .as_ref()
            .filter(|w| ![RANDOM, OWN].contains(&w.as_str()))
            .map(|w| PathBuf::from(w.replace("{fold}", &fold.to_string())))
    }

    /// The checkpoints of all folds, each once.
    pub fn weights_files(&self, folds: usize) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = (0..folds).filter_map(|fold| self.weights_file(fold)).collect();
        files.dedup();
        files
    }

    pub fn label(&self) -> &str {
        match self.label.is_empty() {
            true if self.is_program() => programs::stem(&self.name),
            true => &self.name,
            false => &self.label,
        }
    }

    /// An exported program has weights of its own.
    pub fn is_program(&self) -> bool {
        programs::is_program(&self.name)
    }
}

/// How a model is trained. The checkpoint of lowest validation loss is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSpec {
    /// Times through the training set, at least 1.
    pub epochs: usize,
    /// Images a step, at least 2. A single image left over joins the last batch.
    pub batch_size: usize,
    /// Of the first epoch.
    pub learning_rate: f64,
    /// Multiplies the learning rate after every epoch.
    pub decay: f64,
    /// adamw or sgd.
    pub optimizer: String,
    /// AdamW's decoupled decay, or SGD's, of the parameters that the model lets decay.
    pub weight_decay: f64,
    /// Weigh the classes of the loss by their inverse frequency.
    pub balance_loss: bool,
    /// Mirror half of the training images, left to right.
    pub flip: bool,
    /// float32, or mixed (float16 where it is safe, on CUDA only).
    pub precision: String,
}

impl Default for TrainSpec {
    fn default() -> Self {
        TrainSpec {
            epochs: 50,
            batch_size: 32,
            learning_rate: 1e-3,
            decay: 0.8,
            optimizer: "adamw".into(),
            weight_decay: 1e-2,
            balance_loss: false,
            flip: false,
            precision: "float32".into(),
        }
    }
}

impl TrainSpec {
    pub fn options(&self, task: &Task, class_weights: Vec<f64>) -> TrainerOptions {
        let (optimizer, precision) = (self.optimizer.clone(), self.precision.clone());
        let (learning_rate, weight_decay) = (self.learning_rate, self.weight_decay);
        let loss = if task.kind == Kind::MultiLabel { "binary-cross-entropy" } else { "cross-entropy" };
        TrainerOptions { optimizer, learning_rate, weight_decay, loss: loss.into(), class_weights, precision }
    }
}

/// Specs that come with the binary, by name.
pub const BUILT_IN: [(&str, &str); 7] = [
    (
        "all-explainers",
        concat!(
            include_str!("../../specs/all-explainers.toml"),
            include_str!("../../specs/parts/models.toml"),
            include_str!("../../specs/parts/explainers.toml")
        ),
    ),
    (
        "all-metrics",
        concat!(
            include_str!("../../specs/all-metrics.toml"),
            include_str!("../../specs/parts/models.toml"),
            include_str!("../../specs/parts/explainers.toml")
        ),
    ),
    (
        "any-model",
        concat!(include_str!("../../specs/any-model.toml"), include_str!("../../specs/parts/explainers.toml")),
    ),
    ("demo", include_str!("../../specs/demo.toml")),
    ("study", include_str!("../../specs/study.toml")),
    ("study-phantom", include_str!("../../specs/study-phantom.toml")),
    ("study-quick", include_str!("../../specs/study-quick.toml")),
];

/// Keys whose values are paths.
const PATHS: [&str; 8] = ["csv", "images", "root", "metadata", "labels", "boxes", "files", "weights"];

fn absolute_paths(value: &mut toml::Value, base: &Path) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                match value {
                    toml::Value::String(path) if key == "weights" && path == RANDOM => {}
                    toml::Value::String(path) if PATHS.contains(&key.as_str()) && !path.is_empty() => {
                        *path = base.join(&*path).to_string_lossy().into_owned();
                    }
                    toml::Value::String(path)
                        if ["file", "name"].contains(&key.as_str()) && programs::is_program(path) =>
                    {
                        *path = base.join(&*path).to_string_lossy().into_owned();
                    }
                    // Which of a plugin's parameters are paths, its specification says: `preflight::absolute_parameters`.
                    _ if key == "params" => {}
                    other => absolute_paths(other, base),
                }
            }
        }
        toml::Value::Array(list) => list.iter_mut().for_each(|v| absolute_paths(v, base)),
        _ => {}
    }
}

/// Adds exported programs that a command names to a spec's models; they are labelled by their files' names.
fn add_programs(value: &mut toml::Value, files: &[PathBuf]) -> Result<()> {
    let Some(table) = value.as_table_mut().filter(|_| !files.is_empty()) else { return Ok(()) };
    let models = table.entry("models").or_insert_with(|| toml::Value::Array(vec![]));
    let Some(models) = models.as_array_mut() else { return Ok(()) };
    for file in files {
        let path = std::path::absolute(file)?.to_string_lossy().into_owned();
        if !programs::is_program(&path) {
            return Err(Error::input(format!("--model {}: an exported program (.pt2) is expected", file.display()))
                .hint("other models are entries of the spec"));
        }
        let label = programs::stem(&path).to_string();
        let entry = [("name".to_string(), path.into()), ("label".to_string(), label.into())];
        models.push(toml::Value::Table(entry.into_iter().collect()));
    }
    Ok(())
}

/// What `chunk` was called in 0.2; it is still read.
const FORMER_CHUNK: &str = "block";

/// One `--set KEY=VALUE`. KEY is a path of names joined by dots; an entry of `models` or `explainers` goes by its label or
/// name, `*` means all of them (for `train`, all that are trained). VALUE is TOML, or a text where it is none. Paths are
/// relative to the current folder.
fn set(spec: &mut toml::Value, assignment: &str) -> Result<()> {
    let Some((key, text)) = assignment.split_once('=') else {
        return Err(Error::input(format!("--set {assignment}: KEY=VALUE expected")));
    };
    let (mut path, text): (Vec<&str>, &str) = (key.trim().split('.').collect(), text.trim());
    if path == [FORMER_CHUNK] {
        path = vec!["chunk"];
    }
    let parsed = toml::from_str::<toml::Table>(&format!("value = {text}")).ok().and_then(|mut t| t.remove("value"));
    let here = std::env::current_dir()?;
    let is_path = !path.contains(&"params") && path.last().is_some_and(|last| PATHS.contains(last));
    let value = match parsed {
        Some(mut value @ (toml::Value::Table(_) | toml::Value::Array(_))) => {
            if !path.contains(&"params") {
                absolute_paths(&mut value, &here);
            }
            value
        }
        // A path may look like a number or a date.
        other if is_path => {
            let file = other.as_ref().and_then(toml::Value::as_str).unwrap_or(text);
            let random = path.last() == Some(&"weights") && file == RANDOM;
            let file = if file.is_empty() || random {
                file.to_string()
            } else {
                here.join(file).to_string_lossy().into_owned()
            };
            toml::Value::String(file)
        }
        other => other.unwrap_or_else(|| toml::Value::String(text.into())),
    };
    put(spec, &path, &value).map_err(|e| Error::input(format!("--set {key}: {e}")))
}

/// Puts a value at a path of names.
fn put(into: &mut toml::Value, path: &[&str], value: &toml::Value) -> std::result::Result<(), String> {
    let Some((first, rest)) = path.split_first() else {
        *into = value.clone();
        return Ok(());
    };
    match into {
        toml::Value::Table(table) => {
            let entry = table.entry(first.to_string()).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            put(entry, rest, value)
        }
        toml::Value::Array(list) => {
            let of =
                |v: &toml::Value, key: &str| v.get(key).and_then(toml::Value::as_str).unwrap_or_default().to_string();
            let label = |v: &toml::Value| Some(of(v, "label")).filter(|l| !l.is_empty()).unwrap_or(of(v, "name"));
            let known: Vec<String> = list.iter().map(label).collect();
            let named = |v: &toml::Value| *first == "*" || of(v, "label") == *first || of(v, "name") == *first;
            if !list.iter().any(named) {
                return Err(format!("no entry is named {first} (known: {}; * for all)", known.join(", ")));
            }
            // `*` changes how models are trained, not which.
            let untrained =
                |v: &toml::Value| *first == "*" && rest.first() == Some(&"train") && v.get("train").is_none();
            let mut found = list.iter_mut().filter(|v| named(v) && !untrained(v)).peekable();
            if found.peek().is_none() {
                return Err("no model of the spec is trained".into());
            }
            found.try_for_each(|entry| put(entry, rest, value))
        }
        other => Err(format!("{first} is looked for in {other}, which holds no keys")),
    }
}

/// A label as part of a file name.
pub fn file_name(label: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.=".contains(c) { c } else { '_' };
    label.chars().map(plain).collect()
}

impl RunSpec {
    /// Reads a spec file, or a built-in one by its name, with `--set`'s changes.
    pub fn read(which: &Path, sets: &[String], programs: &[PathBuf]) -> Result<Self> {
        let built_in = which.to_str().and_then(|n| BUILT_IN.iter().find(|(name, _)| *name == n));
        let (text, base) = match (which.is_file(), built_in) {
            (false, Some((_, text))) => (text.to_string(), PathBuf::from(".")),
            (false, None) => {
                let known: Vec<&str> = BUILT_IN.iter().map(|(n, _)| *n).collect();
                let (path, known) = (which.display(), known.join(", "));
                return Err(Error::input(format!("{path}: no such spec file, nor a built-in spec (known: {known})")));
            }
            (true, _) => {
                let bytes = lightbox_core::files::read(which)?;
                let text = String::from_utf8(bytes);
                let text = text.map_err(|_| Error::input(format!("{}: a spec is UTF-8 text", which.display())))?;
                let parent = which.parent().filter(|p| !p.as_os_str().is_empty());
                (text, parent.unwrap_or(Path::new(".")).to_path_buf())
            }
        };
        let base = std::path::absolute(base)?;
        Self::parse_with(&text, &base, sets, programs).map_err(|e| e.of(which.display()))
    }

    /// Parses and checks a spec whose paths are relative to `base`.
    pub fn parse(text: &str, base: &Path) -> Result<Self> {
        Self::parse_with(text, base, &[], &[])
    }

    /// All plugins' parameters: the label of a model or explainer, name and value.
    fn parameters(&self) -> Vec<(String, String, serde_json::Value)> {
        let models = self.models.iter().map(|m| (m.label(), &m.params));
        let all = models.chain(self.explainers.iter().map(|e| (e.label(), &e.params)));
        all.flat_map(|(label, params)| params.iter().map(move |(k, v)| (label.to_string(), k.clone(), v.clone())))
            .collect()
    }

    fn parse_with(text: &str, base: &Path, sets: &[String], programs: &[PathBuf]) -> Result<Self> {
        // Once for errors with line numbers, once with the paths made absolute.
        let bad = |e: toml::de::Error| Error::input(e.to_string().trim_end().to_string());
        toml::from_str::<RunSpec>(text).map_err(bad)?;
        let mut value: toml::Value = toml::from_str(text).map_err(bad)?;
        if let Some(table) = value.as_table_mut()
            && let Some(chunk) = table.remove(FORMER_CHUNK)
        {
            table.insert("chunk".into(), chunk);
        }
        absolute_paths(&mut value, base);
        add_programs(&mut value, programs)?;
        let written: Option<RunSpec> = if sets.is_empty() { None } else { value.clone().try_into().ok() };
        sets.iter().try_for_each(|assignment| set(&mut value, assignment))?;
        let mut spec: RunSpec = value.try_into().map_err(bad)?;
        if let Some(written) = written {
            let (now, before) = (spec.parameters(), written.parameters());
            let changed = now.into_iter().filter(|p| !before.contains(p)).map(|(label, name, _)| (label, name));
            spec.commanded = changed.collect();
        }
        spec.base = base.to_path_buf();
        if spec.output.as_os_str().is_empty() {
            spec.output = Path::new("runs").join(&spec.name);
        }
        spec.check()?;
        Ok(spec)
    }

    /// Checks it, and fills in the metrics' parameters; plugins' are filled in when they are known.
    fn check(&mut self) -> Result<()> {
        let plain = |s: &str| !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        if !plain(&self.name) {
            return Err(Error::input(format!("name = \"{}\": letters, digits, - and _ expected", self.name)));
        }
        if self.models.is_empty() {
            return Err(Error::input("the spec has no [[models]]").hint("--model FILE.pt2 adds an exported program"));
        }
        for (key, value) in [("batch_size", self.batch_size), ("chunk", self.chunk), ("seeds", self.seeds)] {
            if value == 0 {
                return Err(Error::input(format!("{key} = 0: at least 1 expected")));
            }
        }
        let most =
            [("seeds", self.seeds, 1000), ("threads", self.threads, 4096), ("split.folds", self.split.folds, 1000)];
        for (key, value, most) in most {
            if value > most {
                return Err(Error::input(format!("{key} = {value}: at most {most} expected")));
            }
        }
        if self.seeds > 1 && self.models.iter().all(|m| m.train.is_none()) {
            return Err(Error::input(format!(
                "seeds = {}: no model of the spec is trained, so nothing is drawn again",
                self.seeds
            ))
            .hint("seeds = 1, or give the models [models.train]"));
        }
        let mut seen = HashSet::new();
        for label in self.models.iter().map(ModelChoice::label) {
            if !seen.insert(file_name(label)) {
                return Err(Error::input(format!("two models are called {label}; give one another label")));
            }
        }
        let mut seen = HashSet::new();
        for label in self.explainers.iter().map(ExplainerChoice::label) {
            if label == CHANCE {
                return Err(Error::input(format!("an explainer cannot be called {CHANCE}: a constant map is")));
            }
            if !seen.insert(file_name(label)) {
                return Err(Error::input(format!("two explainers are called {label}; give one another label")));
            }
        }
        for explainer in &self.explainers {
            let known = |label: &&String| self.models.iter().any(|m| m.label() == label.as_str());
            if let Some(other) = explainer.models.iter().find(|label| !known(label)) {
                let (label, known) =
                    (explainer.label(), self.models.iter().map(ModelChoice::label).collect::<Vec<_>>());
                return Err(Error::input(format!(
                    "explainer {label}: models names {other}, which is none of the spec's ({})",
                    known.join(", ")
                )));
            }
        }
        let mut seen = HashSet::new();
        for metric in &mut self.metrics {
            let label = metric.label().to_string();
            let values = metrics::find(&metric.name)?.spec().resolve(&metric.params);
            metric.params = values.map_err(|e| Error::input(format!("metric {label}: {e}")))?.values().clone();
            if !seen.insert(label.clone()) {
                return Err(Error::input(format!("two metrics are called {label}; give one another label")));
            }
        }
        for model in &self.models {
            let Some(train) = &model.train else { continue };
            let positive = |v: f64| v.is_finite() && v > 0.0;
            let label = model.label();
            if train.epochs == 0 || train.batch_size < 2 || !positive(train.learning_rate) || !positive(train.decay) {
                return Err(Error::input(format!(
                    "model {label}: training needs epochs of at least 1, batch_size of at least 2 and positive \
                     learning_rate and decay"
                )));
            }
            if !(train.weight_decay.is_finite() && train.weight_decay >= 0.0) {
                return Err(Error::input(format!("model {label}: weight_decay must be 0 or more")));
            }
            if !["adamw", "sgd"].contains(&train.optimizer.as_str()) {
                let optimizer = &train.optimizer;
                return Err(Error::input(format!("model {label}: optimizer = \"{optimizer}\": adamw or sgd expected")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "name = \"x\"\n[data]\nsource = \"table\"\ncsv = \"t.csv\"\n[[models]]\nname = \"m\"\n";

    #[test]
    fn paths_are_relative_to_the_spec() {
        let spec = RunSpec::parse(MINIMAL, Path::new("/specs")).unwrap();
        let DataSpec::Table(table) = &spec.data else { panic!() };
        assert_eq!(table.csv, Path::new("/specs/t.csv"));
        assert_eq!((spec.output.as_path(), spec.seeds), (Path::new("runs/x"), 1));
    }

    #[test]
    fn a_plugins_parameters_are_not_paths() {
        let text = format!("{MINIMAL}params = {{ weights = \"uniform\" }}\n");
        let spec = RunSpec::parse(&text, Path::new("/specs")).unwrap();
        assert_eq!(spec.models[0].params["weights"], "uniform");
    }

    #[test]
    fn a_resolved_spec_reads_back_the_same() {
        let spec = RunSpec::parse(MINIMAL, Path::new("/specs")).unwrap();
        let text = toml::to_string(&spec).unwrap();
        let back = RunSpec::parse(&text, Path::new("/elsewhere")).unwrap();
        assert_eq!(RunSpec { base: spec.base.clone(), ..back }, spec);
        let sets = ["models.m.params={ file = \"x\" }".to_string()];
        let set = RunSpec::parse_with(MINIMAL, Path::new("/specs"), &sets, &[]).unwrap();
        assert_eq!(set.commanded, [("m".to_string(), "file".to_string())]);
    }

    #[test]
    fn mistakes_are_named() {
        let check = |text: &str, message: &str| {
            let error = RunSpec::parse(text, Path::new("/")).unwrap_err().message;
            assert!(error.contains(message), "{error}");
        };
        check(&format!("colour = 1\n{MINIMAL}"), "unknown field `colour`");
        check(&format!("seeds = 4000000000\n{MINIMAL}"), "seeds = 4000000000: at most 1000 expected");
        check(&format!("seeds = 2\n{MINIMAL}"), "seeds = 2: no model of the spec is trained");
        check("name = \"x\"", "missing field `data`");
        check(&MINIMAL.replace("\"x\"", "\"a/b\""), "name = \"a/b\": letters, digits");
        check(&format!("{MINIMAL}[[models]]\nname = \"m\"\n"), "two models are called m");
        check(&format!("seeds = 0\n{MINIMAL}"), "seeds = 0: at least 1 expected");
        check(&format!("{MINIMAL}[[metrics]]\nname = \"ap\"\n"), "no metric is named ap (known: auprc, ");
        let twice = "[[metrics]]\nname = \"auroc\"\n";
        check(&format!("{MINIMAL}{twice}{twice}"), "two metrics are called auroc; give one another label");
        let steps = "[[metrics]]\nname = \"deletion\"\nparams = { steps = 0 }\n";
        check(&format!("{MINIMAL}{steps}"), "metric deletion: parameter steps: 0 is not an integer from 1");
        check(&format!("{MINIMAL}[[explainers]]\nname = \"chance\"\n"), "an explainer cannot be called chance");
        let other = "[[explainers]]\nname = \"e\"\nmodels = [\"k\"]\n";
        check(&format!("{MINIMAL}{other}"), "explainer e: models names k, which is none of the spec's (m)");
        check(&MINIMAL.replace("table", "tables"), "unknown variant `tables`");
    }

    #[test]
    fn set_changes_one_entry_or_all_and_says_what_it_cannot() {
        let text = format!("{MINIMAL}[models.train]\nepochs = 3\n[[models]]\nname = \"n\"\nlabel = \"N\"\n");
        let with = |sets: &[&str]| {
            let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
            RunSpec::parse_with(&text, Path::new("/"), &sets, &[])
        };
        let spec =
            with(&["models.m.train.epochs=7", "models.N.weights=w.pth", "seed=5", "models.*.classes=3"]).unwrap();
        assert_eq!(spec.models[0].train.as_ref().map(|t| t.epochs), Some(7));
        let here = std::env::current_dir().unwrap().join("w.pth");
        assert_eq!(spec.models[1].weights.as_deref(), here.to_str());
        assert_eq!((spec.seed, spec.models[0].classes, spec.models[1].classes), (5, 3, 3));
        // A resolved spec has empty labels; names do for labelled entries too.
        let again: toml::Value = toml::from_str(&toml::to_string(&spec).unwrap()).unwrap();
        let mut changed = again.clone();
        set(&mut changed, "models.m.classes = 4").unwrap();
        set(&mut changed, "models.n.classes=5").unwrap();
        set(&mut changed, "data.csv = 2024").unwrap();
        set(&mut changed, "models.n.weights={fold}.pth").unwrap();
        let changed = RunSpec::parse(&toml::to_string(&changed).unwrap(), Path::new("/")).unwrap();
        assert_eq!((changed.models[0].classes, changed.models[1].classes), (4, 5));
        assert!(matches!(changed.data, DataSpec::Table(t) if t.csv == std::env::current_dir().unwrap().join("2024")));
        let here = std::env::current_dir().unwrap();
        assert_eq!(changed.models[1].weights.as_deref(), here.join("{fold}.pth").to_str());
        // All that are trained stay all that are trained.
        let spec = with(&["models.*.train.epochs=9"]).unwrap();
        assert!(spec.models[0].train.as_ref().is_some_and(|t| t.epochs == 9) && spec.models[1].train.is_none());
        let spec = with(&["data={ source = \"phantom\", count = 7 }", "explainers=[{ name = \"noise\" }]"]).unwrap();
        assert!(matches!(spec.data, DataSpec::Phantom(p) if p.count == 7) && spec.explainers.len() == 1);
        let error = |set: &str| with(&[set]).unwrap_err().message;
        let former =
            RunSpec::parse_with(&format!("block = 7\n{MINIMAL}"), Path::new("/"), &["block=3".into()], &[]).unwrap();
        assert_eq!(former.chunk, 3);
        assert_eq!(error("seed"), "--set seed: KEY=VALUE expected");
        assert_eq!(error("models.k.weights=x"), "--set models.k.weights: no entry is named k (known: m, N; * for all)");
        assert!(error("name.x=1").contains("--set name.x: x is looked for in \"x\", which holds no keys"));
        assert!(error("sedes=1").contains("unknown field `sedes`"));
    }

    #[test]
    fn built_in_specs_are_good() {
        for (name, text) in BUILT_IN {
            let models = if name == "any-model" { vec![PathBuf::from("/own.pt2")] } else { vec![] };
            RunSpec::parse_with(text, Path::new("/"), &[], &models).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }

    #[test]
    fn programs_of_the_command_line_join_the_specs_models() {
        let parse = |text: &str, files: &[&str]| {
            let files: Vec<PathBuf> = files.iter().map(PathBuf::from).collect();
            RunSpec::parse_with(text, Path::new("/specs"), &[], &files)
        };
        let own = "name = \"r\"\n[data]\nsource = \"phantom\"\n";
        let message = |files: &[&str]| parse(own, files).unwrap_err().to_string();
        assert!(message(&[]).contains("--model FILE.pt2 adds an exported program"));
        assert!(message(&["/a/net.pth"]).contains("an exported program (.pt2) is expected"));
        assert!(message(&["/a/net.pt2", "/b/net.pt2"]).contains("two models are called net"));
        let spec = parse(own, &["/a/net.pt2", "/b/other.pt2"]).unwrap();
        let found: Vec<(&str, &str)> = spec.models.iter().map(|m| (m.label(), m.name.as_str())).collect();
        assert_eq!(found, [("net", "/a/net.pt2"), ("other", "/b/other.pt2")]);
        assert!(spec.models.iter().all(|m| m.is_shared() && m.random_part().is_none()));
        // In a spec a program's path is relative to it, and its label the file's name.
        let spec = parse(&format!("{own}[[models]]\nfile = \"nets/mine.pt2\"\n"), &[]).unwrap();
        assert_eq!((spec.models[0].label(), spec.models[0].name.as_str()), ("mine", "/specs/nets/mine.pt2"));
    }
}
