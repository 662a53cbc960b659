//! Preflight: all that can be wrong with a run is found, and all that its units depend on is decided, before anything is
//! written. What comes of it is [`Resolved`], which is written once as `plan.json`.

use super::folder::{Environment, FileState, Machine, RunFolder, read_json};
use super::identities::{Identities, classes};
use super::spec::{ModelChoice, OWN, RANDOM, RunSpec};
use crate::binding::{default_paths, parameter_files};
use crate::engine::weights_folder;
use crate::error::{Error, Result};
use crate::registry::{self, Question, Registry};
use lightbox_core::data::duplicates::to_split;
use lightbox_core::data::split::{Split, SplitSpec};
use lightbox_core::data::{self, Sample, Source, Truth};
use lightbox_core::files;
use lightbox_core::task::{Explained, Kind};
use lightbox_sdk::spec::{InputSpec, ModelOptions, ParamSpec, ParamValues};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The version of `plan.json`.
const SCHEMA: &str = "lightbox-plan-1";

/// All that the units of a run depend on. Workers read it and derive nothing of it again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Resolved {
    pub schema: String,
    /// Every parameter has its value, and every path is absolute.
    pub spec: RunSpec,
    /// Versions, machines, plugins and files, with their checksums.
    pub environment: Environment,
    /// What each model expects of its images, by label.
    pub inputs: BTreeMap<String, InputSpec>,
    /// The labels of explainers whose maps have a sign that means something.
    pub signed: BTreeSet<String>,
    /// Who trains, validates and tests, as indices of the data's samples.
    pub split: Split,
    pub identities: Identities,
    /// What is to be known of the data.
    pub notes: Vec<String>,
}

impl Resolved {
    /// Reads the plan of a run's folder.
    ///
    /// # Errors
    /// There is none, or it is another version's.
    pub fn read(folder: &RunFolder) -> Result<Self> {
        let file = folder.plan();
        let plan: Value = read_json(&file)?;
        if plan["schema"] != SCHEMA {
            let (file, found) = (file.display(), &plan["schema"]);
            return Err(Error::input(format!("{file}: schema {found}, {SCHEMA} expected"))
                .hint("it was written by another version of lightbox; the same `lightbox run` writes it anew"));
        }
        serde_json::from_value(plan).map_err(|e| Error::input(format!("{}: {e}", file.display())))
    }

    /// Of test images; the last may be smaller.
    pub fn chunks(&self) -> usize {
        self.identities.chunks()
    }

    /// The input that a model expects.
    pub fn input(&self, label: &str) -> Result<&InputSpec> {
        self.inputs.get(label).ok_or_else(|| Error::input(format!("the spec has no model {label}")))
    }
}

/// What a run's folder holds of an earlier command.
#[derive(Debug, Default)]
pub struct Earlier {
    environment: Option<Environment>,
    spec: Option<RunSpec>,
    /// The folder of the split, where it was written.
    split: Option<PathBuf>,
    /// What the images' files were.
    sources: Vec<FileState>,
    /// Whether the run may go on under other threads, kernels or versions.
    mixed: bool,
}

impl Earlier {
    /// Reads what is in a folder; nothing where `restart` is going to throw it away.
    pub fn read(folder: &RunFolder, restart: bool, mixed: bool) -> Result<Self> {
        let mut earlier = Earlier { mixed, ..Earlier::default() };
        if restart {
            return Ok(earlier);
        }
        if folder.environment().is_file() {
            earlier.environment = Some(read_json(&folder.environment())?);
        }
        if folder.spec().is_file() {
            let text = String::from_utf8_lossy(&files::read(&folder.spec())?).into_owned();
            earlier.spec = Some(RunSpec::parse(&text, &folder.0)?);
        }
        if folder.sources().is_file() {
            earlier.sources = read_json(&folder.sources())?;
        }
        earlier.split = Some(folder.splits()).filter(|splits| splits.join("test.csv").is_file());
        Ok(earlier)
    }

    /// A run keeps its number of threads unless the spec asks for another.
    fn threads(&self, spec: &RunSpec, machine: &Machine) -> usize {
        let before = self.environment.as_ref().and_then(|e| e.machines.last());
        match (spec.threads, before) {
            (0, Some(before)) => before.threads,
            (0, None) => machine.threads,
            (threads, _) => threads,
        }
    }
}

/// What preflight hands to the supervisor.
pub struct Preflight {
    pub resolved: Resolved,
    pub source: Box<dyn Source>,
}

