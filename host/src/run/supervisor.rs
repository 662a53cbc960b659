//! Drives a run: settles what it is, plans what is to be done, keeps workers busy, survives them.

use super::events::{Event, Failure, FailureKind, Order, Stamped, now};
use super::executor::{Executor, Local, Signal};
use super::folder::{Cells, Environment, FileState, Folder, Machine, Survey, read_json, write_json};
use super::plan::{Identities, Index, Plan, Verdict, classes};
use super::reporter::Reporter;
use super::scheduler::Scheduler;
use super::spec::{ModelChoice, RunSpec};
use super::summary;
use super::unit::Unit;
use crate::error::{Error, Exit, Result};
use crate::registry::{self, Registry};
use crate::{device, signals};
use lightbox_core::data::{self, Source, split::SplitSpec};
use lightbox_core::files;
use lightbox_sdk::spec::{Family, ModelOptions, ParamType, Params};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// How a run is to go.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Throw away what an earlier run of this folder has made.
    pub restart: bool,
    /// Forget failed cells and compute them anew.
    pub retry_failed: bool,
    /// Go on under other threads, kernels or versions than the run began with; what was computed where is recorded.
    pub mixed: bool,
    /// Worker processes at once; 0 for one a device.
    pub workers: usize,
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
const OWN: [&str; 14] = [
    "environment.json",
    "spec.toml",
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
    "sheet.png",
];

/// The devices that a spec names, separated by commas.
fn devices(spec: &RunSpec) -> Result<Vec<String>> {
    spec.device.split(',').map(|name| Ok(device::name(device::choose(name.trim())?))).collect()
}

