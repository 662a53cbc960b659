//! Builds a model and loads its weights.

use crate::engine::checkpoint_names::{fit_names, looks_like, near};
use crate::engine::weights_folder;
use crate::error::{Error, Result};
use crate::registry::{self, source::OpenPlugin};
use lightbox_core::checkpoint;
use lightbox_sdk::spec::ModelOptions;
use lightbox_sdk::{Array, ModelHandle, Named};
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
        let path = &weights_folder::file_of(path)?;
        notes.extend(weights_folder::other_preparation(path, &model.spec()?.input));
        let found = checkpoint::open(path)?;
        notes.extend(found.notes);
        let own: Vec<String> = model.parameters()?.into_iter().map(|(name, _)| name).collect();
        let written: Vec<String> = found.state.iter().map(|(key, _)| key.clone()).collect();
        let mut keys = written.clone();
        notes.extend(fit_names(&mut keys, &own));
        let mut named = Vec::new();
        for (key, (_, tensor)) in keys.iter().zip(&found.state) {
            named.push((key.clone(), Array::from_tensor(tensor)?));
        }
        let report = match model.load(&named) {
            Ok(report) => report,
            Err(e) => {
                let message = format!("{}: {e}; {}", path.display(), what_it_has(&written, &keys, &own));
                let fits = siblings(plugin, name, options, &named);
                return Err(match fits.is_empty() {
                    true => Error::input(message),
                    false => Error::input(message).hint(format!("it fits {}", fits.join(", "))),
                });
            }
        };
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

/// What a file that is not the model's has, as part of a sentence.
fn what_it_has(written: &[String], keys: &[String], own: &[String]) -> String {
    let looks = match looks_like(written).as_str() {
        "" => String::new(),
        looks => format!("it looks like {looks}; "),
    };
    let first: Vec<&str> = written.iter().take(3).map(String::as_str).collect();
    let missing = own.iter().find(|name| !keys.contains(name) && !name.ends_with("num_batches_tracked"));
    let near = missing.and_then(|name| Some(format!("; nearest to {name} is {}", near(name, written)?)));
    format!("{looks}it has {} entries, as {}{}", written.len(), first.join(", "), near.unwrap_or_default())
}

/// The plugin's other models that take all of these parameters.
fn siblings(plugin: &dyn OpenPlugin, name: &str, options: &ModelOptions, named: &Named) -> Vec<String> {
    let takes = |other: &&str| {
        let params = Default::default();
        let options = ModelOptions { params, ..options.clone() };
        let made = plugin.make_model(other, &options).and_then(|mut model| model.load(named));
        made.is_ok_and(|report| report.unused.is_empty())
    };
    let others = plugin.manifest().models.iter().map(|m| m.name.as_str()).filter(|other| *other != name);
    others.filter(takes).map(str::to_string).collect()
}
