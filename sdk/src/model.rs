//! Models: what an author implements, and what a caller (the host, an explainer) holds.

use crate::abi::{self, HostCalls, Message, ModelAbi, ModelAbi_TO, ModelBox, TrainerAbi, TrainerAbi_TO, TrainerBox};
use crate::spec::{LoadReport, ModelOptions, ModelSpec, TrainerOptions};
use crate::{Array, Error, Result};
use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{RResult, RStr, RString};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::mem::ManuallyDrop;

/// Arrays by name, in a fixed order.
pub type Named = Vec<(String, Array)>;

/// A change to a site's value before anything downstream sees it.
#[derive(Debug, Clone)]
pub struct Patch {
    pub site: String,
    /// Multiplies the value; broadcasts against it.
    pub scale: Option<Array>,
    /// Is then added; broadcasts against it.
    pub shift: Option<Array>,
}

/// What a set of gradients is of: the sum over its parts.
#[derive(Debug, Clone)]
pub enum Seed {
    /// Each image's logit of a class, [B] i64; a negative entry means the class that this very run ranks first.
    Class(Array),
    /// `sum(tensor * value of the site)`, `tensor` of the site's shape.
    Site(String, Array),
}

/// One run of a model. Sites are named by [`ModelSpec::sites`].
#[derive(Debug, Clone)]
pub struct Request {
    /// [B, C, H, W] float32, normalised as [`ModelSpec::input`] says.
    pub images: Array,
    pub patches: Vec<Patch>,
    /// Sites whose values (after patches) are to be handed back.
    pub values: Vec<String>,
    /// Each seed set yields the gradient of its sum with respect to every site of `grads`.
    pub seeds: Vec<Vec<Seed>>,
    /// Differentiate with respect to the values of these sites (after patches).
    pub grads: Vec<String>,
    /// Modified backward rules; each must be in [`ModelSpec::rules`].
    pub rules: Vec<String>,
}

impl Request {
    /// A plain forward pass.
    pub fn forward(images: Array) -> Self {
        let (patches, values, seeds, grads, rules) = Default::default();
        Request { images, patches, values, seeds, grads, rules }
    }

    /// A forward pass that also hands back values and gradients of the classes' logits.
    pub fn explain(images: Array, targets: Array, values: &[String], grads: &[String]) -> Self {
        let seeds = if grads.is_empty() { vec![] } else { vec![vec![Seed::Class(targets)]] };
        Request { values: values.to_vec(), grads: grads.to_vec(), seeds, ..Request::forward(images) }
    }
}

/// What a run gives back. Arrays are on the model's device.
#[derive(Debug, Clone)]
pub struct Response {
    /// [B, classes] float32.
    pub logits: Array,
    pub values: BTreeMap<String, Array>,
    /// One map a seed set, from site to gradient, each of the site's shape.
    pub grads: Vec<BTreeMap<String, Array>>,
}

/// A model, as its author writes it: a stateless function with named sites.
///
/// The host makes one instance a worker and calls it on one thread at a time, the thread that owns the device.
/// No method may change global state (grad mode, thread count, random generators) or write to what it receives.
pub trait Model: Send {
    /// Called at any time; must not compute.
    fn spec(&self) -> ModelSpec;

    /// Called once a batch, in inference mode. The same request gives the same response, whatever came before.
    /// Parts that need no gradient must not record one.
    fn run(&self, request: &Request) -> Result<Response>;

    /// The parameters and buffers under the checkpoint's names. Arrays may share the model's memory.
    fn parameters(&self) -> Result<Named>;

    /// Replaces parameters; called once, before the first `run`. Entries may have older names, which the model maps;
    /// another number of classes keeps the trunk and reports the head as new. A missing or misshapen trunk
    /// parameter is an error and leaves the model as it was.
    fn load(&mut self, parameters: Named) -> Result<LoadReport>;

    /// A copy with some parameters replaced. `self` is not changed.
    fn fork_with(&self, edits: Named) -> Result<Box<dyn Model>>;

    /// A trainer that starts from a copy of the present parameters.
    fn trainer(&self, options: &TrainerOptions) -> Result<Box<dyn Trainer>> {
        let _ = options;
        Err(Error::unsupported("this model cannot be trained"))
    }
}

/// Trains a copy of a model. Called on one thread, the one that made it.
pub trait Trainer: Send {
    /// One optimiser step on `images` [B, C, H, W] with classes `targets` [B] i64; the batch's mean loss.
    fn step(&mut self, images: &Array, targets: &Array) -> Result<f64>;

