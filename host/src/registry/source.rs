//! Where plugins come from. A source is one file here and one line in [`SOURCES`](super::open::SOURCES).

use super::{Found, Rejected};
use crate::error::{Error, Result};
use lightbox_sdk::spec::{Manifest, ModelOptions, ModelSpec};
use lightbox_sdk::{ExplainerHandle, ModelHandle};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A kind of files that hold plugins.
pub trait PluginSource: Sync {
    /// What its files are called in messages: `a dynamic library`.
    fn name(&self) -> &'static str;

    /// Whether a file is one of this source's, by its name.
    fn takes(&self, file: &Path) -> bool;

    /// The files of a plugin folder that may hold plugins, in the order of their names.
    ///
    /// # Errors
    /// The folder cannot be read.
    fn list(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(folder);
        let entries = entries.map_err(|e| Error::plugin(format!("{}: {e}", folder.display())))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|p| self.takes(p)).collect();
        files.sort();
        Ok(files)
    }

    /// What a file offers, or why it is not used. Called in a child process, which a file may crash.
    fn describe(&self, file: &Path) -> std::result::Result<Found, Rejected>;

    /// How long a file may take to open and describe itself.
    fn limit(&self) -> Duration {
        Duration::from_secs(10)
    }

    /// What can be said of a file without running any of its code, or why it is no plugin.
    fn identify(&self, file: &Path) -> std::result::Result<String, String> {
        if file.is_file() { Ok(self.name().into()) } else { Err("no such file".into()) }
    }

    /// Opens a file to be tried on images that are made up: what nobody has said of its input is taken as it is.
    ///
    /// # Errors
    /// As [`PluginSource::open`].
    fn open_to_try(&self, file: &Path) -> Result<Box<dyn OpenPlugin>> {
        self.open(file)
    }

    /// SHA-256, as hexadecimal, of all that what the file computes depends on.
    ///
    /// # Errors
    /// The file cannot be read.
    fn digest(&self, file: &Path) -> Result<String>;

    /// Opens a file in this process.
    ///
    /// # Errors
    /// The file is no plugin, or one of another version.
    fn open(&self, file: &Path) -> Result<Box<dyn OpenPlugin>>;
}

/// A plugin that is open in this process.
pub trait OpenPlugin: Send + Sync {
    /// What it offers.
    fn manifest(&self) -> &Manifest;

    /// Builds a model.
    ///
    /// # Errors
    /// The plugin has no such model, or the options are not for it.
    fn make_model(&self, name: &str, options: &ModelOptions) -> std::result::Result<ModelHandle, lightbox_sdk::Error>;

    /// The specification of a model that is not built.
    ///
    /// # Errors
    /// As [`Self::make_model`].
    fn model_spec(&self, name: &str, options: &ModelOptions) -> std::result::Result<ModelSpec, lightbox_sdk::Error>;

    /// Makes an explainer.
    ///
    /// # Errors
    /// The plugin has no such explainer.
    fn make_explainer(&self, name: &str) -> std::result::Result<ExplainerHandle, lightbox_sdk::Error>;
}
