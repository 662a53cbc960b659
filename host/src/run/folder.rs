//! The folder of a run.
//!
//! ```text
//! spec.toml            the resolved spec
//! environment.json     versions, devices, threads and kernels, plugin files and their hashes; the manifest of the run
//! plan.json            all that units depend on, decided before the first: spec, inputs, split, identities; workers read it
//! splits/              who trains, validates, tests; can be given to another run
//! prepared/            the images, resized, and what their files were
//! checkpoints/         LABEL-foldN/best.safetensors, last.safetensors, history.json, identity
//! fits/                what explainers learned of the training set; beside each file its record: unit, build, hash, machine
//! units/               KEY-ID.json: what a unit did, and beside it its tables, maps and states
//! cells.json           failed and not applicable cells, and explainers' answers to models
//! events.jsonl         everything that happened
//! summary.json .csv .md .tex, sheet.png (or sheets/MODEL.png)
//! ```

use super::spec::RunSpec;
use super::unit::Failure;
use super::unit::{Unit, size_text, training_name};
use crate::binding::parameter_files;
use crate::device;
use crate::error::{Error, Result};
use crate::registry::{Registry, source_of};
use lightbox_core::data::{Sample, Source};
use lightbox_core::files;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// On what a run's numbers were computed. A run that goes on elsewhere has several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub lightbox: String,
    pub libtorch: String,
    pub device: String,
    /// The driver's names of the machine's GPUs, each once; empty on the CPU.
    #[serde(default)]
    pub gpu: String,
    pub cpu: String,
    /// Which CPU kernels run; see [`device::kernels`].
    pub kernels: String,
    pub threads: usize,
}

/// The manifest of a run: what it used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    pub rustc: String,
    /// On what the run was computed, the last used last; more than one were let in by `--mixed`.
    pub machines: Vec<Machine>,
    pub seed: u64,
    /// The classes, in the order of the models' outputs.
    pub classes: Vec<String>,
    /// SHA-256 over names, classes, patients, boxes and further columns of all images.
    pub data: String,
    /// False where the source has no patient numbers.
    pub patients_known: bool,
    /// The file and SHA-256 of each model's and explainer's plugin, by `model NAME` and `explainer NAME`.
    pub plugins: BTreeMap<String, PluginFile>,
    /// SHA-256 of each checkpoint that models begin with and each file that explainers are given, by its path.
    #[serde(default)]
    pub files: BTreeMap<PathBuf, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PluginFile {
    pub file: PathBuf,
    pub version: String,
    pub sha256: String,
}

/// SHA-256 of texts, each with its length before it, as hexadecimal.
pub fn hash<S: AsRef<str>>(parts: impl IntoIterator<Item = S>) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    for part in parts {
        let part = part.as_ref();
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 over what a source says of its images: names, classes, patients, boxes and further columns.
pub fn data_identity(samples: &[Sample]) -> String {
    hash(samples.iter().map(Sample::describe))
}

/// The SHA-256 of a file or, for a folder, of its files' names and contents.
fn content(path: &Path) -> Result<String> {
    if !path.is_dir() {
        return Ok(files::sha256(path)?);
    }
    let entries = std::fs::read_dir(path).map_err(|e| lightbox_core::Error::io(path, &e))?;
    let mut inside: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    inside.sort();
    let mut parts = Vec::new();
    for file in inside {
        parts.push(file.file_name().unwrap_or_default().to_string_lossy().into_owned());
        parts.push(content(&file)?);
    }
    Ok(hash(parts))
}

impl Machine {
    pub fn here(device: &str, threads: usize) -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = info.lines().find_map(|l| l.strip_prefix("model name").and_then(|l| l.split_once(": ")));
        Machine {
            lightbox: env!("CARGO_PKG_VERSION").into(),
            libtorch: lightbox_sdk::BUILT_WITH_TORCH.into(),
            device: device.into(),
            gpu: if device == "cpu" { String::new() } else { device::gpus() },
            cpu: cpu.map_or_else(|| "unknown".into(), |(_, name)| name.to_string()),
            kernels: device::kernels(),
            threads,
        }
    }

    /// What differs, as `threads 2, not 1`; none where nothing that changes numbers does.
    pub fn difference(&self, now: &Machine) -> Option<String> {
        let kind = |d: &str| d.split(':').next().unwrap_or_default().to_string();
        // A record that names none says nothing of it.
        let gpu = |a: &Machine, b: &Machine| if b.gpu.is_empty() { String::new() } else { a.gpu.clone() };
        let pairs = [
            ("lightbox", self.lightbox.clone(), now.lightbox.clone()),
            ("libtorch", self.libtorch.clone(), now.libtorch.clone()),
            ("device", kind(&self.device), kind(&now.device)),
            ("GPU", gpu(self, now), gpu(now, self)),
            ("threads", self.threads.to_string(), now.threads.to_string()),
            ("kernels", self.kernels.clone(), now.kernels.clone()),
        ];
        let other = pairs.iter().filter(|(_, a, b)| a != b).map(|(name, a, b)| format!("{name} {a}, now {b}"));
        let other: Vec<String> = other.collect();
        (!other.is_empty()).then(|| other.join("; "))
    }
}