    /// Called before an epoch.
    fn set_learning_rate(&mut self, rate: f64) -> Result<()>;

    /// Logits [B, classes] in inference mode.
    fn evaluate(&mut self, images: &Array) -> Result<Array>;

    /// A copy of the present parameters and buffers, CPU, contiguous, under the checkpoint's names.
    fn parameters(&self) -> Result<Named>;

    /// A copy of the optimiser's state: with `parameters`, all that a continued training needs.
    fn state(&self) -> Result<Named>;

    /// Continues from what `parameters` and `state` gave.
    fn restore(&mut self, parameters: Named, state: Named) -> Result<()>;
}

/// A model that a plugin offers. Made by [`register_model!`](crate::register_model).
pub struct ModelEntry {
    pub name: &'static str,
    pub spec: fn(&ModelOptions) -> Result<ModelSpec>,
    pub make: fn(&ModelOptions) -> Result<Box<dyn Model>>,
}
inventory::collect!(ModelEntry);

// ------------------------------------------------------------------------------------------------ messages

#[derive(Serialize, Deserialize)]
struct PatchWire {
    site: String,
    scale: Option<usize>,
    shift: Option<usize>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum SeedWire {
    Class(usize),
    Site(String, usize),
}

#[derive(Serialize, Deserialize)]
struct RequestWire {
    images: usize,
    #[serde(default)]
    patches: Vec<PatchWire>,
    #[serde(default)]
    values: Vec<String>,
    #[serde(default)]
    seeds: Vec<Vec<SeedWire>>,
    #[serde(default)]
    grads: Vec<String>,
    #[serde(default)]
    rules: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct ResponseWire {
    logits: usize,
    values: BTreeMap<String, usize>,
    grads: Vec<BTreeMap<String, usize>>,
}

/// Collects the arrays of a message.
#[derive(Default)]
pub(crate) struct Packer(Vec<abi::WireTensor>);

impl Packer {
    pub(crate) fn add(&mut self, array: &Array) -> usize {
        self.0.push(array.to_wire());
        self.0.len() - 1
    }

    pub(crate) fn add_map(&mut self, map: &BTreeMap<String, Array>) -> BTreeMap<String, usize> {
        map.iter().map(|(name, array)| (name.clone(), self.add(array))).collect()
    }

    pub(crate) fn finish<T: Serialize>(self, header: &T) -> Result<Message> {
        Ok(Message { json: abi::print(header)?, tensors: self.0.into() })
    }
}

/// The arrays of a message that was received, all checked.
pub(crate) struct Unpacker(Vec<Array>);

impl Unpacker {
    pub(crate) fn open<T: serde::de::DeserializeOwned>(message: Message) -> Result<(T, Self)> {
        let header = abi::parse(&message.json)?;
        let arrays = message.tensors.into_iter().map(Array::from_wire).collect::<Result<_>>()?;
        Ok((header, Unpacker(arrays)))
    }

    pub(crate) fn get(&self, index: usize) -> Result<Array> {
        let count = self.0.len();
        let found = self.0.get(index).cloned();
        found.ok_or_else(|| Error::invalid(format!("malformed message: array {index} of {count}")))
    }

    pub(crate) fn map(&self, indices: BTreeMap<String, usize>) -> Result<BTreeMap<String, Array>> {
        indices.into_iter().map(|(name, i)| Ok((name, self.get(i)?))).collect()
    }
}

pub(crate) fn pack_named(named: &Named) -> Result<Message> {
    let mut packer = Packer::default();
    let names: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
    named.iter().for_each(|(_, array)| {
        packer.add(array);
    });
    packer.finish(&names)
}

pub(crate) fn unpack_named(message: Message) -> Result<Named> {
    let (names, arrays): (Vec<String>, _) = Unpacker::open(message)?;
    names.into_iter().enumerate().map(|(i, name)| Ok((name, arrays.get(i)?))).collect()
}

impl Request {
    fn pack(&self) -> Result<Message> {
        let mut packer = Packer::default();
        let images = packer.add(&self.images);
        let mut patches = Vec::new();
        for patch in &self.patches {
            let scale = patch.scale.as_ref().map(|a| packer.add(a));
            let shift = patch.shift.as_ref().map(|a| packer.add(a));
            patches.push(PatchWire { site: patch.site.clone(), scale, shift });
        }
        let mut seed = |seed: &Seed| match seed {
            Seed::Class(targets) => SeedWire::Class(packer.add(targets)),
            Seed::Site(site, tensor) => SeedWire::Site(site.clone(), packer.add(tensor)),
        };
        let seeds = self.seeds.iter().map(|set| set.iter().map(&mut seed).collect()).collect();
        let (values, grads, rules) = (self.values.clone(), self.grads.clone(), self.rules.clone());
        packer.finish(&RequestWire { images, patches, values, seeds, grads, rules })
    }

