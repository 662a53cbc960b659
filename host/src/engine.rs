//! One model and its explainers, ready to run on batches.
//!
//! [`Engine::add`] binds an explainer to the model; [`Engine::run`] merges what all of them need into one request and serves
//! a batch with one run of the model, whatever the number of explainers (`shared_run.rs`). Explainers that want gradients
//! under modified rules share a run a set of rules.
//!
//! Everything that an explainer is given has a checksum that is compared after the call (`input_guard.rs`): one that writes
//! to what it received is named, and what its neighbours saw is computed anew.

pub(crate) mod checkpoint_names;
mod input_guard;
mod outputs;
mod shared_run;
mod weights;
pub mod weights_folder;

use crate::binding::{self, default_paths};
use crate::choice::ExplainerChoice;
use crate::error::{Error, Result};
use crate::host_calls::{Batches, Calls};
use crate::process_state::ProcessState;
use crate::proxy::{self, Counter, Shared};
use crate::registry;
use crate::transfer::{Copies, Transfer, own};
use crate::watch::Watch;
use input_guard::{InputGuard, checksum_of};
use lightbox_core::data::preparation::Preparation;
use lightbox_core::seed;
use lightbox_sdk::hash::fnv1a;
use lightbox_sdk::host::Serving;
use lightbox_sdk::spec::{
    Activation, Contrast, ExplainerSpec, FitNeeds, ImageRecord, ModelSpec, Needs, Passes, Plan, TargetKind,
};
use lightbox_sdk::{
    Array, BoundHandle, ExplainInput, ExplainerHandle, FitInput, ModelHandle, Named, Request, Response, Target,
};
use outputs::check_maps;
pub use outputs::{Outputs, check_fitted, tampered};
use shared_run::SharedRuns;
pub(crate) use shared_run::shared_request;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tch::{Device, Kind, Tensor};
pub use weights::{Missing, load_model};

/// An explainer that is bound to the engine's model.
pub struct Planned {
    /// What names it in tables.
    pub label: String,
    /// The explainer's description.
    pub spec: ExplainerSpec,
    /// The plugin's file.
    pub file: PathBuf,
    /// What it needs, or why it does not apply.
    pub plan: Plan,
    /// Passes beyond the shared run.
    pub runs: Arc<Counter>,
    choice: ExplainerChoice,
    bound: BoundHandle,
    /// What the fit handed back.
    fitted: BTreeMap<String, Array>,
    runner: ModelHandle,
}

impl Planned {
    fn needs(&self) -> Option<&Needs> {
        if let Plan::Run(needs) = &self.plan { Some(needs) } else { None }
    }

    /// What it wants to see of the training set before it explains.
    pub fn fit(&self) -> Option<&FitNeeds> {
        self.needs().and_then(|n| n.fit.as_ref())
    }
}

/// How an engine works.
#[derive(Clone)]
pub struct Settings {
    /// Where the model is.
    pub device: Device,
    /// The run's seed.
    pub seed: u64,
    /// What turns the logits of the first output into scores, where the task says so; otherwise the model's own word counts.
    pub activation: Option<Activation>,
    /// The kinds of targets that are explained; empty for classes.
    pub targets: Vec<TargetKind>,
    /// Images that explainers may run the model on at a time; 0 for as many as a batch has.
    pub at_once: usize,
    /// How images that explainers read are prepared.
    pub preparation: Option<Preparation>,
}

impl Settings {
    /// For classes, with the model's own activation.
    pub fn new(device: Device, seed: u64) -> Self {
        Settings { device, seed, activation: None, targets: vec![], at_once: 0, preparation: None }
    }
}

