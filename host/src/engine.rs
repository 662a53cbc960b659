//! One model and its explainers, ready to run on batches.
//!
//! [`Engine::add`] asks every explainer what it needs; [`Engine::run`] merges the answers into one request and serves a
//! batch with one run of the model, whatever the number of explainers. Explainers that want gradients under modified rules
//! share a run a set of rules.
//!
//! Everything that an explainer is given is summed up before its call and after it: one that writes to what it received is
//! named, and what its neighbours saw is computed anew.

mod given;

use crate::error::{Error, Result};
use crate::proxy::{self, Calls, Copies, Counter, Shared, Transfer, Watch};
use crate::registry;
pub(crate) use given::own;
use given::{Given, fingerprint};
use lightbox_core::seed;
use lightbox_sdk::hash::fnv1a;
use lightbox_sdk::host::Serving;
use lightbox_sdk::spec::{
    ExplainerSpec, ImageRecord, ModelOptions, ModelSpec, Needs, OtherClass, ParamSpec, ParamType, Params, Passes, Plan,
};
use lightbox_sdk::{
    Array, DType, ExplainInput, ExplainerHandle, FitBatch, FitInput, Maps, ModelHandle, Named, Objective, Request,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tch::{Device, Kind, Tensor};

/// An explainer as a spec or command line names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainerChoice {
    pub name: String,
    /// The column's title; the name where it is empty.
    #[serde(default)]
    pub label: String,
    #[serde(default)]
    pub params: BTreeMap<String, Value>,
    /// The labels of the models that it explains; all where it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// Of an explainer with several maps: the names of those that the table shows; all where it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub maps: Vec<String>,
}

impl ExplainerChoice {
    /// Parses `name` or `name:param=value,...`.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        let mut params = BTreeMap::new();
        for pair in rest.split(',').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| {
                Error::input(format!(
                    "explainer `{text}`: `{pair}` is not param=value (example: gradcam:layer=features.norm5)"
                ))
            })?;
            params.insert(key.to_string(), Value::from(value));
        }
        if name.is_empty() {
            return Err(Error::input(format!("explainer `{text}` has no name")));
        }
        let label = if params.is_empty() { String::new() } else { text.to_string() };
        Ok(ExplainerChoice { name: name.into(), label, params, models: vec![], maps: vec![] })
    }

    /// What names this choice in tables, files and events.
    pub fn label(&self) -> &str {
        if self.label.is_empty() { &self.name } else { &self.label }
    }
}

/// An explainer that was asked for its plan.
pub struct Planned {
    pub label: String,
    pub spec: ExplainerSpec,
    pub file: PathBuf,
    pub plan: Plan,
    /// Passes beyond the shared run.
    pub runs: Arc<Counter>,
    choice: ExplainerChoice,
    handle: ExplainerHandle,
    params: Params,
    /// What the fit handed back.
    fitted: BTreeMap<String, Array>,
    runner: ModelHandle,
}

impl Planned {
    fn needs(&self) -> Option<&Needs> {
        if let Plan::Run(needs) = &self.plan { Some(needs) } else { None }
    }

    /// What it wants to see of the training set before it explains.
    pub fn fit(&self) -> Option<&lightbox_sdk::spec::FitNeeds> {
        self.needs().and_then(|n| n.fit.as_ref())
    }
}

/// A model and its explainers.
pub struct Engine {
    model: Shared,
    pub spec: ModelSpec,
    pub explainers: Vec<Planned>,
    device: Device,
    seed: u64,
    /// Images that explainers may run the model on at a time; 0 for as many as a batch has.
    at_once: usize,
    /// Images that explainers read keep their colours.
    colour: bool,
    watch: Arc<dyn Watch>,
    mean_mask: Option<Array>,
    /// The way between the model's memory and the CPU's, where they are two.
    transfer: Option<Arc<dyn Transfer>>,
    /// What the data source says of images, by their numbers.
    records: Arc<HashMap<u64, ImageRecord>>,
}

