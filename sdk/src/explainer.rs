//! Explainers: what an author implements, and what it is given. How they cross is in `explainer_abi.rs`.

use crate::host::Caller;
use crate::spec::{ExplainerSpec, ImageRecord, ModelSpec, Params, Plan};
use crate::{Array, Error, ErrorKind, FitBatch, ModelRef, Named, Result};
use ndarray::Array3;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use crate::explainer_abi::{ContextBuilder, ExplainInput, ExplainerHandle, FitInput};

/// An explainer, as its author writes it.
///
/// The host makes an instance for each model, fold and training that a worker opens, and calls it on one thread at a time,
/// the thread that owns the device. No method may change global state (grad mode, thread count, random generators) or write
/// to what it receives, and the same context gives the same maps: randomness comes from [`Context::rng`].
pub trait Explainer: Send {
    /// Called when the plugin is listed, before anything else; must not compute.
    fn spec(&self) -> ExplainerSpec;

    /// Called whenever the explainer is opened for a model, before anything else: once when a run begins, and once in each
    /// worker that comes to a model, fold and training. The same model and parameters must give the same answer. "Not
    /// applicable" is an answer, with its reason; an error means that the parameters are wrong.
    fn plan(&self, model: &ModelSpec, params: &Params) -> Result<Plan>;

    /// Called once a model, fold and setting, before the first batch, if the plan asked for it
    /// ([`Needs::fit`](crate::spec::Needs::fit)): goes through batches of the training set and hands back what it has
    /// learned. That is stored with the run and given to every [`Explainer::explain`] as [`Context::fitted`].
    fn fit(&self, context: &FitContext<'_>) -> Result<Named> {
        let _ = context;
        Err(Error::unsupported("the plan asks for a fit, and there is none"))
    }

    /// Called once a batch: maps of any resolution, larger where the image speaks more for the target. Every value must
    /// be finite. An error fails the explainer for this model: its cell of the table says why, and nobody else's is touched.
    fn explain(&self, context: &Context<'_>) -> Result<Maps>;
}

/// What [`Explainer::explain`] hands back: one map an image, or several named ones (one a head, one a class).
#[derive(Debug, Clone)]
pub struct Maps {
    /// [B, h, w] float32, or [B, K, h, w] with K names.
    pub array: Array,
    /// Empty for one map an image. The table has a column each.
    pub names: Vec<String>,
}

impl From<Array> for Maps {
    fn from(array: Array) -> Self {
        Maps { array, names: Vec::new() }
    }
}

impl Maps {
    /// Several maps an image, [B, K, h, w].
    pub fn named(array: Array, names: Vec<String>) -> Self {
        Maps { array, names }
    }
}

/// The generator of an image (by its id) for an explainer (by its name), of a run's seed: [`Context::rng`].
pub fn image_rng(seed: u64, explainer: &str, id: u64) -> ChaCha8Rng {
    let hash = crate::hash::fnv1a(explainer.bytes().chain(id.to_le_bytes()));
    ChaCha8Rng::seed_from_u64(seed.rotate_left(32) ^ hash)
}

/// A batch and all that is known of it.
pub struct Context<'a> {
    /// [B, C, H, W] float32, normalised as `model.input` says.
    pub images: Array,
    /// The class to explain, `[B]` i64, CPU.
    pub targets: Array,
    /// [B, classes] float32.
    pub logits: Array,
    /// Stable numbers of the images: the same image has the same number in every run.
    pub ids: Vec<u64>,
    pub model: ModelSpec,
    pub params: Params,
    pub seed: u64,
    pub(crate) explainer: String,
    pub(crate) at_once: usize,
    pub(crate) values: BTreeMap<String, Array>,
    pub(crate) gradients: BTreeMap<String, Array>,
    pub(crate) others: Vec<BTreeMap<String, Array>>,
    pub(crate) records: Vec<ImageRecord>,
    pub(crate) plugin_folder: Option<PathBuf>,
    pub(crate) mean_mask: Option<Array>,
    pub(crate) fitted: BTreeMap<String, Array>,
    pub(crate) runner: Option<ModelRef<'a>>,
    pub(crate) host: Caller<'a>,
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