impl Environment {
    pub fn gather(spec: &RunSpec, registry: &Registry, source: &dyn Source, machine: Machine) -> Result<Self> {
        let mut plugins = BTreeMap::new();
        let mut given: Vec<PathBuf> = spec.models.iter().flat_map(|m| m.weights_files(spec.split.folds)).collect();
        let mut add = |key: String, file: &Path, version: &str| -> Result<()> {
            let file = std::path::absolute(file)?;
            let sha256 = source_of(&file)?.digest(&file)?;
            plugins.insert(key, PluginFile { file, version: version.into(), sha256 });
            Ok(())
        };
        for model in &spec.models {
            let (found, described) = registry.model(&model.name)?;
            given.extend(parameter_files(&model.params, &described.parameters).into_iter().map(|(_, path)| path));
            add(format!("model {}", model.name), &found.file, &described.version)?;
        }
        for explainer in &spec.explainers {
            let (found, described) = registry.explainer(&explainer.name)?;
            add(format!("explainer {}", explainer.name), &found.file, &described.version)?;
            given.extend(parameter_files(&explainer.params, &described.parameters).into_iter().map(|(_, path)| path));
        }
        let mut hashes = BTreeMap::new();
        for file in given {
            let sha256 = content(&file)?;
            hashes.insert(file, sha256);
        }
        Ok(Environment {
            rustc: lightbox_sdk::BUILT_WITH_RUSTC.into(),
            machines: vec![machine],
            seed: spec.seed,
            classes: spec.task.classes.clone(),
            data: data_identity(source.samples()),
            patients_known: source.knows_patients(),
            plugins,
            files: hashes,
        })
    }

    pub fn plugin(&self, kind: &str, name: &str) -> Result<&PluginFile> {
        let found = self.plugins.get(&format!("{kind} {name}"));
        found.ok_or_else(|| Error::plugin(format!("the run's environment has no {kind} {name}")))
    }
}

/// A fit: what it was of, and what it handed back.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FitRecord {
    pub unit: Unit,
    /// Of all that it depends on.
    pub id: String,
    /// Of the file of arrays.
    pub sha256: String,
    /// The plugin's library.
    pub plugin: PluginFile,
    pub images: usize,
    pub time: f64,
    pub seconds: f64,
    pub worker: usize,
    pub machine: Machine,
}

/// What the file of an image was when it was prepared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileState {
    pub file: PathBuf,
    pub bytes: u64,
    /// Nanoseconds since 1970.
    pub modified: u64,
    pub sha256: String,
}

impl FileState {
    fn size_and_time(file: &Path) -> Result<(u64, u64)> {
        let meta = std::fs::metadata(file).map_err(|e| lightbox_core::Error::io(file, &e))?;
        let modified = meta.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        Ok((meta.len(), modified.map_or(0, |d| d.as_nanos() as u64)))
    }

