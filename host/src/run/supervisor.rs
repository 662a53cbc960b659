//! Drives a run: has it checked, takes its folder, keeps workers busy and survives them, has the summary written.

use super::events::{Event, Order, Stamped, now};
use super::executor::{Executor, Local, Signal};
use super::folder::{Cells, Machine, RunFolder, Survey, write_json};
use super::index::Index;
use super::manifest::RunManifest;
use super::preflight::{Earlier, Preflight, Resolved, preflight};
use super::reporter::Reporter;
use super::scheduler::Scheduler;
use super::spec::{ModelChoice, RunSpec};
use super::state::{RunState, Verdict};
use super::summary;
use super::timings::Timings;
use super::unit::Unit;
use super::unit::{Failure, FailureKind};
use crate::error::{Error, Exit, Result};
use crate::registry::Registry;
use crate::{device, signals};
use lightbox_core::data::Sample;
use lightbox_core::files;
use lightbox_core::text::short;
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
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

/// The devices that a spec names, separated by commas.
fn devices(spec: &RunSpec) -> Result<Vec<String>> {
    let all: Vec<String> =
        spec.device.split(',').map(|name| Ok(device::name(device::choose(name.trim())?))).collect::<Result<_>>()?;
    let kind = |d: &String| d.split(':').next().unwrap_or_default().to_string();
    if spec.tf32 && all.iter().any(|d| d == "cpu") {
        return Err(Error::input("tf32 = true: a CPU has no TF32").hint("--set tf32=false, or --device cuda"));
    }
    match all.iter().find(|d| kind(d) != kind(&all[0])) {
        Some(other) => Err(Error::input(format!(
            "device = \"{}\": {} and {other} round differently; a run's devices are of one kind",
            spec.device, all[0]
        ))),
        None => Ok(all),
    }
}

/// The folder of a run while this process has it to itself.
struct Taken {
    folder: RunFolder,
    /// Held until the run ends.
    _lock: File,
}

/// One process a folder.
fn lock(folder: &RunFolder) -> Result<File> {
    let path = folder.lock();
    // What is behind a link is somebody else's: it is not opened, and nothing is emptied.
    let file = File::options().create(true).write(true).truncate(false).custom_flags(libc::O_NOFOLLOW).open(&path);
    let file = file.map_err(|e| lightbox_core::Error::io(&path, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Error::input(format!("{}: another lightbox runs in this folder", folder.0.display())))
        }
        Err(TryLockError::Error(e)) => Err(lightbox_core::Error::io(&path, &e).into()),
    }
}

/// Takes the folder of a run that is there already, before it is read; none where there is none yet.
fn take_existing(folder: &RunFolder, options: &Options) -> Result<Option<Taken>> {
    if !folder.environment().is_file() {
        if options.restart && folder.own().iter().any(|path| path.exists()) {
            let shown = folder.0.display();
            return Err(Error::input(format!(
                "{shown} is not the folder of a run, so --restart deletes nothing in it"
            )));
        }
        return Ok(None);
    }
    let taken = Taken { folder: folder.clone(), _lock: lock(folder)? };
    folder.drop_unrecorded()?;
    Ok(Some(taken))
}

/// Makes a folder a run's.
fn take_new(folder: &RunFolder) -> Result<Taken> {
    std::fs::create_dir_all(&folder.0).map_err(|e| lightbox_core::Error::io(&folder.0, &e))?;
    let taken = Taken { folder: folder.clone(), _lock: lock(folder)? };
    if folder.environment().is_file() {
        return Err(Error::input(format!("{}: another lightbox has just run in this folder", folder.0.display()))
            .hint("the same command goes on with its run"));
    }
    Ok(taken)
}