/// Runs a spec to its end, or continues it.
pub fn run(spec: &RunSpec, registry: &Registry, options: &Options) -> Result<Outcome> {
    let started = Instant::now();
    let mut spec = spec.clone();
    spec.output = std::path::absolute(&spec.output)?;
    let folder = Folder(spec.output.clone());
    let devices = devices(&spec)?;
    check_models(&spec, &devices)?;
    let source = data::open(&spec.data, &spec.task)?;
    spec.task = spec.task.resolve(source.classes())?;
    if spec.split.files.is_some() {
        // The files say how many folds there are.
        spec.split.folds = spec.split.split(source.samples())?.folds.len();
    }
    let sides = check_plugins(&spec, registry)?;
    std::fs::create_dir_all(&folder.0).map_err(|e| lightbox_core::Error::io(&folder.0, &e))?;
    let _lock = lock(&folder)?;
    if folder.environment().is_file() {
        folder.drop_unrecorded()?;
    }
    // All that can be wrong with the data is said before the folder is taken.
    let notes = notes(source.as_ref());
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
    // The environment last: while it is there, the folder is known as a run's.
    for path in OWN.iter().rev().filter(|_| restart).map(|name| folder.0.join(name)) {
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(lightbox_core::Error::io(&path, &e).into());
            }
            _ => {}
        }
    }
    let environment = settle(&spec, registry, source.as_ref(), &folder, &devices, options.mixed)?;
    if let Some(split) = drawn {
        // Whole or not there: a folder takes its name when it is complete.
        let half = folder.0.join(".splits-writing");
        let _ = std::fs::remove_dir_all(&half);
        split.write(&half, source.samples())?;
        std::fs::rename(&half, &splits).map_err(|e| lightbox_core::Error::io(&splits, &e))?;
    }
    let split = SplitSpec { files: Some(splits), ..spec.split.clone() }.split(source.samples())?;
    let identities = Identities::new(&spec, &environment, &sides, source.samples(), &split)?;

    let mut cells = folder.cells()?;
    if options.retry_failed {
        cells.failures.clear();
        folder.write_cells(&cells)?;
    }
    let log = File::options().create(true).append(true).open(folder.0.join("events.jsonl"));
    let log = log.map_err(|e| lightbox_core::Error::io(&folder.0.join("events.jsonl"), &e))?;
    let workers = if options.workers > 0 { options.workers } else { devices.len() };
    // The last machine is this one.
    let threads = environment.machines.last().map_or(1, |m| m.threads);
    let mut supervisor = Supervisor {
        spec: &spec,
        folder: &folder,
        identities: &identities,
        devices,
        workers,
        cells,
        reporter: Reporter::new(options.json),
        log,
        scheduler: Scheduler::new(vec![]),
        busy: Vec::new(),
    };
    let mut executor = Local::new(folder.0.clone(), threads);
    let shown = folder.0.display().to_string();
    let folds = split.folds.len();

    // What explainers say of models decides which units there are.
    let plan = supervisor.plan(folds);
    let surveys = if options.train_only { vec![] } else { plan.surveys()? };
    let index = Index::new(&folder.records()?);
    let (all, todo) = plan.units(&folder, &index, options.train_only)?;
    let (devices, workers) = (supervisor.devices.clone(), supervisor.workers);
    // Before the surveys the explanations are not known; what is there is.
    let (units, done) = (all, all - todo.len());
    let name = spec.name.clone();
    supervisor.say(None, Event::RunStarted { name, folder: shown.clone(), devices, workers, units, done })?;
    for text in notes {
        supervisor.say(None, Event::Note { text })?;
    }
    supervisor.work(&mut executor, surveys)?;
    // What fails changes what is wanted, such as what a fold's blocks reduce to: until nothing is left to do.
    let mut last = Vec::new();
    loop {
        let index = Index::new(&folder.records()?);
        let (_, todo) = supervisor.plan(folds).units(&folder, &index, options.train_only)?;
        if todo.is_empty() {
            break;
        }
        if todo == last {
            let keys: Vec<String> = todo.iter().map(Unit::key).collect();
            return Err(Error::new(Exit::Other, format!("these units ended and left nothing: {}", keys.join(", "))));
        }
        last.clone_from(&todo);
        supervisor.work(&mut executor, todo)?;
    }

    let text = match options.train_only {
        true => summary::training(&spec, &folder, folds)?,
        false => {
            let plan = supervisor.plan(folds);
            let controls = |e: &&crate::engine::ExplainerChoice| {
                registry.explainer(&e.name).is_ok_and(|(_, s)| s.family == Family::Control)
            };
            let controls: Vec<String> =
                spec.explainers.iter().filter(controls).map(|e| e.label().to_string()).collect();
            let text = summary::write(&plan, &folder, source.as_ref(), &split, &environment, &controls)?;
            format!("{text}\nPictures: {}\n", folder.0.join("sheet.png").display())
        }
    };
    let failed = supervisor.standing_failures(folds)?;
    let (failed_cells, seconds) = (failed.len(), started.elapsed().as_secs_f64());
    supervisor.say(None, Event::RunFinished { folder: shown, failed_cells, seconds })?;
    let diverged = failed.iter().any(|f| f.kind == FailureKind::Diverged);
    let exit = match (failed_cells, diverged) {
        (0, _) => Exit::Ok,
        (_, true) => Exit::Diverged,
        _ => Exit::FailedCells,
    };
    Ok(Outcome { folder, exit, text })
}

/// What is to be known of the data.
pub fn notes(source: &dyn Source) -> Vec<String> {
    let mut notes = source.notes();
    if !source.knows_patients() {
        notes.push(
            "the data source has no patient numbers: images of one patient may lie in training and test, and leakage by \
             patient cannot be excluded"
                .into(),
        );
    }
    notes
}

/// What of the models can be wrong before the data is read.
fn check_models(spec: &RunSpec, devices: &[String]) -> Result<()> {
    for model in &spec.models {
        let label = model.label();
        let precision = model.train.as_ref().map_or("float32", |t| t.precision.as_str());
        match precision {
            "float32" => {}
            "mixed" if !devices.iter().any(|d| d == "cpu") => {}
            "mixed" => {
                return Err(Error::input(format!(
                    "model {label}: precision = \"mixed\" needs a CUDA device, and the run is on the CPU (hint: --set \
                     'models.*.train.precision=float32')"
                )));
            }
            _ => {
                return Err(Error::input(format!(
                    "model {label}: precision = \"{precision}\": float32 or mixed expected"
                )));
            }
        }
        // Where files of a split say how many folds there are, those of fold 0 for now.
        let folds = if spec.split.files.is_some() { 1 } else { spec.split.folds };
        check_weights(model, folds)?;
    }
    Ok(())
}

