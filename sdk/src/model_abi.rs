//! How models cross: the messages of a run, the caller's handles, and the adapter around an author's model.

use crate::abi::{self, Message, ModelAbi, ModelAbi_TO, ModelBox, TrainerAbi, TrainerAbi_TO, TrainerBox};
use crate::abi::{RResult, RStr, RString, TD_Opaque};
use crate::message::{Packer, Unpacker, check_requires, pack_named, take, unpack_named};
use crate::model::{ModelEntry, Start};
use crate::spec::{LoadReport, ModelSpec, PAIR_RULES, TrainerOptions};
use crate::wire::{ObjectiveMessage, PatchMessage, RequestMessage, ResponseMessage};
use crate::{Array, DType, Error, HessianProduct, Model, Named, Objective, Patch, Request, Response, Result, Trainer};
use std::mem::ManuallyDrop;

/// What a request may require. A model built against an SDK without one of these refuses it.
const KNOWN: &[&str] = &[
    "patches",
    "objectives",
    "grads",
    "rules",
    "start",
    "pairs",
    "products",
    "objective:output",
    "objective:runner-up",
    #[cfg(feature = "abi-next")]
    "noise",
];

impl Request {
    pub(crate) fn pack(&self) -> Result<Message> {
        let mut packer = Packer::default();
        let images = packer.add(&self.images);
        let mut patches = Vec::new();
        for patch in &self.patches {
            let scale = patch.scale.as_ref().map(|a| packer.add(a));
            let shift = patch.shift.as_ref().map(|a| packer.add(a));
            patches.push(PatchMessage { site: patch.site.clone(), scale, shift });
        }
        let mut objective = |o: &Objective| match o {
            Objective::Class(classes) => ObjectiveMessage::Class(packer.add(classes)),
            Objective::RunnerUp(classes) => ObjectiveMessage::RunnerUp(packer.add(classes)),
            Objective::Output(name, tensor) => ObjectiveMessage::Output(name.clone(), packer.add(tensor)),
            Objective::Site(site, tensor) => ObjectiveMessage::Site(site.clone(), packer.add(tensor)),
        };
        let objectives = self.objectives.iter().map(|set| set.iter().map(&mut objective).collect()).collect();
        let start = self.start.as_ref().map(|s| (s.site.clone(), packer.add(&s.value)));
        let products = self.products.iter().map(|p| (p.site.clone(), packer.add(&p.direction))).collect();
        let (values, grads, rules) = (self.values.clone(), self.grads.clone(), self.rules.clone());
        let used = [
            ("patches", !self.patches.is_empty()),
            ("objectives", !self.objectives.is_empty()),
            ("grads", !self.grads.is_empty()),
            ("rules", !self.rules.is_empty()),
            ("start", self.start.is_some()),
            ("pairs", self.pairs),
            ("products", !self.products.is_empty()),
            ("objective:output", self.objectives.iter().flatten().any(|o| matches!(o, Objective::Output(..)))),
            ("objective:runner-up", self.objectives.iter().flatten().any(|o| matches!(o, Objective::RunnerUp(_)))),
        ];
        let pairs = self.pairs;
        let requires: Vec<String> = used.iter().filter(|(_, used)| *used).map(|(name, _)| name.to_string()).collect();
        #[cfg(feature = "abi-next")]
        let requires = [requires, vec!["noise".into()]].concat();
        packer.finish(&RequestMessage {
            requires,
            images,
            start,
            patches,
            values,
            objectives,
            grads,
            products,
            rules,
            pairs,
        })
    }

    pub(crate) fn unpack(message: Message) -> Result<Self> {
        let (wire, arrays): (RequestMessage, _) = Unpacker::open(message)?;
        check_requires("the request", &wire.requires, KNOWN)?;
        let patch = |p: PatchMessage| {
            Ok(Patch { site: p.site, scale: arrays.optional(p.scale)?, shift: arrays.optional(p.shift)? })
        };
        let start = wire.start.map(|(site, i)| Ok::<_, Error>(Start { site, value: arrays.get(i)? })).transpose()?;
        let objective = |s| {
            Ok(match s {
                ObjectiveMessage::Class(i) => Objective::Class(arrays.get(i)?),
                ObjectiveMessage::RunnerUp(i) => Objective::RunnerUp(arrays.get(i)?),
                ObjectiveMessage::Output(name, i) => Objective::Output(name, arrays.get(i)?),
                ObjectiveMessage::Site(site, i) => Objective::Site(site, arrays.get(i)?),
            })
        };
        Ok(Request {
            images: arrays.get(wire.images)?,
            start,
            patches: wire.patches.into_iter().map(patch).collect::<Result<_>>()?,
            values: wire.values,
            objectives: wire
                .objectives
                .into_iter()
                .map(|set| set.into_iter().map(objective).collect::<Result<Vec<_>>>())
                .collect::<Result<_>>()?,
            grads: wire.grads,
            products: wire
                .products
                .into_iter()
                .map(|(site, i)| Ok(HessianProduct { site, direction: arrays.get(i)? }))
                .collect::<Result<_>>()?,
            pairs: wire.pairs,
            rules: wire.rules,
        })
    }