    fn unpack(message: Message) -> Result<Self> {
        let (wire, arrays): (RequestWire, _) = Unpacker::open(message)?;
        let optional = |i: Option<usize>| i.map(|i| arrays.get(i)).transpose();
        let patch = |p: PatchWire| Ok(Patch { site: p.site, scale: optional(p.scale)?, shift: optional(p.shift)? });
        let seed = |s| {
            Ok(match s {
                SeedWire::Class(i) => Seed::Class(arrays.get(i)?),
                SeedWire::Site(site, i) => Seed::Site(site, arrays.get(i)?),
            })
        };
        Ok(Request {
            images: arrays.get(wire.images)?,
            patches: wire.patches.into_iter().map(patch).collect::<Result<_>>()?,
            values: wire.values,
            seeds: wire
                .seeds
                .into_iter()
                .map(|set| set.into_iter().map(seed).collect::<Result<Vec<_>>>())
                .collect::<Result<_>>()?,
            grads: wire.grads,
            rules: wire.rules,
        })
    }

    /// Refuses sites and rules that the model does not have, and images of another shape.
    fn check(&self, spec: &ModelSpec) -> Result<()> {
        let [b, c, h, w] = self.images.dims("images")?;
        let input = &spec.input;
        if b == 0 || (c, h, w) != (input.channels, input.height, input.width) {
            let (ic, ih, iw) = (input.channels, input.height, input.width);
            return Err(Error::invalid(format!(
                "images have shape [{b}, {c}, {h}, {w}], model {} takes [B, {ic}, {ih}, {iw}] with B of at least 1",
                spec.name
            )));
        }
        if self.images.dtype() != crate::DType::F32 {
            return Err(Error::invalid(format!("images are {:?}, expected F32", self.images.dtype())));
        }
        for site in self.values.iter().chain(&self.grads).chain(self.patches.iter().map(|p| &p.site)) {
            spec.site(site)?;
        }
        for seed in self.seeds.iter().flatten() {
            match seed {
                Seed::Site(site, _) => {
                    spec.site(site)?;
                }
                Seed::Class(targets) => {
                    let [n] = targets.dims("targets")?;
                    if n != b {
                        return Err(Error::invalid(format!("{n} targets for {b} images")));
                    }
                }
            }
        }
        if let Some(rule) = self.rules.iter().find(|r| !spec.rules.contains(r)) {
            return Err(Error::unsupported(format!("model {} has no rule {rule}", spec.name)));
        }
        Ok(())
    }
}

impl Response {
    fn pack(&self) -> Result<Message> {
        let mut packer = Packer::default();
        let logits = packer.add(&self.logits);
        let values = packer.add_map(&self.values);
        let grads = self.grads.iter().map(|set| packer.add_map(set)).collect();
        packer.finish(&ResponseWire { logits, values, grads })
    }

    fn unpack(message: Message) -> Result<Self> {
        let (wire, arrays): (ResponseWire, _) = Unpacker::open(message)?;
        Ok(Response {
            logits: arrays.get(wire.logits)?,
            values: arrays.map(wire.values)?,
            grads: wire.grads.into_iter().map(|set| arrays.map(set)).collect::<Result<_>>()?,
        })
    }
}

// ------------------------------------------------------------------------------------------ the caller's side

/// A model in some library, owned. Every failure in it comes back as an [`Error`].
pub struct ModelHandle(ModelBox);

/// A model in some library, borrowed for a call: what an explainer gets.
#[derive(Clone, Copy)]
pub struct ModelRef<'a>(pub(crate) &'a ModelBox);

impl ModelHandle {
    #[doc(hidden)]
    pub fn from_abi(model: ModelBox) -> Self {
        ModelHandle(model)
    }

    pub fn as_ref(&self) -> ModelRef<'_> {
        ModelRef(&self.0)
    }

    pub fn spec(&self) -> Result<ModelSpec> {
        self.as_ref().spec()
    }

