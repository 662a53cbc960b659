//! The folder of a run.
//!
//! ```text
//! spec.toml            the resolved spec
//! environment.json     versions, device, plugin files and their hashes
//! splits/              who trains, validates, tests; can be given to another run
//! prepared/            the images, resized
//! checkpoints/         LABEL-foldN/best.safetensors, last.safetensors, history.json
//! units/               KEY.parquet, KEY.maps.safetensors
//! cells.json           failed and not applicable cells
//! events.jsonl         everything that happened
//! summary.json .csv .md .tex, sheet.png
//! ```

use super::events::{Failure, Unit};
use super::spec::{RunSpec, file_name};
use crate::error::{Error, Result};
use crate::registry::Registry;
use lightbox_core::data::Sample;
use lightbox_core::files;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a run used. A run whose plugins have changed since does not continue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    pub lightbox: String,
    pub libtorch: String,
    pub rustc: String,
    pub device: String,
    pub cpu: String,
    pub threads: usize,
    pub seed: u64,
    /// SHA-256 over names, labels, patients and boxes of all images.
    pub data: String,
    /// The file and SHA-256 of each model's and explainer's plugin, by `model NAME` and `explainer NAME`.
    pub plugins: BTreeMap<String, PluginFile>,
    /// SHA-256 of each checkpoint that models begin with, by its path.
    #[serde(default)]
    pub weights: BTreeMap<PathBuf, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PluginFile {
    pub file: PathBuf,
    pub sha256: String,
}

fn fingerprint(samples: &[Sample]) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    for sample in samples {
        hash.update(format!("{sample:?}\n"));
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

impl Environment {
    pub fn gather(spec: &RunSpec, registry: &Registry, samples: &[Sample], device: &str) -> Result<Self> {
        let mut plugins = BTreeMap::new();
        let mut add = |key: String, file: &Path| -> Result<()> {
            let file = std::path::absolute(file)?;
            let sha256 = files::sha256(&file)?;
            plugins.insert(key, PluginFile { file, sha256 });
            Ok(())
        };
        for model in &spec.models {
            add(format!("model {}", model.name), &registry.model(&model.name)?.0.file)?;
        }
        for explainer in &spec.explainers {
            add(format!("explainer {}", explainer.name), &registry.explainer(&explainer.name)?.0.file)?;
        }
        let mut weights = BTreeMap::new();
        for file in spec.models.iter().flat_map(|m| m.weights_files(spec.split.folds)) {
            let sha256 = files::sha256(&file)?;
            weights.insert(file, sha256);
        }
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = info.lines().find_map(|l| l.strip_prefix("model name").and_then(|l| l.split_once(": ")));
        Ok(Environment {
            lightbox: env!("CARGO_PKG_VERSION").into(),
            libtorch: lightbox_sdk::BUILT_WITH_TORCH.into(),
            rustc: lightbox_sdk::BUILT_WITH_RUSTC.into(),
            device: device.into(),
            cpu: cpu.map(|(_, name)| name.to_string()).unwrap_or_else(|| "unknown".into()),
            threads: tch::get_num_threads() as usize,
            seed: spec.seed,
            data: fingerprint(samples),
            plugins,
            weights,
        })
    }

    pub fn plugin(&self, kind: &str, name: &str) -> Result<&Path> {
        let found = self.plugins.get(&format!("{kind} {name}"));
        found
            .map(|p| p.file.as_path())
            .ok_or_else(|| Error::plugin(format!("the run's environment has no {kind} {name}")))
    }
}

/// Paths in a run's folder.
#[derive(Debug, Clone)]
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn spec(&self) -> PathBuf {
        self.0.join("spec.toml")
    }

    pub fn environment(&self) -> PathBuf {
        self.0.join("environment.json")
    }

    pub fn prepared(&self, side: usize) -> PathBuf {
        self.0.join("prepared").join(format!("images-{side}.safetensors"))
    }

    pub fn checkpoint(&self, model: &str, fold: usize) -> PathBuf {
        self.0.join("checkpoints").join(format!("{}-fold{fold}", file_name(model)))
    }

    pub fn rows(&self, unit: &Unit) -> PathBuf {
        self.0.join("units").join(format!("{}.parquet", unit.key()))
    }

    pub fn maps(&self, unit: &Unit) -> PathBuf {
        self.0.join("units").join(format!("{}.maps.safetensors", unit.key()))
    }

    /// The file whose presence means that the unit is done.
    pub fn done(&self, unit: &Unit) -> PathBuf {
        match unit {
            Unit::Prepare { side } => self.prepared(*side),
            Unit::Train { model, fold } => self.checkpoint(model, *fold).join("history.json"),
            Unit::Explain { .. } => self.rows(unit),
        }
    }

    pub fn cells(&self) -> Result<Cells> {
        let path = self.0.join("cells.json");
        if path.is_file() { read_json(&path) } else { Ok(Cells::default()) }
    }

    pub fn write_cells(&self, cells: &Cells) -> Result<()> {
        write_json(&self.0.join("cells.json"), cells)
    }
}

/// Cells of the table that are no numbers.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Cells {
    pub failures: Vec<Failure>,
    pub not_applicable: Vec<NotApplicable>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NotApplicable {
    pub model: String,
    pub explainer: String,
    pub reason: String,
}

pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = files::read(path)?;
    serde_json::from_slice(&bytes).map_err(|e| Error::input(format!("{}: {e}", path.display())))
}

pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|e| Error::input(format!("{}: {e}", path.display())))?;
    Ok(files::write_text(path, &(text + "\n"))?)
}
