//! How explainers cross: the messages, the host's handle, the adapter around an author's explainer, and a way to make a
//! [`Context`] in a test.

use crate::abi::{self, BoundAbi, BoundAbi_TO, BoundBox, ExplainerAbi, ExplainerAbi_TO, ExplainerBox};
use crate::abi::{HostCalls, Message, ModelBox, RNone, ROption, RResult, RSome, RStr, RString, TD_Opaque};
use crate::explainer::{AnyExplainer, Bound, ExplainerEntry, FitContext, Maps};
use crate::host::{Caller, Serving, Silent};
use crate::message::{Packer, Unpacker, check_requires, pack_named, unpack_named};
use crate::model_abi::drop_guarded;
use crate::spec::{ExplainerSpec, ImageRecord, ModelSpec, ParamValues, Plan, TargetKind, axes_text};
use crate::wire::{self, ExplainMessage, FitMessage, MapsMessage, TargetMessage};
use crate::{Array, Context, Error, Explainer, ModelHandle, ModelRef, Named, Result, Target};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

// ------------------------------------------------------------------------------------------ the host's side

/// An explainer in some library. Every failure in it comes back as an [`Error`].
pub struct ExplainerHandle(ExplainerBox);

/// An explainer that is bound to a model and parameters.
pub struct BoundHandle {
    bound: BoundBox,
    plan: Plan,
}

/// What the host gives to [`BoundHandle::explain`]; see [`Context`] for the fields.
pub struct ExplainInput<'a> {
    /// [B, C, size...] float32, normalised.
    pub images: Array,
    /// One a row.
    pub targets: Vec<Target>,
    /// The first output, float32.
    pub logits: Array,
    /// The further outputs, by name.
    pub outputs: BTreeMap<String, Array>,
    /// Stable numbers of the images.
    pub ids: Vec<u64>,
    /// The run's seed.
    pub seed: u64,
    /// See [`Context::at_once`]; 0 for the batch's own size.
    pub at_once: usize,
    /// Values of the sites that the needs name.
    pub values: BTreeMap<String, Array>,
    /// Gradients of the rows' target logits at the sites that the needs name.
    pub gradients: BTreeMap<String, Array>,
    /// In the order of [`Needs::others`](crate::spec::Needs::others).
    pub others: Vec<BTreeMap<String, Array>>,
    /// One a row, or none.
    pub records: Vec<ImageRecord>,
    /// The folder of the plugin's file.
    pub plugin_folder: Option<PathBuf>,
    /// [H, W] float32, where the needs ask for it.
    pub mean_mask: Option<Array>,
    /// What the fit handed back.
    pub fitted: BTreeMap<String, Array>,
    /// The model, where the needs ask for it.
    pub runner: Option<ModelRef<'a>>,
    /// Answers the plugin's calls.
    pub host: &'a Serving<'a>,
}

impl<'a> ExplainInput<'a> {
    /// For an explainer that asked for nothing: seed 0, images numbered from 0. The other fields are empty.
    pub fn new(images: Array, targets: Vec<Target>, logits: Array, host: &'a Serving<'a>) -> Self {
        ExplainInput {
            ids: (0..targets.len() as u64).collect(),
            images,
            targets,
            logits,
            outputs: BTreeMap::new(),
            seed: 0,
            at_once: 0,
            values: BTreeMap::new(),
            gradients: BTreeMap::new(),
            others: vec![],
            records: vec![],
            plugin_folder: None,
            mean_mask: None,
            fitted: BTreeMap::new(),
            runner: None,
            host,
        }
    }
}

/// What the host gives to [`BoundHandle::fit`]; see [`FitContext`].
pub struct FitInput<'a> {
    /// The class that will be explained; `None` where that differs by image.
    pub class: Option<usize>,
    /// Of the explainer and training.
    pub seed: u64,
    /// The model, where the needs ask for it.
    pub runner: Option<ModelRef<'a>>,
    /// Answers the plugin's calls.
    pub host: &'a Serving<'a>,
}

impl ExplainerHandle {
    #[doc(hidden)]
    pub fn from_abi(explainer: ExplainerBox) -> Self {
        ExplainerHandle(explainer)
    }

    /// A handle of an explainer in this library, called as one that comes from another: for tests.
    pub fn of(explainer: impl Explainer) -> Self {
        ExplainerHandle(explainer_box(Box::new(explainer)))
    }