    pub fn run(&self, request: &Request) -> Result<Response> {
        self.as_ref().run(request)
    }

    /// See [`Model::parameters`].
    pub fn parameters(&self) -> Result<Named> {
        unpack_named(abi::receive(self.0.parameters())?)
    }

    /// See [`Model::load`].
    pub fn load(&mut self, parameters: &Named) -> Result<LoadReport> {
        abi::parse(&abi::receive(self.0.load(pack_named(parameters)?))?)
    }

    /// See [`Model::fork_with`].
    pub fn fork_with(&self, edits: &Named) -> Result<ModelHandle> {
        Ok(ModelHandle(abi::receive(self.0.fork_with(pack_named(edits)?))?))
    }

    /// See [`Model::trainer`].
    pub fn trainer(&self, options: &TrainerOptions) -> Result<TrainerHandle> {
        Ok(TrainerHandle(abi::receive(self.0.trainer(abi::print(options)?))?))
    }
}

impl ModelRef<'_> {
    pub fn spec(&self) -> Result<ModelSpec> {
        abi::parse(&abi::receive(self.0.spec())?)
    }

    /// See [`Model::run`].
    pub fn run(&self, request: &Request) -> Result<Response> {
        Response::unpack(abi::receive(self.0.run(request.pack()?))?)
    }
}

/// A trainer in some library.
pub struct TrainerHandle(TrainerBox);

impl TrainerHandle {
    /// See [`Trainer::step`].
    pub fn step(&mut self, images: &Array, targets: &Array) -> Result<f64> {
        let batch = vec![("images".into(), images.clone()), ("targets".into(), targets.clone())];
        abi::receive(self.0.step(pack_named(&batch)?))
    }

    /// See [`Trainer::set_learning_rate`].
    pub fn set_learning_rate(&mut self, rate: f64) -> Result<()> {
        abi::receive(self.0.set_learning_rate(rate))
    }

    /// See [`Trainer::evaluate`].
    pub fn evaluate(&mut self, images: &Array) -> Result<Array> {
        let reply = abi::receive(self.0.evaluate(pack_named(&vec![("images".into(), images.clone())])?))?;
        take(unpack_named(reply)?, "logits")
    }

    /// See [`Trainer::parameters`].
    pub fn parameters(&self) -> Result<Named> {
        unpack_named(abi::receive(self.0.parameters())?)
    }

    /// See [`Trainer::state`].
    pub fn state(&self) -> Result<Named> {
        unpack_named(abi::receive(self.0.state())?)
    }

    /// See [`Trainer::restore`].
    pub fn restore(&mut self, parameters: &Named, state: &Named) -> Result<()> {
        abi::receive(self.0.restore(pack_named(parameters)?, pack_named(state)?))
    }
}

fn take(named: Named, name: &str) -> Result<Array> {
    let found = named.into_iter().find(|(n, _)| n == name);
    found.map(|(_, a)| a).ok_or_else(|| Error::invalid(format!("malformed message: no array {name}")))
}

// ------------------------------------------------------------------------------------------ the plugin's side

/// Puts an author's model behind the ABI. A panic in its drop is reported, not thrown.
struct Adapter {
    name: String,
    model: ManuallyDrop<Box<dyn Model>>,
}

fn model_box(name: String, model: Box<dyn Model>) -> ModelBox {
    ModelAbi_TO::from_value(Adapter { name, model: ManuallyDrop::new(model) }, TD_Opaque)
}

impl Drop for Adapter {
    fn drop(&mut self) {
        let model = unsafe { ManuallyDrop::take(&mut self.model) };
        drop_guarded(&format!("model {}", self.name), model);
    }
}

/// Drops plugin state; a panic in it becomes a line on stderr.
pub(crate) fn drop_guarded<T>(place: &str, value: T) {
    let dropped = crate::guard(move || {
        drop(value);
        Ok(())
    });
    if let Err(error) = dropped {
        eprintln!("{place}: {error} (in its drop)");
    }
}

impl Adapter {
    fn reply<T>(&self, f: impl FnOnce(&dyn Model) -> Result<T>) -> RResult<T, RString> {
        abi::reply(|| format!("model {}", self.name), || f(self.model.as_ref()))
    }
}

impl ModelAbi for Adapter {
    fn spec(&self) -> RResult<RString, RString> {
        self.reply(|m| abi::print(&m.spec()))
    }

    fn run(&self, request: Message) -> RResult<Message, RString> {
        self.reply(|m| {
            let request = Request::unpack(request)?;
            request.check(&m.spec())?;
            m.run(&request)?.pack()
        })
    }