fn check_weights(model: &ModelChoice, folds: usize) -> Result<()> {
    match model.weights_files(folds).iter().find(|path| !path.is_file()) {
        None => Ok(()),
        Some(path) => Err(Error::input(format!("{}: no such checkpoint (model {})", path.display(), model.label()))),
    }
}

/// Finds every plugin, checks every parameter and weights file; the models' input sides.
fn check_plugins(spec: &RunSpec, registry: &Registry) -> Result<Vec<usize>> {
    let mut sides = Vec::new();
    for model in &spec.models {
        let label = model.label();
        let file = &registry.model(&model.name)?.0.file;
        let outputs = classes(spec, model);
        if outputs < spec.task.classes.len() {
            let wanted = spec.task.classes.len();
            return Err(Error::input(format!("model {label}: {outputs} classes, the task has {wanted}")));
        }
        let options = ModelOptions { classes: outputs, params: model.params.clone(), ..ModelOptions::default() };
        check_weights(model, spec.split.folds)?;
        let described = registry::open(file)?.model_spec(&model.name, &options);
        let described = described.map_err(|e| Error::input(format!("model {label}: {}", e.message)))?;
        if described.input.height != described.input.width {
            return Err(Error::input(format!("model {label}: runs take models with square input")));
        }
        if model.train.is_some() && !described.trainable {
            return Err(Error::input(format!("model {label} cannot be trained")));
        }
        if let Some(train) = &model.train {
            let precision = &train.precision;
            match precision.as_str() {
                "mixed" if !described.mixed_precision => {
                    return Err(Error::input(format!("model {label} cannot be trained in mixed precision")));
                }
                _ => {}
            }
        }
        sides.push(described.input.height);
    }
    for explainer in &spec.explainers {
        let described = registry.explainer(&explainer.name)?.1;
        let place = |e: String| Error::input(format!("explainer {}: {e}", explainer.label()));
        Params::resolve(&described.parameters, &explainer.params).map_err(|e| place(e.message))?;
        for parameter in described.parameters.iter().filter(|p| p.kind == ParamType::Path) {
            let value = explainer.params.get(&parameter.name).and_then(|v| v.as_str()).filter(|v| !v.is_empty());
            if let Some(path) = value.filter(|p| !Path::new(p).exists()) {
                return Err(place(format!("parameter {}: {path}: no such file or folder", parameter.name)));
            }
        }
    }
    Ok(sides)
}

/// One process a folder.
fn lock(folder: &Folder) -> Result<File> {
    let path = folder.0.join(".lock");
    let file = File::create(&path).map_err(|e| lightbox_core::Error::io(&path, &e))?;
    // SAFETY: a plain call on a descriptor that is open.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        return Err(Error::input(format!("{}: another lightbox runs in this folder", folder.0.display())));
    }
    Ok(file)
}

/// What of a spec cannot change while a run's results are kept.
fn refused(before: &RunSpec, now: &RunSpec) -> Option<&'static str> {
    let trained = |s: &RunSpec, label: &str| {
        let found = s.models.iter().find(|m| m.label() == label);
        found.map(|m| (m.name.clone(), m.params.clone(), m.weights.clone(), m.train.clone(), m.classes))
    };
    let other = |m: &ModelChoice| {
        let old = trained(before, m.label());
        let one = old.as_ref().is_some_and(|o| o.3.is_some()) || m.train.is_some();
        one && old.is_some() && old != trained(now, m.label())
    };
    let kind = |s: &RunSpec| (s.task.kind, s.task.classes.clone());
    match () {
        () if before.data != now.data => Some("data"),
        () if before.split != now.split => Some("split"),
        () if before.seed != now.seed => Some("seed"),
        () if kind(before) != kind(now) => Some("task's classes"),
        () if now.models.iter().any(other) => Some("training of a model"),
        () => None,
    }
}