    #[cfg(feature = "abi-next")]
    #[doc(hidden)]
    pub fn examples(&self) -> String {
        self.0.examples().into_string()
    }

    /// Binds it to a model, whose activation is the task's, for targets of these kinds (classes where there is none) and
    /// given parameters; see [`Explainer::bind`].
    pub fn bind(
        &self,
        model: &ModelSpec,
        targets: &[TargetKind],
        params: &BTreeMap<String, serde_json::Value>,
    ) -> Result<BoundHandle> {
        let message = BindWritten { requires: wire::bind_requires(model, targets), model, targets, params };
        let bound = abi::receive(self.0.bind(abi::print(&message)?))?;
        let plan = abi::parse(&abi::receive(bound.plan())?)?;
        Ok(BoundHandle { bound, plan })
    }
}

impl BoundHandle {
    /// What it needs, or why it does not apply.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Calls its fit, see [`Bound::with_fit`].
    pub fn fit(&self, input: FitInput<'_>) -> Result<Named> {
        let wire = FitMessage { class: input.class, seed: input.seed };
        let model = input.runner.map_or(RNone, |m| RSome(m.0));
        unpack_named(abi::receive(self.bound.fit(Packer::default().finish(&wire)?, model, input.host.calls()))?)
    }

    /// Asks for the maps of a batch, see [`Bound::new`]. Whether the answer is a proper map is for the host to check.
    pub fn explain(&self, input: ExplainInput<'_>) -> Result<Maps> {
        let mut packer = Packer::default();
        let targets = input.targets.iter().map(|t| pack_target(t, &mut packer)).collect();
        let kinds: Vec<TargetKind> = input.targets.iter().map(Target::kind).collect();
        let mut requires: Vec<String> = wire::target_requires(&kinds);
        requires.dedup();
        let wire = ExplainMessage {
            requires,
            images: packer.add(&input.images),
            targets,
            logits: packer.add(&input.logits),
            outputs: packer.add_map(&input.outputs),
            ids: input.ids,
            seed: input.seed,
            at_once: input.at_once,
            values: packer.add_map(&input.values),
            gradients: packer.add_map(&input.gradients),
            others: input.others.iter().map(|set| packer.add_map(set)).collect(),
            records: input.records,
            plugin_folder: input.plugin_folder,
            mean_mask: input.mean_mask.as_ref().map(|m| packer.add(m)),
            fitted: packer.add_map(&input.fitted),
        };
        let model = input.runner.map_or(RNone, |m| RSome(m.0));
        let reply = abi::receive(self.bound.explain(packer.finish(&wire)?, model, input.host.calls()))?;
        let (wire, arrays): (MapsMessage, _) = Unpacker::open(reply)?;
        Ok(Maps { array: arrays.get(wire.maps)?, names: wire.names })
    }
}

fn pack_target(target: &Target, packer: &mut Packer) -> TargetMessage {
    match target {
        Target::Class(class) => TargetMessage::Class { class: *class },
        Target::Region { class, mask } => TargetMessage::Region { class: *class, mask: packer.add(mask) },
        Target::Box { class, area, candidate } => {
            TargetMessage::Box { class: *class, area: *area, candidate: *candidate }
        }
        Target::Output { name, index } => TargetMessage::Output { name: name.clone(), index: index.clone() },
    }
}

fn unpack_target(target: TargetMessage, arrays: &Unpacker) -> Result<Target> {
    Ok(match target {
        TargetMessage::Class { class } => Target::Class(class),
        TargetMessage::Region { class, mask } => Target::Region { class, mask: arrays.get(mask)? },
        TargetMessage::Box { class, area, candidate } => Target::Box { class, area, candidate },
        TargetMessage::Output { name, index } => Target::Output { name, index },
    })
}

// ------------------------------------------------------------------------------------------ the plugin's side

struct Adapter {
    spec: ExplainerSpec,
    explainer: ManuallyDrop<Box<dyn AnyExplainer>>,
}

impl Drop for Adapter {
    fn drop(&mut self) {
        // SAFETY: taken once, here, and not used after.
        let explainer = unsafe { ManuallyDrop::take(&mut self.explainer) };
        drop_guarded(&format!("explainer {}", self.spec.name), explainer);
    }
}