impl Taken {
    /// Throws away what an earlier command made. The environment last: while it is there, the folder is known as a run's.
    fn clear(&self) -> Result<()> {
        for path in self.folder.own().iter().rev() {
            let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
            match removed {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(lightbox_core::Error::io(path, &e).into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes what was resolved: the environment first, by which the folder is known as a run's.
    fn write(&self, resolved: &Resolved, samples: &[Sample]) -> Result<()> {
        let folder = &self.folder;
        write_json(&folder.environment(), &resolved.environment)?;
        let text =
            toml::to_string(&resolved.spec).map_err(|e| Error::input(format!("the spec cannot be written: {e}")))?;
        files::write_text(&folder.spec(), &text)?;
        let splits = folder.splits();
        if !splits.join("test.csv").is_file() {
            // Whole or not there: a folder takes its name when it is complete.
            let half = folder.0.join(".splits-writing");
            let _ = std::fs::remove_dir_all(&half);
            resolved.split.write(&half, samples)?;
            std::fs::rename(&half, &splits).map_err(|e| lightbox_core::Error::io(&splits, &e))?;
        }
        write_json(&folder.plan(), resolved)
    }
}

/// Runs a spec to its end, or continues it.
pub fn run(spec: &RunSpec, registry: &Registry, options: &Options) -> Result<Outcome> {
    let started = Instant::now();
    let folder = RunFolder(std::path::absolute(&spec.output)?);
    let devices = devices(spec)?;
    let existing = take_existing(&folder, options)?;
    let earlier = Earlier::read(&folder, options.restart, options.mixed)?;
    let machine = Machine::here(&devices[0], std::thread::available_parallelism().map_or(1, usize::from));
    let Preflight { resolved, source } = preflight(spec, registry, &machine, &earlier)?;
    let taken = match existing {
        Some(taken) => taken,
        None => take_new(&folder)?,
    };
    if options.restart {
        taken.clear()?;
    }
    taken.write(&resolved, source.samples())?;

    let spec = &resolved.spec;
    let mut cells = folder.cells()?;
    if options.retry_failed {
        cells.failures.clear();
        folder.write_cells(&cells)?;
    }
    let log = File::options().create(true).append(true).custom_flags(libc::O_NOFOLLOW).open(folder.events());
    let log = log.map_err(|e| lightbox_core::Error::io(&folder.events(), &e))?;
    let workers = if options.workers > 0 { options.workers } else { devices.len() };
    // The last machine is this one.
    let threads = resolved.environment.machines.last().map_or(1, |m| m.threads);
    let mut executor = Local::new(folder.0.clone(), workers, threads);
    let mut supervisor = Supervisor {
        resolved: &resolved,
        folder: &folder,
        devices,
        workers,
        cells,
        reporter: Reporter::new(options.json),
        log,
        scheduler: Scheduler::new(vec![]),
        busy: Vec::new(),
        losses: BTreeMap::new(),
    };
    supervisor.work_through(&mut executor, options.train_only)?;

    let mut spent = Timings::of(&folder)?;
    let text = match options.train_only {
        true => summary::training(spec, &folder, resolved.split.folds.len())?,
        false => {
            let manifest = RunManifest::new(spec, registry)?;
            let after = Instant::now();
            let text = summary::write(&supervisor.state(), &folder, source.as_ref(), &manifest)?;
            spent = Timings { summary: after.elapsed().as_secs_f64(), ..spent };
            write_json(&folder.timings(), &spent)?;
            // The report of an earlier state would be taken for this one's.
            let _ = std::fs::remove_file(folder.report());
            let sheet = if spec.explainers.len() > summary::WIDE { "sheets" } else { "sheet.png" };
            format!("{text}\nPictures: {}\n", folder.0.join(sheet).display())
        }
    };
    let failed = supervisor.standing_failures()?;
    let (failed_cells, seconds) = (failed.len(), started.elapsed().as_secs_f64());
    let shown = folder.0.display().to_string();
    supervisor.say(None, Event::RunFinished { folder: shown, failed_cells, seconds, spent })?;
    let diverged = failed.iter().any(|f| f.kind == FailureKind::Diverged);
    let exit = match (failed_cells, diverged) {
        (0, _) => Exit::Ok,
        (_, true) => Exit::Diverged,
        _ => Exit::FailedCells,
    };
    Ok(Outcome { folder, exit, text })
}

/// How many characters of a plugin's reason are kept.
const MOST_REASON: usize = 2000;

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
    resolved: &'a Resolved,
    folder: &'a RunFolder,
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
    fn state(&self) -> RunState<'_> {
        RunState { resolved: self.resolved, cells: &self.cells }
    }

    /// Does all that is to be done.
    fn work_through(&mut self, executor: &mut dyn Executor, train_only: bool) -> Result<()> {
        // What explainers say of models decides which units there are.
        let surveys = if train_only { vec![] } else { self.state().surveys()? };
        let index = Index::new(&self.folder.records()?);
        let (all, todo) = self.state().units(self.folder, &index, train_only)?;
        // Before the surveys the explanations are not known; what is there is.
        let (units, done) = (all, all - todo.len());
        let (devices, workers) = (self.devices.clone(), self.workers);
        let (name, folder) = (self.resolved.spec.name.clone(), self.folder.0.display().to_string());
        self.say(None, Event::RunStarted { name, folder, devices, workers, units, done })?;
        for text in self.resolved.notes.clone() {
            self.say(None, Event::Note { text })?;
        }
        self.work(executor, surveys)?;
        // What fails changes what is wanted, such as what a fold's chunks reduce to: until nothing is left to do.
        let mut last = Vec::new();
        loop {
            let index = Index::new(&self.folder.records()?);
            let (_, todo) = self.state().units(self.folder, &index, train_only)?;
            if todo.is_empty() {
                return Ok(());
            }
            if todo == last {
                let keys: Vec<String> = todo.iter().map(Unit::key).collect();
                return Err(Error::new(
                    Exit::Other,
                    format!("these units ended and left nothing: {}", keys.join(", ")),
                ));
            }
            last.clone_from(&todo);
            self.work(executor, todo)?;
        }
    }

    /// A unit with the identities of what it makes and reads.
    fn order(&self, unit: Unit) -> Result<Order> {
        let state = self.state();
        let (running, reduced) = match &unit {
            Unit::Reduce { model, fold, training } => {
                let running = state.running(model)?.into_iter().map(|(name, _)| name).collect();
                (running, Some(state.reduced(model, *fold, *training)?))
            }
            _ => (vec![], None),
        };
        let identities = self.resolved.identities.of(&unit, &running, reduced)?;
        Ok(Order { unit, identities })
    }

    /// The failures of cells that are still wanted as they were.
    fn standing_failures(&self) -> Result<Vec<Failure>> {
        let state = self.state();
        let mut all = Vec::new();
        for model in self.resolved.spec.models.iter().map(ModelChoice::label) {
            if let Some(failure) = state.model_failure(model)? {
                all.push(failure.clone());
                continue;
            }
            for explainer in &self.resolved.spec.explainers {
                if let Verdict::Failed(failure) = state.verdict(model, explainer)? {
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
            let path = self.folder.events();
            self.log.write_all(&line).map_err(|e| lightbox_core::Error::io(&path, &e))?;
        }
        self.reporter.show(&stamped);
        Ok(())
    }

    /// Notes a failed cell, and takes its explainer (or the whole model) out of what is to be done.
    fn fail(&mut self, worker: usize, failure: Failure) -> Result<()> {
        let id = self.resolved.identities.pair(&failure.model, failure.explainer.as_deref())?;
        let reason = short(&failure.reason, MOST_REASON).into_owned();
        let failure = Failure { id, reason, ..failure };
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
        let limit = Duration::from_secs(self.resolved.spec.limit_seconds);
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
                executor.send(id, &self.order(unit)?)?;
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
                    let line = short(&line, 80);
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
                let key = self.resolved.identities.pair(model, Some(explainer))?;
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
                        self.fail(id, Failure { model, explainer: None, kind, reason, ..Failure::default() })
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
    /// system, for want of memory): its unit goes to a worker again. After [`TRIES`] the unit's model is left out of this
    /// command's work, and the next command tries again.
    fn lost(&mut self, id: usize, kind: FailureKind, reason: String) -> Result<()> {
        self.say(Some(id), Event::WorkerLost { reason: reason.clone() })?;
        let heard = self.busy[id].heard;
        let unit = self.scheduler.running(id).cloned();
        self.scheduler.release(id);
        let cell = self.busy[id].cell.take();
        self.busy[id].last = None;
        let failure = |model, explainer, reason| Failure { model, explainer, kind, reason, ..Failure::default() };
        if let Some((model, explainer)) = cell {
            return self.fail(id, failure(model, Some(explainer), reason));
        }
        let key = unit.as_ref().filter(|_| heard).map_or_else(|| start_of(id), Unit::key);
        let tries = self.losses.entry(key.clone()).or_default();
        *tries += 1;
        // Who is silent for so long will be again.
        if kind != FailureKind::Timeout && *tries < TRIES {
            return Ok(());
        }
        let (tries, hint) = (*tries, "is there enough memory? `dmesg` says whether the system ended a process");
        match unit.filter(|_| heard).and_then(|unit| unit.model().map(str::to_string)) {
            Some(model) => {
                let workers = if tries == 1 { "a worker was".into() } else { format!("{tries} workers were") };
                let reason = format!("{workers} lost at {key}: {reason}; the same command tries again ({hint})");
                self.fail(id, Failure { transient: true, ..failure(model, None, reason) })
            }
            None => {
                let read = super::reading::last(&self.folder.reading());
                let while_it =
                    if read.is_empty() { String::new() } else { format!(" while it read {}", read.join(", ")) };
                Err(Error::new(Exit::Other, format!("{key}: {reason}{while_it}")).hint(hint))
            }
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
            training: 0,
            size: [8, 8],
            chunk: 0,
            explainers: explainers.to_vec(),
            predict,
        };
        assert_eq!(without(&unit(&explainers, false), "m", "a"), Some(unit(&explainers[1..], false)));
        assert_eq!(without(&unit(&explainers[..1], false), "m", "a"), None);
        assert_eq!(without(&unit(&explainers[..1], true), "m", "a"), Some(unit(&[], true)));
        assert_eq!(without(&unit(&explainers, true), "n", "a"), Some(unit(&explainers, true)));
    }
}