    /// The gradient of another class's logit: that of place `i` in [`Needs::others`](crate::spec::Needs::others).
    pub fn gradient_of(&self, i: usize, site: &str) -> Result<&Array> {
        let found = self.others.get(i).and_then(|set| set.get(site));
        found.ok_or_else(|| Error::invalid(format!("the plan did not ask for the gradient of class {i} at {site}")))
    }

    /// What the data source says of image `b` of this batch; `None` for an image of no source.
    pub fn record(&self, b: usize) -> Option<&ImageRecord> {
        self.records.get(b)
    }

    /// The folder in which the plugin's library lies, beside which it may ship files of its own; `None` in a test. A file that
    /// changes numbers is better a parameter of type `Path`: its default is relative to this folder, and its content part of
    /// a run's identity.
    pub fn plugin_folder(&self) -> Option<&Path> {
        self.plugin_folder.as_deref()
    }

    /// See [`FitContext::read_image`].
    pub fn read_image(&self, path: &Path) -> Result<Array> {
        self.host.read_image(path)
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
        image_rng(self.seed, &self.explainer, self.ids.get(b).copied().unwrap_or(b as u64))
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

    /// An array that [`Explainer::fit`] handed back.
    pub fn fitted(&self, name: &str) -> Result<&Array> {
        self.fitted.get(name).ok_or_else(|| Error::invalid(format!("the fit handed back no {name}")))
    }

    /// True when the host wants to stop. Long explainers ask between steps and return [`Context::cancelled`]. Like every
    /// call to the host it is a sign of life.
    pub fn is_cancelled(&self) -> bool {
        self.host.cancelled()
    }

    /// The error to return when [`Context::is_cancelled`].
    pub fn cancelled(&self) -> Error {
        Error::new(ErrorKind::Cancelled, "cancelled")
    }

    /// An error when the host wants to stop: `context.check_cancelled()?` between steps.
    pub fn check_cancelled(&self) -> Result<()> {
        self.host.check_cancelled()
    }

    /// How far this call has come, `done` of `of` steps.
    pub fn progress(&self, done: u64, of: u64) {
        self.host.progress(done, of);
    }

    /// A line for the user; a plugin's own stdout belongs to the host.
    pub fn log(&self, line: &str) {
        self.host.log(line);
    }
}

/// What [`Explainer::fit`] is given: the training set in batches, and the model.
pub struct FitContext<'a> {
    pub model: ModelSpec,
    pub params: Params,
    /// The class that will be explained; `None` where that differs by image.
    pub target: Option<i64>,
    /// Derived from the run's seed, the explainer's name and the fold.
    pub seed: u64,
    pub(crate) runner: Option<ModelRef<'a>>,
    pub(crate) host: Caller<'a>,
}

impl<'a> FitContext<'a> {
    /// The next batch; `None` after the last. The order is that of the training set, the same in every run.
    pub fn next_batch(&self) -> Result<Option<FitBatch>> {
        self.host.fit_batch(false)
    }

    /// An image file as the model takes it, [C, H, W] float32, where the batches' arrays are: in any format that a run's data
    /// may have, resized and normalised; grey images have equal channels, and colour images keep theirs where those of the run do.
    pub fn read_image(&self, path: &Path) -> Result<Array> {
        self.host.read_image(path)
    }

    /// The first batch, again.
    pub fn first_batch(&self) -> Result<Option<FitBatch>> {
        self.host.fit_batch(true)
    }

    /// The model, if the plan asked for it.
    pub fn run_model(&self) -> Result<ModelRef<'a>> {
        self.runner.ok_or_else(|| Error::invalid("the plan did not ask for the model"))
    }

    /// A generator that depends on [`FitContext::seed`] alone.
    pub fn rng(&self) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(self.seed)
    }

    /// See [`Context::check_cancelled`].
    pub fn check_cancelled(&self) -> Result<()> {
        self.host.check_cancelled()
    }

    /// See [`Context::progress`].
    pub fn progress(&self, done: u64, of: u64) {
        self.host.progress(done, of);
    }

    /// See [`Context::log`].
    pub fn log(&self, line: &str) {
        self.host.log(line);
    }
}

/// An explainer that a plugin offers. Made by [`register_explainer!`](crate::register_explainer).
pub struct ExplainerEntry {
    pub make: fn() -> Box<dyn Explainer>,
}
inventory::collect!(ExplainerEntry);
