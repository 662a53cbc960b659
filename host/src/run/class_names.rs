//! Which class each output of given weights is: the spec says it, the data source has an order of its own, or a file beside the
//! weights says it. Names in the order of the alphabet would explain another class.

use super::spec::{OWN, RunSpec};
use crate::engine::weights_folder;
use crate::error::{Error, Result};
use crate::registry::Registry;
use lightbox_core::data::Source;
use lightbox_core::files;
use lightbox_core::task::Kind;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Names of a model's classes in the order of its outputs, from a file beside its weights: `config.json` of Hugging Face
/// (`id2label`), or `classes.txt`, a name a line. None where there is neither.
fn names_beside(weights: &Path) -> Result<Option<Vec<String>>> {
    let weights = weights_folder::file_of(weights)?;
    let folder = weights.parent().unwrap_or(Path::new("."));
    let config = folder.join("config.json");
    if config.is_file() {
        let value: serde_json::Value = serde_json::from_slice(&files::read(&config)?)
            .map_err(|e| Error::input(format!("{}: {e}", config.display())))?;
        let labels: Option<BTreeMap<String, String>> = serde_json::from_value(value["id2label"].clone()).ok();
        let numbered = labels.iter().flatten().filter_map(|(n, name)| Some((n.parse::<usize>().ok()?, name.clone())));
        let numbered: BTreeMap<usize, String> = numbered.collect();
        if !numbered.is_empty() && numbered.keys().copied().eq(0..numbered.len()) {
            return Ok(Some(numbered.into_values().collect()));
        }
    }
    let list = folder.join("classes.txt");
    if !list.is_file() {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&files::read(&list)?).into_owned();
    let names: Vec<String> = text.lines().map(|l| l.trim().to_string()).filter(|l| !l.is_empty()).collect();
    Ok((!names.is_empty()).then_some(names))
}

/// Gives the task the names that a file beside given weights has, where the spec has none.
///
/// # Errors
/// Given weights in a task of several classes whose order nothing says.
pub fn take_from_weights(spec: &mut RunSpec, source: &dyn Source, registry: &Registry) -> Result<()> {
    let told = !spec.task.classes.is_empty() || spec.task.kind == Kind::Binary || source.orders_classes();
    if told {
        return Ok(());
    }
    // An exported program has them in its own file.
    let own = |m: &super::spec::ModelChoice| -> Result<Option<Vec<String>>> {
        let named = registry.model(&m.name)?.1.class_names.clone();
        Ok(Some(named).filter(|names| !names.is_empty()))
    };
    for model in spec.models.iter().filter(|m| m.is_program() || m.weights.as_deref() == Some(OWN)) {
        if let Some(names) = own(model)? {
            spec.task.classes = names;
            return Ok(());
        }
    }
    let given = |m: &super::spec::ModelChoice| {
        let file = m.weights_file(0).or_else(|| m.is_program().then(|| PathBuf::from(&m.name)));
        Some((m.label().to_string(), file?)).filter(|_| m.train.is_none())
    };
    // One model's names are all models': they share the task.
    let Some((label, weights)) = spec.models.iter().find_map(given) else { return Ok(()) };
    match names_beside(Path::new(&weights))? {
        Some(names) => {
            spec.task.classes = names;
            Ok(())
        }
        None => {
            let what = format!("model {label}: which class each of its outputs is, its weights do not say");
            Err(Error::input(what).hint(format!(
                "task.classes = [...], in the outputs' order, or beside the weights a classes.txt with a name a line; the data have: {}",
                source.classes().join(", ")
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_beside_weights_are_in_the_outputs_order() {
        let folder = tempfile::tempdir().unwrap();
        let weights = folder.path().join("w.pth");
        assert_eq!(names_beside(&weights).unwrap(), None);
        std::fs::write(folder.path().join("classes.txt"), "zebra\n ant \n\n").unwrap();
        assert_eq!(names_beside(&weights).unwrap().unwrap(), ["zebra", "ant"]);
        let config = folder.path().join("config.json");
        std::fs::write(&config, r#"{"id2label": {"10": "k", "0": "z", "1": "a"}}"#).unwrap();
        assert_eq!(names_beside(&weights).unwrap().unwrap(), ["zebra", "ant"], "a config with a gap says nothing");
        let labels: Vec<String> = (0..11).map(|i| format!("\"{i}\": \"c{i}\"")).collect();
        std::fs::write(&config, format!("{{\"id2label\": {{{}}}}}", labels.join(","))).unwrap();
        assert_eq!(names_beside(&weights).unwrap().unwrap()[10], "c10");
        std::fs::write(&config, "{").unwrap();
        assert!(names_beside(&weights).unwrap_err().message.contains("config.json"));
    }
}
