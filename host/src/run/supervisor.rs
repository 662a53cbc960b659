//! Drives a run: decides what is to be done, keeps a worker busy, survives it.

use super::events::{Event, Failure, FailureKind, Order, Unit};
use super::folder::{Cells, Environment, Folder, NotApplicable, read_json, write_json};
use super::reporter::Reporter;
use super::spec::{ModelChoice, RunSpec};
use super::summary;
use crate::engine::ExplainerChoice;
use crate::error::{Error, Exit, Result};
use crate::registry::{self, Registry, signal_name};
use crate::{device, signals};
use lightbox_core::{data, files};
use lightbox_sdk::spec::{Family, ModelOptions, Params};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How a run is to go.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Throw away what an earlier run of this folder has made.
    pub restart: bool,
    /// Forget failed cells and compute their models' units anew.
    pub retry_failed: bool,
    pub json: bool,
    /// Prepare and train, no more.
    pub train_only: bool,
}

/// What a run came to.
pub struct Outcome {
    pub folder: Folder,
    pub exit: Exit,
    /// For stdout, unless events went there.
    pub text: String,
}

/// What this program puts into a run's folder.
const OWN: [&str; 13] = [
    "spec.toml",
    "environment.json",
    "splits",
    "prepared",
    "checkpoints",
    "units",
    "cells.json",
    "events.jsonl",
    "summary.json",
    "summary.csv",
    "summary.md",
    "summary.tex",
    "sheet.png",
];

/// Runs a spec to its end, or continues it.
pub fn run(spec: &RunSpec, registry: &Registry, options: &Options) -> Result<Outcome> {
    let started = Instant::now();
    registry.need_unique()?;
    let mut spec = spec.clone();
    spec.output = std::path::absolute(&spec.output)?;
    let folder = Folder(spec.output.clone());
    let sides = check_plugins(&spec, registry)?;
    let control = |e: &&ExplainerChoice| registry.explainer(&e.name).is_ok_and(|(_, s)| s.family == Family::Control);
    let controls: Vec<String> = spec.explainers.iter().filter(control).map(|e| e.label().to_string()).collect();
    let device = device::name(device::choose(&spec.device)?);
    let mixed = |m: &&ModelChoice| m.train.as_ref().is_some_and(|t| t.precision == "mixed");
    if let (true, Some(model)) = (device == "cpu", spec.models.iter().find(mixed)) {
        let label = model.label();
        return Err(Error::input(format!(
            "model {label}: precision = \"mixed\" needs a CUDA device, and the run is on the CPU (hint: --set \
             'models.*.train.precision=float32')"
        )));
    }
    std::fs::create_dir_all(&folder.0).map_err(|e| lightbox_core::Error::io(&folder.0, &e))?;
    let _lock = lock(&folder)?;
    // All that can be wrong with the data is said before the folder is taken.
    let source = data::open(&spec.data)?;
    let notes: Vec<Event> = source.notes().into_iter().map(|text| Event::Note { text }).collect();
    let splits = folder.0.join("splits");
    let restart = options.restart && folder.environment().is_file();
    let drawn = match splits.join("test.csv").is_file() && !restart {
        true => None,
        false => Some(spec.split.split(source.samples())?),
    };
    if options.restart && !restart && OWN.iter().any(|name| folder.0.join(name).exists()) {
        let shown = folder.0.display();
        return Err(Error::input(format!("{shown} is not the folder of a run, so --restart deletes nothing in it")));
    }
    for path in OWN.iter().filter(|_| restart).map(|name| folder.0.join(name)) {
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(lightbox_core::Error::io(&path, &e).into());
            }
            _ => {}
        }
    }
    settle(&spec, registry, source.samples(), &folder, &device)?;
    if let Some(split) = drawn {
        // Whole or not there: a folder takes its name when it is complete.
        let half = folder.0.join(".splits-writing");
        let _ = std::fs::remove_dir_all(&half);
        split.write(&half, source.samples())?;
        std::fs::rename(&half, &splits).map_err(|e| lightbox_core::Error::io(&splits, &e))?;
    }
    let split = data::split::SplitSpec { files: Some(splits), ..spec.split.clone() }.split(source.samples())?;

    let mut cells = folder.cells()?;
    if options.retry_failed {
        for failure in std::mem::take(&mut cells.failures) {
            for unit in units(&spec, &sides, split.folds.len(), split.test.len(), false) {
                if matches!(unit, Unit::Explain { .. }) && unit.model() == Some(&failure.model) {
                    let _ = std::fs::remove_file(folder.rows(&unit));
                }
            }
        }
        folder.write_cells(&cells)?;
    }

    let all = units(&spec, &sides, split.folds.len(), split.test.len(), options.train_only);
    let lost =
        |unit: &Unit| cells.failures.iter().any(|f| f.explainer.is_none() && Some(f.model.as_str()) == unit.model());
    let todo: VecDeque<Unit> = all.iter().filter(|u| !folder.done(u).is_file() && !lost(u)).cloned().collect();
    let reporter = Reporter::new(options.json);
    let log = File::options().create(true).append(true).open(folder.0.join("events.jsonl"));
    let log = log.map_err(|e| lightbox_core::Error::io(&folder.0.join("events.jsonl"), &e))?;
    let mut supervisor = Supervisor { spec: &spec, folder: &folder, device, cells, reporter, log, todo };
    let (units, done) = (all.len(), all.len() - supervisor.todo.len());
    let shown = folder.0.display().to_string();
    let device = supervisor.device.clone();
    supervisor.say(Event::RunStarted { name: spec.name.clone(), folder: shown.clone(), device, units, done })?;
    for note in notes {
        supervisor.say(note)?;
    }
    supervisor.work()?;

    let text = match options.train_only {
        true => summary::training(&spec, &folder, split.folds.len())?,
        false => {
            let text = summary::write(&spec, &sides, &folder, source.as_ref(), &split, &supervisor.cells, &controls)?;
            format!("{text}\nPictures: {}\n", folder.0.join("sheet.png").display())
        }
    };
    let failed_cells = supervisor.cells.failures.len();
    supervisor.say(Event::RunFinished { folder: shown, failed_cells, seconds: started.elapsed().as_secs_f64() })?;
    let diverged = supervisor.cells.failures.iter().any(|f| f.kind == FailureKind::Diverged);
    let exit = match (failed_cells, diverged) {
        (0, _) => Exit::Ok,
        (_, true) => Exit::Diverged,
        _ => Exit::FailedCells,
    };
    Ok(Outcome { folder, exit, text })
}