    fn parameters(&self) -> RResult<Message, RString> {
        self.reply(|m| pack_named(&m.parameters()?))
    }

    fn load(&mut self, parameters: Message) -> RResult<RString, RString> {
        let (name, model) = (self.name.clone(), &mut self.model);
        abi::reply(|| format!("model {name}"), || abi::print(&model.load(unpack_named(parameters)?)?))
    }

    fn fork_with(&self, edits: Message) -> RResult<ModelBox, RString> {
        self.reply(|m| Ok(model_box(self.name.clone(), m.fork_with(unpack_named(edits)?)?)))
    }

    fn trainer(&self, options: RString) -> RResult<TrainerBox, RString> {
        self.reply(|m| {
            let trainer = m.trainer(&abi::parse(&options)?)?;
            let adapter = TrainerAdapter { name: self.name.clone(), trainer: ManuallyDrop::new(trainer) };
            Ok(TrainerAbi_TO::from_value(adapter, TD_Opaque))
        })
    }
}

struct TrainerAdapter {
    name: String,
    trainer: ManuallyDrop<Box<dyn Trainer>>,
}

impl Drop for TrainerAdapter {
    fn drop(&mut self) {
        let trainer = unsafe { ManuallyDrop::take(&mut self.trainer) };
        drop_guarded(&format!("trainer of {}", self.name), trainer);
    }
}

impl TrainerAdapter {
    fn reply<T>(&mut self, f: impl FnOnce(&mut dyn Trainer) -> Result<T>) -> RResult<T, RString> {
        let (name, trainer) = (self.name.clone(), &mut self.trainer);
        abi::reply(|| format!("trainer of {name}"), || f(trainer.as_mut()))
    }

    fn read<T>(&self, f: impl FnOnce(&dyn Trainer) -> Result<T>) -> RResult<T, RString> {
        abi::reply(|| format!("trainer of {}", self.name), || f(self.trainer.as_ref()))
    }
}

impl TrainerAbi for TrainerAdapter {
    fn step(&mut self, batch: Message) -> RResult<f64, RString> {
        self.reply(|t| {
            let batch = unpack_named(batch)?;
            let images = take(batch.clone(), "images")?;
            t.step(&images, &take(batch, "targets")?)
        })
    }

    fn set_learning_rate(&mut self, rate: f64) -> RResult<(), RString> {
        self.reply(|t| t.set_learning_rate(rate))
    }

    fn evaluate(&mut self, images: Message) -> RResult<Message, RString> {
        self.reply(|t| {
            let logits = t.evaluate(&take(unpack_named(images)?, "images")?)?;
            pack_named(&vec![("logits".into(), logits)])
        })
    }

    fn parameters(&self) -> RResult<Message, RString> {
        self.read(|t| pack_named(&t.parameters()?))
    }

    fn state(&self) -> RResult<Message, RString> {
        self.read(|t| pack_named(&t.state()?))
    }

    fn restore(&mut self, parameters: Message, state: Message) -> RResult<(), RString> {
        self.reply(|t| t.restore(unpack_named(parameters)?, unpack_named(state)?))
    }
}

fn entry(name: &str) -> Result<&'static ModelEntry> {
    let found = inventory::iter::<ModelEntry>.into_iter().find(|e| e.name == name);
    found.ok_or_else(|| Error::invalid(format!("this plugin has no model {name}")))
}

pub(crate) extern "C" fn make(name: RStr<'_>, options: RStr<'_>) -> RResult<ModelBox, RString> {
    let make = || {
        let model = (entry(&name)?.make)(&abi::parse(&options)?)?;
        Ok(model_box(name.to_string(), model))
    };
    abi::reply(|| format!("model {name}"), make)
}

pub(crate) extern "C" fn spec(name: RStr<'_>, options: RStr<'_>) -> RResult<RString, RString> {
    let spec = || abi::print(&(entry(&name)?.spec)(&abi::parse(&options)?)?);
    abi::reply(|| format!("model {name}"), spec)
}

/// Host calls that never cancel and drop what is logged.
pub fn silent_host() -> HostCalls {
    extern "C" fn never(_: *const std::ffi::c_void) -> bool {
        false
    }
    extern "C" fn drop_line(_: *const std::ffi::c_void, _: RStr<'_>) {}
    HostCalls { data: std::ptr::null(), cancelled: never, log: drop_line }
}
