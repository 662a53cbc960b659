//! Questions to plugins that are asked in a child process, so that one that crashes or hangs is named and hides no other.

use super::open::{open, source_of};
use super::{Found, Registry, Rejected};
use crate::binding::{self, default_paths};
use crate::child::{Child, EventWriter, Reply};
use crate::error::{Error, Result};
use lightbox_sdk::spec::{ExplainerSpec, ModelOptions, ModelSpec, Plan};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// How long the slowest of these files may take.
fn limit<'f>(files: impl Iterator<Item = &'f PathBuf>) -> Duration {
    let of = |file: &PathBuf| source_of(file).map(|source| source.limit()).ok();
    files.filter_map(of).max().unwrap_or(Duration::from_secs(10))
}

/// What a child says of a file.
#[derive(Serialize, Deserialize)]
pub(super) enum Answer {
    Found(Found),
    Rejected(Rejected),
}

fn describe_one(file: &Path) -> Answer {
    let rejected = |e: Error| Rejected { file: file.to_path_buf(), reason: e.message };
    match source_of(file).map_err(rejected).and_then(|source| source.describe(file)) {
        Ok(found) => Answer::Found(found),
        Err(rejected) => Answer::Rejected(rejected),
    }
}

/// A model with the options that a run builds it with.
#[derive(Serialize, Deserialize)]
pub struct Question {
    pub file: PathBuf,
    pub name: String,
    pub options: ModelOptions,
}

/// Explainers that are asked for their plans, and models, each with its plugin's file and with default options.
#[derive(Serialize, Deserialize)]
struct PlanQuestion {
    explainers: Vec<(PathBuf, String)>,
    models: Vec<(PathBuf, String)>,
}

/// An explainer's answers to models: of each model its name, and the plan or an error's text.
pub type Plans = Vec<(String, std::result::Result<Plan, String>)>;

/// The plans of an explainer with its default parameters.
fn plans_of(file: &Path, name: &str, models: &[(String, std::result::Result<ModelSpec, String>)]) -> Plans {
    let made = || -> Result<_> {
        let plugin = open(file)?;
        let known = plugin.manifest().explainers.iter().find(|e| e.name == name);
        let known = known.ok_or_else(|| Error::plugin(format!("{} has no explainer {name}", file.display())))?;
        let mut given = BTreeMap::new();
        default_paths(&mut given, &known.parameters, file);
        Ok((plugin.make_explainer(name)?, given))
    };
    let made = made().map_err(|e| e.message);
    let plan = |model: &ModelSpec| {
        let (explainer, params) = made.as_ref().map_err(String::clone)?;
        Ok(binding::bind(explainer, model, &[], params).map_err(|e| e.to_string())?.1)
    };
    models.iter().map(|(n, spec)| (n.clone(), spec.as_ref().map_err(String::clone).and_then(plan))).collect()
}

/// The child that opens plugins: files (or the models of `questions`, or the explainers of `plans`, as JSON) one after the
/// other, a line each.
pub fn describe(files: &[PathBuf], questions: Option<&str>, plans: Option<&str>) -> Result<()> {
    let writer = EventWriter::open();
    if let Some(text) = plans {
        let question: PlanQuestion =
            serde_json::from_str(text).map_err(|e| Error::input(format!("malformed questions: {e}")))?;
        let spec = |(file, name): &(PathBuf, String)| {
            let spec = open(file).and_then(|p| Ok(p.model_spec(name, &ModelOptions::default())?));
            (name.clone(), spec.map_err(|e| e.message))
        };
        let models: Vec<_> = question.models.iter().map(spec).collect();
        question.explainers.iter().for_each(|(file, name)| writer.say(&plans_of(file, name, &models)));
        return Ok(());
    }
    files.iter().for_each(|file| writer.say(&describe_one(file)));
    let questions: Vec<Question> = serde_json::from_str(questions.unwrap_or("[]"))
        .map_err(|e| Error::input(format!("malformed questions: {e}")))?;
    for question in questions {
        let spec = open(&question.file)
            .and_then(|plugin| Ok(plugin.model_spec(&question.name, &question.options)?))
            .map_err(|e| e.message);
        writer.say(&spec);
    }
    Ok(())
}

/// Has files described by a child. Fewer answers than files mean that the next one ended the child; then the reason.
pub(super) fn ask(files: &[PathBuf]) -> Result<(Vec<Answer>, Option<String>)> {
    answers(&Order { files, ..Order::default() }, files.len(), limit(files.iter()))
}