/// Finds every plugin, checks every parameter and weights file; the models' input sides.
fn check_plugins(spec: &RunSpec, registry: &Registry) -> Result<Vec<usize>> {
    let mut sides = Vec::new();
    for model in &spec.models {
        let file = &registry.model(&model.name)?.0.file;
        let options = ModelOptions { classes: model.classes, params: model.params.clone(), ..ModelOptions::default() };
        let described = registry::open(file)?.model_spec(&model.name, &options);
        let described = described.map_err(|e| Error::input(format!("model {}: {}", model.label(), e.message)))?;
        if described.input.height != described.input.width {
            return Err(Error::input(format!("model {}: runs take models with square input", model.label())));
        }
        if model.train.is_some() && !described.trainable {
            return Err(Error::input(format!("model {} cannot be trained", model.label())));
        }
        if let Some(train) = &model.train {
            let (label, precision) = (model.label(), &train.precision);
            match precision.as_str() {
                "float32" => {}
                "mixed" if described.mixed_precision => {}
                "mixed" => return Err(Error::input(format!("model {label} cannot be trained in mixed precision"))),
                _ => {
                    return Err(Error::input(format!(
                        "model {label}: precision = \"{precision}\": float32 or mixed expected"
                    )));
                }
            }
        }
        if let Some(path) = model.weights_files(spec.split.folds).iter().find(|path| !path.is_file()) {
            let (path, label) = (path.display(), model.label());
            return Err(Error::input(format!("{path}: no such checkpoint (model {label})")));
        }
        sides.push(described.input.height);
    }
    for explainer in &spec.explainers {
        let described = registry.explainer(&explainer.name)?.1;
        Params::resolve(&described.parameters, &explainer.params)
            .map_err(|e| Error::input(format!("explainer {}: {}", explainer.label(), e.message)))?;
    }
    Ok(sides)
}

/// One process a folder.
fn lock(folder: &Folder) -> Result<File> {
    let path = folder.0.join(".lock");
    let file = File::create(&path).map_err(|e| lightbox_core::Error::io(&path, &e))?;
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        return Err(Error::input(format!("{}: another lightbox runs in this folder", folder.0.display())));
    }
    Ok(file)
}