/// Checks a run, and decides all that its units depend on. It reads plugins, data, checkpoints and what the folder holds of
/// the run, and writes nothing. `machine` is what the run goes on; its threads are those that there are.
///
/// # Errors
/// Anything that is wrong with the spec, its plugins, files or data, or that does not go together with what the folder holds.
pub fn preflight(spec: &RunSpec, registry: &Registry, machine: &Machine, earlier: &Earlier) -> Result<Preflight> {
    let mut spec = spec.clone();
    spec.output = std::path::absolute(&spec.output)?;
    resolve_parameters(&mut spec, registry)?;
    // A folder stands for the checkpoint in it, by whose content the model is known.
    for model in &mut spec.models {
        if let Some(weights) = model.weights.as_mut().filter(|w| Path::new(w.as_str()).is_dir()) {
            *weights = weights_folder::file_of(Path::new(weights.as_str()))?.to_string_lossy().into_owned();
        }
    }
    for model in spec.models.iter_mut().filter(|m| m.weights.is_none() && m.train.is_none() && !m.is_program()) {
        if registry.model(&model.name)?.1.own_weights {
            model.weights = Some(OWN.into());
        }
    }
    check_models(&spec, registry, machine)?;
    let source = data::open(&spec.data, &spec.task)?;
    let given = spec.task.classes.len();
    super::class_names::take_from_weights(&mut spec, source.as_ref(), registry)?;
    let source = if spec.task.classes.len() == given { source } else { data::open(&spec.data, &spec.task)? };
    spec.task = spec.task.resolve(source.classes())?;
    spec.split.balanced = Some(spec.split.is_balanced(source.samples()));
    if spec.split.files.is_some() {
        // The files say how many folds there are.
        spec.split.folds = spec.split.split(source.samples())?.folds.len();
    }
    let inputs = check_plugins(&spec, registry)?;
    let signed = |label: &str, name: &str| Ok(registry.explainer(name)?.1.signed.then(|| label.to_string()));
    let signed = spec.explainers.iter().map(|e| signed(e.label(), &e.name)).collect::<Result<Vec<_>>>()?;
    let machine = Machine { threads: earlier.threads(&spec, machine), ..machine.clone() };
    let mut environment = Environment::gather(&spec, registry, source.as_ref(), machine)?;
    compare_with_earlier(&spec, registry, earlier, &mut environment)?;
    let split = match &earlier.split {
        Some(folder) => SplitSpec { files: Some(folder.clone()), ..spec.split.clone() },
        None => spec.split.clone(),
    };
    let split = split.split(&to_split(source.as_ref())?)?;
    if split.folds.iter().any(|fold| fold.train.is_empty())
        && let Some(model) = spec.models.iter().find(|m| m.train.is_some())
    {
        return Err(Error::input(format!(
            "model {}: it is to be trained, and the split leaves no image for it",
            model.label()
        ))
        .hint("split.test = a number or a share, or no [models.train]"));
    }
    if spec.task.intervene && (spec.task.kind != Kind::Binary || source.with_shortcut(0, true)?.is_none()) {
        return Err(Error::input("task.intervene: it needs a binary task and data with a planted shortcut")
            .hint("[data] source = \"phantom\", shortcut = 0.8"));
    }
    check_something_is_scored(&spec, source.samples(), &split)?;
    let sizes = spec.models.iter().map(|m| Ok(inputs[m.label()].flat()?)).collect::<Result<Vec<_>>>()?;
    let identities = Identities::new(&spec, &environment, &sizes, source.samples(), &split)?;
    let (schema, notes) = (SCHEMA.to_string(), notes(source.as_ref()));
    let signed = signed.into_iter().flatten().collect();
    let resolved = Resolved { schema, spec, environment, inputs, signed, split, identities, notes };
    Ok(Preflight { resolved, source })
}

/// Explanations of which none has anything to be compared with are not computed.
fn check_something_is_scored(spec: &RunSpec, samples: &[Sample], split: &Split) -> Result<()> {
    if spec.explainers.is_empty() || spec.task.select == "all" {
        return Ok(());
    }
    let explained = spec.task.explained()?;
    let marked = |i: &usize| {
        let sample = &samples[*i];
        let of = |class: usize| sample.has(class) && !matches!(explained, Explained::Class(c) if c != class);
        match &sample.truth {
            Truth::Unknown => false,
            Truth::MaskFile(_) => sample.classes.iter().any(|c| of(*c)),
            Truth::Boxes(boxes) => boxes.iter().any(|b| of(b.class)),
        }
    };
    match split.test.iter().any(marked) {
        true => Ok(()),
        false => Err(Error::input(format!(
            "none of the {} test images has a box or mask of what is explained: no map could be scored",
            split.test.len()
        ))
        .hint("`lightbox data inspect` counts them; a split with such images (split.files, split.test = \"all\"), or task.select \
               = \"all\" for metrics that need no mask")),
    }
}