/// Writes spec and environment, or checks that the folder's own allow to go on.
fn settle(
    spec: &RunSpec,
    registry: &Registry,
    source: &dyn Source,
    folder: &Folder,
    devices: &[String],
    mixed: bool,
) -> Result<Environment> {
    let shown = folder.0.display();
    let before: Option<Environment> = match folder.environment().is_file() {
        true => Some(read_json(&folder.environment())?),
        false => None,
    };
    // A run keeps its number of threads unless the spec asks for another.
    let threads = match (spec.threads, &before) {
        (0, Some(Environment { machines, .. })) if !machines.is_empty() => machines[machines.len() - 1].threads,
        (0, _) => std::thread::available_parallelism().map_or(1, usize::from),
        (n, _) => n,
    };
    let mut environment = Environment::gather(spec, registry, source, Machine::here(&devices[0], threads))?;
    if folder.spec().is_file() {
        let text = String::from_utf8_lossy(&files::read(&folder.spec())?).into_owned();
        let old = RunSpec::parse(&text, &folder.0)?;
        if let Some(what) = refused(&old, spec) {
            return Err(Error::input(format!(
                "{shown} holds a run of another {what} (hint: give another `output`, or --restart to throw it away)"
            )));
        }
    }
    if let Some(before) = before {
        if before.data != environment.data {
            return Err(Error::input(format!(
                "the images, labels or boxes of the data source have changed since {shown} was begun (hint: --restart, or \
                 another `output`)"
            )));
        }
        if folder.sources().is_file() {
            let states: Vec<FileState> = read_json(&folder.sources())?;
            for state in &states {
                if !state.is_unchanged()? {
                    let file = state.file.display();
                    return Err(Error::input(format!(
                        "{file} has changed since {shown} was begun (hint: --restart, or another `output`)"
                    )));
                }
            }
        }
        for model in spec.models.iter().filter(|m| m.train.is_some()) {
            let key = format!("model {}", model.name);
            let old = before.plugins.get(&key);
            if old.is_some_and(|old| environment.plugins.get(&key).is_some_and(|now| now.sha256 != old.sha256)) {
                return Err(Error::plugin(format!(
                    "the plugin of {key} has changed since {shown} was begun, and the run trains it (hint: --restart, or \
                     another `output`)"
                )));
            }
        }
        let trained = |m: &&ModelChoice| m.train.is_some();
        for file in spec.models.iter().filter(trained).flat_map(|m| m.weights_files(spec.split.folds)) {
            if before.files.get(&file).is_some_and(|old| environment.files.get(&file) != Some(old)) {
                let file = file.display();
                return Err(Error::input(format!(
                    "{file} has changed since {shown} was begun, and training begins with it (hint: --restart, or another \
                     `output`)"
                )));
            }
        }
        let machine = environment.machines.remove(0);
        environment.machines = before.machines;
        if let Some(difference) =
            environment.machines.iter().map(|m| m.difference(&machine)).min_by_key(Option::is_some)
        {
            match (difference, mixed) {
                (None, _) => {
                    let here = environment.machines.iter().position(|m| m.difference(&machine).is_none());
                    let here = here.map(|i| environment.machines.remove(i));
                    environment.machines.extend(here);
                }
                (Some(_), true) => environment.machines.push(machine),
                (Some(what), false) => {
                    return Err(Error::input(format!(
                        "{shown} was begun under other conditions, which change numbers: {what} (hint: go on under the \
                         same, --mixed to go on and have it recorded, or --restart)"
                    )));
                }
            }
        }
    }
    write_json(&folder.environment(), &environment)?;
    let text = toml::to_string(spec).map_err(|e| Error::input(format!("the spec cannot be written: {e}")))?;
    files::write_text(&folder.spec(), &text)?;
    Ok(environment)
}

