//! What stands before a run's first unit: its models, plugins and files are checked, and its folder is taken or found to be
//! of the same run.

use super::folder::{Environment, FileState, Machine, RunFolder, read_json, write_json};
use super::plan::classes;
use super::spec::{ModelChoice, RunSpec};
use crate::binding::{default_paths, parameter_files};
use crate::error::{Error, Result};
use crate::registry::{self, Question, Registry};
use lightbox_core::data::Source;
use lightbox_core::files;
use lightbox_sdk::spec::{ModelOptions, ParamSpec, ParamValues};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

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
pub(super) fn resolve_parameters(spec: &mut RunSpec, registry: &Registry) -> Result<()> {
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
pub(super) fn check_models(spec: &RunSpec, devices: &[String]) -> Result<()> {
    for model in &spec.models {
        let label = model.label();
        let precision = model.train.as_ref().map_or("float32", |t| t.precision.as_str());
        match precision {
            "float32" => {}
            "mixed" if !devices.iter().any(|d| d == "cpu") => {}
            "mixed" => {
                return Err(Error::input(format!(
                    "model {label}: precision = \"mixed\" needs a CUDA device, and the run is on the CPU (hint: --set \
                     'models.*.train.precision=float32')"
                )));
            }
            _ => {
                return Err(Error::input(format!(
                    "model {label}: precision = \"{precision}\": float32 or mixed expected"
                )));
            }
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

/// Finds every plugin, checks every parameter and weights file; the models' input sizes.
pub(super) fn check_plugins(spec: &RunSpec, registry: &Registry) -> Result<Vec<[usize; 2]>> {
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
    let mut sizes = Vec::new();
    for (model, described) in spec.models.iter().zip(registry::model_specs(&questions)?) {
        let label = model.label();
        let described = described.map_err(|e| Error::input(format!("model {label}: {e}")))?;
        if model.train.is_some() && !described.trainable {
            return Err(Error::input(format!("model {label} cannot be trained")));
        }
        if let Some(train) = &model.train {
            let precision = &train.precision;
            match precision.as_str() {
                "mixed" if !described.mixed_precision => {
                    return Err(Error::input(format!("model {label} cannot be trained in mixed precision")));
                }
                _ => {}
            }
        }
        sizes.push(described.input.flat().map_err(|e| Error::input(format!("model {label}: {e}")))?);
    }
    for explainer in &spec.explainers {
        let described = registry.explainer(&explainer.name)?.1;
        let place = |e: String| Error::input(format!("explainer {}: {e}", explainer.label()));
        check_parameter_files(&explainer.params, &described.parameters).map_err(place)?;
    }
    Ok(sizes)
}

fn check_parameter_files(params: &BTreeMap<String, Value>, known: &[ParamSpec]) -> std::result::Result<(), String> {
    match parameter_files(params, known).iter().find(|(_, path)| !path.exists()) {
        Some((name, path)) => Err(format!("parameter {name}: {}: no such file or folder", path.display())),
        None => Ok(()),
    }
}

/// One process a folder.
pub(super) fn lock(folder: &RunFolder) -> Result<File> {
    let path = folder.0.join(".lock");
    let file = File::create(&path).map_err(|e| lightbox_core::Error::io(&path, &e))?;
    // SAFETY: a plain call on a descriptor that is open.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        return Err(Error::input(format!("{}: another lightbox runs in this folder", folder.0.display())));
    }
    Ok(file)
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

/// Writes spec and environment, or checks that the folder's own allow to go on.
pub(super) fn settle(
    spec: &RunSpec,
    registry: &Registry,
    source: &dyn Source,
    folder: &RunFolder,
    devices: &[String],
    mixed: bool,
) -> Result<Environment> {
    let shown = folder.0.display();
    let before: Option<Environment> = match folder.environment().is_file() {
        true => Some(read_json(&folder.environment())?),
        false => None,
    };
    // A run keeps its number of threads unless the spec asks for another.
    let threads = match (spec.threads, &before) {
        (0, Some(Environment { machines, .. })) if !machines.is_empty() => machines[machines.len() - 1].threads,
        (0, _) => std::thread::available_parallelism().map_or(1, usize::from),
        (n, _) => n,
    };
    let mut environment = Environment::gather(spec, registry, source, Machine::here(&devices[0], threads))?;
    if folder.spec().is_file() {
        let text = String::from_utf8_lossy(&files::read(&folder.spec())?).into_owned();
        let old = RunSpec::parse(&text, &folder.0)?;
        if let Some(what) = refused(&old, spec) {
            return Err(Error::input(format!(
                "{shown} holds a run of another {what} (hint: give another `output`, or --restart to throw it away)"
            )));
        }
    }
    if let Some(before) = before {
        if before.data != environment.data {
            return Err(Error::input(format!(
                "the images, labels or boxes of the data source have changed since {shown} was begun, or further columns of \
                 its table (hint: --restart, or another `output`)"
            )));
        }
        if folder.sources().is_file() {
            let states: Vec<FileState> = read_json(&folder.sources())?;
            for state in &states {
                if !state.is_unchanged()? {
                    let file = state.file.display();
                    return Err(Error::input(format!(
                        "{file} has changed since {shown} was begun (hint: --restart, or another `output`)"
                    )));
                }
            }
        }
        for model in spec.models.iter().filter(|m| m.train.is_some()) {
            let key = format!("model {}", model.name);
            let old = before.plugins.get(&key);
            if old.is_some_and(|old| environment.plugins.get(&key).is_some_and(|now| now.sha256 != old.sha256)) {
                return Err(Error::plugin(format!(
                    "the plugin of {key} has changed since {shown} was begun, and the run trains it (hint: --restart, or \
                     another `output`)"
                )));
            }
        }
        let trained = |m: &&ModelChoice| m.train.is_some();
        let mut needed: Vec<PathBuf> = Vec::new();
        for model in spec.models.iter().filter(trained) {
            needed.extend(model.weights_files(spec.split.folds));
            let known = &registry.model(&model.name)?.1.parameters;
            needed.extend(parameter_files(&model.params, known).into_iter().map(|(_, path)| path));
        }
        for file in needed {
            if before.files.get(&file).is_some_and(|old| environment.files.get(&file) != Some(old)) {
                let file = file.display();
                return Err(Error::input(format!(
                    "{file} has changed since {shown} was begun, and training begins with it (hint: --restart, or another \
                     `output`)"
                )));
            }
        }
        let machine = environment.machines.remove(0);
        environment.machines = before.machines;
        if let Some(difference) =
            environment.machines.iter().map(|m| m.difference(&machine)).min_by_key(Option::is_some)
        {
            match (difference, mixed) {
                (None, _) => {
                    let here = environment.machines.iter().position(|m| m.difference(&machine).is_none());
                    let here = here.map(|i| environment.machines.remove(i));
                    environment.machines.extend(here);
                }
                (Some(_), true) => environment.machines.push(machine),
                (Some(what), false) => {
                    return Err(Error::input(format!(
                        "{shown} was begun under other conditions, which change numbers: {what} (hint: go on under the \
                         same, --mixed to go on and have it recorded, or --restart)"
                    )));
                }
            }
        }
    }
    write_json(&folder.environment(), &environment)?;
    let text = toml::to_string(spec).map_err(|e| Error::input(format!("the spec cannot be written: {e}")))?;
    files::write_text(&folder.spec(), &text)?;
    Ok(environment)
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
}