/// A model and its explainers.
pub struct Engine {
    model: Shared,
    /// The model's description, with the task's activation.
    pub spec: ModelSpec,
    /// The explainers, in the order in which they were added.
    pub explainers: Vec<Planned>,
    settings: Settings,
    watch: Arc<dyn Watch>,
    mean_mask: Option<Array>,
    /// The way between the model's memory and the CPU's, where they are two.
    transfer: Option<Arc<dyn Transfer>>,
    /// What the data source says of images, by their numbers.
    records: Arc<HashMap<u64, ImageRecord>>,
    /// Copies of the model with other parameters, by what names them.
    forks: Mutex<HashMap<String, Shared>>,
}

/// Bytes of parameters that copies of a model may keep.
const KEPT_FORKS: usize = 1 << 30;

/// What a batch gave. Maps are in the order of [`Engine::explainers`], without those that do not apply.
pub struct Batch {
    /// The first output, float32, CPU: [B, classes] of a classifier.
    pub logits: Tensor,
    /// What was explained, a row.
    pub targets: Vec<Target>,
    /// By explainer: its maps, or why there are none.
    pub maps: Vec<(usize, std::result::Result<Outputs, lightbox_sdk::Error>)>,
    /// Seconds in each explainer's own code.
    pub seconds: Vec<(usize, f64)>,
    /// Seconds of the model's shared runs.
    pub model_seconds: f64,
    /// The explainer that wrote to what it was given. What others gave in this batch is worth nothing then.
    pub tampered: Option<usize>,
}

/// A stable number of an image by its name, whatever stands beside it.
pub fn image_id(name: &str) -> u64 {
    fnv1a(name.bytes())
}

/// Rows' classes as what [`Engine::run`] takes; a negative one stands for the class of the highest logit.
pub fn classes(classes: &[i64]) -> Vec<Option<Target>> {
    classes.iter().map(|c| usize::try_from(*c).ok().map(Target::Class)).collect()
}

/// The class with the highest logit, a row of [B, classes]; of equals the first.
pub fn predicted(logits: &Tensor) -> Result<Vec<usize>> {
    let first = Vec::<i64>::try_from(logits.f_argmax(1, false)?)?;
    Ok(first.into_iter().map(|c| c as usize).collect())
}

impl Engine {
    /// An engine whose arrays go to the model's device by libtorch's copies.
    pub fn new(model: ModelHandle, settings: Settings, watch: Arc<dyn Watch>) -> Result<Self> {
        let copies = |device| Arc::new(Copies(device)) as Arc<dyn Transfer>;
        let transfer = (settings.device != Device::Cpu).then(|| copies(settings.device));
        Engine::over(model, settings, watch, transfer)
    }

    /// As [`Engine::new`], with a way to the model's memory other than libtorch's copies.
    pub fn over(
        model: ModelHandle,
        settings: Settings,
        watch: Arc<dyn Watch>,
        transfer: Option<Arc<dyn Transfer>>,
    ) -> Result<Self> {
        let spec = model.spec()?;
        let spec = match settings.activation {
            Some(activation) => spec.activated(activation),
            None => spec,
        };
        let model = Arc::new(Mutex::new(model));
        let (explainers, mean_mask, records, forks) = Default::default();
        Ok(Engine { model, spec, explainers, settings, watch, mean_mask, transfer, records, forks })
    }

    /// The mean of the training masks, of the input's size, for explainers that ask for it.
    pub fn set_mean_mask(&mut self, mask: Vec<f32>) -> Result<()> {
        self.mean_mask = Some(Array::from_vec(&self.spec.input.size, mask)?);
        Ok(())
    }

    /// Images that explainers may run the model on at a time.
    pub fn set_at_once(&mut self, images: usize) {
        self.settings.at_once = images;
    }

    /// What the data source says of images, for explainers that look.
    pub fn set_records(&mut self, records: impl IntoIterator<Item = ImageRecord>) {
        self.records = Arc::new(records.into_iter().map(|r| (image_id(&r.name), r)).collect());
    }

    /// The records of images, in their order; none where one has none.
    pub fn records(&self, ids: &[u64]) -> Vec<ImageRecord> {
        ids.iter().map(|id| self.records.get(id).cloned()).collect::<Option<_>>().unwrap_or_default()
    }

