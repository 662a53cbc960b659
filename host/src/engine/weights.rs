//! Builds a model and loads its weights.

use crate::error::{Error, Result};
use crate::registry;
use lightbox_sdk::spec::ModelOptions;
use lightbox_sdk::{Array, ModelHandle};
use std::path::Path;

/// Builds a model and loads its weights. What the model says of them comes back as sentences.
pub fn load_model(
    file: &Path,
    name: &str,
    options: &ModelOptions,
    weights: Option<&Path>,
) -> Result<(ModelHandle, Vec<String>)> {
    let plugin = registry::open(file)?;
    let mut model = plugin.make_model(name, options)?;
    let mut notes = Vec::new();
    if let Some(path) = weights {
        let state = lightbox_core::checkpoint::read(path)?;
        let mut named = Vec::new();
        for (key, tensor) in &state {
            named.push((key.clone(), Array::from_tensor(tensor)?));
        }
        let report = model.load(&named).map_err(|e| Error::input(format!("{}: {e}", path.display())))?;
        notes.extend(report.notes);
        if !report.unused.is_empty() {
            let (n, first) = (report.unused.len(), &report.unused[0]);
            notes.push(format!("{n} entries of {} were not used, first {first}", path.display()));
        }
    }
    Ok((model, notes))
}
