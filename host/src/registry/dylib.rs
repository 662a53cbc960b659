//! Dynamic libraries with Lightbox's ABI: the source of every plugin that was built with the SDK.

use super::source::{OpenPlugin, PluginSource};
use super::{Found, Rejected};
use crate::error::{Error, Result};
use crate::loader::{self, Plugin};
use crate::process_state::ProcessState;
use lightbox_core::files;
use lightbox_sdk::spec::{Manifest, ModelOptions, ModelSpec};
use lightbox_sdk::{ExplainerHandle, ModelHandle};
use std::path::Path;

/// Files that end in `.so`.
pub struct Dylibs;

impl PluginSource for Dylibs {
    fn name(&self) -> &'static str {
        "a dynamic library (.so)"
    }

    fn takes(&self, file: &Path) -> bool {
        file.extension().is_some_and(|e| e == "so")
    }

    fn identify(&self, file: &Path) -> std::result::Result<String, String> {
        let record = loader::preflight(file).map_err(|e| e.to_string())?;
        let (plugin, version, abi) = (record.plugin, record.version, record.abi);
        Ok(format!("{plugin} {version}, ABI {abi}, libtorch {}, {}", record.torch, record.rustc))
    }

    fn describe(&self, file: &Path) -> std::result::Result<Found, Rejected> {
        let own = lightbox_sdk::BUILT_WITH_TORCH;
        let plugin =
            loader::load(file, own).map_err(|e| Rejected { file: file.to_path_buf(), reason: e.to_string() })?;
        let record = plugin.preflight;
        let mut warnings = Vec::new();
        if record.torch != "none" && record.torch != own {
            warnings.push(format!("built against libtorch {}, this host has {own}", record.torch));
        }
        Ok(Found {
            file: file.to_path_buf(),
            torch: record.torch,
            rustc: record.rustc,
            abi: record.abi,
            manifest: plugin.manifest,
            warnings,
        })
    }

    fn digest(&self, file: &Path) -> Result<String> {
        Ok(files::sha256(file)?)
    }

    fn open(&self, file: &Path) -> Result<Box<dyn OpenPlugin>> {
        let state = ProcessState::here();
        let plugin = loader::load(file, lightbox_sdk::BUILT_WITH_TORCH);
        // A library that was linked with -ffast-math does so for the whole process.
        if let Some(changed) = state.restore() {
            eprintln!("note: {} changed {changed} when it was opened; it was set back", file.display());
        }
        Ok(Box::new(plugin.map_err(|e| Error::plugin(format!("plugin {}: {e}", file.display())))?))
    }

    fn open_to_try(&self, file: &Path) -> Result<Box<dyn OpenPlugin>> {
        let plugin = loader::load(file, lightbox_sdk::BUILT_WITH_TORCH);
        Ok(Box::new(plugin.map_err(|e| Error::plugin(e.to_string()))?))
    }
}

impl OpenPlugin for Plugin {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn make_model(&self, name: &str, options: &ModelOptions) -> std::result::Result<ModelHandle, lightbox_sdk::Error> {
        self.make_model(name, options)
    }

    fn model_spec(&self, name: &str, options: &ModelOptions) -> std::result::Result<ModelSpec, lightbox_sdk::Error> {
        self.model_spec(name, options)
    }

    fn make_explainer(&self, name: &str) -> std::result::Result<ExplainerHandle, lightbox_sdk::Error> {
        self.make_explainer(name)
    }
}