    /// Binds an explainer to the model. Wrong parameters, an unknown site or rule and a plugin that cannot be opened are
    /// errors; "not applicable" is a plan.
    pub fn add(&mut self, file: &Path, choice: &ExplainerChoice) -> Result<()> {
        let plugin = registry::open(file)?;
        let spec = plugin.manifest().explainers.iter().find(|e| e.name == choice.name).cloned();
        let spec = spec.ok_or_else(|| Error::plugin(format!("{} has no explainer {}", file.display(), choice.name)))?;
        let mut choice = choice.clone();
        default_paths(&mut choice.params, &spec.parameters, file);
        let handle = plugin.make_explainer(&choice.name)?;
        self.bind(&handle, spec, file, choice)
    }

    fn bind(
        &mut self,
        handle: &ExplainerHandle,
        spec: ExplainerSpec,
        file: &Path,
        choice: ExplainerChoice,
    ) -> Result<()> {
        let bound = ProcessState::keep(&format!("explainer {}", spec.name), || {
            binding::bind(handle, &self.spec, &self.settings.targets, &choice.params)
        });
        let place = |e: lightbox_sdk::Error| match e.message.starts_with("explainer ") {
            true => Error::from(e),
            false => Error::from(e.context(format!("explainer {}", choice.name))),
        };
        let (bound, mut plan) = bound.map_err(place)?;
        if matches!(&plan, Plan::Run(needs) if needs.mean_mask) && self.mean_mask.is_none() {
            plan = Plan::not_applicable("it needs the mean of the training set's masks, and there is none");
        }
        let label = choice.label().to_string();
        let runs = Arc::new(Counter::default());
        let foreign = self.transfer.clone().filter(|_| spec.cpu_only);
        let runner = proxy::handle(&self.model, &self.spec, &self.watch, foreign, &runs);
        let (file, fitted) = (file.to_path_buf(), BTreeMap::new());
        self.explainers.push(Planned { label, spec, file, plan, runs, choice, bound, fitted, runner });
        Ok(())
    }

    /// Runs an explainer's fit. `batches(rewind)` gives the batches of the training set.
    pub fn fit(
        &self,
        index: usize,
        class: Option<usize>,
        fold: u64,
        training: u64,
        batches: Batches<'_>,
    ) -> Result<Named> {
        let explainer = &self.explainers[index];
        let calls = self.calls(index, Some(batches));
        let serving = Serving::new(&calls);
        let needs_model = explainer.needs().is_some_and(|n| n.model);
        let input = FitInput {
            class,
            seed: seed::derive(self.settings.seed, &format!("fit {}", explainer.spec.name), &[fold, training]),
            runner: needs_model.then(|| explainer.runner.as_ref()),
            host: &serving,
        };
        Ok(ProcessState::keep(&format!("explainer {}", explainer.spec.name), || explainer.bound.fit(input))?)
    }

    /// What explainer `index` may ask of the host.
    fn calls<'a>(&'a self, index: usize, fit: Option<Batches<'a>>) -> Calls<'a> {
        let device = if self.explainers[index].spec.cpu_only { Device::Cpu } else { self.settings.device };
        let preparation = self.settings.preparation.as_ref();
        Calls { watch: self.watch.as_ref(), input: &self.spec.input, device, preparation, fit }
    }

    /// Gives an explainer what its fit handed back.
    pub fn set_fitted(&mut self, index: usize, fitted: Named) {
        self.explainers[index].fitted = fitted.into_iter().collect();
    }

    /// Images in the model's memory.
    fn at_model(&self, images: &Tensor) -> Result<Array> {
        match &self.transfer {
            Some(transfer) => Ok(transfer.to_model(&Array::from_tensor(images)?)?),
            None => Ok(Array::from_tensor(&images.f_to_device(self.settings.device)?)?),
        }
    }

