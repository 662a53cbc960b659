//! Models: what an author implements, and the request and response of a run. How they cross is in `model_abi.rs`.

use crate::spec::{LoadReport, ModelOptions, ModelSpec, TrainerOptions};
use crate::{Array, Error, Result};
use std::collections::BTreeMap;

/// Arrays by name, in a fixed order.
pub type Named = Vec<(String, Array)>;

/// A change to a site's value before anything downstream sees it: `value * scale + shift`.
///
/// Both arrays broadcast against the value as in NumPy, aligned at the last dimension: `[1]` or `[]` for all of it,
/// `[C, 1, 1]` a channel of a feature map [B, C, H, W], `[C]` a channel of tokens [B, N, C], `[B, 1, 1, 1]` an image. The
/// result must have the value's shape, so a patch cannot enlarge the batch; for many variants of one image repeat it, or
/// begin at a site ([`Request::start`]) with the value repeated.
#[derive(Debug, Clone)]
pub struct Patch {
    /// The site whose value changes.
    pub site: String,
    /// Multiplies the value.
    pub scale: Option<Array>,
    /// Is then added.
    pub shift: Option<Array>,
}

/// Where a run begins, if not with the images.
#[derive(Debug, Clone)]
pub struct Start {
    /// A site with [`Site::start`](crate::spec::Site::start).
    pub site: String,
    /// Its value, of the site's shape with any batch size. The site's patches are applied to it.
    pub value: Array,
}

/// What a set of gradients is of: the sum over its parts.
#[derive(Debug, Clone)]
pub enum Objective {
    /// Each image's logit of a class of the first output, `[B]` i64; a negative entry means the class of a rank in this very
    /// run: -1 the highest logit, -2 the second.
    Class(Array),
    /// Each image's highest logit of the first output among the classes other than this, `[B]` i64.
    RunnerUp(Array),
    /// `sum(tensor * output)`, `tensor` of the output's shape.
    Output(String, Array),
    /// `sum(tensor * value of the site)`, `tensor` of the site's shape.
    Site(String, Array),
}

/// What second derivatives are asked for: `H v`, H the Hessian of a set of objectives with respect to a site's value, exactly.
#[derive(Debug, Clone)]
pub struct HessianProduct {
    /// One of [`Request::grads`].
    pub site: String,
    /// v, of the site's shape.
    pub direction: Array,
}

/// One run of a model. Sites are named by [`ModelSpec::sites`].
#[derive(Debug, Clone)]
pub struct Request {
    /// [B, C, H, W] float32, normalised as [`ModelSpec::input`] says. Not read where the run begins at a site.
    pub images: Array,
    /// Begin here: nothing before this site runs, and sites before it can be neither read nor patched.
    pub start: Option<Start>,
    /// Changes of sites' values.
    pub patches: Vec<Patch>,
    /// Sites whose values (after patches) are to be handed back.
    pub values: Vec<String>,
    /// Each set of objectives yields the gradient of its sum with respect to every site of `grads`.
    pub objectives: Vec<Vec<Objective>>,
    /// Differentiate with respect to the values of these sites (after patches).
    pub grads: Vec<String>,
    /// Second derivatives: for each set of objectives also the product of its Hessian with a direction. Without rules.
    pub products: Vec<HessianProduct>,
    /// The batch is of pairs: its first half are images, its second half their baselines, in the same order. Rules of
    /// [`PAIR_RULES`](crate::spec::PAIR_RULES) are refused without it.
    pub pairs: bool,
    /// Modified backward rules; each must be in [`ModelSpec::rules`], see [`ModelSpec::has_rule`]. They change gradients, never values.
    pub rules: Vec<String>,
}

impl Request {
    /// A plain forward pass.
    pub fn forward(images: Array) -> Self {
        let (start, patches, values, objectives, grads, products, pairs, rules) = Default::default();
        Request { images, start, patches, values, objectives, grads, products, pairs, rules }
    }

    /// A forward pass from a site on.
    pub fn from_site(site: &str, value: Array) -> Result<Self> {
        let images = Array::from_vec::<f32>(&[0, 0, 0, 0], vec![])?;
        Ok(Request { start: Some(Start { site: site.into(), value }), ..Request::forward(images) })
    }

