//! Programs that `torch.export` wrote: each `.pt2` file is a model, which the plugin `exported` runs.

use super::dylib::Dylibs;
use super::source::{OpenPlugin, PluginSource};
use super::{Found, Rejected};
use crate::error::{Error, Result};
use lightbox_core::files;
use lightbox_sdk::spec::{Manifest, ModelOptions, ModelSpec};
use lightbox_sdk::{ExplainerHandle, ModelHandle};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Files that end in `.pt2`.
pub struct Programs;

/// What a file of this source ends in.
const EXTENSION: &str = "pt2";
/// The library that runs them, and its model's name.
const RUNNER: (&str, &str) = ("liblightbox_exported.so", "exported");

/// Whether a user's name of a model is the path of such a file.
pub fn is_program(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|e| e == EXTENSION)
}

/// The name of a file without its folder and ending.
pub fn stem(name: &str) -> &str {
    let file = name.rsplit('/').next().unwrap_or(name);
    file.strip_suffix(".pt2").unwrap_or(file)
}

/// The name under which a file's model is listed: the file's, in the letters that names may have.
fn listed(file: &Path) -> String {
    let name = file.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let plain = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c) { c } else { '-' };
    name.chars().map(plain).collect()
}

/// The library that runs programs: in a folder of `LIGHTBOX_PLUGIN_PATH`, or beside the binary.
fn runner() -> Result<PathBuf> {
    let folders = super::folders(&[])?;
    let found = folders.iter().map(|f| f.join(RUNNER.0)).find(|f| f.is_file());
    found.ok_or_else(|| {
        let folders: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
        Error::plugin(format!("no plugin runs exported programs: {} is not in {}", RUNNER.0, folders.join(", ")))
            .hint("`cargo xtask build` makes it")
    })
}

/// That library, opened once in this process.
fn opened_runner() -> Result<&'static dyn OpenPlugin> {
    static OPEN: OnceLock<Box<dyn OpenPlugin>> = OnceLock::new();
    if let Some(open) = OPEN.get() {
        return Ok(open.as_ref());
    }
    let open = Dylibs.open(&runner()?)?;
    Ok(OPEN.get_or_init(|| open).as_ref())
}

/// An opened program.
struct Program {
    manifest: Manifest,
    runner: &'static dyn OpenPlugin,
    file: PathBuf,
    /// How images become what the network takes, where neither the file nor the options say it.
    input: Option<&'static str>,
}

impl Program {
    fn open(file: &Path, input: Option<&'static str>) -> Result<Program> {
        let file = std::path::absolute(file)?;
        let runner = opened_runner()?;
        let manifest = Manifest {
            plugin: runner.manifest().plugin.clone(),
            version: runner.manifest().version.clone(),
            models: vec![],
            explainers: vec![],
        };
        let mut program = Program { manifest, runner, file, input };
        let spec = program.model_spec(&listed(&program.file), &ModelOptions::default())?;
        program.manifest.models.push(spec);
        Ok(program)
    }

    /// The options with the file among them.
    fn options(&self, name: &str, options: &ModelOptions) -> std::result::Result<ModelOptions, lightbox_sdk::Error> {
        let is_path = || std::path::absolute(name).is_ok_and(|path| path == self.file);
        if name != listed(&self.file) && !is_path() {
            let what = format!("{} has no model {name}", self.file.display());
            return Err(lightbox_sdk::Error::invalid(what));
        }
        let mut options = options.clone();
        let file = self.file.to_string_lossy().into_owned();
        if options.params.insert("file".into(), file.into()).is_some() {
            return Err(lightbox_sdk::Error::invalid("the file is the model, and no parameter of it"));
        }
        if let Some(input) = self.input {
            options.params.entry("input".into()).or_insert_with(|| input.into());
        }
        Ok(options)
    }
}

impl OpenPlugin for Program {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn make_model(&self, name: &str, options: &ModelOptions) -> std::result::Result<ModelHandle, lightbox_sdk::Error> {
        self.runner.make_model(RUNNER.1, &self.options(name, options)?)
    }

    fn model_spec(&self, name: &str, options: &ModelOptions) -> std::result::Result<ModelSpec, lightbox_sdk::Error> {
        let spec = self.runner.model_spec(RUNNER.1, &self.options(name, options)?)?;
        Ok(ModelSpec { name: listed(&self.file), ..spec })
    }

    fn make_explainer(&self, name: &str) -> std::result::Result<ExplainerHandle, lightbox_sdk::Error> {
        let what = format!("{} is a model, and has no explainer {name}", self.file.display());
        Err(lightbox_sdk::Error::invalid(what))
    }
}

impl PluginSource for Programs {
    fn name(&self) -> &'static str {
        "an exported program (.pt2)"
    }

    fn takes(&self, file: &Path) -> bool {
        file.extension().is_some_and(|e| e == EXTENSION)
    }

    fn describe(&self, file: &Path) -> std::result::Result<Found, Rejected> {
        let rejected = |e: Error| Rejected { file: file.to_path_buf(), reason: e.message };
        let runs = Dylibs.describe(&runner().map_err(rejected)?)?;
        let program = Program::open(file, None).map_err(rejected)?;
        Ok(Found { file: file.to_path_buf(), manifest: program.manifest, warnings: vec![], ..runs })
    }

    fn digest(&self, file: &Path) -> Result<String> {
        // What it computes hangs on what runs it, too.
        let parts = [files::sha256(file)?, Dylibs.digest(&runner()?)?];
        let hash = Sha256::digest(parts.concat());
        Ok(hash.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn open(&self, file: &Path) -> Result<Box<dyn OpenPlugin>> {
        Ok(Box::new(Program::open(file, None)?))
    }

    fn open_to_try(&self, file: &Path) -> Result<Box<dyn OpenPlugin>> {
        Ok(Box::new(Program::open(file, Some("unit"))?))
    }
}