    /// An array of the model's, where explainer `index` can read it.
    pub fn lend(&self, index: usize, array: &Array) -> lightbox_sdk::Result<Array> {
        match self.foreign(index) {
            Some(transfer) => transfer.to_cpu(array),
            None => Ok(array.clone()),
        }
    }

    /// The way to the model's memory, for an explainer whose arrays are not there.
    fn foreign(&self, index: usize) -> Option<&dyn Transfer> {
        self.transfer.as_deref().filter(|_| self.explainers[index].spec.cpu_only)
    }

    /// Runs the model.
    pub fn request(&self, request: &Request) -> Result<Response> {
        self.watch.alive();
        Ok(self.model.lock().unwrap_or_else(PoisonError::into_inner).run(request)?)
    }

    /// The model's parameters.
    pub fn parameters(&self) -> Result<Named> {
        Ok(self.model.lock().unwrap_or_else(PoisonError::into_inner).parameters()?)
    }

    /// A copy of the model with other parameters, without explainers. `key` names it: as many copies are kept as
    /// `KEPT_FORKS` bytes hold, for as long as the model is open, and `edits` is not asked for those again.
    pub fn fork(&self, key: &str, edits: impl FnOnce() -> Result<Named>) -> Result<Engine> {
        let mut forks = self.forks.lock().unwrap_or_else(PoisonError::into_inner);
        let model = match forks.get(key) {
            Some(kept) => kept.clone(),
            None => {
                let edits = edits()?;
                let own = self.model.lock().unwrap_or_else(PoisonError::into_inner);
                let size = |(_, array): &(String, Array)| array.shape().iter().product::<usize>() * size_of::<f32>();
                let bytes: usize = own.parameters()?.iter().map(size).sum();
                let made = Arc::new(Mutex::new(own.fork_with(&edits)?));
                if (forks.len() + 1) * bytes <= KEPT_FORKS {
                    forks.insert(key.to_string(), made.clone());
                }
                made
            }
        };
        Ok(Engine {
            model,
            spec: self.spec.clone(),
            explainers: vec![],
            settings: self.settings.clone(),
            watch: self.watch.clone(),
            mean_mask: self.mean_mask.clone(),
            transfer: self.transfer.clone(),
            records: self.records.clone(),
            forks: Mutex::default(),
        })
    }

    /// Takes over an explainer of another engine, with what it has learned.
    pub fn copy_explainer(&mut self, explainer: &Planned) -> Result<()> {
        self.add(&explainer.file, &explainer.choice)?;
        if let Some(copy) = self.explainers.last_mut() {
            copy.fitted = explainer.fitted.clone();
        }
        Ok(())
    }

    /// An error when the user wants to stop; a sign of life.
    pub fn check(&self) -> lightbox_sdk::Result<()> {
        self.watch.alive();
        match self.watch.cancelled() {
            true => Err(lightbox_sdk::Error::new(lightbox_sdk::ErrorKind::Cancelled, "cancelled")),
            false => Ok(()),
        }
    }

    /// Logits [B, classes], CPU, and nothing else.
    pub fn classify(&self, images: &Tensor) -> Result<Tensor> {
        let response = self.request(&Request::forward(self.at_model(images)?))?;
        self.check_logits(&response.logits, images.size()[0] as usize)
    }

    /// The first output as the model describes it, float32, CPU.
    fn check_logits(&self, logits: &Array, n: usize) -> Result<Tensor> {
        let shape = self.spec.outputs.first().map(|o| o.shape()).unwrap_or_default();
        let wanted = [vec![n], shape].concat();
        if logits.shape() != wanted {
            let (name, shape) = (&self.spec.name, logits.shape());
            return Err(Error::plugin(format!("model {name} gave logits of shape {shape:?}, expected {wanted:?}")));
        }
        Ok(logits.share_tensor()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?)
    }

