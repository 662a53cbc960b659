//! What models written in tch share: named parameters, seeded initial values, the model's duties, an optimiser and a
//! trainer.

use crate::spec::{LoadReport, ModelSpec, TrainerOptions};
use crate::tape::Tape;
use crate::{Array, Error, Model, Named, Request, Response, Result, Trainer};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use tch::{Device, Kind, Reduction, Tensor};

/// The device that a [`ModelOptions`](crate::spec::ModelOptions) names: `cpu` or `cuda:N`.
pub fn device(name: &str) -> Result<Device> {
    let index = name.strip_prefix("cuda:").and_then(|n| n.parse().ok());
    match (name, index) {
        ("cpu", _) => Ok(Device::Cpu),
        (_, Some(n)) => Ok(Device::Cuda(n)),
        _ => Err(Error::invalid(format!("device {name} is neither cpu nor cuda:N"))),
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

    pub fn device(&self) -> Device {
        self.device
    }

    /// Adds a float32 parameter. Its values depend on the seed and its name alone.
    pub fn add(&mut self, name: &str, shape: &[i64], init: Init) -> Result<()> {
        let count = shape.iter().product::<i64>() as usize;
        let mut rng = ChaCha8Rng::seed_from_u64(
            name.bytes()
                .fold(self.seed ^ 0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)),
        );
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
            let new = array.to_tensor()?;
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
                true => drop(found.insert(name, array.to_tensor()?)),
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

/// A model's own part: its arithmetic, its parameters and its checkpoints' ways. [`NetModel`] makes a [`Model`] of it,
/// [`NetTrainer`] trains it.
pub trait Network: Send + Sized + 'static {
    /// What [`Model::spec`] answers.
    fn spec(&self) -> &ModelSpec;
    /// All parameters and buffers, under the checkpoint's names.
    fn parameters(&self) -> &Parameters;
    /// The same, for a trainer that replaces them by views of its own vector: no other copy of a tensor may be kept.
    fn parameters_mut(&mut self) -> &mut Parameters;
    /// The same network with other parameters of the same names and shapes.
    fn with(&self, parameters: Parameters) -> Self;
    /// Logits [B, classes] of normalised float32 images [B, C, H, W]. Every site's value goes through `tape`; with `train`,
    /// batch statistics are used and running ones updated. In mixed precision it is called under float16 autocast:
    /// operations on values of two types must be such that libtorch promotes, and the logits may be float16.
    fn forward(&self, images: Tensor, train: bool, tape: Option<&mut Tape<'_>>) -> Result<Tensor>;
    /// Takes a checkpoint; see [`Parameters::load`].
    fn load(&mut self, named: Named) -> Result<LoadReport>;

    /// Answers one request. Overridden where there is a faster way than [`Network::forward`].
    fn infer(&self, images: Tensor, tape: &mut Tape<'_>) -> Result<Tensor> {
        self.forward(images, false, Some(tape))
    }

    /// True for tensors that are not trained (running statistics).
    fn is_buffer(_name: &str) -> bool {
        false
    }

    /// True for parameters that weight decay shrinks: by default those of two or more dimensions.
    fn decays(_name: &str, dimensions: usize) -> bool {
        dimensions >= 2
    }
}

/// A [`Network`] as a [`Model`].
pub struct NetModel<N: Network>(pub N);

impl<N: Network> Model for NetModel<N> {
    fn spec(&self) -> ModelSpec {
        self.0.spec().clone()
    }

    fn run(&self, request: &Request) -> Result<Response> {
        Tape::run(request, |tape, images| self.0.infer(images, tape))
    }

    fn parameters(&self) -> Result<Named> {
        self.0.parameters().named()
    }

    fn load(&mut self, named: Named) -> Result<LoadReport> {
        self.0.load(named)
    }

    fn fork_with(&self, edits: Named) -> Result<Box<dyn Model>> {
        Ok(Box::new(NetModel(self.0.with(self.0.parameters().with(edits)?))))
    }

    fn trainer(&self, options: &TrainerOptions) -> Result<Box<dyn Trainer>> {
        Ok(Box::new(NetTrainer::new(self.0.with(self.0.parameters().copy()?), options)?))
    }
}

/// The loss scale of mixed-precision training (Micikevicius et al., "Mixed Precision Training", ICLR 2018,
/// arXiv:1710.03740), with the constants of PyTorch's `GradScaler`: gradients of a float16 pass would vanish, so the loss
/// is multiplied; a step whose gradients overflow is left out and halves the scale; 2000 good ones double it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct LossScale {
    scale: f64,
    good: i64,
}

impl LossScale {
    const START: LossScale = LossScale { scale: 65536.0, good: 0 };

    /// Takes note of a step; true if it is to be made. An error when no scale is small enough.
    fn accept(&mut self, finite: bool) -> Result<bool> {
        self.good += 1;
        match finite {
            false => *self = LossScale { scale: self.scale * 0.5, good: 0 },
            true if self.good == 2000 => *self = LossScale { scale: self.scale * 2.0, good: 0 },
            true => {}
        }
        if self.scale < 1e-6 {
            return Err(Error::invalid(
                "every step's gradients overflow in mixed precision, whatever the loss scale; train in float32",
            ));
        }
        Ok(finite)
    }
}

/// Cross-entropy training of a [`Network`] with AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101; betas 0.9 and
/// 0.999, eps 1e-8, decay where [`Network::decays`] says so) or SGD with momentum 0.9. Mixed precision is float16
/// autocast on CUDA with a loss scale; parameters, moments and validation stay float32.
///
/// All trained values lie in one vector, of which the network's parameters are views: an update is a handful of operations,
/// however many parameters there are.
pub struct NetTrainer<N: Network> {
    network: N,
    options: TrainerOptions,
    rate: f64,
    steps: i64,
    /// With mixed precision.
    scale: Option<LossScale>,
    /// Those that decay first.
    trained: Vec<Slot>,
    /// How many of the values decay.
    decayed: i64,
    values: Tensor,
    first: Tensor,
    /// AdamW's.
    second: Option<Tensor>,
}

/// Where a parameter lies among all values.
struct Slot {
    name: String,
    start: i64,
    shape: Vec<i64>,
}

/// Parameters begin at multiples of this many values, as fresh memory would.
const ALIGN: i64 = 64;

impl Slot {
    fn count(&self) -> i64 {
        self.shape.iter().product()
    }

    fn view(&self, all: &Tensor) -> Result<Tensor> {
        Ok(all.f_narrow(0, self.start, self.count())?.f_view(self.shape.as_slice())?)
    }
}

impl<N: Network> NetTrainer<N> {
    /// Takes over a network whose parameters nobody else shares. An unknown optimiser or precision is an error, and so is
    /// mixed precision on a CPU.
    pub fn new(mut network: N, options: &TrainerOptions) -> Result<Self> {
        if !["adamw", "sgd"].contains(&options.optimizer.as_str()) {
            return Err(Error::invalid(format!("unknown optimizer {} (known: adamw, sgd)", options.optimizer)));
        }
        let device = network.parameters().device();
        let scale = match options.precision.as_str() {
            "float32" => None,
            "mixed" if device.is_cuda() => Some(LossScale::START),
            "mixed" => return Err(Error::invalid("mixed precision needs a CUDA device")),
            other => return Err(Error::invalid(format!("unknown precision {other} (known: float32, mixed)"))),
        };
        let mut trained = Vec::new();
        for name in network.parameters().names().iter().filter(|n| !N::is_buffer(n)) {
            trained.push(Slot { name: name.clone(), start: 0, shape: network.parameters().get(name)?.size() });
        }
        let decays = |slot: &Slot| N::decays(&slot.name, slot.shape.len());
        trained.sort_by_key(|slot| !decays(slot));
        let (mut total, mut decayed) = (0, 0);
        for slot in &mut trained {
            slot.start = total;
            total += (slot.count() + ALIGN - 1) / ALIGN * ALIGN;
            if decays(slot) {
                decayed = total;
            }
        }
        let zeros = || Tensor::f_zeros([total], (Kind::Float, device));
        let values = zeros()?;
        for slot in &trained {
            let mut view = slot.view(&values)?;
            view.f_copy_(&network.parameters().get(&slot.name)?.f_detach()?)?;
            network.parameters_mut().insert(&slot.name, view.f_detach()?.f_set_requires_grad(true)?);
        }
        let second = (options.optimizer == "adamw").then(zeros).transpose()?;
        let (options, rate, steps, first) = (options.clone(), options.learning_rate, 0, zeros()?);
        Ok(NetTrainer { network, options, rate, steps, scale, trained, decayed, values, first, second })
    }

    /// The gradients of all values; zeros where a parameter has none.
    fn flat(&self, grads: &[Tensor]) -> Result<Tensor> {
        let pad = Tensor::f_zeros([ALIGN], (Kind::Float, self.values.device()))?;
        let mut parts = Vec::with_capacity(2 * grads.len());
        for (slot, grad) in self.trained.iter().zip(grads) {
            let count = slot.count();
            parts.push(match grad.defined() {
                true => grad.f_reshape([-1])?,
                false => pad.f_new_zeros([count], (Kind::Float, pad.device()))?,
            });
            if count % ALIGN != 0 {
                parts.push(pad.f_narrow(0, 0, ALIGN - count % ALIGN)?);
            }
        }
        Ok(Tensor::f_cat(&parts, 0)?)
    }

    fn update(&mut self, grad: Tensor) -> Result<()> {
        let _off = tch::no_grad_guard();
        self.steps += 1;
        let (b1, b2, eps) = (0.9, 0.999, 1e-8);
        let (decay, mut decaying) = (self.options.weight_decay, self.values.f_narrow(0, 0, self.decayed)?);
        match &mut self.second {
            Some(second) => {
                let _ = decaying.f_mul_scalar_(1.0 - self.rate * decay)?;
                let _ = self.first.f_mul_scalar_(b1)?.f_add_(&grad.f_mul_scalar(1.0 - b1)?)?;
                let _ = second.f_mul_scalar_(b2)?.f_addcmul_(&grad, &grad.f_mul_scalar(1.0 - b2)?)?;
                let (c1, c2) = (1.0 - b1.powi(self.steps as i32), 1.0 - b2.powi(self.steps as i32));
                let mut spread = second.f_sqrt()?;
                let _ = spread.f_div_scalar_(c2.sqrt())?.f_add_scalar_(eps)?;
                let _ = self.values.f_sub_(&self.first.f_div(&spread)?.f_mul_scalar_(self.rate / c1)?)?;
            }
            None => {
                let _ = grad.f_narrow(0, 0, self.decayed)?.f_add_(&decaying.f_mul_scalar(decay)?)?;
                let _ = self.first.f_mul_scalar_(0.9)?.f_add_(&grad)?;
                let _ = self.values.f_sub_(&self.first.f_mul_scalar(self.rate)?)?;
            }
        }
        for name in self.network.parameters().names().to_vec() {
            if name.ends_with("num_batches_tracked") {
                let mut count = self.network.parameters().get(&name)?.shallow_clone();
                let _ = count.f_add_scalar_(1)?;
            }
        }
        Ok(())
    }
}

/// The gradient of a scaled loss, unscaled; `None` if it has overflowed.
fn unscale(grad: Tensor, state: &mut LossScale) -> Result<Option<Tensor>> {
    let factor = 1.0 / state.scale;
    let finite = grad.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0;
    Ok(if state.accept(finite)? { Some(grad.f_mul_scalar(factor)?) } else { None })
}

unsafe extern "C" {
    fn lightbox_autocast(on: bool) -> bool;
}

/// float16 autocast on CUDA while it lives.
struct Autocast;

impl Autocast {
    fn start() -> Self {
        unsafe { lightbox_autocast(true) };
        Autocast
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        unsafe { lightbox_autocast(false) };
    }
}

impl<N: Network> Trainer for NetTrainer<N> {
    fn step(&mut self, images: &Array, targets: &Array) -> Result<f64> {
        tch::with_grad(|| {
            let images = images.to_tensor()?;
            let targets = targets.to_tensor()?.f_to_device(images.device())?;
            let forward = || self.network.forward(images.shallow_clone(), true, None);
            let logits = match self.scale {
                Some(_) => {
                    let _on = Autocast::start();
                    forward()?
                }
                None => forward()?,
            };
            let logits = logits.f_to_kind(Kind::Float)?;
            let weights = (!self.options.class_weights.is_empty())
                .then(|| {
                    let weights: Vec<f32> = self.options.class_weights.iter().map(|w| *w as f32).collect();
                    Tensor::f_from_slice(&weights)?.f_to_device(images.device())
                })
                .transpose()?;
            let loss = logits.f_cross_entropy_loss(&targets, weights.as_ref(), Reduction::Mean, -100, 0.0)?;
            let value = loss.f_double_value(&[])?;
            let leaves: Vec<&Tensor> =
                self.trained.iter().map(|slot| self.network.parameters().get(&slot.name)).collect::<Result<_>>()?;
            let scaled = match self.scale {
                Some(LossScale { scale, .. }) => loss.f_mul_scalar(scale)?,
                None => loss,
            };
            let grad = self.flat(&Tensor::f_run_backward(&[&scaled], &leaves, false, false)?)?;
            let grad = match &mut self.scale {
                Some(state) => unscale(grad, state)?,
                None => Some(grad),
            };
            grad.map_or(Ok(()), |grad| self.update(grad))?;
            Ok(value)
        })
    }

    fn set_learning_rate(&mut self, rate: f64) -> Result<()> {
        self.rate = rate;
        Ok(())
    }

    fn evaluate(&mut self, images: &Array) -> Result<Array> {
        let _off = tch::no_grad_guard();
        Array::from_tensor(&self.network.forward(images.to_tensor()?, false, None)?)
    }

    fn parameters(&self) -> Result<Named> {
        self.network.parameters().snapshot()
    }

    fn state(&self) -> Result<Named> {
        let mut state = vec![("steps".to_string(), Array::from_vec(&[1], vec![self.steps])?)];
        if let Some(LossScale { scale, good }) = self.scale {
            state.push(("loss_scale".to_string(), Array::from_vec(&[2], vec![scale, good as f64])?));
        }
        for (key, all) in [("first", Some(&self.first)), ("second", self.second.as_ref())] {
            // One copy from the device for all of them.
            let Some(all) = all.map(|t| t.f_to_device(Device::Cpu)).transpose()? else { continue };
            for slot in &self.trained {
                state.push((format!("{key}.{}", slot.name), Array::from_tensor(&owned(&slot.view(&all)?)?)?));
            }
        }
        Ok(state)
    }

    fn restore(&mut self, parameters: Named, state: Named) -> Result<()> {
        let _off = tch::no_grad_guard();
        let given: HashMap<String, Array> = parameters.into_iter().collect();
        let mut state: HashMap<String, Array> = state.into_iter().collect();
        let mut take = |key: String| state.remove(&key).ok_or_else(|| Error::invalid(format!("no {key} in the state")));
        let wrong = |what: &str| Error::invalid(format!("{what} in the state has another shape"));
        let [steps] = take("steps".into())?.to_vec::<i64>()?[..] else { return Err(wrong("steps")) };
        self.steps = steps;
        if let Some(own) = &mut self.scale {
            let [scale, good] = take("loss_scale".into())?.to_vec::<f64>()?[..] else {
                return Err(wrong("loss_scale"));
            };
            *own = LossScale { scale, good: good as i64 };
        }
        // Copying alone would spread a smaller tensor over a larger one.
        let put = |into: &mut Tensor, from: Tensor, name: &str| -> Result<()> {
            if into.size() != from.size() {
                return Err(wrong(name));
            }
            Ok(into.f_copy_(&from)?)
        };
        for slot in &self.trained {
            for (key, all) in [("first", Some(&self.first)), ("second", self.second.as_ref())] {
                let (Some(all), name) = (all, format!("{key}.{}", slot.name)) else { continue };
                put(&mut slot.view(all)?, take(name.clone())?.to_tensor()?, &name)?;
            }
        }
        for name in self.network.parameters().names().to_vec() {
            let array = given.get(&name).ok_or_else(|| Error::invalid(format!("no parameter {name} to restore")))?;
            let mut own = self.network.parameters().get(&name)?.shallow_clone();
            put(&mut own, array.to_tensor()?, &name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_scale_halves_on_overflow_and_doubles_in_the_long_run() {
        let mut state = LossScale::START;
        assert!(!state.accept(false).unwrap());
        assert_eq!(state, LossScale { scale: 32768.0, good: 0 });
        assert!((0..1999).all(|_| state.accept(true).unwrap()));
        assert_eq!(state, LossScale { scale: 32768.0, good: 1999 });
        assert!(state.accept(true).unwrap());
        assert_eq!(state, LossScale { scale: 65536.0, good: 0 });
        let error = (0..99).find_map(|_| state.accept(false).err()).unwrap().to_string();
        assert!(error.contains("every step's gradients overflow"), "{error}");
    }

    #[test]
    fn autocast_ends_with_its_guard_on_a_panic_too() {
        let on = || {
            let before = unsafe { lightbox_autocast(true) };
            unsafe { lightbox_autocast(false) };
            before
        };
        let guard = Autocast::start();
        assert!(on());
        drop(guard);
        assert!(!on());
        let panicked = std::panic::catch_unwind(|| {
            let _on = Autocast::start();
            panic!("on purpose");
        });
        assert!(panicked.is_err() && !on());
    }

    #[test]
    fn a_gradient_is_unscaled_and_an_overflow_is_seen() {
        let grad = |last: f32| Tensor::from_slice(&[65536.0f32, -131072.0, last]);
        let mut state = LossScale::START;
        let found = unscale(grad(0.0), &mut state).unwrap().unwrap();
        assert_eq!(Vec::<f32>::try_from(&found).unwrap(), [1.0, -2.0, 0.0]);
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            assert!(unscale(grad(bad), &mut state).unwrap().is_none());
        }
        assert_eq!(state.scale, 65536.0 / 8.0);
    }
}