/// The maps of one explainer for a batch.
#[derive(Debug)]
pub struct Outputs {
    /// Names of several maps; one empty name for one map.
    pub names: Vec<String>,
    /// [n, K, h, w] float32, on the device it was made on, memory of its own.
    pub maps: Tensor,
}

impl Outputs {
    /// One of the K maps, [n, h, w].
    pub fn output(&self, k: usize) -> Result<Tensor> {
        Ok(self.maps.f_select(1, k as i64)?)
    }
}

/// What a batch gave. Maps are in the order of [`Engine::explainers`], without those that do not apply.
pub struct Batch {
    /// [B, classes] float32, CPU.
    pub logits: Tensor,
    pub targets: Vec<i64>,
    pub maps: Vec<(usize, std::result::Result<Outputs, lightbox_sdk::Error>)>,
    /// Seconds in each explainer's own code.
    pub seconds: Vec<(usize, f64)>,
    /// Seconds of the model's shared runs.
    pub model_seconds: f64,
    /// The explainer that wrote to what it was given. What others gave in this batch is worth nothing then.
    pub tampered: Option<usize>,
}

/// Builds a model and loads its weights. What the model says of them comes back as sentences.
pub fn load_model(
    file: &Path,
    name: &str,
    options: &ModelOptions,
    weights: Option<&Path>,
) -> Result<(ModelHandle, Vec<String>)> {
    let plugin = registry::open(file)?;
    let mut model = plugin.make_model(name, options)?;
    let mut notes = Vec::new();
    if let Some(path) = weights {
        let state = lightbox_core::checkpoint::read(path)?;
        let mut named = Vec::new();
        for (key, tensor) in &state {
            named.push((key.clone(), Array::from_tensor(tensor)?));
        }
        let report = model.load(&named).map_err(|e| Error::input(format!("{}: {e}", path.display())))?;
        notes.extend(report.notes);
        if !report.unused.is_empty() {
            let (n, first) = (report.unused.len(), &report.unused[0]);
            notes.push(format!("{n} entries of {} were not used, first {first}", path.display()));
        }
    }
    Ok((model, notes))
}

/// A stable number of an image by its name, whatever stands beside it.
pub fn image_id(name: &str) -> u64 {
    fnv1a(name.bytes())
}

/// A host whose calls reach nobody, for tests of plugins: cancelled by Ctrl-C, lines go to stderr.
pub fn terminal() -> Arc<dyn Watch> {
    Arc::new(proxy::Terminal::default())
}

impl Engine {
    pub fn new(model: ModelHandle, device: Device, seed: u64, watch: Arc<dyn Watch>) -> Result<Self> {
        let copies = || Arc::new(Copies(device)) as Arc<dyn Transfer>;
        Engine::over(model, device, seed, watch, (device != Device::Cpu).then(copies))
    }

    /// As [`Engine::new`], with a way to the model's memory other than libtorch's copies.
    pub fn over(
        model: ModelHandle,
        device: Device,
        seed: u64,
        watch: Arc<dyn Watch>,
        transfer: Option<Arc<dyn Transfer>>,
    ) -> Result<Self> {
        let spec = model.spec()?;
        let model = Arc::new(Mutex::new(model));
        let (explainers, mean_mask, records) = Default::default();
        Ok(Engine {
            model,
            spec,
            explainers,
            device,
            seed,
            at_once: 0,
            colour: false,
            watch,
            mean_mask,
            transfer,
            records,
        })
    }

    /// The mean of the training masks, [H, W], for explainers that ask for it.
    pub fn set_mean_mask(&mut self, mask: Vec<f32>, side: usize) -> Result<()> {
        self.mean_mask = Some(Array::from_vec(&[side, side], mask)?);
        Ok(())
    }

    /// How many images explainers may run the model on at a time: what a run's batch size says of the memory there is.
    pub fn set_at_once(&mut self, images: usize) {
        self.at_once = images;
    }

