//! Which plugins there are. Folders in order: `--plugins`, `LIGHTBOX_PLUGIN_PATH`, `plugins/` beside the binary.
//! Never the current directory.
//!
//! Files are first opened in a child process, so that one whose start-up crashes or hangs is rejected by name and hides no
//! other.

use crate::binding::{self, default_paths};
use crate::child::{Child, EventWriter, Reply};
use crate::error::{Error, Result};
use crate::loader::{self, Plugin};
use lightbox_sdk::spec::{ExplainerSpec, Manifest, ModelOptions, ModelSpec, Plan};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// How long a plugin may take to open and describe itself.
const SCAN_LIMIT: Duration = Duration::from_secs(10);

/// A plugin that described itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Found {
    pub file: PathBuf,
    pub torch: String,
    pub rustc: String,
    pub abi: String,
    pub manifest: Manifest,
    /// Sentences for the user.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// A file of a plugin folder that is not used.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rejected {
    pub file: PathBuf,
    pub reason: String,
}

/// All plugins of some folders.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    pub folders: Vec<PathBuf>,
    pub found: Vec<Found>,
    pub rejected: Vec<Rejected>,
    /// Kinds and names that two files offer, and the sentence: an error for whoever asks for one.
    pub duplicates: Vec<((String, String), String)>,
}

/// The folders to search. A folder of `--plugins` that does not exist is an error; the others may be absent.
fn folders(given: &[PathBuf]) -> Result<Vec<PathBuf>> {
    if let Some(missing) = given.iter().find(|f| !f.is_dir()) {
        return Err(Error::plugin(format!("{}: no such plugin folder (given by --plugins)", missing.display())));
    }
    let mut folders = given.to_vec();
    if let Some(list) = std::env::var_os("LIGHTBOX_PLUGIN_PATH") {
        folders.extend(std::env::split_paths(&list).filter(|f| f.is_dir() && f.is_absolute()));
    }
    let binary = std::env::current_exe().and_then(std::fs::canonicalize);
    if let Some(own) = binary.ok().and_then(|b| b.parent().map(|p| p.join("plugins")))
        && own.is_dir()
    {
        folders.push(own);
    }
    Ok(folders)
}

impl Registry {
    /// Looks through the folders.
    pub fn scan(given: &[PathBuf]) -> Result<Self> {
        let folders = folders(given)?;
        let mut files: Vec<PathBuf> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for folder in &folders {
            let entries = std::fs::read_dir(folder);
            let entries = entries.map_err(|e| Error::plugin(format!("{}: {e}", folder.display())))?;
            let mut here: Vec<PathBuf> =
                entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "so")).collect();
            here.sort();
            // The same file by two ways is one file.
            here.retain(|file| seen.insert(std::fs::canonicalize(file).unwrap_or_else(|_| file.clone())));
            files.extend(here);
        }
        let mut registry = Registry { folders, ..Registry::default() };
        let mut rest: &[PathBuf] = &files;
        while !rest.is_empty() {
            let (answers, crash) = ask(rest)?;
            let at = answers.len();
            registry.take(answers);
            let Some(reason) = crash.filter(|_| at < rest.len()) else { break };
            registry.rejected.push(Rejected { file: rest[at].clone(), reason });
            rest = &rest[at + 1..];
        }
        registry.find_duplicates();
        Ok(registry)
    }

    fn take(&mut self, answers: Vec<Answer>) {
        for answer in answers {
            match answer {
                Answer::Found(found) => self.found.push(found),
                Answer::Rejected(rejected) => self.rejected.push(rejected),
            }
        }
    }

    fn find_duplicates(&mut self) {
        let mut owners: BTreeMap<(&str, &str), Vec<&Path>> = BTreeMap::new();
        for found in &self.found {
            for model in &found.manifest.models {
                owners.entry(("model", &model.name)).or_default().push(&found.file);
            }
            for explainer in &found.manifest.explainers {
                owners.entry(("explainer", &explainer.name)).or_default().push(&found.file);
            }
        }
        for ((kind, name), files) in owners.into_iter().filter(|(_, f)| f.len() > 1) {
            let files: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
            let files = files.join(" and ");
            let text = format!("two plugins offer the {kind} {name}: {files}; take one away");
            self.duplicates.push(((kind.to_string(), name.to_string()), text));
        }
    }

    /// Errors when two files offer this name. Other names are not concerned.
    fn need_unique(&self, kind: &str, name: &str) -> Result<()> {
        match self.duplicates.iter().find(|((k, n), _)| k == kind && n == name) {
            None => Ok(()),
            Some((_, text)) => Err(Error::plugin(text.clone())),
        }
    }

    fn missing(&self, kind: &str, name: &str, known: Vec<&str>) -> Error {
        let mut message = format!("no {kind} is named {name}");
        if known.is_empty() {
            let folders: Vec<String> = self.folders.iter().map(|f| f.display().to_string()).collect();
            message += &match folders.is_empty() {
                true => "; no plugin folder was found (hint: `cargo xtask build` makes one, or use --plugins)".into(),
                false => format!("; no plugin in {} has one", folders.join(", ")),
            };
        } else {
            message += &format!(" (known: {})", known.join(", "));
        }
        for rejected in &self.rejected {
            message += &format!("\nnote: {} was rejected: {}", rejected.file.display(), rejected.reason);
        }
        Error::plugin(message)
    }

    /// The plugin that offers a model, and the model's specification with default options.
    pub fn model(&self, name: &str) -> Result<(&Found, &ModelSpec)> {
        let all = || self.found.iter().flat_map(|f| f.manifest.models.iter().map(move |m| (f, m)));
        let known = || all().map(|(_, m)| m.name.as_str()).collect();
        self.need_unique("model", name)?;
        all().find(|(_, m)| m.name == name).ok_or_else(|| self.missing("model", name, known()))
    }

    /// The plugin that offers an explainer, and its specification.
    pub fn explainer(&self, name: &str) -> Result<(&Found, &ExplainerSpec)> {
        let all = || self.found.iter().flat_map(|f| f.manifest.explainers.iter().map(move |e| (f, e)));
        let known = || all().map(|(_, e)| e.name.as_str()).collect();
        self.need_unique("explainer", name)?;
        all().find(|(_, e)| e.name == name).ok_or_else(|| self.missing("explainer", name, known()))
    }
}