    /// Refuses sites and rules that the model does not have, and images of another shape.
    pub(crate) fn check(&self, spec: &ModelSpec) -> Result<()> {
        let b = match &self.start {
            None => {
                let shape = self.images.shape();
                let b = shape.first().copied().unwrap_or(0);
                if b == 0 || shape != spec.input.shape(b) {
                    let (name, size) = (&spec.name, [vec![spec.input.channels], spec.input.size.clone()].concat());
                    return Err(Error::invalid(format!(
                        "images have shape {shape:?}, model {name} takes [B, {}] with B of at least 1",
                        size.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
                    )));
                }
                if self.images.dtype() != DType::F32 {
                    return Err(Error::invalid(format!("images are {:?}, expected F32", self.images.dtype())));
                }
                b
            }
            Some(start) => {
                if !spec.site(&start.site)?.start {
                    let known: Vec<&str> = spec.sites.iter().filter(|s| s.start).map(|s| s.name.as_str()).collect();
                    return Err(Error::unsupported(format!(
                        "a run of {} cannot begin at {} (it can at: {})",
                        spec.name,
                        start.site,
                        known.join(", ")
                    )));
                }
                if start.value.dtype() != DType::F32 || start.value.shape().first().is_none_or(|b| *b == 0) {
                    let (dtype, shape) = (start.value.dtype(), start.value.shape());
                    return Err(Error::invalid(format!(
                        "the value to start with is {dtype:?} of shape {shape:?}, expected F32 with B of at least 1"
                    )));
                }
                self.batch()
            }
        };
        for site in self.values.iter().chain(&self.grads).chain(self.patches.iter().map(|p| &p.site)) {
            spec.site(site)?;
        }
        for objective in self.objectives.iter().flatten() {
            match objective {
                Objective::Site(site, _) => {
                    spec.site(site)?;
                }
                Objective::Output(name, _) => {
                    spec.output(name)?;
                }
                Objective::Class(targets) | Objective::RunnerUp(targets) => {
                    let [n] = targets.dims("targets")?;
                    if n != b {
                        return Err(Error::invalid(format!("{n} targets for {b} images")));
                    }
                }
            }
        }
        if let Some(product) = self.products.iter().find(|p| !self.grads.contains(&p.site)) {
            return Err(Error::invalid(format!(
                "a product with the Hessian at {}, which is not differentiated",
                product.site
            )));
        }
        if !self.products.is_empty() && !self.rules.is_empty() {
            return Err(Error::invalid("products with the Hessian have no modified rules"));
        }
        if self.pairs && b % 2 != 0 {
            return Err(Error::invalid(format!("a batch of pairs has an even number of images, not {b}")));
        }
        if let Some(rule) = self.rules.iter().find(|r| PAIR_RULES.contains(&r.as_str())).filter(|_| !self.pairs) {
            return Err(Error::invalid(format!(
                "rule {rule} needs a batch of pairs, and the request does not say that it has one (Request::pairs)"
            )));
        }
        if let Some(rule) = self.rules.iter().find(|r| !spec.has_rule(r)) {
            return Err(Error::unsupported(format!("model {} has no rule {rule}", spec.name)));
        }
        Ok(())
    }
}

impl Response {
    pub(crate) fn pack(&self) -> Result<Message> {
        let mut packer = Packer::default();
        let logits = packer.add(&self.logits);
        let (outputs, values) = (packer.add_map(&self.outputs), packer.add_map(&self.values));
        let grads = self.grads.iter().map(|set| packer.add_map(set)).collect();
        let products = self.products.iter().map(|set| packer.add_map(set)).collect();
        packer.finish(&ResponseMessage { logits, outputs, values, grads, products })
    }

