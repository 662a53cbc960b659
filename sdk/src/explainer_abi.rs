//! How explainers cross: the messages, the host's handle, the adapter around an author's explainer, and a way to make a
//! [`Context`] in a test.

use crate::abi::{self, ExplainerAbi, ExplainerAbi_TO, ExplainerBox, HostCalls, Message, ModelBox};
use crate::abi::{RNone, ROption, RResult, RSome, RStr, RString, TD_Opaque};
use crate::explainer::{ExplainerEntry, FitContext, Maps};
use crate::host::{Caller, Serving, Silent};
use crate::message::{Packer, Unpacker, pack_named, unpack_named};
use crate::model_abi::drop_guarded;
use crate::spec::{ExplainerSpec, ImageRecord, ModelSpec, Needs, Params, Plan};
use crate::{Array, Context, Error, Explainer, ModelHandle, ModelRef, Named, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::path::PathBuf;

#[derive(Serialize, Deserialize)]
struct Query {
    model: ModelSpec,
    params: BTreeMap<String, serde_json::Value>,
}

#[derive(Serialize, Deserialize)]
struct ContextWire {
    images: usize,
    targets: usize,
    logits: usize,
    ids: Vec<u64>,
    model: ModelSpec,
    params: BTreeMap<String, serde_json::Value>,
    seed: u64,
    #[serde(default)]
    at_once: usize,
    #[serde(default)]
    values: BTreeMap<String, usize>,
    #[serde(default)]
    gradients: BTreeMap<String, usize>,
    #[serde(default)]
    others: Vec<BTreeMap<String, usize>>,
    #[serde(default)]
    records: Vec<ImageRecord>,
    #[serde(default)]
    plugin_folder: Option<PathBuf>,
    #[serde(default)]
    mean_mask: Option<usize>,
    #[serde(default)]
    fitted: BTreeMap<String, usize>,
}

#[derive(Serialize, Deserialize)]
struct FitContextWire {
    model: ModelSpec,
    params: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    target: Option<i64>,
    seed: u64,
}

#[derive(Serialize, Deserialize)]
struct MapsWire {
    maps: usize,
    #[serde(default)]
    names: Vec<String>,
}

// ------------------------------------------------------------------------------------------ the host's side

/// An explainer in some library. Every failure in it comes back as an [`Error`].
pub struct ExplainerHandle(ExplainerBox);

/// What the host gives to [`ExplainerHandle::explain`]; see [`Context`] for the fields.
pub struct ExplainInput<'a> {
    pub images: Array,
    pub targets: Array,
    pub logits: Array,
    pub ids: Vec<u64>,
    pub model: &'a ModelSpec,
    pub params: &'a Params,
    pub seed: u64,
    /// See [`Context::at_once`]; 0 for the batch's own size.
    pub at_once: usize,
    pub values: BTreeMap<String, Array>,
    pub gradients: BTreeMap<String, Array>,
    /// In the order of [`Needs::others`].
    pub others: Vec<BTreeMap<String, Array>>,
    /// One an image, or none.
    pub records: Vec<ImageRecord>,
    pub plugin_folder: Option<PathBuf>,
    pub mean_mask: Option<Array>,
    pub fitted: BTreeMap<String, Array>,
    pub runner: Option<ModelRef<'a>>,
    pub host: &'a Serving<'a>,
}

/// What the host gives to [`ExplainerHandle::fit`]; see [`FitContext`].
pub struct FitInput<'a> {
    pub model: &'a ModelSpec,
    pub params: &'a Params,
    pub target: Option<i64>,
    pub seed: u64,
    pub runner: Option<ModelRef<'a>>,
    pub host: &'a Serving<'a>,
}

impl ExplainerHandle {
    #[doc(hidden)]
    pub fn from_abi(explainer: ExplainerBox) -> Self {
        ExplainerHandle(explainer)
    }

    /// A handle of an explainer in this library, called as one that comes from another: for tests.
    pub fn of(explainer: Box<dyn Explainer>) -> Self {
        let spec = described(explainer.as_ref());
        ExplainerHandle(ExplainerAbi_TO::from_value(
            Adapter { spec, explainer: ManuallyDrop::new(explainer) },
            TD_Opaque,
        ))
    }