/// The plugins that this process has opened. A library is never unloaded, so each is opened once and kept.
static OPEN: Mutex<BTreeMap<PathBuf, &'static Plugin>> = Mutex::new(BTreeMap::new());

/// A plugin, opened in this process unless it was before.
pub fn open(file: &Path) -> Result<&'static Plugin> {
    let mut all = OPEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(plugin) = all.get(file) {
        return Ok(plugin);
    }
    let plugin = loader::load(file, lightbox_sdk::BUILT_WITH_TORCH)
        .map_err(|e| Error::plugin(format!("plugin {}: {e}", file.display())))?;
    let plugin: &'static Plugin = Box::leak(Box::new(plugin));
    all.insert(file.to_path_buf(), plugin);
    Ok(plugin)
}

/// What a child says of a file.
#[derive(Serialize, Deserialize)]
enum Answer {
    Found(Found),
    Rejected(Rejected),
}

fn describe_one(file: &Path) -> Answer {
    match loader::load(file, lightbox_sdk::BUILT_WITH_TORCH) {
        Err(e) => Answer::Rejected(Rejected { file: file.to_path_buf(), reason: e.to_string() }),
        Ok(plugin) => {
            let record = plugin.preflight;
            let mut warnings = Vec::new();
            if record.torch != "none" && record.torch != lightbox_sdk::BUILT_WITH_TORCH {
                let own = lightbox_sdk::BUILT_WITH_TORCH;
                warnings.push(format!("built against libtorch {}, this host has {own}", record.torch));
            }
            Answer::Found(Found {
                file: file.to_path_buf(),
                torch: record.torch,
                rustc: record.rustc,
                abi: record.abi,
                manifest: plugin.manifest,
                warnings,
            })
        }
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
        let known = plugin.manifest.explainers.iter().find(|e| e.name == name);
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
fn ask(files: &[PathBuf]) -> Result<(Vec<Answer>, Option<String>)> {
    answers(&Order { files, ..Order::default() }, files.len())
}

/// What models say of themselves under other options than their own; of each a specification or an error's text. Asked in a
/// child too: what a parameter makes of a plugin is not known before.
pub fn model_specs(questions: &[Question]) -> Result<Vec<std::result::Result<ModelSpec, String>>> {
    let text = serde_json::to_string(questions).map_err(|e| Error::input(e.to_string()))?;
    let (mut specs, crash) = answers(&Order { models: Some(&text), ..Order::default() }, questions.len())?;
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
            let (some, crash) = answers(&Order { plans: Some(&text), ..Order::default() }, question.explainers.len())?;
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
fn answers<T: DeserializeOwned + Send + 'static>(order: &Order<'_>, wanted: usize) -> Result<(Vec<T>, Option<String>)> {
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
        match said.recv_timeout(SCAN_LIMIT) {
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
                return Ok((answers, Some(format!("it did not open within {} s", SCAN_LIMIT.as_secs()))));
            }
        }
    }
}