impl ExplainerAbi for Adapter {
    fn bind(&self, message: RString) -> RResult<BoundBox, RString> {
        let name = &self.spec.name;
        abi::reply(
            || format!("explainer {name}"),
            || {
                let message: BindRead<'_> = serde_json::from_str(&message)?;
                check_requires("the run", &message.requires, &wire::KNOWN_BINDS)?;
                let params = ParamValues::resolve(&self.spec.parameters, &message.params)?;
                let model = described(message.model.get())?;
                let bound = self.explainer.bind(&model, &message.targets, &params)?;
                let adapter = BoundAdapter { name: name.clone(), model, bound: ManuallyDrop::new(bound) };
                Ok(BoundAbi_TO::from_value(adapter, TD_Opaque))
            },
        )
    }
}

/// A [`wire::BindMessage`] as the host writes it.
#[derive(Serialize)]
struct BindWritten<'a> {
    requires: Vec<String>,
    model: &'a ModelSpec,
    targets: &'a [TargetKind],
    params: &'a BTreeMap<String, serde_json::Value>,
}

/// A [`wire::BindMessage`] whose model is not read yet.
#[derive(Deserialize)]
struct BindRead<'a> {
    #[serde(default)]
    requires: Vec<String>,
    #[serde(borrow)]
    model: &'a RawValue,
    #[serde(default)]
    targets: Vec<TargetKind>,
    #[serde(default)]
    params: BTreeMap<String, serde_json::Value>,
}

/// How many descriptions a plugin keeps.
const DESCRIPTIONS: usize = 64;

/// A model's description. Many explainers are bound to the same few models, so that what was read is kept, by its text.
fn described(text: &str) -> Result<Arc<ModelSpec>> {
    static KEPT: Mutex<Vec<(String, Arc<ModelSpec>)>> = Mutex::new(Vec::new());
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, model)) = kept.iter().find(|(known, _)| known == text) {
        return Ok(model.clone());
    }
    let model: Arc<ModelSpec> = Arc::new(serde_json::from_str(text)?);
    if kept.len() == DESCRIPTIONS {
        kept.remove(0);
    }
    kept.push((text.to_string(), model.clone()));
    Ok(model)
}

struct BoundAdapter {
    name: String,
    model: Arc<ModelSpec>,
    bound: ManuallyDrop<Bound>,
}

impl Drop for BoundAdapter {
    fn drop(&mut self) {
        // SAFETY: taken once, here, and not used after.
        let bound = unsafe { ManuallyDrop::take(&mut self.bound) };
        drop_guarded(&format!("explainer {}", self.name), bound);
    }
}

impl BoundAdapter {
    fn reply<T>(&self, f: impl FnOnce() -> Result<T>) -> RResult<T, RString> {
        abi::reply(|| format!("explainer {}", self.name), f)
    }
}

/// An error where what a host gave does not fit together: images of other axes than the model's, targets or sites' values of
/// another number of rows. So no explainer needs to ask.
fn check_shapes(context: &Context<'_>) -> Result<()> {
    let shape = context.images.shape();
    let axes = context.model.input.axes();
    if shape.len() != axes.len() {
        return Err(Error::invalid(format!("images of shape {shape:?}, expected {}", axes_text(&axes))));
    }
    if context.targets.len() != shape[0] {
        return Err(Error::invalid(format!("{} targets for {} images", context.targets.len(), shape[0])));
    }
    let given = [&context.values, &context.gradients].into_iter().chain(&context.others);
    for (name, array) in given.flatten() {
        let (site, found) = (context.model.site(name)?, array.shape());
        if found.first() != Some(&shape[0]) || found.len() != site.axes.len() {
            let axes = axes_text(&site.axes);
            return Err(Error::invalid(format!("{name} of shape {found:?} for {} images, expected {axes}", shape[0])));
        }
    }
    Ok(())
}

impl BoundAbi for BoundAdapter {
    fn plan(&self) -> RResult<RString, RString> {
        self.reply(|| abi::print(&self.bound.plan))
    }

    fn fit(&self, context: Message, model: ROption<&ModelBox>, host: HostCalls<'_>) -> RResult<Message, RString> {
        self.reply(|| {
            let (wire, _): (FitMessage, _) = Unpacker::open(context)?;
            let fit = self.bound.fit.as_ref().ok_or_else(|| Error::unsupported("it has no fit"))?;
            pack_named(&fit(&FitContext {
                model: self.model.clone(),
                class: wire.class,
                seed: wire.seed,
                runner: model.into_option().map(ModelRef),
                host: Caller(host),
            })?)
        })
    }