    #[cfg(feature = "abi-next")]
    #[doc(hidden)]
    pub fn examples(&self) -> String {
        self.0.examples().into_string()
    }

    /// See [`Explainer::plan`].
    pub fn plan(&self, model: &ModelSpec, params: &Params) -> Result<Plan> {
        let query = Query { model: model.clone(), params: params.values().clone() };
        abi::parse(&abi::receive(self.0.plan(abi::print(&query)?))?)
    }

    /// See [`Explainer::fit`].
    pub fn fit(&self, input: FitInput<'_>) -> Result<Named> {
        let wire = FitContextWire {
            model: input.model.clone(),
            params: input.params.values().clone(),
            target: input.target,
            seed: input.seed,
        };
        let model = input.runner.map_or(RNone, |m| RSome(m.0));
        unpack_named(abi::receive(self.0.fit(Packer::default().finish(&wire)?, model, input.host.calls()))?)
    }

    /// See [`Explainer::explain`]. Whether the answer is a proper map is for the host to check.
    pub fn explain(&self, input: ExplainInput<'_>) -> Result<Maps> {
        let mut packer = Packer::default();
        let wire = ContextWire {
            images: packer.add(&input.images),
            targets: packer.add(&input.targets),
            logits: packer.add(&input.logits),
            ids: input.ids,
            model: input.model.clone(),
            params: input.params.values().clone(),
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
        let reply = abi::receive(self.0.explain(packer.finish(&wire)?, model, input.host.calls()))?;
        let (wire, arrays): (MapsWire, _) = Unpacker::open(reply)?;
        Ok(Maps { array: arrays.get(wire.maps)?, names: wire.names })
    }
}

// ------------------------------------------------------------------------------------------ the plugin's side

struct Adapter {
    spec: ExplainerSpec,
    explainer: ManuallyDrop<Box<dyn Explainer>>,
}

impl Drop for Adapter {
    fn drop(&mut self) {
        // SAFETY: taken once, here, and not used after.
        let explainer = unsafe { ManuallyDrop::take(&mut self.explainer) };
        drop_guarded(&format!("explainer {}", self.spec.name), explainer);
    }
}

impl Adapter {
    fn reply<T>(&self, f: impl FnOnce() -> Result<T>) -> RResult<T, RString> {
        abi::reply(|| format!("explainer {}", self.spec.name), f)
    }
}

impl ExplainerAbi for Adapter {
    fn plan(&self, query: RString) -> RResult<RString, RString> {
        self.reply(|| {
            let query: Query = abi::parse(&query)?;
            let params = Params::resolve(&self.spec.parameters, &query.params)?;
            let plan = match self.explainer.plan(&query.model, &params)? {
                Plan::Run(needs) => Plan::Run(needs.with_requires()),
                other => other,
            };
            abi::print(&plan)
        })
    }

    fn fit(&self, context: Message, model: ROption<&ModelBox>, host: HostCalls<'_>) -> RResult<Message, RString> {
        self.reply(|| {
            let (wire, _): (FitContextWire, _) = Unpacker::open(context)?;
            pack_named(&self.explainer.fit(&FitContext {
                model: wire.model,
                params: Params::resolve(&self.spec.parameters, &wire.params)?,
                target: wire.target,
                seed: wire.seed,
                runner: model.into_option().map(ModelRef),
                host: Caller(host),
            })?)
        })
    }