    /// Runs the model for what the explainers of `active` need together (indices of [`Engine::explainers`]; once, and once
    /// more a set of modified rules), and each of them that applies. A row is an image and what is explained of it, `None`
    /// for the class of its highest logit. `before` is called before each explainer.
    pub fn run(
        &self,
        images: &Tensor,
        wanted: &[Option<Target>],
        ids: &[u64],
        active: &[usize],
        before: &mut dyn FnMut(&Planned),
    ) -> Result<Batch> {
        let n = images.size()[0] as usize;
        let images = self.at_model(images)?;
        let shared = SharedRuns::new(self, &images, wanted, active)?;
        let logits = self.check_logits(&shared.plain()?.logits, n)?;
        if logits.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            return Err(Error::plugin(format!("model {}: its logits are not finite", self.spec.name))
                .hint("are there NaN in the weights?"));
        }
        let targets = shared.targets(wanted, &logits)?;
        let model_seconds = shared.seconds;
        let mut batch = Batch { logits, targets, maps: vec![], seconds: vec![], model_seconds, tampered: None };
        let mut guard = InputGuard::default();
        for &index in active {
            let Some(needs) = self.explainers[index].needs() else { continue };
            before(&self.explainers[index]);
            let call = Call { index, needs, images: &images, ids, targets: &batch.targets, shared: &shared };
            let (outcome, seconds, tampered) = self.explain(&call, &mut guard);
            batch.maps.push((index, outcome));
            batch.seconds.push((index, seconds));
            if tampered {
                batch.tampered = Some(index);
                break;
            }
        }
        Ok(batch)
    }

    /// One explainer's maps, the seconds in its own code, and whether it has written to what it was given.
    fn explain(&self, call: &Call<'_>, guard: &mut InputGuard) -> (lightbox_sdk::Result<Outputs>, f64, bool) {
        let (mut seconds, mut tampered) = (0.0, false);
        let outcome = (|| {
            let explainer = &self.explainers[call.index];
            let calls = self.calls(call.index, None);
            let serving = Serving::new(&calls);
            let cpu = self.foreign(call.index);
            let given = call.given(&self.spec.name, cpu, guard)?;
            // Small, and of this call alone: who writes to it spoils nobody's.
            let mean = self.mean_mask.as_ref().filter(|_| call.needs.mean_mask).map(own).transpose()?;
            let kept: Vec<&Array> = mean.iter().chain(explainer.fitted.values()).collect();
            let kept_sums = kept.iter().map(|a| checksum_of(a)).collect::<lightbox_sdk::Result<Vec<_>>>()?;
            let input = ExplainInput {
                images: given.images.1.clone(),
                targets: call.targets.to_vec(),
                logits: given.logits.1.clone(),
                outputs: given.arrays(&given.outputs),
                ids: call.ids.to_vec(),
                seed: self.settings.seed,
                at_once: self.settings.at_once,
                values: given.arrays(&given.values),
                gradients: given.arrays(&given.gradients),
                others: given.others.iter().map(|set| given.arrays(set)).collect(),
                records: self.records(call.ids),
                plugin_folder: explainer.file.parent().map(Path::to_path_buf),
                mean_mask: mean.clone(),
                fitted: explainer.fitted.clone(),
                runner: call.needs.model.then(|| explainer.runner.as_ref()),
                host: &serving,
            };
            let called = Instant::now();
            let maps =
                ProcessState::keep(&format!("explainer {}", explainer.spec.name), || explainer.bound.explain(input));
            seconds = called.elapsed().as_secs_f64();
            let axes = self.spec.input.size.len();
            let outputs = maps.and_then(|maps| check_maps(maps, call.ids.len(), axes, &explainer.spec.name));
            // Whatever it answered: is all as it was?
            for (key, array) in given.all() {
                tampered |= !guard.is_unchanged(cpu.is_some(), key.clone(), array)?;
            }
            for (array, before) in kept.iter().zip(kept_sums) {
                tampered |= checksum_of(array)? != before;
            }
            outputs
        })();
        (outcome, seconds, tampered)
    }

    /// Images that explainer `index` has run the model on so far.
    pub fn runs(&self, index: usize) -> u64 {
        let passes = self.passes(index);
        passes.forward + passes.partial
    }

    /// Passes that explainer `index` has made so far beyond the shared run, all images together.
    pub fn passes(&self, index: usize) -> Passes {
        self.explainers[index].runs.passes()
    }

    /// Where the model is.
    pub fn device(&self) -> Device {
        self.settings.device
    }
}