/// What is to be known of the data.
pub fn notes(source: &dyn Source) -> Vec<String> {
    let mut notes = source.notes();
    if !source.knows_patients() {
        notes.push(
            "the data source has no patient numbers: images of one patient may lie in training and test, and leakage by \
             patient cannot be excluded"
                .into(),
        );
    }
    notes
}

/// Gives every parameter of models and explainers its value, so that a default that is written down changes nothing. Those
/// that are paths are made absolute: of the spec from the spec's folder, of the command line from where it was given, defaults
/// from the plugin's folder.
fn resolve_parameters(spec: &mut RunSpec, registry: &Registry) -> Result<()> {
    let base = spec.base.clone();
    let here = std::env::current_dir()?;
    let commanded = spec.commanded.clone();
    let fill = |label: &str, params: &mut BTreeMap<String, Value>, known: &[ParamSpec], plugin: &Path| -> Result<()> {
        for (name, path) in parameter_files(params, known) {
            let by_command = commanded.iter().any(|(l, n)| (l.as_str(), n) == (label, &name));
            let from = if by_command { &here } else { &base };
            params.insert(name, Value::from(from.join(path).to_string_lossy()));
        }
        default_paths(params, known, &std::path::absolute(plugin)?);
        let values = ParamValues::resolve(known, params);
        *params = values.map_err(|e| Error::input(format!("{label}: {}", e.message)))?.values().clone();
        Ok(())
    };
    for model in &mut spec.models {
        let (found, described) = registry.model(&model.name)?;
        let label = model.label().to_string();
        fill(&label, &mut model.params, &described.parameters, &found.file)
            .map_err(|e| Error { message: format!("model {}", e.message), ..e })?;
    }
    for explainer in &mut spec.explainers {
        let (found, described) = registry.explainer(&explainer.name)?;
        let label = explainer.label().to_string();
        fill(&label, &mut explainer.params, &described.parameters, &found.file)
            .map_err(|e| Error { message: format!("explainer {}", e.message), ..e })?;
    }
    Ok(())
}

/// What of the models can be wrong before the data is read.
fn check_models(spec: &RunSpec, registry: &Registry, machine: &Machine) -> Result<()> {
    for model in &spec.models {
        let label = model.label();
        let precision = model.train.as_ref().map_or("float32", |t| t.precision.as_str());
        match precision {
            "float32" => {}
            "mixed" if machine.device != "cpu" => {}
            "mixed" => {
                return Err(Error::input(format!(
                    "model {label}: precision = \"mixed\" needs a CUDA device, and the run is on the CPU"
                ))
                .hint("--set 'models.*.train.precision=float32'"));
            }
            _ => {
                return Err(Error::input(format!(
                    "model {label}: precision = \"{precision}\": float32 or mixed expected"
                )));
            }
        }
        let own = registry.model(&model.name)?.1.own_weights;
        if own && model.weights.as_deref() == Some(RANDOM) {
            return Err(Error::input(format!("model {label}: it has weights of its own, not random ones"))
                .hint("as a control, give the network as it is before it is trained"));
        }
        if !own && model.weights.as_deref() == Some(OWN) {
            return Err(Error::input(format!("model {label}: it has no weights of its own")).hint("weights = \"FILE\""));
        }
        if model.train.is_none() && model.weights.is_none() && !model.is_program() {
            return Err(Error::input(format!("model {label}: it has neither weights nor training")).hint(
                "weights = \"FILE\", a table [models.train], or weights = \"random\" for random values as a control",
            ));
        }
        // Where files of a split say how many folds there are, those of fold 0 for now.
        let folds = if spec.split.files.is_some() { 1 } else { spec.split.folds };
        check_weights(model, folds)?;
    }
    Ok(())
}

fn check_weights(model: &ModelChoice, folds: usize) -> Result<()> {
    match model.weights_files(folds).iter().find(|path| !path.is_file()) {
        None => Ok(()),
        Some(path) => Err(Error::input(format!("{}: no such checkpoint (model {})", path.display(), model.label()))),
    }
}

