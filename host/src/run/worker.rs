//! The worker process: takes orders on stdin, executes units, says events on its channel.
//!
//! Models and explainers run here, so that one that crashes or hangs ends this process alone.

use super::events::{Event, Order, now};
use super::folder::{Machine, Record, RunFolder, data_identity, hash, write_json};
use super::identities::{UnitIdentities, classes};
use super::preflight::Resolved;
use super::spec::ModelChoice;
use super::timings::Timings;
use super::unit::Unit;
use super::unit_result::UnitResult;
use crate::child::EventWriter;
use crate::device;
use crate::engine::{self, Engine, Settings};
use crate::error::{Error, Exit, Result};
use crate::watch::Watch;
use lightbox_core::checkpoint;
use lightbox_core::data::preparation::Preparation;
use lightbox_core::data::store::Store;
use lightbox_core::data::{self, Source};
use lightbox_core::seed::derive;
use lightbox_core::task::Explained;
use lightbox_core::text::short;
use lightbox_sdk::Array;
use lightbox_sdk::spec::{ImageRecord, InputSpec, ModelOptions};
use std::io::BufRead;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tch::Device;

/// The worker's channel. Plugins' calls are said too, as signs of life, now and then.
pub struct EventSink {
    writer: EventWriter,
    told: Mutex<Instant>,
    /// Lines that plugins have logged in this unit.
    logged: AtomicUsize,
}

/// How many lines plugins may log in a unit, and how long one may be.
const MOST_LINES: usize = 1000;
const MOST_CHARACTERS: usize = 2000;

impl EventSink {
    pub fn say(&self, event: Event) {
        self.writer.say(&event);
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// True when nothing was said for a while.
    fn silent(&self) -> bool {
        let silent = self.told.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        silent > Duration::from_millis(250)
    }
}

impl Watch for EventSink {
    fn alive(&self) {
        if self.silent() {
            self.say(Event::Alive);
        }
    }

    fn log(&self, line: &str) {
        match self.logged.fetch_add(1, Ordering::Relaxed) {
            n if n < MOST_LINES => self.say(Event::Note { text: short(line, MOST_CHARACTERS).into_owned() }),
            MOST_LINES => {
                let text = format!("a plugin has logged {MOST_LINES} lines in this unit; the rest is left out");
                self.say(Event::Note { text });
            }
            _ => {}
        }
    }