    fn explain(&self, context: Message, model: ROption<&ModelBox>, host: HostCalls<'_>) -> RResult<Message, RString> {
        self.reply(|| {
            let (wire, arrays): (ContextWire, _) = Unpacker::open(context)?;
            let context = Context {
                images: arrays.get(wire.images)?,
                targets: arrays.get(wire.targets)?,
                logits: arrays.get(wire.logits)?,
                ids: wire.ids,
                model: wire.model,
                params: Params::resolve(&self.spec.parameters, &wire.params)?,
                seed: wire.seed,
                explainer: self.spec.name.clone(),
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
            let maps = self.explainer.explain(&context)?;
            let mut packer = Packer::default();
            let index = packer.add(&maps.array);
            packer.finish(&MapsWire { maps: index, names: maps.names })
        })
    }
}

pub(crate) fn described(explainer: &dyn Explainer) -> ExplainerSpec {
    let spec = explainer.spec();
    ExplainerSpec { cpu_only: spec.cpu_only || !cfg!(feature = "tch"), ..spec }
}

pub(crate) extern "C" fn make(name: RStr<'_>) -> RResult<ExplainerBox, RString> {
    let make = || {
        for entry in inventory::iter::<ExplainerEntry> {
            let explainer = (entry.make)();
            let spec = described(explainer.as_ref());
            if spec.name == name.as_str() {
                let adapter = Adapter { spec, explainer: ManuallyDrop::new(explainer) };
                return Ok(ExplainerAbi_TO::from_value(adapter, TD_Opaque));
            }
        }
        Err(Error::invalid(format!("this plugin has no explainer {name}")))
    };
    abi::reply(|| format!("explainer {name}"), make)
}

/// A plan that runs with these needs.
impl From<Needs> for Plan {
    fn from(needs: Needs) -> Self {
        Plan::Run(needs)
    }
}

/// Makes the [`Context`] of a unit test, or runs an explainer as a host would.
///
/// ```
/// use lightbox_sdk::prelude::*;
/// # struct Mean;
/// # impl Explainer for Mean {
/// #     fn spec(&self) -> ExplainerSpec { ExplainerSpec::new("mean", "Mean", Family::Control, "none", "") }
/// #     fn plan(&self, _: &ModelSpec, _: &Params) -> Result<Plan> { Ok(Needs::default().into()) }
/// #     fn explain(&self, context: &Context<'_>) -> Result<Maps> { Ok(Array::from_ndarray(context.grey()?)?.into()) }
/// # }
/// let images = Array::from_vec(&[2, 3, 4, 4], vec![0.5f32; 96])?;
/// let maps = ContextBuilder::new(ModelSpec::new("none", InputSpec::imagenet(4), 2), images).explain(&Mean)?;
/// assert_eq!(maps.array.shape(), [2, 4, 4]);
/// # Ok::<(), Error>(())
/// ```
pub struct ContextBuilder {
    model: ModelSpec,
    images: Array,
    targets: Vec<i64>,
    logits: Option<Array>,
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
        let targets = vec![0; images.shape().first().copied().unwrap_or(0)];
        ContextBuilder {
            model,
            images,
            targets,
            logits: None,
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

    pub fn targets(mut self, targets: &[i64]) -> Self {
        self.targets = targets.to_vec();
        self
    }

    pub fn logits(mut self, logits: Array) -> Self {
        self.logits = Some(logits);
        self
    }

    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// See [`Context::at_once`].
    pub fn at_once(mut self, images: usize) -> Self {
        self.at_once = images;
        self
    }

    pub fn param(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        self.params.insert(name.into(), value.into());
        self
    }

    pub fn value(mut self, site: &str, value: Array) -> Self {
        self.values.insert(site.into(), value);
        self
    }

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

    pub fn mean_mask(mut self, mask: Array) -> Self {
        self.mean_mask = Some(mask);
        self
    }

    pub fn fitted(mut self, name: &str, array: Array) -> Self {
        self.fitted.insert(name.into(), array);
        self
    }

    /// A model for [`Context::run_model`].
    pub fn runner(mut self, model: ModelHandle) -> Self {
        self.runner = Some(model);
        self
    }

    /// Calls `f` with the context for an explainer of this specification.
    pub fn with<T>(self, spec: &ExplainerSpec, f: impl FnOnce(&Context<'_>) -> Result<T>) -> Result<T> {
        let logits = match self.logits {
            Some(logits) => logits,
            None => {
                let shape = [self.targets.len(), self.model.classes];
                Array::from_vec(&shape, vec![0f32; shape[0] * shape[1]])?
            }
        };
        let serving = Serving::new(&Silent);
        f(&Context {
            ids: (0..self.targets.len() as u64).collect(),
            targets: Array::from_vec(&[self.targets.len()], self.targets)?,
            images: self.images,
            logits,
            params: Params::resolve(&spec.parameters, &self.params)?,
            model: self.model,
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
        })
    }

    /// The maps of an explainer.
    pub fn explain(self, explainer: &dyn Explainer) -> Result<Maps> {
        self.with(&explainer.spec(), |context| explainer.explain(context))
    }
}