    /// Whether images that explainers read themselves keep their colours, as those of the run do.
    pub fn set_colour(&mut self, colour: bool) {
        self.colour = colour;
    }

    /// What the data source says of images, for explainers that look.
    pub fn set_records(&mut self, records: impl IntoIterator<Item = ImageRecord>) {
        self.records = Arc::new(records.into_iter().map(|r| (image_id(&r.name), r)).collect());
    }

    /// The records of images, in their order; none where one has none.
    pub fn records(&self, ids: &[u64]) -> Vec<ImageRecord> {
        ids.iter().map(|id| self.records.get(id).cloned()).collect::<Option<_>>().unwrap_or_default()
    }

    /// Opens an explainer and asks for its needs. Wrong parameters, an unknown site or rule and a plugin that cannot be
    /// opened are errors; "not applicable" is a plan.
    pub fn add(&mut self, file: &Path, choice: &ExplainerChoice) -> Result<()> {
        let plugin = registry::open(file)?;
        let spec = plugin.manifest.explainers.iter().find(|e| e.name == choice.name).cloned();
        let spec = spec.ok_or_else(|| Error::plugin(format!("{} has no explainer {}", file.display(), choice.name)))?;
        let mut choice = choice.clone();
        default_paths(&mut choice.params, &spec.parameters, file);
        let params = Params::resolve(&spec.parameters, &choice.params)
            .map_err(|e| Error::input(format!("explainer {}: {e}", choice.name)))?;
        let handle = plugin.make_explainer(&choice.name)?;
        self.plan(handle, spec, file, choice, params)
    }

    /// Asks an explainer for its needs.
    fn plan(
        &mut self,
        handle: ExplainerHandle,
        spec: ExplainerSpec,
        file: &Path,
        choice: ExplainerChoice,
        params: Params,
    ) -> Result<()> {
        let mut plan = with_rules(handle.plan(&self.spec, &params)?, &self.spec);
        if let Plan::Run(needs) = &plan {
            let place = |e: lightbox_sdk::Error| Error::from(e.context(format!("explainer {}", choice.name)));
            needs.check_requires().map_err(place)?;
            needs.check_others(self.spec.classes).map_err(place)?;
            let fit = needs.fit.iter().flat_map(|f| &f.values);
            for site in needs.values.iter().chain(&needs.gradients).chain(fit) {
                self.spec.site(site).map_err(place)?;
            }
            if let Err(e) = self.spec.check_rules(&needs.rules) {
                return Err(place(e));
            } else if needs.mean_mask && self.mean_mask.is_none() {
                plan = Plan::not_applicable("it needs the mean of the training set's masks, and there is none");
            }
        }
        let label = choice.label().to_string();
        let runs = Arc::new(Counter::default());
        let foreign = self.transfer.clone().filter(|_| spec.cpu_only);
        let runner = proxy::handle(&self.model, &self.spec, &self.watch, foreign, &runs);
        let (file, fitted) = (file.to_path_buf(), BTreeMap::new());
        self.explainers.push(Planned { label, spec, file, plan, runs, choice, handle, params, fitted, runner });
        Ok(())
    }

    /// Runs an explainer's fit. `batches(rewind)` gives the batches of the training set.
    pub fn fit(
        &self,
        index: usize,
        target: Option<i64>,
        fold: u64,
        training: u64,
        batches: &dyn Fn(bool) -> std::result::Result<Option<FitBatch>, lightbox_sdk::Error>,
    ) -> Result<Named> {
        let explainer = &self.explainers[index];
        let calls = self.calls(index, Some(batches));
        let serving = Serving::new(&calls);
        let needs_model = explainer.needs().is_some_and(|n| n.model);
        Ok(explainer.handle.fit(FitInput {
            model: &self.spec,
            params: &explainer.params,
            target,
            seed: seed::derive(self.seed, &format!("fit {}", explainer.spec.name), &[fold, training]),
            runner: needs_model.then(|| explainer.runner.as_ref()),
            host: &serving,
        })?)
    }