    fn progress(&self, done: u64, of: u64) {
        if self.silent() {
            self.say(Event::Steps { done, of });
        }
    }
}

/// A model that is open, with the explainers that were asked for.
struct Open {
    model: String,
    fold: usize,
    training: usize,
    explainers: Vec<String>,
    engine: Engine,
}

/// Everything that a worker has opened. Opened when first needed and kept.
pub struct Worker {
    pub(super) folder: RunFolder,
    pub(super) plan: Arc<Resolved>,
    /// Of the unit that it is at.
    pub(super) identities: UnitIdentities,
    pub(super) sink: Arc<EventSink>,
    pub(super) device: Device,
    pub(super) number: usize,
    /// Cores that this worker's model leaves free.
    pub(super) spare: usize,
    source: Option<Arc<dyn Source>>,
    stores: Vec<([usize; 2], Vec<f64>, Vec<f64>, Rc<Store>)>,
    /// By size and fold.
    mean_masks: Vec<([usize; 2], usize, Option<Vec<f32>>)>,
    open: Option<Open>,
}

/// Runs until stdin ends, on so many threads; metrics on so many cores more.
pub fn main(folder: &Path, device: &str, threads: usize, spare: usize, number: usize) -> Result<()> {
    crate::remote::process::die_with_plugins();
    let sink = Arc::new(EventSink {
        writer: EventWriter::open(),
        told: Mutex::new(Instant::now()),
        logged: AtomicUsize::new(0),
    });
    tch::set_num_threads(threads as i32);
    // Ours, too: a worker has so many cores.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    pool.map_err(|e| Error::new(Exit::Other, format!("threads: {e}")))?;
    let mut worker = Worker::open(RunFolder(folder.to_path_buf()), device, number, spare, sink.clone())?;
    sink.say(Event::Ready);
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let order: Order =
            serde_json::from_str(&line).map_err(|e| Error::new(Exit::Other, format!("malformed order: {e}")))?;
        let unit = order.unit.key();
        sink.logged.store(0, Ordering::Relaxed);
        sink.say(Event::UnitStarted { unit: unit.clone() });
        let started = Instant::now();
        worker.identities = order.identities;
        match worker.execute(&order.unit) {
            Ok((images, spent)) => {
                let seconds = started.elapsed().as_secs_f64();
                sink.say(Event::UnitFinished { unit, seconds, images, spent: spent.rest_of(seconds) });
            }
            Err(e) => {
                let diverged = e.exit == Exit::Diverged;
                // Without images nothing can go on; a checkpoint that does not fit is a mistake in the spec.
                let prepare = matches!(order.unit, Unit::Prepare { .. } | Unit::Reduce { .. })
                    || matches!(order.unit, Unit::Survey { .. }) && e.exit == Exit::Input;
                // A plugin may say "cancelled" when nobody has cancelled: that is its own failure.
                let fatal = match crate::signals::interrupted() {
                    true => Some(Exit::Interrupted),
                    false => (e.exit == Exit::DiskFull || prepare).then_some(e.exit),
                };
                let fatal = fatal.map(|exit| exit as u8);
                sink.say(Event::UnitFailed { unit, reason: e.to_string(), fatal, diverged });
            }
        }
        sink.say(Event::Ready);
    }
    Ok(())
}

impl Worker {
    fn open(folder: RunFolder, device: &str, number: usize, spare: usize, sink: Arc<EventSink>) -> Result<Self> {
        let plan = Arc::new(Resolved::read(&folder)?);
        let device = device::choose(device)?;
        if plan.spec.tf32 {
            device::tf32(true)?;
        }
        let (identities, source, stores, mean_masks, open) = Default::default();
        Ok(Worker { folder, plan, identities, sink, device, number, spare, source, stores, mean_masks, open })
    }

    /// The data. What it says of its images is what the plan was made of.
    pub(super) fn source(&mut self) -> Result<Arc<dyn Source>> {
        if let Some(source) = &self.source {
            return Ok(source.clone());
        }
        let spec = &self.plan.spec;
        let source: Arc<dyn Source> = data::open(&spec.data, &spec.task)?.into();
        if data_identity(source.samples()) != self.plan.environment.data {
            return Err(Error::input(
                "the images, labels or boxes of the data source have changed while the run goes on",
            )
            .hint("--restart, or another `output`"));
        }
        self.source = Some(source.clone());
        Ok(source)
    }

    pub(super) fn choice(&self, label: &str) -> Result<ModelChoice> {
        let found = self.plan.spec.models.iter().find(|m| m.label() == label);
        found.cloned().ok_or_else(|| Error::input(format!("the spec has no model {label}")))
    }

    /// How a model is built. Its initial values are drawn from a seed of the fold and training.
    pub(super) fn options(&self, choice: &ModelChoice, fold: usize, training: usize) -> ModelOptions {
        ModelOptions {
            device: device::name(self.device),
            classes: classes(&self.plan.spec, choice),
            seed: derive(self.plan.spec.seed, "initial", &[fold as u64, training as u64]),
            params: choice.params.clone(),
        }
    }

    /// How models of this run are asked, but for images that explainers read.
    pub(super) fn engine_settings(&self) -> Settings {
        let activation = Some(self.plan.spec.task.activation());
        let at_once = self.plan.spec.batch_size;
        Settings { activation, at_once, ..Settings::new(self.device, self.plan.spec.seed) }
    }