    pub fn of(file: &Path) -> Result<Self> {
        let (bytes, modified) = Self::size_and_time(file)?;
        Ok(FileState { file: file.to_path_buf(), bytes, modified, sha256: files::sha256(file)? })
    }

    /// Whether the file holds what it did. Size and time are looked at first; only where the time differs is it read.
    pub fn is_unchanged(&self) -> Result<bool> {
        let (bytes, modified) = Self::size_and_time(&self.file)?;
        Ok(bytes == self.bytes && (modified == self.modified || files::sha256(&self.file)? == self.sha256))
    }
}

/// What this program puts into a run's folder.
const OWN: [&str; 25] = [
    "environment.json",
    "spec.toml",
    "plan.json",
    "splits",
    "prepared",
    "checkpoints",
    "fits",
    "units",
    "cells.json",
    "events.jsonl",
    "summary.json",
    "summary.csv",
    "summary.md",
    "summary.tex",
    "scores.parquet",
    "predictions.parquet",
    "images.parquet",
    "comparisons.json",
    "curves.jsonl",
    "maps.json",
    "timings.json",
    "spent.json",
    "report.html",
    "sheet.png",
    "sheets",
];

/// Paths in a run's folder.
#[derive(Debug, Clone)]
pub struct RunFolder(pub PathBuf);

impl RunFolder {
    pub fn spec(&self) -> PathBuf {
        self.0.join("spec.toml")
    }

    pub fn environment(&self) -> PathBuf {
        self.0.join("environment.json")
    }

    /// What preflight decided.
    pub fn plan(&self) -> PathBuf {
        self.0.join("plan.json")
    }

    /// Who trains, validates and tests.
    pub fn splits(&self) -> PathBuf {
        self.0.join("splits")
    }

    /// Everything that happened, a JSON object a line.
    pub fn events(&self) -> PathBuf {
        self.0.join("events.jsonl")
    }

    /// Where the run's time went.
    pub fn timings(&self) -> PathBuf {
        self.0.join("spent.json")
    }

    pub fn report(&self) -> PathBuf {
        self.0.join("report.html")
    }

    /// Held by the process that runs in the folder.
    pub fn lock(&self) -> PathBuf {
        self.0.join(".lock")
    }

    /// All that this program puts here; by the first, the folder is known as a run's.
    pub fn own(&self) -> Vec<PathBuf> {
        OWN.iter().map(|name| self.0.join(name)).collect()
    }