/// Writes spec and environment, or checks that the folder's own are the same.
fn settle(spec: &RunSpec, registry: &Registry, samples: &[data::Sample], folder: &Folder, device: &str) -> Result<()> {
    let now = Environment::gather(spec, registry, samples, device)?;
    let shown = folder.0.display();
    if folder.spec().is_file() {
        let text = String::from_utf8_lossy(&files::read(&folder.spec())?).into_owned();
        let before = RunSpec::parse(&text, &folder.0)?;
        if before != *spec {
            return Err(Error::input(format!(
                "{shown} holds a run of another spec (hint: give another `output`, or --restart to throw it away)"
            )));
        }
    }
    if folder.environment().is_file() {
        let before: Environment = read_json(&folder.environment())?;
        let changed = now.plugins.iter().find(|(key, p)| before.plugins.get(*key).is_none_or(|b| b.sha256 != p.sha256));
        if let Some((key, _)) = changed {
            return Err(Error::plugin(format!(
                "the plugin of {key} has changed since {shown} was begun (hint: --restart, or another `output`)"
            )));
        }
        if let Some((file, _)) = now.weights.iter().find(|(file, hash)| before.weights.get(*file) != Some(*hash)) {
            let file = file.display();
            return Err(Error::input(format!(
                "{file} has changed since {shown} was begun (hint: --restart, or another `output`)"
            )));
        }
        if before.data != now.data {
            return Err(Error::input(format!(
                "the images, labels or boxes of the data source have changed since {shown} was begun (hint: --restart, or \
                 another `output`)"
            )));
        }
        if before.device != now.device {
            return Err(Error::input(format!(
                "{shown} was begun on {}, this is {} (hint: --device {}, or --restart)",
                before.device, now.device, before.device
            )));
        }
    }
    write_json(&folder.environment(), &now)?;
    if !folder.spec().is_file() {
        let text = toml::to_string(spec).map_err(|e| Error::input(format!("the spec cannot be written: {e}")))?;
        files::write_text(&folder.spec(), &text)?;
    }
    Ok(())
}

fn units(spec: &RunSpec, sides: &[usize], folds: usize, test: usize, train_only: bool) -> Vec<Unit> {
    let mut units = Vec::new();
    for &side in sides {
        let unit = Unit::Prepare { side };
        if !units.contains(&unit) {
            units.push(unit);
        }
    }
    for model in &spec.models {
        for fold in 0..folds {
            let model_ = model.label().to_string();
            if model.train.is_some() {
                units.push(Unit::Train { model: model_.clone(), fold });
            }
            for block in 0..if train_only { 0 } else { test.div_ceil(spec.block) } {
                units.push(Unit::Explain { model: model_.clone(), fold, block });
            }
        }
    }
    units
}

struct Supervisor<'a> {
    spec: &'a RunSpec,
    folder: &'a Folder,
    device: String,
    cells: Cells,
    reporter: Reporter,
    log: File,
    todo: VecDeque<Unit>,
}

/// A worker process and its events.
struct Process {
    child: Child,
    orders: Option<ChildStdin>,
    events: Receiver<std::result::Result<Event, String>>,
}

