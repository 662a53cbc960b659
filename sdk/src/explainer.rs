//! Explainers: what an author implements, and what the host holds.

use crate::abi::{self, ExplainerAbi, ExplainerAbi_TO, ExplainerBox, HostCalls, Message, ModelBox};
use crate::model::{Packer, Unpacker, drop_guarded};
use crate::spec::{ExplainerSpec, ModelSpec, Needs, Params, Plan};
use crate::{Array, Error, ErrorKind, ModelRef, Result};
use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{RNone, ROption, RResult, RSome, RStr, RString};
use ndarray::Array3;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::mem::ManuallyDrop;

/// An explainer, as its author writes it.
///
/// The host makes one instance a worker and calls it on one thread at a time, the thread that owns the device.
/// No method may change global state (grad mode, thread count, random generators) or write to what it receives,
/// and the same context gives the same maps: randomness comes from [`Context::rng`].
pub trait Explainer: Send {
    /// Called when the plugin is listed, before anything else; must not compute.
    fn spec(&self) -> ExplainerSpec;

    /// Called once a model and setting, before the first batch. "Not applicable" is an answer, with its reason;
    /// an error means that the parameters are wrong.
    fn plan(&self, model: &ModelSpec, params: &Params) -> Result<Plan>;

    /// Called once a batch: maps [B, h, w] float32 of any resolution, one an image, larger where the image
    /// speaks more for the target. Every value must be finite. An error is recorded for the batch.
    fn explain(&self, context: &Context<'_>) -> Result<Array>;
}

/// A batch and all that is known of it.
pub struct Context<'a> {
    /// [B, C, H, W] float32, normalised as `model.input` says.
    pub images: Array,
    /// The class to explain, [B] i64, CPU.
    pub targets: Array,
    /// [B, classes] float32.
    pub logits: Array,
    /// Stable numbers of the images: the same image has the same number in every run.
    pub ids: Vec<u64>,
    pub model: ModelSpec,
    pub params: Params,
    pub seed: u64,
    pub(crate) explainer: String,
    pub(crate) values: BTreeMap<String, Array>,
    pub(crate) gradients: BTreeMap<String, Array>,
    pub(crate) mean_mask: Option<Array>,
    pub(crate) runner: Option<ModelRef<'a>>,
    pub(crate) host: HostCalls,
}

impl<'a> Context<'a> {
    /// The value of a site that the plan asked for.
    pub fn value(&self, site: &str) -> Result<&Array> {
        let found = self.values.get(site);
        found.ok_or_else(|| Error::invalid(format!("the plan did not ask for the value of {site}")))
    }

    /// The gradient of each image's target logit with respect to a site that the plan asked for.
    pub fn gradient(&self, site: &str) -> Result<&Array> {
        let found = self.gradients.get(site);
        found.ok_or_else(|| Error::invalid(format!("the plan did not ask for the gradient at {site}")))
    }

    /// The mean of the training set's masks, [H, W] float32 in [0, 1], CPU, if the plan asked for it.
    pub fn mean_mask(&self) -> Result<&Array> {
        let missing = || Error::invalid("the plan did not ask for the mean training mask");
        self.mean_mask.as_ref().ok_or_else(missing)
    }

    /// The model, for runs beyond the shared one, if the plan asked for it.
    pub fn run_model(&self) -> Result<ModelRef<'a>> {
        self.runner.ok_or_else(|| Error::invalid("the plan did not ask for the model"))
    }

    /// The generator of image `b` of this batch. It depends on the run's seed, the explainer and the image alone,
    /// so that another batch size draws the same numbers.
    pub fn rng(&self, b: usize) -> ChaCha8Rng {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        let id = self.ids.get(b).copied().unwrap_or(b as u64);
        for byte in self.explainer.bytes().chain(id.to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        ChaCha8Rng::seed_from_u64(self.seed.rotate_left(32) ^ hash)
    }

    /// Batch size, image height and image width.
    pub fn size(&self) -> Result<[usize; 3]> {
        let [b, _, h, w] = self.images.dims("images")?;
        Ok([b, h, w])
    }

    /// The images before normalisation, mean over channels: [B, H, W] in [0, 1]. CPU memory only.
    pub fn grey(&self) -> Result<Array3<f32>> {
        let images = self.images.view::<f32>()?;
        let [b, h, w] = self.size()?;
        let input = &self.model.input;
        let mut grey = Array3::zeros((b, h, w));
        for (c, (mean, std)) in input.mean.iter().zip(&input.std).enumerate() {
            let channel = images.index_axis(ndarray::Axis(1), c);
            let channel = channel.into_dimensionality::<ndarray::Ix3>()?;
            grey.zip_mut_with(&channel, |g, x| *g += x * *std as f32 + *mean as f32);
        }
        Ok(grey / input.mean.len().max(1) as f32)
    }

    /// True when the host wants to stop. Long explainers ask between steps and return [`Context::cancelled`].
    pub fn is_cancelled(&self) -> bool {
        (self.host.cancelled)(self.host.data)
    }

    /// The error to return when [`Context::is_cancelled`].
    pub fn cancelled(&self) -> Error {
        Error::new(ErrorKind::Cancelled, "cancelled")
    }

    /// A line for the user; a plugin's own stdout belongs to the host.
    pub fn log(&self, line: &str) {
        (self.host.log)(self.host.data, line.into());
    }
}