    /// A file in the folder that another file names, such as `maps.json`.
    ///
    /// # Errors
    /// The name leads out of the folder, or the file is a link: a folder that somebody else has made could show any file so.
    pub fn inside(&self, name: impl AsRef<Path>) -> Result<PathBuf> {
        let name = name.as_ref();
        let plain = name.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        let path = self.0.join(name);
        let link = std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_symlink());
        match plain && !link {
            true => Ok(path),
            false => {
                Err(Error::input(format!("{}: {} leads out of the run's folder", self.0.display(), name.display())))
            }
        }
    }

    /// The images of this height and width.
    pub fn prepared(&self, size: [usize; 2]) -> PathBuf {
        self.0.join("prepared").join(format!("images-{}.safetensors", size_text(size)))
    }

    /// What the images' files were.
    /// The images that a worker is reading while it prepares them.
    pub fn reading(&self) -> PathBuf {
        self.0.join("prepared/reading")
    }

    pub fn sources(&self) -> PathBuf {
        self.0.join("prepared").join("files.json")
    }

    pub fn checkpoint(&self, model: &str, fold: usize, training: usize) -> PathBuf {
        self.0.join("checkpoints").join(training_name(model, fold, training))
    }

    fn trained(&self, model: &str, fold: usize, training: usize) -> PathBuf {
        self.checkpoint(model, fold, training).join("identity")
    }

    /// Whether a training of this identity has come to its end.
    pub fn is_trained(&self, model: &str, fold: usize, training: usize, id: &str) -> bool {
        let ended = self.checkpoint(model, fold, training).join("history.json").is_file();
        ended && std::fs::read_to_string(self.trained(model, fold, training)).is_ok_and(|found| found == id)
    }

    /// Begins or continues a training: what another identity has left in its place goes.
    pub fn start_training(&self, model: &str, fold: usize, training: usize, id: &str) -> Result<()> {
        let (place, file) = (self.checkpoint(model, fold, training), self.trained(model, fold, training));
        if place.is_dir() && !std::fs::read_to_string(&file).is_ok_and(|found| found == id) {
            std::fs::remove_dir_all(&place).map_err(|e| lightbox_core::Error::io(&place, &e))?;
        }
        Ok(files::write_text(&file, id)?)
    }

    /// What an explainer learned, under its identity.
    pub fn fit(&self, model: &str, fold: usize, training: usize, explainer: &str, id: &str) -> PathBuf {
        let name = format!(
            "{}-{}-{}.safetensors",
            training_name(model, fold, training),
            super::spec::file_name(explainer),
            &id[..12]
        );
        self.0.join("fits").join(name)
    }

    /// What is known of what an explainer learned, if its file is there and holds what the fit handed back.
    pub fn fitted(&self, file: &Path) -> Result<Option<FitRecord>> {
        let record = file.with_extension("json");
        if !file.is_file() || !record.is_file() {
            return Ok(None);
        }
        let record: FitRecord = read_json(&record)?;
        Ok((files::sha256(file)? == record.sha256).then_some(record))
    }

    /// A file of a unit: `stem` names the record, `kind` the file (`scores.parquet`).
    pub fn unit(&self, stem: &str, kind: &str) -> PathBuf {
        self.0.join("units").join(format!("{stem}.{kind}"))
    }

    /// The maps of an explainer in a unit, see [`lightbox_core::maps_file`].
    pub fn maps(&self, stem: &str, explainer: &str) -> PathBuf {
        self.unit(stem, &format!("maps.{}.safetensors", super::spec::file_name(explainer)))
    }

    pub fn cells(&self) -> Result<Cells> {
        let path = self.0.join("cells.json");
        if path.is_file() { read_json(&path) } else { Ok(Cells::default()) }
    }

    /// Keeps what has become of cells, but for what the next command tries again.
    pub fn write_cells(&self, cells: &Cells) -> Result<()> {
        let failures = cells.failures.iter().filter(|f| !f.transient).cloned().collect();
        write_json(&self.0.join("cells.json"), &Cells { failures, ..cells.clone() })
    }

    /// Takes away what units left that were ended before they wrote their records, and files half written. For whoever holds
    /// the folder's lock.
    pub fn drop_unrecorded(&self) -> Result<()> {
        let trainings = std::fs::read_dir(self.0.join("checkpoints")).into_iter().flatten().flatten().map(|e| e.path());
        let places = ["", "units", "prepared", "fits"].iter().map(|name| self.0.join(name)).chain(trainings);
        for path in places.filter_map(|p| std::fs::read_dir(p).ok()).flatten().flatten().map(|e| e.path()) {
            let half = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(files::HALF));
            if half && path.is_file() {
                std::fs::remove_file(&path).map_err(|e| lightbox_core::Error::io(&path, &e))?;
            }
        }
        for path in std::fs::read_dir(self.0.join("fits")).into_iter().flatten().flatten().map(|e| e.path()) {
            let tensors = path.extension().is_some_and(|e| e == "safetensors");
            if tensors && !path.with_extension("json").is_file() {
                std::fs::remove_file(&path).map_err(|e| lightbox_core::Error::io(&path, &e))?;
            }
        }
        let Ok(entries) = std::fs::read_dir(self.0.join("units")) else { return Ok(()) };
        for path in entries.flatten().map(|e| e.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // The stem ends with eight digits of a hash, whatever dots a label has.
            let kinds = [
                "scores.parquet",
                "predictions.parquet",
                "states.safetensors",
                "curves.jsonl",
                "agreement.jsonl",
                INTERVENTIONS,
            ];
            let plain = kinds.iter().find_map(|kind| name.strip_suffix(&format!(".{kind}")));
            let of_maps = name.strip_suffix(".safetensors").unwrap_or_default();
            // Labels of models and explainers may hold the word too.
            let of_maps = of_maps.match_indices(".maps.").map(|(at, _)| &of_maps[..at]);
            let mut stems = plain.into_iter().chain(of_maps).peekable();
            if stems.peek().is_some() && !stems.any(|stem| self.unit(stem, "json").is_file()) {
                std::fs::remove_file(&path).map_err(|e| lightbox_core::Error::io(&path, &e))?;
            }
        }
        Ok(())
    }

    /// The records of all units, by the stem of their files.
    pub fn records(&self) -> Result<BTreeMap<String, Record>> {
        self.records_named("")
    }

    /// Those of a model in a fold and training; of others, whose names begin alike, too.
    pub fn records_of(&self, model: &str, fold: usize, training: usize) -> Result<BTreeMap<String, Record>> {
        self.records_named(&training_name(model, fold, training))
    }

    fn records_named(&self, prefix: &str) -> Result<BTreeMap<String, Record>> {
        let mut all = BTreeMap::new();
        let Ok(entries) = std::fs::read_dir(self.0.join("units")) else { return Ok(all) };
        for path in entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "json")) {
            let stem = path.file_stem().map_or(String::new(), |s| s.to_string_lossy().into_owned());
            if !stem.starts_with(prefix) {
                continue;
            }
            let record: Record = read_json(&path)?;
            // A record whose files somebody has taken away is of nothing.
            if record.files(self, &stem).iter().all(|file| file.is_file()) {
                all.insert(stem, record);
            }
        }
        Ok(all)
    }
}

