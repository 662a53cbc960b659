//! Explainers: what an author implements, and what it is given. How they cross is in `explainer_abi.rs`.

use crate::host::Caller;
use crate::params::{ParamValues, Params};
use crate::spec::{ExplainerSpec, ImageRecord, ModelSpec, Needs, PAIR_RULES, Plan, TargetKind};
use crate::{Array, Error, ErrorKind, FitBatch, ModelRef, Named, Result, Target};
use ndarray::Array3;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An explainer, as its author writes it.
///
/// The host binds it to each model, fold and training that a worker opens, and calls what it gets on one thread at a time,
/// the thread that owns the device. Nothing may change global state (grad mode, thread count, random generators) or write
/// to what it receives, and the same context gives the same maps: randomness comes from [`Context::rng`].
pub trait Explainer: Send + 'static {
    /// What a user may set: a struct that derives [`Params`], or `()`.
    type Params: Params;

    /// Called when the plugin is listed, before anything else; must not compute. Its parameters are [`Explainer::Params`].
    fn spec(&self) -> ExplainerSpec;

    /// Called once for a model and checked parameters, before anything is run: finds the sites, says what is needed, and
    /// hands back what explains. "Not applicable" is an answer, with its reason; an error means that the parameters are wrong.
    /// The same model and parameters must give the same answer.
    fn bind(&self, model: &ModelSpec, params: Self::Params) -> Result<Bound>;
}

type ExplainFn = Box<dyn Fn(&Context<'_>) -> Result<Maps> + Send>;
type FitFn = Box<dyn Fn(&FitContext<'_>) -> Result<Named> + Send>;

/// An explainer that is bound to a model and parameters.
pub struct Bound {
    pub(crate) plan: Plan,
    pub(crate) fit: Option<FitFn>,
    pub(crate) explain: Option<ExplainFn>,
}

impl Bound {
    /// What it needs, and how it explains. `explain` is called once a batch and gives maps of any resolution, larger where the
    /// image speaks more for the target; every value must be finite. An error fails the explainer for this model: its cell of
    /// the table says why, and nobody else's is touched.
    pub fn new(needs: Needs, explain: impl Fn(&Context<'_>) -> Result<Maps> + Send + 'static) -> Self {
        Bound { plan: Plan::Run(needs), fit: None, explain: Some(Box::new(explain)) }
    }

    /// Why it does not apply to this model; a sentence without a full stop.
    pub fn not_applicable(reason: impl Into<String>) -> Self {
        Bound { plan: Plan::not_applicable(reason), fit: None, explain: None }
    }

    /// How it learns from the training set, where [`Needs::fit`](crate::spec::Needs::fit) asks for that: called once a model,
    /// fold and setting, before the first batch. What it hands back is stored with the run and given to every explanation,
    /// [`Context::fitted`].
    pub fn with_fit(self, fit: impl Fn(&FitContext<'_>) -> Result<Named> + Send + 'static) -> Self {
        Bound { fit: Some(Box::new(fit)), ..self }
    }

    /// What it needs, or why it does not apply.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

/// Any [`Explainer`], whatever its parameters.
#[doc(hidden)]
pub trait AnyExplainer: Send {
    fn spec(&self) -> ExplainerSpec;
    fn bind(&self, model: &ModelSpec, targets: &[TargetKind], params: &ParamValues) -> Result<Bound>;
}

impl<E: Explainer> AnyExplainer for E {
    fn spec(&self) -> ExplainerSpec {
        let spec = Explainer::spec(self);
        let cpu_only = spec.cpu_only || !cfg!(feature = "tch");
        ExplainerSpec { parameters: E::Params::specs(), cpu_only, ..spec }
    }

    fn bind(&self, model: &ModelSpec, targets: &[TargetKind], params: &ParamValues) -> Result<Bound> {
        let spec = AnyExplainer::spec(self);
        let unknown = |kind: &&TargetKind| !spec.targets.is_empty() && !spec.targets.contains(kind);
        if let Some(kind) = targets.iter().find(unknown) {
            let known: Vec<&str> = spec.targets.iter().map(|k| k.text()).collect();
            let reason = format!("it explains {}, and the target is {}", known.join(" or "), kind.text());
            return Ok(Bound::not_applicable(reason));
        }
        if !spec.any_dimensions && model.input.size.len() != 2 {
            let n = model.input.size.len();
            return Ok(Bound::not_applicable(format!("it works on images of two axes, and {} takes {n}", model.name)));
        }
        let mut bound = Explainer::bind(self, model, E::Params::read(params)?)?;
        if let Plan::Run(needs) = &mut bound.plan {
            if let Some(rule) = needs.rules.iter().find(|r| PAIR_RULES.contains(&r.as_str())) {
                return Err(Error::invalid(format!(
                    "rule {rule} needs pairs of images, which the run that explainers share has not: ask for `model` and \
                     run it with Request::pairs"
                )));
            }
            if needs.fit.is_some() && bound.fit.is_none() {
                return Err(Error::invalid("the plan asks for a fit, and there is none (Bound::with_fit)"));
            }
            *needs = std::mem::take(needs).with_requires();
        }
        Ok(bound)
    }
}

/// What an explanation is: one map an image, or several named ones (one a head, one a class).
#[derive(Debug, Clone)]
pub struct Maps {
    /// [B, size...] float32, or [B, K, size...] with K names: as many sizes as the image has spatial axes.
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

/// A batch and all that is known of it. A row is an image with one target; an image may be in several rows.
pub struct Context<'a> {
    /// [B, C, size...] float32, normalised as `model.input` says.
    pub images: Array,
    /// What is explained, a row.
    pub targets: Vec<Target>,
    /// The model's first output, float32: [B, classes] of a classifier.
    pub logits: Array,
    /// Its further outputs.
    pub outputs: BTreeMap<String, Array>,
    /// Stable numbers of the images: the same image has the same number in every run.
    pub ids: Vec<u64>,
    /// The model, with the activation that the task gives its classes.
    pub model: Arc<ModelSpec>,
    /// The run's seed.
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

    /// The value of a site, feature map or tokens, as [B, C, grid...].
    #[cfg(feature = "tch")]
    pub fn grid(&self, site: &str) -> Result<tch::Tensor> {
        self.model.site(site)?.to_grid(&self.value(site)?.share_tensor()?)
    }

    /// The gradient at a site, feature map or tokens, as [B, C, grid...].
    #[cfg(feature = "tch")]
    pub fn gradient_grid(&self, site: &str) -> Result<tch::Tensor> {
        self.model.site(site)?.to_grid(&self.gradient(site)?.share_tensor()?)
    }

    /// The class of each row's target; an error where one is a number of an output.
    pub fn classes(&self) -> Result<Vec<i64>> {
        let class = |t: &Target| t.class().map(|c| c as i64);
        let missing = || Error::unsupported("the target is a number of an output, which has no class");
        self.targets.iter().map(|t| class(t).ok_or_else(missing)).collect()
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

    /// An array that the fit handed back.
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

/// What a fit is given: the training set in batches, and the model.
pub struct FitContext<'a> {
    /// The model, with the activation that the task gives its classes.
    pub model: Arc<ModelSpec>,
    /// The class that will be explained; `None` where that differs by image.
    pub class: Option<usize>,
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
    /// Makes it.
    pub make: fn() -> Box<dyn AnyExplainer>,
}
inventory::collect!(ExplainerEntry);