    /// The number of images, or of the start's values.
    pub fn batch(&self) -> usize {
        let array = self.start.as_ref().map_or(&self.images, |s| &s.value);
        array.shape().first().copied().unwrap_or(0)
    }

    /// A forward pass that also hands back values, and gradients of an objective.
    pub fn explain(images: Array, objective: Objective, values: &[String], grads: &[String]) -> Self {
        let objectives = if grads.is_empty() { vec![] } else { vec![vec![objective]] };
        Request { values: values.to_vec(), grads: grads.to_vec(), objectives, ..Request::forward(images) }
    }
}

/// What a run gives back. Arrays are on the model's device.
#[derive(Debug, Clone)]
pub struct Response {
    /// The model's first output, float32: [B, classes] of a classifier.
    pub logits: Array,
    /// Its further outputs, by name.
    pub outputs: BTreeMap<String, Array>,
    /// Values of the sites that were asked for.
    pub values: BTreeMap<String, Array>,
    /// One map a set of objectives, from site to gradient, each of the site's shape.
    pub grads: Vec<BTreeMap<String, Array>>,
    /// One map a set of objectives, from site to the Hessian's product with the direction asked for, each of the site's shape.
    pub products: Vec<BTreeMap<String, Array>>,
}

impl Response {
    /// The answer of a model with one output that was asked for nothing else.
    pub fn of(logits: Array) -> Self {
        Response { logits, outputs: BTreeMap::new(), values: BTreeMap::new(), grads: vec![], products: vec![] }
    }

    /// One of the model's outputs; an error where the model has none of this name, or did not hand it back.
    pub fn output(&self, model: &ModelSpec, name: &str) -> Result<&Array> {
        if model.outputs.first().is_some_and(|o| o.name == name) {
            return Ok(&self.logits);
        }
        model.output(name)?;
        let found = self.outputs.get(name);
        found.ok_or_else(|| Error::output(format!("model {} did not hand back its output {name}", model.name)))
    }

    /// The Hessian of the set of objectives at place `set` with respect to a site, times the direction asked for.
    pub fn product(&self, set: usize, site: &str) -> Result<&Array> {
        let found = self.products.get(set).and_then(|p| p.get(site));
        found.ok_or_else(|| Error::output(format!("the model handed back no product with the Hessian at {site}")))
    }

    /// The gradient of the set of objectives at place `set` with respect to a site.
    pub fn gradient(&self, set: usize, site: &str) -> Result<&Array> {
        let found = self.grads.get(set).and_then(|g| g.get(site));
        found.ok_or_else(|| Error::output(format!("the model handed back no gradient at {site}")))
    }
}

/// A model, as its author writes it: a stateless function with named sites.
///
/// The host makes an instance for each fold and training that a worker opens, and calls it on one thread at a time, the thread
/// that owns the device.
/// No method may change global state (grad mode, thread count, random generators) or write to what it receives.
pub trait Model: Send {
    /// Called once, when the model has been made; must not compute. The same model gives the same answer at any time.
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

    /// The key by which the process that holds the network as a module finds it, a copy of [`Model::fork_with`] its own one;
    /// empty, unless it is a model of Python.
    fn module(&self) -> String {
        String::new()
    }

    /// A trainer that starts from a copy of the present parameters.
    fn trainer(&self, options: &TrainerOptions) -> Result<Box<dyn Trainer>> {
        let _ = options;
        Err(Error::unsupported("this model cannot be trained"))
    }
}

/// Trains a copy of a model. Called on one thread, the one that made it.
pub trait Trainer: Send {
    /// One optimiser step on `images` [B, C, H, W]; the batch's mean loss. `targets` are classes `[B]` i64, or with the loss
    /// `binary-cross-entropy` 0 and 1 a class, [B, classes] float32.
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
    /// The model's permanent name.
    pub name: &'static str,
    /// Describes it with these options; must not compute.
    pub spec: fn(&ModelOptions) -> Result<ModelSpec>,
    /// Makes it.
    pub make: fn(&ModelOptions) -> Result<Box<dyn Model>>,
    /// No manifest has it: it is nothing without options of its own.
    pub hidden: bool,
}
inventory::collect!(ModelEntry);
