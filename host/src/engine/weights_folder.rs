//! Weights that are given as a folder: one of Hugging Face, as it is downloaded or lies in the cache, with `model.safetensors` (or
//! `pytorch_model.bin`), `config.json` and `preprocessor_config.json`.

use crate::error::{Error, Result};
use lightbox_core::files;
use lightbox_sdk::spec::InputSpec;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Names under which weights lie in such a folder, the better first.
const NAMES: [&str; 3] = ["model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin"];

/// The checkpoint that a path names: itself, or what lies in a folder. Of a cache's `models--ORGANISATION--NAME` the snapshot that
/// `refs/main` names, or the only one.
///
/// # Errors
/// The folder has no weights, or several without one of the usual names, or they are in parts.
pub fn file_of(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let folder = snapshot(path)?;
    if let Some(name) = NAMES.iter().find(|name| folder.join(name).is_file()) {
        return Ok(folder.join(name));
    }
    let wrong = |what: String| Error::input(format!("{}: {what}", folder.display()));
    if folder.join("model.safetensors.index.json").is_file() || folder.join("pytorch_model.bin.index.json").is_file() {
        return Err(wrong("the weights are in parts, which are not read".into())
            .hint("save them in one file: model.save_pretrained(FOLDER, max_shard_size=\"100GB\")"));
    }
    let weights = |p: &PathBuf| p.extension().is_some_and(|e| e == "safetensors" || e == "pth" || e == "pt");
    let mut found: Vec<PathBuf> = std::fs::read_dir(&folder)?.flatten().map(|e| e.path()).filter(weights).collect();
    found.sort();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(wrong(format!("no weights are in this folder ({} expected)", NAMES.join(", ")))),
        [first, ..] => Err(wrong(format!("{} files of weights are in this folder", found.len()))
            .hint(format!("name one, as {}", first.display()))),
    }
}

/// The folder of a cache that holds the files.
fn snapshot(folder: &Path) -> Result<PathBuf> {
    let snapshots = folder.join("snapshots");
    if !snapshots.is_dir() {
        return Ok(folder.to_path_buf());
    }
    let main = folder.join("refs/main");
    if main.is_file() {
        let named = String::from_utf8_lossy(&files::read(&main)?).trim().to_string();
        let plain = !named.is_empty() && named.chars().all(|c| c.is_ascii_alphanumeric());
        if plain && snapshots.join(&named).is_dir() {
            return Ok(snapshots.join(named));
        }
    }
    let all: Vec<PathBuf> = std::fs::read_dir(&snapshots)?.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    match all.as_slice() {
        [one] => Ok(one.clone()),
        _ => Err(Error::input(format!(
            "{}: {} snapshots, and refs/main names none of them",
            folder.display(),
            all.len()
        ))
        .hint("name one of them")),
    }
}

/// A sentence where `preprocessor_config.json` beside a checkpoint prepares images in another way than the model does.
pub fn other_preparation(weights: &Path, input: &InputSpec) -> Option<String> {
    let file = weights.parent()?.join("preprocessor_config.json");
    let config: Value = serde_json::from_slice(&files::read(&file).ok()?).ok()?;
    let numbers = |key: &str| -> Option<Vec<f64>> { config[key].as_array()?.iter().map(Value::as_f64).collect() };
    let near = |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3);
    let mut other = Vec::new();
    for (key, own) in [("image_mean", &input.mean), ("image_std", &input.std)] {
        if let Some(theirs) = numbers(key).filter(|theirs| config["do_normalize"] != false && !near(theirs, own)) {
            other.push(format!("{key} {theirs:?}, the model {own:?}"));
        }
    }
    let size = &config["size"];
    let side = size["height"].as_u64().or(size["shortest_edge"].as_u64()).or(size.as_u64());
    if let Some(side) = side.filter(|n| input.size.first().is_some_and(|own| *own as u64 != *n)) {
        other.push(format!("size {side}, the model {}", input.size[0]));
    }
    (!other.is_empty()).then(|| format!("{} says {}: take the model that fits", file.display(), other.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_hugging_face_is_its_weights() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let message = |path: &Path| file_of(path).unwrap_err().message;
        assert_eq!(file_of(&at("w.pth")).unwrap(), at("w.pth"));
        assert!(message(folder.path()).contains("no weights are in this folder"));
        std::fs::write(at("a.pth"), "").unwrap();
        assert_eq!(file_of(folder.path()).unwrap(), at("a.pth"));
        std::fs::write(at("b.safetensors"), "").unwrap();
        assert!(message(folder.path()).contains("2 files of weights"));
        std::fs::write(at("model.safetensors.index.json"), "{}").unwrap();
        assert!(message(folder.path()).contains("in parts"));
        std::fs::write(at("model.safetensors"), "").unwrap();
        assert_eq!(file_of(folder.path()).unwrap(), at("model.safetensors"));
        // A cache, as huggingface_hub lays it out.
        for hash in ["abc1", "def2"] {
            std::fs::create_dir_all(at("cache/snapshots").join(hash)).unwrap();
            std::fs::write(at("cache/snapshots").join(hash).join("model.safetensors"), "").unwrap();
        }
        assert!(message(&at("cache")).contains("2 snapshots"));
        std::fs::create_dir_all(at("cache/refs")).unwrap();
        std::fs::write(at("cache/refs/main"), "def2\n").unwrap();
        assert_eq!(file_of(&at("cache")).unwrap(), at("cache/snapshots/def2/model.safetensors"));
        // A name that leads elsewhere is none.
        std::fs::write(at("cache/refs/main"), "../../..").unwrap();
        assert!(message(&at("cache")).contains("2 snapshots"));
    }

    #[test]
    fn another_preparation_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let weights = folder.path().join("model.safetensors");
        let check = |text: &str, input: &InputSpec| {
            std::fs::write(folder.path().join("preprocessor_config.json"), text).unwrap();
            other_preparation(&weights, input).unwrap_or_default()
        };
        let half =
            r#"{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "size": {"height": 224, "width": 224}}"#;
        let found = check(half, &InputSpec::imagenet(224));
        assert!(found.contains("image_mean [0.5, 0.5, 0.5], the model [0.485") && !found.contains("size"), "{found}");
        let own = InputSpec { mean: vec![0.5; 3], std: vec![0.5; 3], ..InputSpec::imagenet(224) };
        assert_eq!(check(half, &own), "");
        assert!(check(half, &InputSpec { size: vec![384, 384], ..own.clone() }).contains("size 224, the model 384"));
        assert_eq!(check(r#"{"do_normalize": false, "image_mean": [1, 1, 1], "size": 224}"#, &own), "");
        assert_eq!(check("{", &own), "");
    }
}