    fn explain(&self, context: Message, model: ROption<&ModelBox>, host: HostCalls<'_>) -> RResult<Message, RString> {
        self.reply(|| {
            let (wire, arrays): (ExplainMessage, _) = Unpacker::open(context)?;
            check_requires("the batch", &wire.requires, &wire::KNOWN_BINDS)?;
            let explain = self.bound.explain.as_ref().ok_or_else(|| Error::unsupported("it does not apply"))?;
            let context = Context {
                images: arrays.get(wire.images)?,
                targets: wire.targets.into_iter().map(|t| unpack_target(t, &arrays)).collect::<Result<_>>()?,
                logits: arrays.get(wire.logits)?,
                outputs: arrays.map(wire.outputs)?,
                ids: wire.ids,
                model: self.model.clone(),
                seed: wire.seed,
                explainer: self.name.clone(),
                at_once: wire.at_once,
                values: arrays.map(wire.values)?,
                gradients: arrays.map(wire.gradients)?,
                others: wire.others.into_iter().map(|set| arrays.map(set)).collect::<Result<_>>()?,
                records: wire.records,
                plugin_folder: wire.plugin_folder,
                mean_mask: arrays.optional(wire.mean_mask)?,
                fitted: arrays.map(wire.fitted)?,
                runner: model.into_option().map(ModelRef),
                host: Caller(host),
            };
            check_shapes(&context)?;
            let maps = explain(&context)?;
            let mut packer = Packer::default();
            let index = packer.add(&maps.array);
            packer.finish(&MapsMessage { maps: index, names: maps.names })
        })
    }
}

fn explainer_box(explainer: Box<dyn AnyExplainer>) -> ExplainerBox {
    let spec = explainer.spec();
    ExplainerAbi_TO::from_value(Adapter { spec, explainer: ManuallyDrop::new(explainer) }, TD_Opaque)
}

pub(crate) extern "C" fn make(name: RStr<'_>) -> RResult<ExplainerBox, RString> {
    let make = || {
        for entry in inventory::iter::<ExplainerEntry> {
            let explainer = (entry.make)();
            if explainer.spec().name == name.as_str() {
                return Ok(explainer_box(explainer));
            }
        }
        Err(Error::invalid(format!("this plugin has no explainer {name}")))
    };
    abi::reply(|| format!("explainer {name}"), make)
}

/// Makes the [`Context`] of a unit test, or runs an explainer as a host would.
///
/// ```
/// use lightbox_sdk::prelude::*;
/// # struct Mean;
/// # impl Explainer for Mean {
/// #     type Params = ();
/// #     fn spec(&self) -> ExplainerSpec { ExplainerSpec::new("mean", "Mean", Family::Control, Reference::own("none")) }
/// #     fn bind(&self, _: &ModelSpec, _: ()) -> Result<Bound> {
/// #         Ok(Bound::new(Needs::default(), |context| Ok(Array::from_ndarray(context.grey()?)?.into())))
/// #     }
/// # }
/// let images = Array::from_vec(&[2, 3, 4, 4], vec![0.5f32; 96])?;
/// let maps = ContextBuilder::new(ModelSpec::new("none", InputSpec::imagenet(4), 2), images).explain(&Mean)?;
/// assert_eq!(maps.array.shape(), [2, 4, 4]);
/// # Ok::<(), Error>(())
/// ```
pub struct ContextBuilder {
    model: ModelSpec,
    images: Array,
    targets: Vec<Target>,
    logits: Option<Array>,
    outputs: BTreeMap<String, Array>,
    seed: u64,
    at_once: usize,
    params: BTreeMap<String, serde_json::Value>,
    values: BTreeMap<String, Array>,
    gradients: BTreeMap<String, Array>,
    others: Vec<BTreeMap<String, Array>>,
    records: Vec<ImageRecord>,
    mean_mask: Option<Array>,
    fitted: BTreeMap<String, Array>,
    runner: Option<ModelHandle>,
}

impl ContextBuilder {
    /// `images` [B, C, H, W] float32. Targets are class 0, logits zeros, ids 0, 1, ... unless set.
    pub fn new(model: ModelSpec, images: Array) -> Self {
        let targets = vec![Target::Class(0); images.shape().first().copied().unwrap_or(0)];
        ContextBuilder {
            model,
            images,
            targets,
            logits: None,
            outputs: BTreeMap::new(),
            seed: 0,
            at_once: 0,
            params: BTreeMap::new(),
            values: BTreeMap::new(),
            gradients: BTreeMap::new(),
            others: vec![],
            records: vec![],
            mean_mask: None,
            fitted: BTreeMap::new(),
            runner: None,
        }
    }

