//! What models written in tch share: named parameters, seeded initial values, the model's duties, and training.

mod train;

use crate::params::Params;
use crate::rules::{self, At};
use crate::spec::{LoadReport, ModelSpec, TrainerOptions};
use crate::tape::Tape;
use crate::{Array, Error, Model, Named, Request, Response, Result, Trainer};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::cell::OnceCell;
use std::collections::HashMap;
use tch::{Device, Kind, Tensor};
pub use train::NetTrainer;

/// The device that a [`ModelOptions`](crate::spec::ModelOptions) names: `cpu` or `cuda:N`.
pub fn device(name: &str) -> Result<Device> {
    let index = name.strip_prefix("cuda:").and_then(|n| n.parse().ok());
    match (name, index) {
        ("cpu", _) => Ok(Device::Cpu),
        (_, Some(n)) => Ok(Device::Cuda(n)),
        _ => Err(Error::invalid(format!("device {name} is neither cpu nor cuda:N"))),
    }
}

crate::choice! {
    /// what values between the images and the head are kept and multiplied in; bfloat16 has 8 bits of fraction, moves maps, and is faster only where the hardware multiplies it, as a CPU's AVX-512 BF16 does
    pub enum Precision { Float32 = "float32", Bfloat16 = "bfloat16" }
}

impl Precision {
    /// libtorch's name of it, for [`NetModel::computing_in`].
    pub fn kind(self) -> Kind {
        if self == Precision::Bfloat16 { Kind::BFloat16 } else { Kind::Float }
    }
}

/// What every built-in model's user may set; flatten it into the model's own parameters, or use it as they are.
#[derive(Debug, Params)]
pub struct Preset {
    /// input height and width; 0 for the preset's own
    #[param(default = 0, range = (0, 4096), unit = "px")]
    pub size: usize,
    #[allow(missing_docs)]
    #[param(default = Precision::Float32)]
    pub precision: Precision,
}

impl Preset {
    /// The size that was asked for, or the preset's own.
    pub fn size_or(&self, own: i64) -> i64 {
        if self.size == 0 { own } else { self.size as i64 }
    }
}

/// A tensor of its own memory with the same values.
fn owned(tensor: &Tensor) -> Result<Tensor> {
    let mut copy = tensor.f_empty_like()?;
    copy.f_copy_(tensor)?;
    Ok(copy)
}

/// How a parameter begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All values are this.
    Constant(f64),
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// Uniform in [-bound, bound].
    Uniform(f64),
}

/// Parameters and buffers under the checkpoint's names, in the order in which they were added.
#[derive(Debug)]
pub struct Parameters {
    names: Vec<String>,
    tensors: HashMap<String, Tensor>,
    device: Device,
    seed: u64,
}

impl Parameters {
    /// None yet. What is added lies on `device`; `seed` is what random initial values depend on.
    pub fn new(device: Device, seed: u64) -> Self {
        Parameters { names: Vec::new(), tensors: HashMap::new(), device, seed }
    }

    /// Where they lie.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Adds a float32 parameter. Its values depend on the seed and its name alone.
    pub fn add(&mut self, name: &str, shape: &[i64], init: Init) -> Result<()> {
        let count = shape.iter().product::<i64>() as usize;
        // The seed's bytes first: no seed and name collide with another by their sum.
        let seed = crate::hash::fnv1a(self.seed.to_le_bytes().into_iter().chain(name.bytes()));
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut unit = move || (rng.next_u64() >> 11) as f64 * (0.5f64).powi(53);
        let values: Vec<f32> = match init {
            Init::Constant(value) => vec![value as f32; count],
            Init::Uniform(bound) => (0..count).map(|_| ((2.0 * unit() - 1.0) * bound) as f32).collect(),
            // Box-Muller.
            Init::Normal(std) => (0..count)
                .map(|_| {
                    let radius = (-2.0 * (1.0 - unit()).ln()).sqrt();
                    (radius * (std::f64::consts::TAU * unit()).cos() * std) as f32
                })
                .collect(),
        };
        let tensor = Tensor::f_from_slice(&values)?.f_reshape(shape)?.f_to_device(self.device)?;
        self.insert(name, tensor);
        Ok(())
    }

    /// Adds or replaces a tensor, of any type and shape; it must lie on [`Parameters::device`].
    pub fn insert(&mut self, name: &str, tensor: Tensor) {
        if self.tensors.insert(name.into(), tensor).is_none() {
            self.names.push(name.into());
        }
    }

