//! What plugins of other processes are in the registry, whichever way they are reached.

use super::source::OpenPlugin;
use super::{Found, Rejected};
use crate::error::{Error, Result};
use crate::remote::plugin::RemotePlugin;
use lightbox_sdk::spec::{Manifest, ModelOptions, ModelSpec};
use lightbox_sdk::{ExplainerHandle, ModelHandle};
use std::path::Path;

impl OpenPlugin for RemotePlugin {
    fn manifest(&self) -> &Manifest {
        RemotePlugin::manifest(self)
    }

    fn make_model(&self, name: &str, options: &ModelOptions) -> lightbox_sdk::Result<ModelHandle> {
        RemotePlugin::make_model(self, name, options)
    }

    fn model_spec(&self, name: &str, options: &ModelOptions) -> lightbox_sdk::Result<ModelSpec> {
        RemotePlugin::model_spec(self, name, options)
    }

    fn make_explainer(&self, name: &str) -> lightbox_sdk::Result<ExplainerHandle> {
        RemotePlugin::make_explainer(self, name)
    }
}

/// What a file offers, by the plugin that it became.
pub fn found(file: &Path, opened: Result<RemotePlugin>) -> std::result::Result<Found, Rejected> {
    let said = || -> Result<Found> {
        let plugin = opened?;
        let hello = plugin.process().hello()?;
        Ok(Found {
            file: file.to_path_buf(),
            torch: "none".into(),
            rustc: format!("{} ({})", hello.language, hello.interpreter),
            abi: format!("wire {}", hello.protocol),
            manifest: RemotePlugin::manifest(&plugin).clone(),
            warnings: vec![],
        })
    };
    said().map_err(|e| rejected(file, e))
}

/// A file that is not used, with what to do about it.
pub fn rejected(file: &Path, e: Error) -> Rejected {
    let reason = if e.hint.is_empty() { e.message } else { format!("{} ({})", e.message, e.hint) };
    Rejected { file: file.to_path_buf(), reason }
}
