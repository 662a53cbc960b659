//! Drives a run: settles what it is, plans what is to be done, keeps workers busy, survives them.

use super::events::{Event, Order, Stamped, now};
use super::executor::{Executor, Local, Signal};
use super::folder::{Cells, RunFolder, Survey, write_json};
use super::manifest::RunManifest;
use super::plan::{Identities, Index, Plan, Verdict};
use super::preflight::{check_models, check_plugins, lock, notes, resolve_parameters, settle};
use super::reporter::Reporter;
use super::scheduler::Scheduler;
use super::spec::{ModelChoice, RunSpec};
use super::summary;
use super::timings::Timings;
use super::unit::Unit;
use super::unit::{Failure, FailureKind};
use crate::error::{Error, Exit, Result};
use crate::registry::Registry;
use crate::{device, signals};
use lightbox_core::data::{self, split::SplitSpec};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
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
    pub folder: RunFolder,
    pub exit: Exit,
    /// For stdout, unless events went there.
    pub text: String,
}

/// What this program puts into a run's folder.
const OWN: [&str; 24] = [
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

/// The devices that a spec names, separated by commas.
fn devices(spec: &RunSpec) -> Result<Vec<String>> {
    let all: Vec<String> =
        spec.device.split(',').map(|name| Ok(device::name(device::choose(name.trim())?))).collect::<Result<_>>()?;
    let kind = |d: &String| d.split(':').next().unwrap_or_default().to_string();
    if spec.tf32 && all.iter().any(|d| d == "cpu") {
        return Err(Error::input("tf32 = true: a CPU has no TF32 (hint: --set tf32=false, or --device cuda)"));
    }
    match all.iter().find(|d| kind(d) != kind(&all[0])) {
        Some(other) => Err(Error::input(format!(
            "device = \"{}\": {} and {other} round differently; a run's devices are of one kind",
            spec.device, all[0]
        ))),
        None => Ok(all),
    }
}

/// Runs a spec to its end, or continues it.
pub fn run(spec: &RunSpec, registry: &Registry, options: &Options) -> Result<Outcome> {
    let started = Instant::now();
    let mut spec = spec.clone();
    spec.output = std::path::absolute(&spec.output)?;
    let folder = RunFolder(spec.output.clone());
    let devices = devices(&spec)?;
    resolve_parameters(&mut spec, registry)?;
    check_models(&spec, &devices)?;
    let source = data::open(&spec.data, &spec.task)?;
    spec.task = spec.task.resolve(source.classes())?;
    if spec.split.files.is_some() {
        // The files say how many folds there are.
        spec.split.folds = spec.split.split(source.samples())?.folds.len();
    }
    let sizes = check_plugins(&spec, registry)?;
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
    let identities = Identities::new(&spec, &environment, &sizes, source.samples(), &split)?;

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
        losses: BTreeMap::new(),
    };
    let mut executor = Local::new(folder.0.clone(), workers, threads);
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

    let mut spent = Timings::of(&folder)?;
    let text = match options.train_only {
        true => summary::training(&spec, &folder, folds)?,
        false => {
            let plan = supervisor.plan(folds);
            let about = RunManifest::new(&spec, registry)?;
            let after = Instant::now();
            let text = summary::write(&plan, &folder, source.as_ref(), &split, &environment, &about)?;
            spent = Timings { summary: after.elapsed().as_secs_f64(), ..spent };
            write_json(&folder.0.join("spent.json"), &spent)?;
            // The report of an earlier state would be taken for this one's.
            let _ = std::fs::remove_file(folder.0.join("report.html"));
            let sheet = if spec.explainers.len() > summary::WIDE { "sheets" } else { "sheet.png" };
            format!("{text}\nPictures: {}\n", folder.0.join(sheet).display())
        }
    };
    let failed = supervisor.standing_failures(folds)?;
    let (failed_cells, seconds) = (failed.len(), started.elapsed().as_secs_f64());
    supervisor.say(None, Event::RunFinished { folder: shown, failed_cells, seconds, spent })?;
    let diverged = failed.iter().any(|f| f.kind == FailureKind::Diverged);
    let exit = match (failed_cells, diverged) {
        (0, _) => Exit::Ok,
        (_, true) => Exit::Diverged,
        _ => Exit::FailedCells,
    };
    Ok(Outcome { folder, exit, text })
}

/// How many workers may be lost at a unit outside of explainers.
const TRIES: usize = 3;

/// What stands for the unit of a worker that is not ready yet.
fn start_of(id: usize) -> String {
    format!("the start of worker {id}")
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
    folder: &'a RunFolder,
    identities: &'a Identities,
    devices: Vec<String>,
    workers: usize,
    cells: Cells,
    reporter: Reporter,
    log: File,
    scheduler: Scheduler,
    busy: Vec<Busy>,
    /// Workers that were lost outside of explainers, by the unit that they were at.
    losses: BTreeMap<String, usize>,
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
        if !matches!(stamped.event, Event::Progress { .. } | Event::Steps { .. } | Event::Ready | Event::Alive) {
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
                // The limit is one of plugins: what the host does alone takes as long as it takes.
                let own = |u: &Unit| matches!(u, Unit::Prepare { .. } | Unit::Reduce { .. });
                let limited = !self.scheduler.running(id).is_some_and(own);
                let silent = limited && self.busy[id].last.is_some_and(|l| l.elapsed() > limit);
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
                Signal::Malformed(line) => {
                    // A plugin has written to the channel of events: what comes after it cannot be trusted.
                    executor.end(id, true);
                    (launched[id], waiting[id]) = (false, false);
                    self.busy[id].alive = false;
                    let line: String = line.chars().take(80).collect();
                    self.lost(id, FailureKind::Error, format!("it said what is no event: {line}"))?;
                }
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
                    self.losses.remove(&start_of(id));
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

    /// A worker is gone: who was it? The explainer that it was in has failed. Outside of one anybody may have ended it (the
    /// system, for want of memory): its unit goes to a worker again, and only after [`TRIES`] has the model failed.
    fn lost(&mut self, id: usize, kind: FailureKind, reason: String) -> Result<()> {
        self.say(Some(id), Event::WorkerLost { reason: reason.clone() })?;
        let heard = self.busy[id].heard;
        let unit = self.scheduler.running(id).cloned();
        self.scheduler.release(id);
        let cell = self.busy[id].cell.take();
        self.busy[id].last = None;
        let none = String::new();
        if let Some((model, explainer)) = cell {
            return self.fail(id, Failure { model, explainer: Some(explainer), kind, reason, id: none });
        }
        let key = unit.as_ref().filter(|_| heard).map_or_else(|| start_of(id), Unit::key);
        let tries = self.losses.entry(key.clone()).or_default();
        *tries += 1;
        // Who is silent for so long will be again.
        if kind != FailureKind::Timeout && *tries < TRIES {
            return Ok(());
        }
        match unit.filter(|_| heard).and_then(|unit| unit.model().map(str::to_string)) {
            Some(model) => self.fail(id, Failure { model, explainer: None, kind, reason, id: none }),
            None => Err(Error::new(Exit::Other, format!("{key}: {reason}"))
                .hint("is there enough memory? `dmesg` says whether the system ended a process")),
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

    #[test]
    fn a_unit_goes_on_without_a_failed_explainer() {
        let explainers = vec!["a".to_string(), "b".to_string()];
        let unit = |explainers: &[String], predict| Unit::Explain {
            model: "m".into(),
            fold: 0,
            seed: 0,
            size: [8, 8],
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