    /// The classes to explain, a row.
    pub fn classes(self, classes: &[usize]) -> Self {
        self.targets(classes.iter().map(|c| Target::Class(*c)).collect())
    }

    /// What to explain, a row.
    pub fn targets(mut self, targets: Vec<Target>) -> Self {
        self.targets = targets;
        self
    }

    /// A further output of the model.
    pub fn output(mut self, name: &str, value: Array) -> Self {
        self.outputs.insert(name.into(), value);
        self
    }

    /// The model's first output.
    pub fn logits(mut self, logits: Array) -> Self {
        self.logits = Some(logits);
        self
    }

    /// The run's seed; 0 otherwise.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// See [`Context::at_once`].
    pub fn at_once(mut self, images: usize) -> Self {
        self.at_once = images;
        self
    }

    /// Sets a parameter; the rest have their defaults.
    pub fn param(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        self.params.insert(name.into(), value.into());
        self
    }

    /// The value of a site.
    pub fn value(mut self, site: &str, value: Array) -> Self {
        self.values.insert(site.into(), value);
        self
    }

    /// The gradient at a site.
    pub fn gradient(mut self, site: &str, gradient: Array) -> Self {
        self.gradients.insert(site.into(), gradient);
        self
    }

    /// The gradient of the class at place `i` of the plan's others.
    pub fn gradient_of(mut self, i: usize, site: &str, gradient: Array) -> Self {
        self.others.resize_with(self.others.len().max(i + 1), BTreeMap::new);
        self.others[i].insert(site.into(), gradient);
        self
    }

    /// One an image.
    pub fn records(mut self, records: Vec<ImageRecord>) -> Self {
        self.records = records;
        self
    }

    /// The mean of the training masks, [H, W] float32.
    pub fn mean_mask(mut self, mask: Array) -> Self {
        self.mean_mask = Some(mask);
        self
    }

    /// What a fit has handed back.
    pub fn fitted(mut self, name: &str, array: Array) -> Self {
        self.fitted.insert(name.into(), array);
        self
    }

    /// A model for [`Context::run_model`].
    pub fn runner(mut self, model: ModelHandle) -> Self {
        self.runner = Some(model);
        self
    }

    /// Binds an explainer, and calls `f` with it and the context.
    pub fn with<E: Explainer, T>(self, explainer: &E, f: impl FnOnce(&Bound, &Context<'_>) -> Result<T>) -> Result<T> {
        let spec = AnyExplainer::spec(explainer);
        let mut kinds: Vec<TargetKind> = self.targets.iter().map(Target::kind).collect();
        kinds.sort();
        kinds.dedup();
        let params = ParamValues::resolve(&spec.parameters, &self.params)?;
        let bound = AnyExplainer::bind(explainer, &self.model, &kinds, &params)?;
        let logits = match self.logits {
            Some(logits) => logits,
            None => {
                let each = self.model.outputs.first().map(|o| o.shape()).unwrap_or_default();
                let shape = [vec![self.targets.len()], each].concat();
                Array::from_vec(&shape, vec![0f32; shape.iter().product()])?
            }
        };
        let serving = Serving::new(&Silent);
        f(
            &bound,
            &Context {
                ids: (0..self.targets.len() as u64).collect(),
                targets: self.targets,
                images: self.images,
                logits,
                outputs: self.outputs,
                model: Arc::new(self.model),
                seed: self.seed,
                explainer: spec.name.clone(),
                at_once: self.at_once,
                values: self.values,
                gradients: self.gradients,
                others: self.others,
                records: self.records,
                plugin_folder: None,
                mean_mask: self.mean_mask,
                fitted: self.fitted,
                runner: self.runner.as_ref().map(ModelHandle::as_ref),
                host: Caller(serving.calls()),
            },
        )
    }

    /// The maps of an explainer; an error where it does not apply.
    pub fn explain<E: Explainer>(self, explainer: &E) -> Result<Maps> {
        self.with(explainer, |bound, context| match (&bound.explain, &bound.plan) {
            (Some(explain), _) => explain(context),
            (None, Plan::NotApplicable { reason }) => Err(Error::unsupported(format!("not applicable: {reason}"))),
            (None, _) => Err(Error::unsupported("it does not explain")),
        })
    }
}