/// What models say of themselves under other options than their own; of each a specification or an error's text. Asked in a
/// child too: what a parameter makes of a plugin is not known before.
pub fn model_specs(questions: &[Question]) -> Result<Vec<std::result::Result<ModelSpec, String>>> {
    let text = serde_json::to_string(questions).map_err(|e| Error::input(e.to_string()))?;
    let longest = limit(questions.iter().map(|q| &q.file));
    let (mut specs, crash) = answers(&Order { models: Some(&text), ..Order::default() }, questions.len(), longest)?;
    // It did not answer, and who comes after it is not asked any more.
    specs.extend(crash.map(Err));
    Ok(specs)
}

impl Registry {
    /// What explainers need of every model here, with default parameters, in their order. Asked in a child: one that crashes
    /// is said to, and hides no other.
    pub fn plans(&self, explainers: &[(&Found, &ExplainerSpec)]) -> Result<Vec<Plans>> {
        let models: Vec<(PathBuf, String)> = self
            .found
            .iter()
            .flat_map(|f| f.manifest.models.iter().map(|m| (f.file.clone(), m.name.clone())))
            .collect();
        let all: Vec<(PathBuf, String)> = explainers.iter().map(|(f, e)| (f.file.clone(), e.name.clone())).collect();
        let mut found: Vec<Plans> = Vec::new();
        while found.len() < all.len() {
            let question = PlanQuestion { explainers: all[found.len()..].to_vec(), models: models.clone() };
            let text = serde_json::to_string(&question).map_err(|e| Error::input(e.to_string()))?;
            let asked = question.explainers.iter().chain(&question.models).map(|(file, _)| file);
            let order = Order { plans: Some(&text), ..Order::default() };
            let (some, crash) = answers(&order, question.explainers.len(), limit(asked))?;
            found.extend(some);
            if let Some(reason) = crash.filter(|_| found.len() < all.len()) {
                let reason = reason.replace("opened", "asked");
                found.push(models.iter().map(|(_, name)| (name.clone(), Err(reason.clone()))).collect());
            }
        }
        Ok(found)
    }
}

/// What a child is asked; see [`describe`].
#[derive(Default)]
struct Order<'a> {
    files: &'a [PathBuf],
    models: Option<&'a str>,
    plans: Option<&'a str>,
}

impl Order<'_> {
    fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["describe".into()];
        for (name, text) in [("--models", self.models), ("--plans", self.plans)] {
            arguments.extend(text.iter().flat_map(|text| [name.into(), (*text).into()]));
        }
        arguments.push("--".into());
        arguments.extend(self.files.iter().map(|f| f.clone().into_os_string()));
        arguments
    }
}

/// What a child says, `wanted` lines of it; where there are fewer, how it ended.
fn answers<T: DeserializeOwned + Send + 'static>(
    order: &Order<'_>,
    wanted: usize,
    limit: Duration,
) -> Result<(Vec<T>, Option<String>)> {
    let (send, said) = channel();
    let sink = move |s| drop(send.send(s));
    let work = || {
        if let Err(e) = describe(order.files, order.models, order.plans) {
            eprintln!("error: {e}");
        }
    };
    let mut child = match Child::fork::<T>(work, sink.clone())? {
        Some(child) => child,
        None => Child::start::<T>(&order.arguments(), &[], Stdio::inherit(), sink)?,
    };
    let mut answers = Vec::new();
    loop {
        match said.recv_timeout(limit) {
            Ok(Reply::Line(answer)) => answers.push(answer),
            Ok(Reply::Malformed(line)) => {
                return Err(Error::plugin(format!("a plugin's description is malformed: {line}")));
            }
            Ok(Reply::Ended) | Err(RecvTimeoutError::Disconnected) => {
                let crash = match child.end() {
                    how if how.starts_with("it crashed") => how.replace("it crashed", "it crashed when it was opened"),
                    _ => "it ended the process when it was opened".into(),
                };
                let crash = (answers.len() < wanted).then_some(crash);
                return Ok((answers, crash));
            }
            Err(RecvTimeoutError::Timeout) => {
                child.kill();
                return Ok((answers, Some(format!("it did not open within {} s", limit.as_secs()))));
            }
        }
    }
}