    /// Their names, in the order in which they were added.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The tensor of this name; an error where there is none.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| Error::invalid(format!("no parameter {name}")))
    }

    /// A deep copy.
    pub fn copy(&self) -> Result<Self> {
        let mut copy = Parameters::new(self.device, self.seed);
        for name in &self.names {
            copy.insert(name, owned(&self.get(name)?.f_detach()?)?);
        }
        Ok(copy)
    }

    /// A copy in which the values of floating point are of another type, but for those that `stays` names.
    pub fn cast(&self, kind: Kind, stays: impl Fn(&str) -> bool) -> Result<Self> {
        let mut copy = Parameters::new(self.device, self.seed);
        for name in &self.names {
            let tensor = self.get(name)?.f_detach()?;
            let lower = tensor.is_floating_point() && !stays(name);
            copy.insert(name, if lower { tensor.f_to_kind(kind)? } else { tensor });
        }
        Ok(copy)
    }

    /// All of them, sharing memory.
    pub fn named(&self) -> Result<Named> {
        self.names.iter().map(|n| Ok((n.clone(), Array::from_tensor(self.get(n)?)?))).collect()
    }

    /// Deep copies on the CPU.
    pub fn snapshot(&self) -> Result<Named> {
        let mut all = Vec::new();
        for name in &self.names {
            let tensor = owned(&self.get(name)?.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?)?;
            all.push((name.clone(), Array::from_tensor(&tensor)?));
        }
        Ok(all)
    }

    /// A copy with `edits` in place; unknown names and other shapes are errors.
    pub fn with(&self, edits: Named) -> Result<Self> {
        let mut copy = self.copy()?;
        for (name, array) in edits {
            let old = copy.get(&name)?;
            let new = array.share_tensor()?;
            if old.size() != new.size() {
                return Err(Error::invalid(format!("{name} has shape {:?}, got {:?}", old.size(), new.size())));
            }
            let new = owned(&new.f_to_device(copy.device)?.f_to_kind(old.kind())?)?;
            copy.insert(&name, new);
        }
        Ok(copy)
    }

    /// Takes a checkpoint's tensors. `rename` maps a checkpoint's key to ours. A tensor of `head` with another shape
    /// keeps its initial values and is reported; any other missing or misshapen parameter is an error that names the
    /// first few, and then nothing has changed. `num_batches_tracked` may be missing (older checkpoints).
    pub fn load(&mut self, given: Named, rename: impl Fn(&str) -> String, head: &[&str]) -> Result<LoadReport> {
        let mut found: HashMap<String, Tensor> = HashMap::new();
        let mut report = LoadReport::default();
        for (key, array) in given {
            let name = rename(&key);
            match self.tensors.contains_key(&name) {
                true => drop(found.insert(name, array.share_tensor()?)),
                false => report.unused.push(key),
            }
        }
        let (mut take, mut wrong) = (Vec::<(String, Tensor)>::new(), Vec::new());
        for name in &self.names {
            let own = self.get(name)?;
            match found.remove(name) {
                Some(new) if new.size() == own.size() => {
                    if new.is_floating_point() && new.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
                        return Err(Error::invalid(format!(
                            "{name} holds values that are not finite; the checkpoint is broken"
                        )));
                    }
                    let new = owned(&new.f_to_device(self.device)?.f_to_kind(own.kind())?)?;
                    take.push((name.clone(), new));
                }
                Some(new) if head.contains(&name.as_str()) => {
                    report.new.push(name.clone());
                    let (old, new) = (own.size(), new.size());
                    if name.ends_with("weight") || head.len() == 1 {
                        report.notes.push(format!(
                            "the head is new: the checkpoint's {name} has shape {new:?}, the model's {old:?}"
                        ));
                    }
                }
                Some(new) => wrong.push(format!("{name} has shape {:?}, not {:?}", new.size(), own.size())),
                None if head.contains(&name.as_str()) => {
                    report.new.push(name.clone());
                    if name.ends_with("weight") {
                        report.notes.push(format!("the head is new: the checkpoint has no {name}"));
                    }
                }
                None if name.ends_with("num_batches_tracked") => {}
                None => wrong.push(format!("{name} is missing")),
            }
        }
        if !wrong.is_empty() {
            let more = wrong.len().saturating_sub(3);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let first = wrong[..wrong.len().min(3)].join("; ");
            let total = self.names.len();
            return Err(Error::invalid(format!(
                "not a checkpoint of this model: {first}{more} (of {total} parameters)"
            )));
        }
        report.loaded = take.len();
        for (name, tensor) in take {
            self.insert(&name, tensor);
        }
        Ok(report)
    }
}

/// What every network holds. Two layers that all of them use read their parameters here.
#[derive(Debug)]
pub struct Base {
    /// What [`Model::spec`] answers.
    pub spec: ModelSpec,
    /// All parameters and buffers, under the checkpoint's names. A trainer replaces them by views of its own vector: no
    /// other copy of a tensor may be kept.
    pub params: Parameters,
}

impl Base {
    /// The same specification with other parameters.
    pub fn with(&self, params: Parameters) -> Self {
        Base { spec: self.spec.clone(), params }
    }

    /// `x W^T + b` with the parameters `NAME.weight` and `NAME.bias`; a 1x1 convolution's weight is taken as a matrix. Follows
    /// the request's rules, see [`rules::linear`].
    pub fn linear(&self, at: &At<'_, '_>, x: &Tensor, name: &str) -> Result<Tensor> {
        let weight = self.params.get(&format!("{name}.weight"))?;
        let weight = if weight.dim() == 4 { weight.f_flatten(1, -1)? } else { weight.shallow_clone() };
        rules::linear(at, x, &weight, Some(self.params.get(&format!("{name}.bias"))?))
    }