/// Finds every plugin, checks every parameter and weights file; the inputs that models expect, by label.
fn check_plugins(spec: &RunSpec, registry: &Registry) -> Result<BTreeMap<String, InputSpec>> {
    let mut questions = Vec::new();
    for model in &spec.models {
        let label = model.label();
        let file = registry.model(&model.name)?.0.file.clone();
        let outputs = classes(spec, model);
        if outputs < spec.task.classes.len() {
            let wanted = spec.task.classes.len();
            return Err(Error::input(format!("model {label}: {outputs} classes, the task has {wanted}")));
        }
        let options = ModelOptions { classes: outputs, params: model.params.clone(), ..ModelOptions::default() };
        check_weights(model, spec.split.folds)?;
        check_parameter_files(&model.params, &registry.model(&model.name)?.1.parameters)
            .map_err(|e| Error::input(format!("model {label}: {e}")))?;
        questions.push(Question { file, name: model.name.clone(), options });
    }
    let mut inputs = BTreeMap::new();
    for (model, described) in spec.models.iter().zip(registry::model_specs(&questions)?) {
        let label = model.label();
        let described = described.map_err(|e| Error::input(format!("model {label}: {e}")))?;
        if model.train.is_some() && !described.trainable {
            return Err(Error::input(format!("model {label} cannot be trained")));
        }
        if model.train.as_ref().is_some_and(|t| t.precision == "mixed") && !described.mixed_precision {
            return Err(Error::input(format!("model {label} cannot be trained in mixed precision")));
        }
        described.input.flat().map_err(|e| Error::input(format!("model {label}: {e}")))?;
        inputs.insert(label.to_string(), described.input);
    }
    for explainer in &spec.explainers {
        let described = registry.explainer(&explainer.name)?.1;
        let place = |e: String| Error::input(format!("explainer {}: {e}", explainer.label()));
        check_parameter_files(&explainer.params, &described.parameters).map_err(place)?;
    }
    Ok(inputs)
}

fn check_parameter_files(params: &BTreeMap<String, Value>, known: &[ParamSpec]) -> std::result::Result<(), String> {
    match parameter_files(params, known).iter().find(|(_, path)| !path.exists()) {
        Some((name, path)) => Err(format!("parameter {name}: {}: no such file or folder", path.display())),
        None => Ok(()),
    }
}

/// What of a spec cannot change while a run's results are kept.
fn refused(before: &RunSpec, now: &RunSpec) -> Option<&'static str> {
    let trained = |s: &RunSpec, label: &str| {
        let found = s.models.iter().find(|m| m.label() == label);
        found.map(|m| (m.name.clone(), m.params.clone(), m.weights.clone(), m.train.clone(), m.classes))
    };
    let other = |m: &ModelChoice| {
        let old = trained(before, m.label());
        let one = old.as_ref().is_some_and(|o| o.3.is_some()) || m.train.is_some();
        one && old.is_some() && old != trained(now, m.label())
    };
    let kind = |s: &RunSpec| (s.task.kind, s.task.classes.clone());
    match () {
        () if before.data != now.data => Some("data"),
        () if before.split != now.split => Some("split"),
        () if before.seed != now.seed => Some("seed"),
        () if kind(before) != kind(now) => Some("task's classes"),
        () if now.models.iter().any(other) => Some("training of a model"),
        () if before.tf32 != now.tf32 && now.models.iter().any(|m| m.train.is_some()) => Some("tf32"),
        () => None,
    }
}

