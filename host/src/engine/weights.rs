//! Builds a model and loads its weights.

use crate::error::{Error, Result};
use crate::registry;
use lightbox_sdk::spec::ModelOptions;
use lightbox_sdk::{Array, ModelHandle};
use std::path::Path;

/// How a model's note on a head that keeps its initial values begins.
const HEAD: &str = "the head is new: ";

/// Whether parameters that the checkpoint does not give may keep their random initial values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// They are to be trained, or the user asked for it.
    Random,
    /// That is an error.
    Refused,
}

/// Builds a model and loads its weights. What the model says of them comes back as sentences.
///
/// # Errors
/// The file is no checkpoint of the model; it does not give all parameters, and `missing` does not allow it.
pub fn load_model(
    file: &Path,
    name: &str,
    options: &ModelOptions,
    weights: Option<&Path>,
    missing: Missing,
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
        if missing == Missing::Refused && !report.new.is_empty() {
            let what = match report.notes.iter().find(|note| note.starts_with(HEAD)) {
                Some(note) => note[HEAD.len()..].to_string(),
                None => format!("it does not give {}", report.new.join(", ")),
            };
            return Err(Error::input(format!("{}: its head does not fit: {what}", path.display())).hint(
                "name all of the file's classes in task.classes (`explain --classes N`), train a head ([models.train]), or \
                 ask for a random one (random_head = true, `explain --random-weights`)",
            ));
        }
        notes.extend(report.notes);
        if !report.unused.is_empty() {
            let (n, first) = (report.unused.len(), &report.unused[0]);
            notes.push(format!("{n} entries of {} were not used, first {first}", path.display()));
        }
    }
    Ok((model, notes))
}