    /// Layer normalisation over the last dimension with the parameters `NAME.weight` and `NAME.bias`. Follows the request's
    /// rules, see [`rules::layer_norm`].
    pub fn layer_norm(&self, at: &At<'_, '_>, x: &Tensor, name: &str, eps: f64) -> Result<Tensor> {
        let (weight, bias) = (self.params.get(&format!("{name}.weight"))?, self.params.get(&format!("{name}.bias"))?);
        rules::layer_norm(at, x, weight, bias, eps)
    }
}

/// A model's own part: its arithmetic and its checkpoints' ways. [`NetModel`] makes a [`Model`] of it, [`NetTrainer`]
/// trains it.
pub trait Network: Send + Sized + 'static {
    /// Specification and parameters.
    fn base(&self) -> &Base;
    /// The same, to change.
    fn base_mut(&mut self) -> &mut Base;
    /// The same network with another base of the same names and shapes.
    fn with(&self, base: Base) -> Self;
    /// Logits [B, classes] of normalised float32 images [B, C, H, W]. Every site's value goes through `tape` (by
    /// [`tape::step`](crate::tape::step) where a run may begin); with `train`,
    /// batch statistics are used and running ones updated. In mixed precision it is called under float16 autocast:
    /// operations on values of two types must be such that libtorch promotes, and the logits may be float16.
    fn forward(&self, images: Tensor, train: bool, tape: Option<&mut Tape<'_>>) -> Result<Tensor>;
    /// Takes a checkpoint; see [`Parameters::load`].
    fn load(&mut self, named: Named) -> Result<LoadReport>;

    /// Answers one request. Overridden where there is a faster way than [`Network::forward`].
    fn infer<'n>(&'n self, images: Tensor, tape: &mut Tape<'n>) -> Result<Tensor> {
        self.forward(images, false, Some(tape))
    }

    /// True for parameters of the head. It stays float32 where all before it is computed in bfloat16, or scores would tie.
    fn is_head(name: &str) -> bool {
        name.starts_with("head")
    }

    /// The sites whose values are float32 there.
    const HEAD_SITES: &'static [&'static str] = &["logits"];

    /// The same network computing in another type, with copies of the parameters.
    fn cast(&self, kind: Kind) -> Result<Self> {
        let base = self.base();
        Ok(self.with(base.with(base.params.cast(kind, Self::is_head)?)))
    }

    /// True for tensors that are not trained (running statistics).
    fn is_buffer(&self, _name: &str) -> bool {
        false
    }

    /// Called before each step of a training with its number, from 0, which is all that random draws of the step may hang on.
    fn begin_step(&mut self, _step: i64) {}

    /// True for parameters that weight decay shrinks: by default those of two or more dimensions.
    fn decays(_name: &str, dimensions: usize) -> bool {
        dimensions >= 2
    }
}

/// A [`Network`] as a [`Model`].
pub struct NetModel<N: Network> {
    network: N,
    kind: Kind,
    /// The network in that type, where it is not float32; made of the parameters when it is first asked.
    low: OnceCell<N>,
}

impl<N: Network> NetModel<N> {
    /// A model that computes in float32.
    pub fn new(network: N) -> Self {
        NetModel { network, kind: Kind::Float, low: OnceCell::new() }
    }

    /// The same, answering in another type. Requests, answers, checkpoints and training stay float32, and so does a request
    /// under modified rules, which divide by small numbers.
    pub fn computing_in(self, kind: Kind) -> Self {
        NetModel { kind, ..self }
    }

    fn low(&self) -> Result<&N> {
        if let Some(low) = self.low.get() {
            return Ok(low);
        }
        let low = {
            let _off = tch::no_grad_guard();
            self.network.cast(self.kind)?
        };
        Ok(self.low.get_or_init(|| low))
    }
}

impl<N: Network> Model for NetModel<N> {
    fn spec(&self) -> ModelSpec {
        self.network.base().spec.clone()
    }

    fn run(&self, request: &Request) -> Result<Response> {
        if self.kind == Kind::Float || !request.rules.is_empty() || !request.products.is_empty() {
            return Tape::run(request, |tape, images| self.network.infer(images, tape));
        }
        let low = self.low()?;
        Tape::run_in((self.kind, N::HEAD_SITES), request, |tape, images| low.infer(images, tape))
    }

    fn parameters(&self) -> Result<Named> {
        self.network.base().params.named()
    }

    fn load(&mut self, named: Named) -> Result<LoadReport> {
        self.low = OnceCell::new();
        self.network.load(named)
    }

    fn fork_with(&self, edits: Named) -> Result<Box<dyn Model>> {
        let base = self.network.base();
        let fork = self.network.with(base.with(base.params.with(edits)?));
        Ok(Box::new(NetModel::new(fork).computing_in(self.kind)))
    }

    fn trainer(&self, options: &TrainerOptions) -> Result<Box<dyn Trainer>> {
        let base = self.network.base();
        Ok(Box::new(NetTrainer::new(self.network.with(base.with(base.params.copy()?)), options)?))
    }
}