/// What a unit did. Written last: its presence means that the files beside it are whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub unit: Unit,
    /// Seconds since 1970 at its end.
    pub time: f64,
    pub seconds: f64,
    pub worker: usize,
    pub machine: Machine,
    /// The identity of the predictions, where it made them.
    #[serde(default)]
    pub predictions: Option<String>,
    /// Of a unit that reduces: the identity of what it made.
    #[serde(default)]
    pub reduced: Option<String>,
    /// By explainer.
    #[serde(default)]
    pub cells: BTreeMap<String, CellRecord>,
}

impl Record {
    /// The files that must be beside it.
    fn files(&self, folder: &RunFolder, stem: &str) -> Vec<PathBuf> {
        let mut files = vec![folder.unit(stem, "scores.parquet")];
        files.extend(self.predictions.is_some().then(|| folder.unit(stem, "predictions.parquet")));
        let stored = self.cells.iter().filter(|(_, cell)| cell.maps && cell.images > 0);
        files.extend(stored.map(|(explainer, _)| folder.maps(stem, explainer)));
        files
    }
}

/// What a unit did for an explainer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CellRecord {
    /// The identity of the maps.
    pub id: String,
    /// The maps are in this unit's file.
    pub maps: bool,
    /// The names of the maps; one empty name for one map.
    pub outputs: Vec<String>,
    /// Identities of the metrics, by label.
    pub scores: BTreeMap<String, String>,
    /// The SHA-256 and version of the plugin; empty for chance.
    pub plugin: String,
    pub version: String,
    /// Seconds in the explainer's own code, and images that it ran the model on beyond the shared run.
    pub seconds: f64,
    pub runs: u64,
    /// Images that were explained; 0 in a record of Lightbox 0.2.0.
    #[serde(default)]
    pub images: usize,
}

/// Cells of the table that are no numbers, and what explainers answered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cells {
    pub failures: Vec<Failure>,
    /// By the identity of model and explainer together.
    pub surveys: BTreeMap<String, Survey>,
}