impl Process {
    fn start(folder: &Path, device: &str) -> Result<Self> {
        let binary = std::env::current_exe()?;
        let mut child = Command::new(binary)
            .args(["worker", "--device", device, "--run"])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = child.stdin.take();
        let output = child.stdout.take().ok_or_else(|| Error::new(Exit::Other, "the worker has no stdout"))?;
        let (send, events) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(std::result::Result::ok) {
                let event = serde_json::from_str(&line).map_err(|e| format!("malformed event `{line}`: {e}"));
                if send.send(event).is_err() {
                    break;
                }
            }
        });
        Ok(Process { child, orders, events })
    }

    /// Ends the process and says how it ended.
    fn end(mut self) -> String {
        self.orders = None;
        // One that is still alive is given a moment, then none.
        for _ in 0..20 {
            if let Ok(Some(status)) = self.child.try_wait() {
                return match (status.signal(), status.code()) {
                    (Some(signal), _) => format!("it crashed ({})", signal_name(signal)),
                    (_, Some(code)) => format!("it ended the process (exit code {code})"),
                    _ => "it ended".into(),
                };
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        self.kill();
        "it was killed".into()
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Supervisor<'_> {
    fn say(&mut self, event: Event) -> Result<()> {
        if !matches!(event, Event::Progress { .. } | Event::Ready) {
            let mut line = serde_json::to_vec(&event).unwrap_or_default();
            line.push(b'\n');
            let path = self.folder.0.join("events.jsonl");
            self.log.write_all(&line).map_err(|e| lightbox_core::Error::io(&path, &e))?;
        }
        self.reporter.show(&event);
        Ok(())
    }

    fn fail(&mut self, failure: Failure) -> Result<()> {
        if failure.explainer.is_none() {
            self.todo.retain(|u| u.model() != Some(&failure.model));
        }
        self.cells.failures.retain(|f| (&f.model, &f.explainer) != (&failure.model, &failure.explainer));
        self.cells.failures.push(failure.clone());
        self.folder.write_cells(&self.cells)?;
        self.say(Event::CellFailed(failure))
    }

    /// Works through the units, with as many workers one after the other as it takes.
    fn work(&mut self) -> Result<()> {
        while !self.todo.is_empty() {
            let process = Process::start(&self.folder.0, &self.device)?;
            self.drive(process)?;
        }
        Ok(())
    }

    /// Keeps one worker busy until nothing is left or it is lost.
    fn drive(&mut self, mut process: Process) -> Result<()> {
        let limit = Duration::from_secs(self.spec.limit_seconds);
        let (mut unit, mut cell): (Option<Unit>, Option<(String, String)>) = (None, None);
        let mut last = Instant::now();
        loop {
            if signals::interrupted() {
                process.kill();
                let command = "the same command continues where it was";
                return Err(Error::new(Exit::Interrupted, format!("interrupted; {command}")));
            }
            let event = match process.events.recv_timeout(Duration::from_millis(100)) {
                Ok(Ok(event)) => event,
                Ok(Err(text)) => {
                    process.kill();
                    return Err(Error::new(Exit::Other, text));
                }
                Err(RecvTimeoutError::Timeout) => {
                    if last.elapsed() > limit {
                        process.kill();
                        let reason = format!("it gave no sign for {} s and was stopped", limit.as_secs());
                        return self.lost(unit, cell, FailureKind::Timeout, reason);
                    }
                    continue;
                }
                // What ends us may have ended the worker first: that is no crash.
                Err(RecvTimeoutError::Disconnected) if signals::interrupted() => continue,
                Err(RecvTimeoutError::Disconnected) => {
                    let reason = process.end();
                    return self.lost(unit, cell, FailureKind::Crash, reason);
                }
            };
            last = Instant::now();
            match &event {
                Event::Ready => {
                    cell = None;
                    let Some(next) = self.todo.front().cloned() else {
                        process.end();
                        return Ok(());
                    };
                    let failures = self.cells.failures.iter().filter(|f| Some(f.model.as_str()) == next.model());
                    let without = failures.filter_map(|f| f.explainer.clone()).collect();
                    let order = serde_json::to_string(&Order { unit: next.clone(), without });
                    let order = order.map_err(|e| Error::new(Exit::Other, e.to_string()))? + "\n";
                    unit = Some(next);
                    // A worker that has gone is noticed when its events end.
                    let _ = process.orders.as_mut().map(|o| o.write_all(order.as_bytes()));
                }
                Event::CellStarted { model, explainer, .. } => cell = Some((model.clone(), explainer.clone())),
                Event::CellLeft { .. } => cell = None,
                Event::CellFailed(failure) => {
                    let failure = failure.clone();
                    self.fail(failure)?;
                    continue;
                }
                Event::NotApplicable { model, explainer, reason } => {
                    let (model, explainer, reason) = (model.clone(), explainer.clone(), reason.clone());
                    let cell = NotApplicable { model, explainer, reason };
                    if self.cells.not_applicable.contains(&cell) {
                        continue;
                    }
                    self.cells.not_applicable.push(cell);
                    self.folder.write_cells(&self.cells)?;
                }
                Event::UnitFinished { .. } => drop(self.todo.pop_front()),
                Event::UnitFailed { reason, fatal, diverged, .. } => {
                    let (reason, fatal, diverged) = (reason.clone(), *fatal, *diverged);
                    self.say(event)?;
                    let model = unit.as_ref().and_then(Unit::model).map(str::to_string);
                    match (fatal, model) {
                        (None, Some(model)) => {
                            let kind = if diverged { FailureKind::Diverged } else { FailureKind::Error };
                            self.fail(Failure { model, explainer: None, kind, reason })?;
                        }
                        (code, _) => {
                            process.kill();
                            let exit = if code == Some(Exit::DiskFull as u8) { Exit::DiskFull } else { Exit::Input };
                            return Err(Error::new(exit, reason));
                        }
                    }
                    continue;
                }
                _ => {}
            }
            self.say(event)?;
        }
    }

    /// The worker is gone: who was it?
    fn lost(
        &mut self,
        unit: Option<Unit>,
        cell: Option<(String, String)>,
        kind: FailureKind,
        reason: String,
    ) -> Result<()> {
        self.say(Event::WorkerLost { reason: reason.clone() })?;
        match (cell, unit) {
            (Some((model, explainer)), _) => self.fail(Failure { model, explainer: Some(explainer), kind, reason }),
            (None, Some(unit)) => match unit.model() {
                Some(model) => self.fail(Failure { model: model.into(), explainer: None, kind, reason }),
                None => Err(Error::new(Exit::Other, format!("{}: {reason}", unit.key()))),
            },
            (None, None) => Err(Error::new(Exit::Other, format!("the worker could not start: {reason}"))),
        }
    }
}