/// What a worker is at.
#[derive(Default)]
struct Busy {
    alive: bool,
    /// It has said something since it was started.
    heard: bool,
    cell: Option<(String, String)>,
    last: Option<Instant>,
}

struct Supervisor<'a> {
    spec: &'a RunSpec,
    folder: &'a Folder,
    identities: &'a Identities,
    devices: Vec<String>,
    workers: usize,
    cells: Cells,
    reporter: Reporter,
    log: File,
    scheduler: Scheduler,
    busy: Vec<Busy>,
}

impl Supervisor<'_> {
    fn plan(&self, folds: usize) -> Plan<'_> {
        Plan { spec: self.spec, identities: self.identities, cells: &self.cells, folds }
    }

    /// The failures of cells that are still wanted as they were.
    fn standing_failures(&self, folds: usize) -> Result<Vec<Failure>> {
        let plan = self.plan(folds);
        let mut all = Vec::new();
        for model in self.spec.models.iter().map(ModelChoice::label) {
            if let Some(failure) = plan.model_failure(model)? {
                all.push(failure.clone());
                continue;
            }
            for explainer in &self.spec.explainers {
                if let Verdict::Failed(failure) = plan.verdict(model, explainer)? {
                    all.push(failure.clone());
                }
            }
        }
        Ok(all)
    }

    fn say(&mut self, worker: Option<usize>, event: Event) -> Result<()> {
        let stamped = Stamped { time: now(), worker, event };
        if !matches!(stamped.event, Event::Progress { .. } | Event::Ready | Event::Alive) {
            let mut line = serde_json::to_vec(&stamped).unwrap_or_default();
            line.push(b'\n');
            let path = self.folder.0.join("events.jsonl");
            self.log.write_all(&line).map_err(|e| lightbox_core::Error::io(&path, &e))?;
        }
        self.reporter.show(&stamped);
        Ok(())
    }

    /// Notes a failed cell, and takes its explainer (or the whole model) out of what is to be done.
    fn fail(&mut self, worker: usize, failure: Failure) -> Result<()> {
        let id = self.identities.pair(&failure.model, failure.explainer.as_deref())?;
        let failure = Failure { id, ..failure };
        let model = failure.model.clone();
        match failure.explainer.clone() {
            None => self.scheduler.give_up(|u| u.model() == Some(&model)),
            Some(name) => {
                // First without the explainer, then without its fit, which the others do not need.
                self.scheduler.change(|u| without(u, &model, &name));
                self.scheduler
                    .give_up(|u| matches!(u, Unit::Fit { model: m, explainer: e, .. } if *m == model && *e == name));
            }
        }
        self.cells.failures.retain(|f| (&f.model, &f.explainer) != (&failure.model, &failure.explainer));
        self.cells.failures.push(failure.clone());
        self.folder.write_cells(&self.cells)?;
        self.say(Some(worker), Event::CellFailed(failure))
    }

    /// Works through units, with as many workers as it takes.
    fn work(&mut self, executor: &mut dyn Executor, units: Vec<Unit>) -> Result<()> {
        self.scheduler = Scheduler::new(units);
        self.busy.clear();
        self.busy.resize_with(self.workers, Busy::default);
        let outcome = self.drive(executor);
        if outcome.is_err() && signals::interrupted() {
            // Plugins are told, and given a moment.
            executor.interrupt();
            let deadline = Instant::now() + Duration::from_secs(2);
            while self.busy.iter().any(|b| b.alive) && Instant::now() < deadline {
                match executor.poll(Duration::from_millis(50)) {
                    Some((id, Signal::Ended | Signal::Event(Event::Ready))) => self.busy[id].alive = false,
                    _ => continue,
                }
            }
        }
        for id in 0..self.workers {
            executor.end(id, outcome.is_err());
        }
        outcome
    }

    fn drive(&mut self, executor: &mut dyn Executor) -> Result<()> {
        let limit = Duration::from_secs(self.spec.limit_seconds);
        let mut waiting = vec![false; self.workers];
        let mut launched = vec![false; self.workers];
        loop {
            if signals::interrupted() {
                let command = "the same command continues where it was";
                return Err(Error::new(Exit::Interrupted, format!("interrupted; {command}")));
            }
            if self.scheduler.is_finished() {
                return Ok(());
            }
            // Whoever waits gets a unit; a worker is started when there is one for it.
            for id in 0..self.workers {
                if self.scheduler.running(id).is_some() || (launched[id] && !waiting[id]) {
                    continue;
                }
                let Some(unit) = self.scheduler.next(id) else { continue };
                if !launched[id] {
                    let device = self.devices[id % self.devices.len()].clone();
                    executor.launch(id, &device)?;
                    launched[id] = true;
                }
                waiting[id] = false;
                let heard = self.busy[id].heard && launched[id] && self.busy[id].alive;
                self.busy[id] = Busy { alive: true, heard, cell: None, last: Some(Instant::now()) };
                executor.send(id, &Order { unit })?;
            }
            let signal = executor.poll(Duration::from_millis(50));
            for id in 0..self.workers {
                let silent = self.busy[id].last.is_some_and(|l| l.elapsed() > limit);
                let heard = matches!(&signal, Some((other, _)) if *other == id);
                if silent && !heard && self.scheduler.running(id).is_some() {
                    executor.end(id, true);
                    (launched[id], waiting[id]) = (false, false);
                    self.busy[id].alive = false;
                    let reason = format!("it gave no sign for {} s and was stopped", limit.as_secs());
                    self.lost(id, FailureKind::Timeout, reason)?;
                }
            }
            let Some((id, signal)) = signal else { continue };
            self.busy[id].last = Some(Instant::now());
            match signal {
                Signal::Malformed(line) => return Err(Error::new(Exit::Other, format!("malformed event {line}"))),
                // What ends us may have ended the worker first: that is no crash.
                Signal::Ended if signals::interrupted() => continue,
                Signal::Ended => {
                    let reason = executor.end(id, false);
                    (launched[id], waiting[id]) = (false, false);
                    self.busy[id].alive = false;
                    self.lost(id, FailureKind::Crash, reason)?;
                }
                Signal::Event(Event::Ready) => {
                    self.busy[id].heard = true;
                    // The first is of its start, when it has an order already.
                    if self.scheduler.running(id).is_none() {
                        waiting[id] = true;
                    }
                }
                Signal::Event(event) => self.event(id, event)?,
            }
        }
    }

    fn event(&mut self, id: usize, event: Event) -> Result<()> {
        match &event {
            Event::CellStarted { model, explainer, .. } => {
                self.busy[id].cell = Some((model.clone(), explainer.clone()));
            }
            Event::CellLeft { .. } => self.busy[id].cell = None,
            Event::CellFailed(failure) => {
                let failure = failure.clone();
                return self.fail(id, failure);
            }
            Event::Surveyed { model, explainer, fit, not_applicable } => {
                let key = self.identities.pair(model, Some(explainer))?;
                let (model, explainer) = (model.clone(), explainer.clone());
                let survey = Survey { model, explainer, fit: *fit, not_applicable: not_applicable.clone() };
                self.cells.surveys.insert(key, survey);
                self.folder.write_cells(&self.cells)?;
            }
            Event::UnitFinished { .. } => {
                self.scheduler.done(id);
                self.busy[id].cell = None;
            }
            Event::UnitFailed { reason, fatal, diverged, .. } => {
                let (reason, fatal, diverged) = (reason.clone(), *fatal, *diverged);
                let model = self.scheduler.running(id).and_then(Unit::model).map(str::to_string);
                self.scheduler.release(id);
                self.say(Some(id), event)?;
                return match (fatal, model) {
                    (None, Some(model)) => {
                        let kind = if diverged { FailureKind::Diverged } else { FailureKind::Error };
                        self.fail(id, Failure { model, explainer: None, kind, reason, id: String::new() })
                    }
                    (Some(code), _) if code == Exit::DiskFull as u8 => Err(Error::new(Exit::DiskFull, reason)),
                    (Some(code), _) if code == Exit::Interrupted as u8 => Err(Error::new(Exit::Interrupted, reason)),
                    _ => Err(Error::new(Exit::Input, reason)),
                };
            }
            _ => {}
        }
        self.say(Some(id), event)
    }

    /// A worker is gone: who was it?
    fn lost(&mut self, id: usize, kind: FailureKind, reason: String) -> Result<()> {
        self.say(Some(id), Event::WorkerLost { reason: reason.clone() })?;
        let unit = self.scheduler.running(id).cloned().filter(|_| self.busy[id].heard);
        self.scheduler.release(id);
        let cell = self.busy[id].cell.take();
        self.busy[id].last = None;
        let none = String::new();
        match (cell, unit) {
            (Some((model, explainer)), _) => {
                self.fail(id, Failure { model, explainer: Some(explainer), kind, reason, id: none })
            }
            (None, Some(unit)) => match unit.model() {
                Some(model) => {
                    let model = model.to_string();
                    self.fail(id, Failure { model, explainer: None, kind, reason, id: none })
                }
                None => Err(Error::new(Exit::Other, format!("{}: {reason}", unit.key()))),
            },
            (None, None) => Err(Error::new(Exit::Other, format!("a worker could not start: {reason}"))),
        }
    }
}