/// An explainer that a plugin offers. Made by [`register_explainer!`](crate::register_explainer).
pub struct ExplainerEntry {
    pub make: fn() -> Box<dyn Explainer>,
}
inventory::collect!(ExplainerEntry);

// ------------------------------------------------------------------------------------------------ messages

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
    values: BTreeMap<String, usize>,
    #[serde(default)]
    gradients: BTreeMap<String, usize>,
    #[serde(default)]
    mean_mask: Option<usize>,
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
    pub values: BTreeMap<String, Array>,
    pub gradients: BTreeMap<String, Array>,
    pub mean_mask: Option<Array>,
    pub runner: Option<ModelRef<'a>>,
    pub host: HostCalls,
}

impl ExplainerHandle {
    #[doc(hidden)]
    pub fn from_abi(explainer: ExplainerBox) -> Self {
        ExplainerHandle(explainer)
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

    /// See [`Explainer::explain`]. The answer is an array; whether it is a proper map is for the host to check.
    pub fn explain(&self, input: ExplainInput<'_>) -> Result<Array> {
        let mut packer = Packer::default();
        let wire = ContextWire {
            images: packer.add(&input.images),
            targets: packer.add(&input.targets),
            logits: packer.add(&input.logits),
            ids: input.ids,
            model: input.model.clone(),
            params: input.params.values().clone(),
            seed: input.seed,
            values: packer.add_map(&input.values),
            gradients: packer.add_map(&input.gradients),
            mean_mask: input.mean_mask.as_ref().map(|m| packer.add(m)),
        };
        let model = input.runner.map_or(RNone, |m| RSome(m.0));
        let reply = abi::receive(self.0.explain(packer.finish(&wire)?, model, input.host))?;
        let (index, arrays): (usize, _) = Unpacker::open(reply)?;
        arrays.get(index)
    }
}

// ------------------------------------------------------------------------------------------ the plugin's side

struct Adapter {
    spec: ExplainerSpec,
    explainer: ManuallyDrop<Box<dyn Explainer>>,
}

impl Drop for Adapter {
    fn drop(&mut self) {
        let explainer = unsafe { ManuallyDrop::take(&mut self.explainer) };
        drop_guarded(&format!("explainer {}", self.spec.name), explainer);
    }
}

impl ExplainerAbi for Adapter {
    fn plan(&self, query: RString) -> RResult<RString, RString> {
        abi::reply(
            || format!("explainer {}", self.spec.name),
            || {
                let query: Query = abi::parse(&query)?;
                let params = Params::resolve(&self.spec.parameters, &query.params)?;
                abi::print(&self.explainer.plan(&query.model, &params)?)
            },
        )
    }

    fn explain(&self, context: Message, model: ROption<&ModelBox>, host: HostCalls) -> RResult<Message, RString> {
        abi::reply(
            || format!("explainer {}", self.spec.name),
            || {
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
                    values: arrays.map(wire.values)?,
                    gradients: arrays.map(wire.gradients)?,
                    mean_mask: wire.mean_mask.map(|i| arrays.get(i)).transpose()?,
                    runner: model.into_option().map(ModelRef),
                    host,
                };
                let map = self.explainer.explain(&context)?;
                let mut packer = Packer::default();
                let index = packer.add(&map);
                packer.finish(&index)
            },
        )
    }
}

pub(crate) fn described(explainer: &dyn Explainer) -> ExplainerSpec {
    ExplainerSpec { cpu_only: !cfg!(feature = "tch"), ..explainer.spec() }
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