    /// What explainer `index` may ask of the host.
    fn calls<'a>(
        &'a self,
        index: usize,
        fit: Option<&'a dyn Fn(bool) -> std::result::Result<Option<FitBatch>, lightbox_sdk::Error>>,
    ) -> Calls<'a> {
        let device = if self.explainers[index].spec.cpu_only { Device::Cpu } else { self.device };
        Calls { watch: self.watch.as_ref(), input: &self.spec.input, device, colour: self.colour, fit }
    }

    /// Gives an explainer what its fit handed back.
    pub fn set_fitted(&mut self, index: usize, fitted: Named) {
        self.explainers[index].fitted = fitted.into_iter().collect();
    }

    /// Images in the model's memory.
    fn at_model(&self, images: &Tensor) -> Result<Array> {
        match &self.transfer {
            Some(transfer) => Ok(transfer.to_model(&Array::from_tensor(images)?)?),
            None => Ok(Array::from_tensor(&images.f_to_device(self.device)?)?),
        }
    }

    /// An array of the model's, where explainer `index` can read it.
    pub fn lend(&self, index: usize, array: &Array) -> std::result::Result<Array, lightbox_sdk::Error> {
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
    pub fn request(&self, request: &Request) -> Result<lightbox_sdk::Response> {
        self.watch.alive();
        Ok(self.model.lock().unwrap_or_else(PoisonError::into_inner).run(request)?)
    }

    /// The model's parameters.
    pub fn parameters(&self) -> Result<Named> {
        Ok(self.model.lock().unwrap_or_else(PoisonError::into_inner).parameters()?)
    }

    /// A copy of the model with other parameters, without explainers.
    pub fn fork(&self, edits: &Named) -> Result<Engine> {
        let fork = self.model.lock().unwrap_or_else(PoisonError::into_inner).fork_with(edits)?;
        let mut fork = Engine::over(fork, self.device, self.seed, self.watch.clone(), self.transfer.clone())?;
        fork.mean_mask = self.mean_mask.clone();
        fork.at_once = self.at_once;
        fork.colour = self.colour;
        fork.records = self.records.clone();
        Ok(fork)
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
    pub fn check(&self) -> std::result::Result<(), lightbox_sdk::Error> {
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

    /// Logits as [n, classes] float32, CPU.
    fn check_logits(&self, logits: &Array, n: usize) -> Result<Tensor> {
        let wanted = [n, self.spec.classes];
        if logits.shape() != wanted {
            let (name, shape) = (&self.spec.name, logits.shape());
            return Err(Error::plugin(format!("model {name} gave logits of shape {shape:?}, expected {wanted:?}")));
        }
        Ok(logits.share_tensor()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?)
    }

    /// Runs the model for what the explainers of `active` need together (indices of [`Engine::explainers`]; once, and once
    /// more a set of modified rules), and each of them that applies.
    /// `targets` are classes, a negative one for the image's highest logit. `before` is called before each explainer.
    pub fn run(
        &self,
        images: &Tensor,
        targets: &[i64],
        ids: &[u64],
        active: &[usize],
        before: &mut dyn FnMut(&Planned),
    ) -> Result<Batch> {
        let n = images.size()[0] as usize;
        let images = self.at_model(images)?;
        let wanted = Array::from_vec(&[n], targets.to_vec())?;
        // The explainers of each set of rules; the plain set is first and runs in any case.
        let mut groups: BTreeMap<Vec<String>, Needs> = BTreeMap::from([Default::default()]);
        for needs in active.iter().filter_map(|&i| self.explainers[i].needs()) {
            let group = groups.entry(rules(needs)).or_default();
            merge(&mut group.values, &needs.values);
            merge(&mut group.gradients, &needs.gradients);
            merge(&mut group.others, &needs.others);
        }
        let (mut responses, mut model_seconds) = (BTreeMap::new(), 0.0);
        for (rules, needs) in groups {
            let needs = Needs { rules: rules.clone(), ..needs };
            self.watch.alive();
            let model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
            let asked = std::time::Instant::now();
            let response = model.run(&shared(&images, &wanted, &needs)?);
            model_seconds += asked.elapsed().as_secs_f64();
            // Without rules it is the model's own run; what goes wrong under rules is the matter of those who asked for them.
            let response = if rules.is_empty() { Ok(response?) } else { response };
            responses.insert(rules, (response, needs.others));
        }
        let Some((Ok(plain), _)) = responses.get(&Vec::new()) else {
            return Err(Error::plugin("the model was not run"));
        };
        let logits = self.check_logits(&plain.logits, n)?;
        if logits.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            return Err(Error::plugin(format!(
                "model {}: its logits are not finite (hint: are there NaN in the weights?)",
                self.spec.name
            )));
        }
        let first = Vec::<i64>::try_from(logits.f_argmax(1, false)?)?;
        let targets: Vec<i64> = targets.iter().zip(first).map(|(&w, f)| if w < 0 { f } else { w }).collect();

        let mut batch = Batch { logits, targets, maps: vec![], seconds: vec![], model_seconds, tampered: None };
        let mut given = Given::default();
        for &index in active {
            let explainer = &self.explainers[index];
            let Some(needs) = explainer.needs() else { continue };
            let Some((response, others)) = responses.get(&rules(needs)) else { continue };
            before(explainer);
            let response = match response {
                Ok(response) => response,
                Err(e) => {
                    batch.maps.push((index, Err(e.clone())));
                    continue;
                }
            };
            let cpu = self.foreign(index);
            let prefix = rules(needs).join("+");
            let gradients_of = |class: Option<&OtherClass>| {
                let place = class.map_or(Some(0), |c| others.iter().position(|o| o == c).map(|i| i + 1));
                place.and_then(|i| response.grads.get(i)).unwrap_or(&NO_GRADIENTS)
            };
            let site = |name: &String, from: &BTreeMap<String, Array>| {
                from.get(name).cloned().ok_or_else(|| {
                    let model = &self.spec.name;
                    lightbox_sdk::Error::output(format!("model {model} did not hand back site {name}"))
                })
            };
            let mut seconds = 0.0;
            let outcome = (|| {
                let calls = self.calls(index, None);
                let serving = Serving::new(&calls);
                let (mut values, mut grads) = (BTreeMap::new(), BTreeMap::new());
                for name in &needs.values {
                    let array = site(name, &response.values)?;
                    values.insert(name.clone(), given.give(cpu, format!("{prefix} value {name}"), &array)?);
                }
                for name in &needs.gradients {
                    let array = site(name, gradients_of(None))?;
                    grads.insert(name.clone(), given.give(cpu, format!("{prefix} gradient {name}"), &array)?);
                }
                let mut other_grads = Vec::new();
                for class in &needs.others {
                    let mut set = BTreeMap::new();
                    for name in &needs.gradients {
                        let array = site(name, gradients_of(Some(class)))?;
                        let key = format!("{prefix} gradient {class:?} {name}");
                        set.insert(name.clone(), given.give(cpu, key, &array)?);
                    }
                    other_grads.push(set);
                }
                let own_images = given.give(cpu, "images".into(), &images)?;
                let own_logits = given.give(cpu, "logits".into(), &plain.logits)?;
                // Small, and of this call alone: who writes to it spoils nobody's.
                let mean = self.mean_mask.as_ref().filter(|_| needs.mean_mask).map(own).transpose()?;
                let kept: Vec<&Array> = mean.iter().chain(explainer.fitted.values()).collect();
                let kept_sums = kept.iter().map(|a| fingerprint(a)).collect::<std::result::Result<Vec<_>, _>>()?;
                let input = ExplainInput {
                    images: own_images.clone(),
                    targets: Array::from_vec(&[n], batch.targets.clone())?,
                    logits: own_logits.clone(),
                    ids: ids.to_vec(),
                    model: &self.spec,
                    params: &explainer.params,
                    seed: self.seed,
                    at_once: self.at_once,
                    values: values.clone(),
                    gradients: grads.clone(),
                    others: other_grads.clone(),
                    records: self.records(ids),
                    plugin_folder: explainer.file.parent().map(Path::to_path_buf),
                    mean_mask: mean.clone(),
                    fitted: explainer.fitted.clone(),
                    runner: needs.model.then(|| explainer.runner.as_ref()),
                    host: &serving,
                };
                let called = std::time::Instant::now();
                let maps = explainer.handle.explain(input);
                seconds = called.elapsed().as_secs_f64();
                let outputs = maps.and_then(|maps| check_maps(maps, n, &explainer.spec.name));
                // Whatever it answered: is all as it was?
                let keyed = values.iter().map(|(name, a)| (format!("{prefix} value {name}"), a));
                let keyed = keyed.chain(grads.iter().map(|(name, a)| (format!("{prefix} gradient {name}"), a)));
                let of = |(class, set): (&OtherClass, &'_ BTreeMap<String, Array>)| {
                    let name = |name: &String| format!("{prefix} gradient {class:?} {name}");
                    set.iter().map(|(n, a)| (name(n), a.clone())).collect::<Vec<_>>()
                };
                let of_others: Vec<(String, Array)> = needs.others.iter().zip(&other_grads).flat_map(of).collect();
                let keyed = keyed.chain(of_others.iter().map(|(key, a)| (key.clone(), a)));
                for (key, array) in keyed.chain([("images".into(), &own_images), ("logits".into(), &own_logits)]) {
                    if !given.is_unchanged(cpu.is_some(), key, array)? {
                        batch.tampered = Some(index);
                    }
                }
                for (array, before) in kept.iter().zip(kept_sums) {
                    if fingerprint(array)? != before {
                        batch.tampered = Some(index);
                    }
                }
                outputs
            })();
            batch.maps.push((index, outcome));
            batch.seconds.push((index, seconds));
            if batch.tampered.is_some() {
                break;
            }
        }
        Ok(batch)
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

    pub fn device(&self) -> Device {
        self.device
    }
}

/// What a run without gradients has.
static NO_GRADIENTS: BTreeMap<String, Array> = BTreeMap::new();

/// What names a set of rules.
fn rules(needs: &Needs) -> Vec<String> {
    let mut rules = needs.rules.clone();
    rules.sort();
    rules.dedup();
    rules
}

/// The request that serves an explainer, or several.
pub(crate) fn shared(
    images: &Array,
    targets: &Array,
    needs: &Needs,
) -> std::result::Result<Request, lightbox_sdk::Error> {
    let mut request = Request::explain(images.clone(), targets.clone(), &needs.values, &needs.gradients);
    let n = request.batch();
    for class in &needs.others {
        let class = match *class {
            OtherClass::Class(class) => class as i64,
            OtherClass::Rank(rank) => -(rank as i64) - 1,
        };
        request.objectives.push(vec![Objective::Class(Array::from_vec(&[n], vec![class; n])?)]);
    }
    Ok(Request { rules: needs.rules.clone(), ..request })
}

/// A plan as the host takes it: not applicable where the model lacks one of its rules.
pub(crate) fn with_rules(plan: Plan, model: &ModelSpec) -> Plan {
    match plan {
        Plan::Other => Plan::not_applicable("its answer is of a newer SDK than this host's"),
        Plan::Run(needs) => match needs.rules.iter().find(|r| !model.has_rule(r)) {
            Some(rule) => Plan::not_applicable(format!("{} has no rule {rule}", model.name)),
            None => Plan::Run(needs),
        },
        other => other,
    }
}

/// Fills in those parameters that are paths and not given: their defaults are relative to the folder of the plugin.
pub(crate) fn default_paths(params: &mut BTreeMap<String, Value>, known: &[ParamSpec], file: &Path) {
    let missing = known.iter().filter(|p| p.kind == ParamType::Path && !params.contains_key(&p.name));
    let defaults = missing.filter_map(|p| Some((&p.name, p.default.as_str().filter(|d| !d.is_empty())?)));
    let folder = file.parent().unwrap_or(Path::new("."));
    let found: Vec<(String, Value)> =
        defaults.map(|(name, d)| (name.clone(), Value::from(folder.join(d).to_string_lossy()))).collect();
    params.extend(found);
}

fn merge<T: Clone + PartialEq>(all: &mut Vec<T>, more: &[T]) {
    for site in more {
        if !all.contains(site) {
            all.push(site.clone());
        }
    }
}

/// What a fit hands back is arrays with printable names of their own, at least one.
pub fn check_fitted(fitted: &Named, name: &str) -> std::result::Result<(), lightbox_sdk::Error> {
    let bad = |text: String| Err(lightbox_sdk::Error::output(format!("explainer {name}: its fit handed back {text}")));
    for (i, (key, _)) in fitted.iter().enumerate() {
        if key.is_empty() || key.chars().any(char::is_control) {
            return bad(format!("an array called {key:?}"));
        }
        if fitted[..i].iter().any(|(other, _)| other == key) {
            return bad(format!("two arrays called {key}"));
        }
    }
    if fitted.is_empty() { bad("nothing".into()) } else { Ok(()) }
}

/// The sentence about an explainer that wrote to its input.
pub fn tampered(name: &str) -> lightbox_sdk::Error {
    lightbox_sdk::Error::output(format!(
        "explainer {name} wrote to what it was given; its neighbours' maps were made anew"
    ))
}

/// Maps must be [n, h, w], or [n, K, h, w] with K names, float32. Whether values are finite is each image's own matter.
fn check_maps(maps: Maps, n: usize, name: &str) -> std::result::Result<Outputs, lightbox_sdk::Error> {
    let bad = |text: String| lightbox_sdk::Error::output(format!("explainer {name} {text}"));
    let shape = maps.array.shape();
    let k = maps.names.len();
    let fits = match (shape.as_slice(), k) {
        ([b, h, w], 0) => *b == n && *h > 0 && *w > 0,
        ([b, c, h, w], _) => *b == n && *c == k && k > 0 && *h > 0 && *w > 0,
        _ => false,
    };
    if !fits {
        let wanted = if k == 0 { format!("[{n}, h, w]") } else { format!("[{n}, {k}, h, w]") };
        return Err(bad(format!("gave a map of shape {shape:?}, expected {wanted}")));
    }
    let mut sorted = maps.names.clone();
    sorted.sort();
    let unusable = |s: &String| s.is_empty() || s.chars().any(char::is_control);
    if sorted.windows(2).any(|w| w[0] == w[1]) || sorted.iter().any(unusable) {
        return Err(bad(format!("names its maps {:?}: each needs a printable name of its own", maps.names)));
    }
    if maps.array.dtype() != DType::F32 {
        return Err(bad(format!("gave a map of {:?}, expected F32", maps.array.dtype())));
    }
    let tensor = maps.array.share_tensor()?;
    let (h, w) = (shape[shape.len() - 2] as i64, shape[shape.len() - 1] as i64);
    // The plugin may use its memory again.
    let copy = tensor.f_reshape([n as i64, k.max(1) as i64, h, w])?.f_contiguous()?;
    let mut own = copy.f_empty_like()?;
    own.f_copy_(&copy)?;
    Ok(Outputs { names: if k == 0 { vec![String::new()] } else { maps.names }, maps: own })
}

#[cfg(test)]
mod tests;