/// One call of an explainer.
struct Call<'a> {
    index: usize,
    needs: &'a Needs,
    images: &'a Array,
    ids: &'a [u64],
    targets: &'a [Target],
    shared: &'a SharedRuns,
}

/// An array with the key of its checksum.
type Keyed = (String, Array);

/// What an explainer is given of the shared run: by site, arrays with their keys.
struct Given {
    images: Keyed,
    logits: Keyed,
    outputs: BTreeMap<String, Keyed>,
    values: BTreeMap<String, Keyed>,
    gradients: BTreeMap<String, Keyed>,
    others: Vec<BTreeMap<String, Keyed>>,
}

impl Given {
    fn arrays(&self, set: &BTreeMap<String, Keyed>) -> BTreeMap<String, Array> {
        set.iter().map(|(name, (_, array))| (name.clone(), array.clone())).collect()
    }

    /// All arrays with their keys.
    fn all(&self) -> impl Iterator<Item = &Keyed> {
        let sets = [&self.outputs, &self.values, &self.gradients].into_iter().chain(&self.others);
        sets.flat_map(BTreeMap::values).chain([&self.images, &self.logits])
    }
}

impl Call<'_> {
    /// Arrays of the shared run, where the explainer can read them, each with its checksum taken.
    fn given(&self, model: &str, cpu: Option<&dyn Transfer>, guard: &mut InputGuard) -> lightbox_sdk::Result<Given> {
        let (response, others) = self.shared.of(&self.needs.rules)?;
        let plain = self.shared.plain().map_err(|e| lightbox_sdk::Error::output(e.message))?;
        let prefix = shared_run::rules_key(&self.needs.rules).join("+");
        let mut give =
            |key: String, array: &Array| Ok::<_, lightbox_sdk::Error>((key.clone(), guard.give(cpu, key, array)?));
        let site = |name: &String, from: Option<&BTreeMap<String, Array>>| {
            let found = from.and_then(|f| f.get(name)).cloned();
            found.ok_or_else(|| lightbox_sdk::Error::output(format!("model {model} did not hand back site {name}")))
        };
        let mut values = BTreeMap::new();
        for name in &self.needs.values {
            let array = site(name, Some(&response.values))?;
            values.insert(name.clone(), give(format!("{prefix} value {name}"), &array)?);
        }
        let set_of = |class: Option<&Contrast>| match class {
            None => response.grads.first(),
            Some(class) => others.iter().position(|o| o == class).and_then(|i| response.grads.get(i + 1)),
        };
        let mut gradients = |class: Option<&Contrast>| -> lightbox_sdk::Result<BTreeMap<String, Keyed>> {
            let mut set = BTreeMap::new();
            for name in &self.needs.gradients {
                let key = format!("{prefix} gradient {class:?} {name}");
                set.insert(name.clone(), give(key, &site(name, set_of(class))?)?);
            }
            Ok(set)
        };
        let own = gradients(None)?;
        let others = self.needs.others.iter().map(|c| gradients(Some(c))).collect::<lightbox_sdk::Result<_>>()?;
        let mut outputs = BTreeMap::new();
        for (name, array) in &plain.outputs {
            outputs.insert(name.clone(), give(format!("output {name}"), array)?);
        }
        let images = give("images".into(), self.images)?;
        let logits = give("logits".into(), &plain.logits)?;
        Ok(Given { images, logits, outputs, values, gradients: own, others })
    }
}

#[cfg(test)]
mod tests;
