//! Which plugins there are. Folders in order: `--plugins`, `LIGHTBOX_PLUGIN_PATH`, `plugins/` beside the binary.
//! Never the current directory.
//!
//! Files are first opened in a child process, so that one whose start-up crashes or hangs is rejected by name and hides no
//! other.

mod ask;
pub mod dylib;
pub mod open;
mod peers;
pub mod programs;
pub mod python;
mod remote;
pub mod source;

pub use ask::{Plans, Question, describe, model_specs};
pub use open::{open, source_of};

use crate::error::{Error, Result};
use ask::Answer;
use lightbox_sdk::spec::{ExplainerSpec, Manifest, ModelSpec};
use open::SOURCES;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

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

/// Whether users other than the owner and its group may change a file or folder.
fn anybody_writes(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o002 != 0)
}

impl Registry {
    /// Looks through the folders.
    pub fn scan(given: &[PathBuf]) -> Result<Self> {
        let (folders, mut refused) = (folders(given)?, Vec::new());
        let mut files: Vec<PathBuf> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for folder in &folders {
            // Whoever writes a plugin runs code as us: what anybody may write is opened only where the user has named it.
            let named = given.contains(folder);
            if !named && anybody_writes(folder) {
                let reason = "anybody may write to this folder; name it by --plugins if its plugins are to be used";
                refused.push(Rejected { file: folder.clone(), reason: reason.into() });
                continue;
            }
            let mut here: Vec<PathBuf> = Vec::new();
            for source in SOURCES {
                here.extend(source.list(folder)?);
            }
            // The same file by two ways is one file.
            here.retain(|file| seen.insert(std::fs::canonicalize(file).unwrap_or_else(|_| file.clone())));
            let (open, safe): (Vec<PathBuf>, Vec<PathBuf>) =
                here.into_iter().partition(|file| !named && anybody_writes(file));
            let reason = "anybody may write to this file; name its folder by --plugins if it is to be used";
            refused.extend(open.into_iter().map(|file| Rejected { file, reason: reason.into() }));
            files.extend(safe);
        }
        let mut registry = Registry { folders, rejected: refused, ..Registry::default() };
        // One kind of files after the other: each has its own time.
        for source in SOURCES {
            let own: Vec<PathBuf> = files.iter().filter(|file| source.takes(file)).cloned().collect();
            let mut rest: &[PathBuf] = &own;
            while !rest.is_empty() {
                let (answers, crash) = ask::ask(rest)?;
                let at = answers.len();
                registry.take(answers);
                let Some(reason) = crash.filter(|_| at < rest.len()) else { break };
                registry.rejected.push(Rejected { file: rest[at].clone(), reason });
                rest = &rest[at + 1..];
            }
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
        let (mut message, mut hint) = (format!("no {kind} is named {name}"), "");
        if known.is_empty() {
            let folders: Vec<String> = self.folders.iter().map(|f| f.display().to_string()).collect();
            message += &match folders.is_empty() {
                true => "; no plugin folder was found".into(),
                false => format!("; no plugin in {} has one", folders.join(", ")),
            };
            if folders.is_empty() {
                hint = "`cargo xtask build` makes one, or use --plugins";
            }
        } else {
            message += &format!(" (known: {})", known.join(", "));
        }
        for rejected in &self.rejected {
            message += &format!("\nnote: {} was rejected: {}", rejected.file.display(), rejected.reason);
        }
        Error::plugin(message).hint(hint)
    }

    /// The same with the exported programs among these names of models (`resnet50.pt2`, a path), which lie anywhere.
    ///
    /// # Errors
    /// There is no such file, or it is none; the error says what it is.
    pub fn with_programs<'n>(&self, names: impl Iterator<Item = &'n str>) -> Result<Self> {
        let mut registry = self.clone();
        for name in names.filter(|name| programs::is_program(name)) {
            let file = std::path::absolute(name)?;
            if !file.is_file() {
                let rejected = registry.rejected.iter().any(|r| r.file == file);
                let listed = registry.found.iter().any(|f| f.manifest.models.iter().any(|m| m.name == name));
                if listed || rejected {
                    continue;
                }
                return Err(Error::input(format!("{}: no such file", file.display())).hint(
                    "write it by lightbox.export(module, FILE, example) of sdk/python, or by torch.export.save",
                ));
            }
            if registry.found.iter().any(|f| f.file == file) {
                continue;
            }
            let (mut answers, crash) = ask::ask(std::slice::from_ref(&file))?;
            match answers.pop() {
                Some(Answer::Found(found)) => registry.found.push(found),
                Some(Answer::Rejected(rejected)) => return Err(Error::input(rejected.reason)),
                None => return Err(Error::input(format!("{}: {}", file.display(), crash.unwrap_or_default()))),
            }
        }
        Ok(registry)
    }

    /// The plugin that offers a model, and the model's specification with default options. A program goes by its path, too.
    pub fn model(&self, name: &str) -> Result<(&Found, &ModelSpec)> {
        if programs::is_program(name) {
            let file = std::path::absolute(name)?;
            let found = self.found.iter().find(|f| f.file == file);
            if let Some((found, model)) = found.and_then(|f| Some((f, f.manifest.models.first()?))) {
                return Ok((found, model));
            }
        }
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