/// An explainer's answer to a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Survey {
    pub model: String,
    pub explainer: String,
    pub fit: bool,
    pub not_applicable: Option<String>,
}

pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = files::read(path)?;
    serde_json::from_slice(&bytes).map_err(|e| Error::input(format!("{}: {e}", path.display())))
}

/// What a unit's file of interventions ends in.
pub const INTERVENTIONS: &str = "interventions.jsonl";

/// How alike the maps of explainers are, in a unit that reduces: sums over images ([`lightbox_core::agreement::Sums`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgreementRecord {
    /// Explainer and output.
    pub maps: Vec<(String, String)>,
    pub images: usize,
    pub correlation: Vec<f64>,
    pub overlap: Vec<f64>,
    pub counts: Vec<u64>,
}

/// A curve behind a metric's values, in a unit that reduces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CurveRecord {
    pub explainer: String,
    pub output: String,
    pub metric: String,
    pub curve: lightbox_core::metrics::Curve,
}

/// Writes one value a line.
pub fn write_lines<T: Serialize>(path: &Path, values: &[T]) -> Result<()> {
    let mut text = String::new();
    for value in values {
        let line = serde_json::to_string(value).map_err(|e| Error::input(format!("{}: {e}", path.display())))?;
        text.push_str(&line);
        text.push('\n');
    }
    Ok(files::write_text(path, &text)?)
}

/// Reads what [`write_lines`] wrote.
pub fn read_lines<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let bytes = files::read(path)?;
    let text = String::from_utf8_lossy(&bytes);
    let line = |l: &str| serde_json::from_str(l).map_err(|e| Error::input(format!("{}: {e}", path.display())));
    text.lines().map(line).collect()
}

pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|e| Error::input(format!("{}: {e}", path.display())))?;
    Ok(files::write_text(path, &(text + "\n"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_record_goes_and_the_rest_stays() {
        let place = tempfile::tempdir().unwrap();
        let folder = RunFolder(place.path().to_path_buf());
        std::fs::create_dir(place.path().join("units")).unwrap();
        let maps = "maps.e.safetensors";
        for (stem, kind) in [
            ("a", "json"),
            ("a", "scores.parquet"),
            ("b.2", "scores.parquet"),
            ("b.2", maps),
            ("c.maps.d", "json"),
            ("c.maps.d", maps),
        ] {
            std::fs::write(folder.unit(stem, kind), "x").unwrap();
        }
        let half = place.path().join("checkpoints/m-fold0").join(format!("{}x", files::HALF));
        std::fs::create_dir_all(half.parent().unwrap()).unwrap();
        std::fs::write(&half, "x").unwrap();
        folder.drop_unrecorded().unwrap();
        assert!(!half.is_file());
        let left = |stem, kind| folder.unit(stem, kind).is_file();
        assert!(left("a", "json") && left("a", "scores.parquet"));
        assert!(!left("b.2", "scores.parquet") && !left("b.2", maps));
        assert!(left("c.maps.d", maps));
    }

    #[test]
    fn changed_content_is_noticed_and_a_touched_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.png");
        std::fs::write(&file, b"one").unwrap();
        let state = FileState::of(&file).unwrap();
        assert!(state.is_unchanged().unwrap());
        std::fs::write(&file, b"one").unwrap();
        assert!(state.is_unchanged().unwrap());
        std::fs::write(&file, b"two").unwrap();
        let later = FileState { modified: state.modified + 1, ..state.clone() };
        assert!(!later.is_unchanged().unwrap());
        std::fs::write(&file, b"three").unwrap();
        assert!(!state.is_unchanged().unwrap());
    }

    #[test]
    fn machines_differ_in_what_changes_numbers() {
        let one = Machine::here("cpu", 2);
        assert_eq!(one.difference(&Machine { cpu: "another".into(), ..one.clone() }), None);
        assert_eq!(one.difference(&Machine::here("cpu", 1)).unwrap(), "threads 2, now 1");
    }
}