    /// Closes the model that is open.
    pub(super) fn close(&mut self) {
        self.open = None;
    }

    /// The images as this input expects them.
    pub(super) fn store(&mut self, input: &InputSpec) -> Result<Rc<Store>> {
        let (size, mean, std) = (input.flat()?, &input.mean, &input.std);
        if let Some((.., store)) = self.stores.iter().find(|(s, m, d, _)| *s == size && m == mean && d == std) {
            return Ok(store.clone());
        }
        // One budget for all of them.
        let held: usize = self.stores.iter().map(|(.., s)| s.holding()).filter(|l| l.resident).map(|l| l.bytes).sum();
        let budget = (self.plan.spec.store_mib << 20).saturating_sub(held);
        let file = self.folder.prepared(size);
        let store = Rc::new(Store::open(&file, &input.mean, &input.std, self.device, budget)?);
        if store.holding().images != self.source()?.samples().len() {
            return Err(Error::input(format!("{}: not of this data source", file.display())).hint("--restart"));
        }
        self.stores.push((size, mean.clone(), std.clone(), store.clone()));
        Ok(store)
    }

    /// The images as a model of the run expects them.
    pub(super) fn store_of(&mut self, label: &str) -> Result<Rc<Store>> {
        let input = self.plan.input(label)?.clone();
        self.store(&input)
    }

    pub(super) fn opened(&self) -> Result<&Engine> {
        self.open.as_ref().map(|o| &o.engine).ok_or_else(|| Error::new(Exit::Other, "no model is open"))
    }

    /// Executes one unit; the number of images it went through, and where its time went.
    fn execute(&mut self, unit: &Unit) -> Result<(usize, Timings)> {
        let started = Instant::now();
        // Two units of one key do different parts of a chunk, and so do two builds: each has files of its own.
        let text = serde_json::to_string(unit).map_err(|e| Error::new(Exit::Other, e.to_string()))?;
        let stem = format!("{}-{}", unit.key(), &hash([text, self.number.to_string(), now().to_string()])[..8]);
        let made = match unit {
            Unit::Survey { model, explainers } => {
                return Ok((self.survey(unit, model, explainers)?, Timings::default()));
            }
            Unit::Prepare { size } => {
                let images = self.prepare(*size, unit)?;
                return Ok((images, Timings { data: started.elapsed().as_secs_f64(), ..Timings::default() }));
            }
            Unit::Train { model, fold, training, .. } => {
                let images = self.train(model, *fold, *training, unit)?;
                return Ok((images, Timings { training: started.elapsed().as_secs_f64(), ..Timings::default() }));
            }
            Unit::Fit { .. } => {
                let fitted = self.fit(unit);
                // What is open has no fit, and is not what explains.
                self.open = None;
                return Ok((fitted?, Timings { explainers: started.elapsed().as_secs_f64(), ..Timings::default() }));
            }
            Unit::Explain { .. } => self.explain(unit, &stem)?,
            Unit::Score { .. } => self.score(unit, &stem)?,
            Unit::Reduce { .. } => self.reduce(unit, &stem)?,
        };
        let UnitResult { images, predictions, reduced, cells, timings: mut spent } = made;
        if !matches!(unit, Unit::Explain { .. }) {
            spent.metrics = started.elapsed().as_secs_f64();
        }
        let machine = Machine::here(&device::name(self.device), tch::get_num_threads() as usize);
        let (time, seconds) = (now(), started.elapsed().as_secs_f64());
        let (unit, worker) = (unit.clone(), self.number);
        let record = Record { unit, time, seconds, worker, machine, predictions, reduced, cells };
        let writing = Instant::now();
        write_json(&self.folder.unit(&stem, "json"), &record)?;
        spent.files += writing.elapsed().as_secs_f64();
        Ok((images, spent))
    }