/// A unit without an explainer; none if nothing is left of it.
fn without(unit: &Unit, model: &str, explainer: &str) -> Option<Unit> {
    let mut unit = unit.clone();
    if unit.model() != Some(model) {
        return Some(unit);
    }
    match &mut unit {
        Unit::Survey { explainers, .. } | Unit::Score { explainers, .. } => {
            explainers.retain(|e| e != explainer);
            (!explainers.is_empty()).then_some(unit)
        }
        Unit::Explain { explainers, predict, .. } => {
            explainers.retain(|e| e != explainer);
            (*predict || !explainers.is_empty()).then_some(unit)
        }
        _ => Some(unit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str =
        "name = \"x\"\n[data]\nsource = \"phantom\"\n[[models]]\nname = \"m\"\n[models.train]\nepochs = 2\n";

    #[test]
    fn what_a_run_can_take_and_what_it_cannot() {
        let parse = |text: &str| RunSpec::parse(text, Path::new("/")).unwrap();
        let before = parse(SPEC);
        let check = |text: String, wanted: Option<&str>| assert_eq!(refused(&before, &parse(&text)), wanted, "{text}");
        check(format!("limit_seconds = 7\nbatch_size = 3\npictures = 1\n{SPEC}"), None);
        check(format!("{SPEC}[[explainers]]\nname = \"e\"\n"), None);
        check(format!("{SPEC}[[models]]\nname = \"n\"\n"), None);
        check(format!("seed = 7\n{SPEC}"), Some("seed"));
        check(SPEC.replace("epochs = 2", "epochs = 3"), Some("training of a model"));
        check(SPEC.replace("\"phantom\"", "\"phantom\"\ncount = 9"), Some("data"));
        check(format!("{SPEC}[split]\nfolds = 2\n"), Some("split"));
    }

    #[test]
    fn a_unit_goes_on_without_a_failed_explainer() {
        let explainers = vec!["a".to_string(), "b".to_string()];
        let unit = |explainers: &[String], predict| Unit::Explain {
            model: "m".into(),
            fold: 0,
            seed: 0,
            side: 8,
            block: 0,
            explainers: explainers.to_vec(),
            predict,
        };
        assert_eq!(without(&unit(&explainers, false), "m", "a"), Some(unit(&explainers[1..], false)));
        assert_eq!(without(&unit(&explainers[..1], false), "m", "a"), None);
        assert_eq!(without(&unit(&explainers[..1], true), "m", "a"), Some(unit(&[], true)));
        assert_eq!(without(&unit(&explainers, true), "n", "a"), Some(unit(&explainers, true)));
    }
}