    pub(crate) fn unpack(message: Message) -> Result<Self> {
        let (wire, arrays): (ResponseMessage, _) = Unpacker::open(message)?;
        Ok(Response {
            logits: arrays.get(wire.logits)?,
            outputs: arrays.map(wire.outputs)?,
            values: arrays.map(wire.values)?,
            grads: wire.grads.into_iter().map(|set| arrays.map(set)).collect::<Result<_>>()?,
            products: wire.products.into_iter().map(|set| arrays.map(set)).collect::<Result<_>>()?,
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
    /// A handle of a model in this library, checked as one that comes from another: for tests, and for hosts that stand
    /// between a model and its callers.
    pub fn of(name: &str, model: Box<dyn Model>) -> Self {
        ModelHandle(model_box(name.into(), model))
    }

    #[doc(hidden)]
    pub fn from_abi(model: ModelBox) -> Self {
        ModelHandle(model)
    }

    /// Sends the header of a request and its arrays as they are, as another process or a plugin of another SDK would, and gives the
    /// header of the answer.
    ///
    /// # Errors
    /// Whatever is wrong with the message, and the model's own errors.
    pub fn send(&self, header: &str, arrays: &[Array]) -> Result<String> {
        let tensors: Vec<abi::WireTensor> = arrays.iter().map(Array::to_wire).collect();
        let message = Message { json: header.into(), tensors: tensors.into() };
        Ok(abi::receive(self.0.run(message))?.json.into_string())
    }

    /// A borrowed handle.
    pub fn as_ref(&self) -> ModelRef<'_> {
        ModelRef(&self.0)
    }

    /// The model's description.
    pub fn spec(&self) -> Result<ModelSpec> {
        self.as_ref().spec()
    }

    /// Runs it.
    pub fn run(&self, request: &Request) -> Result<Response> {
        self.as_ref().run(request)
    }

    /// See [`Model::parameters`].
    pub fn parameters(&self) -> Result<Named> {
        self.as_ref().parameters()
    }

    /// See [`Model::load`].
    pub fn load(&mut self, parameters: &Named) -> Result<LoadReport> {
        abi::parse(&abi::receive(self.0.load(pack_named(parameters)?))?)
    }

    /// See [`Model::fork_with`].
    pub fn fork_with(&self, edits: &Named) -> Result<ModelHandle> {
        self.as_ref().fork_with(edits)
    }

    /// See [`Model::trainer`].
    pub fn trainer(&self, options: &TrainerOptions) -> Result<TrainerHandle> {
        Ok(TrainerHandle(abi::receive(self.0.trainer(abi::print(options)?))?))
    }
}

impl ModelRef<'_> {
    /// The model's description.
    pub fn spec(&self) -> Result<ModelSpec> {
        abi::parse(&abi::receive(self.0.spec())?)
    }

    /// See [`Model::parameters`].
    pub fn parameters(&self) -> Result<Named> {
        unpack_named(abi::receive(self.0.parameters())?)
    }

    /// See [`Model::fork_with`].
    pub fn fork_with(&self, edits: &Named) -> Result<ModelHandle> {
        Ok(ModelHandle(abi::receive(self.0.fork_with(pack_named(edits)?))?))
    }

    /// See [`Model::module`].
    pub fn module(&self) -> String {
        self.0.module().into_string()
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

// ------------------------------------------------------------------------------------------ the plugin's side

/// Puts an author's model behind the ABI. A panic in its drop is reported, not thrown.
struct Adapter {
    name: String,
    /// The model's description, asked for once.
    spec: ModelSpec,
    model: ManuallyDrop<Box<dyn Model>>,
}

fn model_box(name: String, model: Box<dyn Model>) -> ModelBox {
    let spec = model.spec();
    ModelAbi_TO::from_value(Adapter { name, spec, model: ManuallyDrop::new(model) }, TD_Opaque)
}

impl Drop for Adapter {
    fn drop(&mut self) {
        // SAFETY: taken once, here, and not used after.
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
        self.reply(|_| abi::print(&self.spec))
    }

    fn run(&self, request: Message) -> RResult<Message, RString> {
        self.reply(|m| {
            let request = Request::unpack(request)?;
            request.check(&self.spec)?;
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

    fn module(&self) -> RString {
        crate::guard(|| Ok(self.model.module())).unwrap_or_default().into()
    }
}

struct TrainerAdapter {
    name: String,
    trainer: ManuallyDrop<Box<dyn Trainer>>,
}

impl Drop for TrainerAdapter {
    fn drop(&mut self) {
        // SAFETY: taken once, here, and not used after.
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