    /// Opens a model in a fold and training with these explainers, unless it is open with them.
    pub(super) fn open_engine(
        &mut self,
        label: &str,
        fold: usize,
        training: usize,
        explainers: &[String],
    ) -> Result<()> {
        let usable =
            |o: &Open| (o.model.as_str(), o.fold, o.training) == (label, fold, training) && o.explainers == explainers;
        if self.open.as_ref().is_some_and(usable) {
            return Ok(());
        }
        self.open = None;
        let choice = self.choice(label)?;
        let weights = match &choice.train {
            Some(_) => Some(self.folder.checkpoint(label, fold, training).join("best.safetensors")),
            None => choice.weights_file(fold),
        };
        let file = self.plan.environment.plugin("model", &choice.name)?.file.clone();
        let options = self.options(&choice, fold, training);
        let (model, notes) = engine::load_model(&file, &choice.name, &options, weights.as_deref(), choice.missing())?;
        if choice.train.is_none() {
            let note = |text: String| self.sink.say(Event::Note { text: format!("{label}, fold {fold}: {text}") });
            notes.into_iter().for_each(note);
        }
        if let Some(part) = choice.random_part() {
            self.sink.say(Event::Note { text: format!("{label}: {part}, as the spec asks") });
        }
        let (store, source, plan) = (self.store_of(label)?, self.source()?, self.plan.clone());
        let holding = store.holding();
        let (colour, intensity) = (source.is_colour(), source.intensity());
        let preparation = Some(Preparation { size: holding.size, colour, intensity });
        let settings = Settings { preparation, ..self.engine_settings() };
        let mut engine = Engine::new(model, settings, self.sink.clone())?;
        let samples = source.samples();
        let patients = source.knows_patients();
        engine.set_records(samples.iter().map(|s| ImageRecord {
            name: s.id.clone(),
            patient: patients.then(|| s.patient.clone()),
            columns: s.columns.clone(),
        }));
        let explained = self.plan.spec.task.explained()?;
        let masks = plan.split.folds[fold].train.iter().filter_map(|&i| {
            // Of the explained class; of each image's own where that differs by image.
            let class = if let Explained::Class(class) = explained { class } else { samples[i].stratum() };
            let bit = samples[i].mask_bit(class);
            (bit.is_some() || matches!(explained, Explained::Class(_))).then_some((i, bit))
        });
        let size = engine.spec.input.flat()?;
        if !self.mean_masks.iter().any(|(s, f, _)| (*s, *f) == (size, fold)) {
            self.mean_masks.push((size, fold, store.mean_mask(masks)));
        }
        let found = self.mean_masks.iter().find(|(s, f, _)| (*s, *f) == (size, fold));
        if let Some(mask) = found.and_then(|(.., mask)| mask.clone()) {
            engine.set_mean_mask(mask)?;
        }
        for name in explainers {
            let Some(explainer) = self.plan.spec.explainers.iter().find(|e| e.label() == name).cloned() else {
                continue;
            };
            let file = self.plan.environment.plugin("explainer", &explainer.name)?.file.clone();
            engine.add(&file, &explainer)?;
            let index = engine.explainers.len() - 1;
            if engine.explainers[index].fit().is_some() {
                let id = self.identities.fit(name)?;
                let path = self.folder.fit(label, fold, training, name, id);
                // While the fit itself runs there is nothing yet.
                if path.is_file() {
                    if self.folder.fitted(&path)?.is_none() {
                        let file = path.display();
                        return Err(Error::input(format!("{file} is not what the fit of {name} handed back"))
                            .hint("go on with --retry-failed: it is made anew"));
                    }
                    let mut fitted = Vec::new();
                    for (name, tensor) in &checkpoint::read_own(&path)? {
                        fitted.push((name.clone(), Array::from_tensor(tensor)?));
                    }
                    engine.set_fitted(index, fitted);
                }
            }
        }
        let (model, explainers) = (label.to_string(), explainers.to_vec());
        self.open = Some(Open { model, fold, training, explainers, engine });
        Ok(())
    }
}