/// Errors where what the folder holds does not allow to go on. The machines of earlier commands are taken over.
fn compare_with_earlier(
    spec: &RunSpec,
    registry: &Registry,
    earlier: &Earlier,
    environment: &mut Environment,
) -> Result<()> {
    let shown = spec.output.display();
    let other_output = |text: String| Error::input(text).hint("--restart, or another `output`");
    if let Some(what) = earlier.spec.as_ref().and_then(|old| refused(old, spec)) {
        return Err(Error::input(format!("{shown} holds a run of another {what}"))
            .hint("give another `output`, or --restart to throw it away"));
    }
    let Some(before) = &earlier.environment else { return Ok(()) };
    if before.data != environment.data {
        return Err(other_output(format!(
            "the images, labels or boxes of the data source have changed since {shown} was begun, or further columns of its \
             table"
        )));
    }
    for state in &earlier.sources {
        if !state.is_unchanged()? {
            return Err(other_output(format!("{} has changed since {shown} was begun", state.file.display())));
        }
    }
    for model in spec.models.iter().filter(|m| m.train.is_some()) {
        let key = format!("model {}", model.name);
        let old = before.plugins.get(&key);
        if old.is_some_and(|old| environment.plugins.get(&key).is_some_and(|now| now.sha256 != old.sha256)) {
            return Err(Error::plugin(format!(
                "the plugin of {key} has changed since {shown} was begun, and the run trains it"
            ))
            .hint("--restart, or another `output`"));
        }
        let mut needed: Vec<PathBuf> = model.weights_files(spec.split.folds);
        let known = &registry.model(&model.name)?.1.parameters;
        needed.extend(parameter_files(&model.params, known).into_iter().map(|(_, path)| path));
        for file in needed {
            if before.files.get(&file).is_some_and(|old| environment.files.get(&file) != Some(old)) {
                let file = file.display();
                return Err(other_output(format!(
                    "{file} has changed since {shown} was begun, and training begins with it"
                )));
            }
        }
    }
    environment.machines = machines(&before.machines, &environment.machines[0], earlier.mixed).map_err(|what| {
        Error::input(format!("{shown} was begun under other conditions, which change numbers: {what}"))
            .hint("go on under the same, --mixed to go on and have it recorded, or --restart")
    })?;
    Ok(())
}

/// The machines of a run that goes on with `now`, which is the last of them.
///
/// # Errors
/// What differs from the machine that is most alike, where others are not let in.
fn machines(before: &[Machine], now: &Machine, mixed: bool) -> std::result::Result<Vec<Machine>, String> {
    let mut all = before.to_vec();
    match all.iter().map(|m| m.difference(now)).min_by_key(Option::is_some) {
        Some(Some(what)) if !mixed => return Err(what),
        Some(None) => {
            let here = all.iter().position(|m| m.difference(now).is_none()).map(|i| all.remove(i));
            all.extend(here);
        }
        _ => all.push(now.clone()),
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str =
        "name = \"x\"\n[data]\nsource = \"phantom\"\n[[models]]\nname = \"m\"\n[models.train]\nepochs = 2\n";

    #[test]
    fn what_a_run_can_take_and_what_it_cannot() {
        let parse = |text: &str| RunSpec::parse(text, Path::new("/")).unwrap();
        let before = parse(SPEC);
        let check = |text: String, wanted: Option<&str>| assert_eq!(refused(&before, &parse(&text)), wanted, "{text}");
        check(format!("limit_seconds = 7\nbatch_size = 3\npictures = 1\n{SPEC}"), None);
        check(format!("{SPEC}[[explainers]]\nname = \"e\"\n"), None);
        check(format!("{SPEC}[[models]]\nname = \"n\"\n"), None);
        check(format!("seed = 7\n{SPEC}"), Some("seed"));
        check(SPEC.replace("epochs = 2", "epochs = 3"), Some("training of a model"));
        check(SPEC.replace("\"phantom\"", "\"phantom\"\ncount = 9"), Some("data"));
        check(format!("{SPEC}[split]\nfolds = 2\n"), Some("split"));
        check(format!("tf32 = true\n{SPEC}"), Some("tf32"));
    }

    #[test]
    fn a_run_goes_on_on_the_same_machine_or_says_what_differs() {
        let machine = |threads| Machine { threads, ..Machine::here("cpu", 1) };
        let threads = |all: Vec<Machine>| all.iter().map(|m| m.threads).collect::<Vec<_>>();
        assert_eq!(threads(machines(&[], &machine(2), false).unwrap()), [2]);
        assert_eq!(threads(machines(&[machine(2)], &machine(2), false).unwrap()), [2]);
        assert_eq!(machines(&[machine(2)], &machine(4), false).unwrap_err(), "threads 2, now 4");
        assert_eq!(threads(machines(&[machine(2)], &machine(4), true).unwrap()), [2, 4]);
        // The one that is used is the last.
        assert_eq!(threads(machines(&[machine(2), machine(4)], &machine(2), false).unwrap()), [4, 2]);
    }

    #[test]
    fn a_plan_of_another_version_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let folder = RunFolder(folder.path().to_path_buf());
        std::fs::write(folder.plan(), "{\"schema\": \"lightbox-plan-0\"}").unwrap();
        let error = Resolved::read(&folder).unwrap_err();
        assert!(error.message.contains("schema \"lightbox-plan-0\", lightbox-plan-1 expected"), "{error}");
    }
}
