//! Training of a [`Network`].

use super::{Network, owned};
use crate::spec::TrainerOptions;
use crate::{Array, Error, Named, Result, Trainer};
use std::collections::HashMap;
use tch::{Device, Kind, Reduction, Tensor};

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
        if !["cross-entropy", "binary-cross-entropy"].contains(&options.loss.as_str()) {
            let loss = &options.loss;
            return Err(Error::invalid(format!("unknown loss {loss} (known: cross-entropy, binary-cross-entropy)")));
        }
        let device = network.base().params.device();
        let scale = match options.precision.as_str() {
            "float32" => None,
            "mixed" if device.is_cuda() => Some(LossScale::START),
            "mixed" => return Err(Error::invalid("mixed precision needs a CUDA device")),
            other => return Err(Error::invalid(format!("unknown precision {other} (known: float32, mixed)"))),
        };
        let mut trained = Vec::new();
        for name in network.base().params.names().iter().filter(|n| !network.is_buffer(n)) {
            trained.push(Slot { name: name.clone(), start: 0, shape: network.base().params.get(name)?.size() });
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
            view.f_copy_(&network.base().params.get(&slot.name)?.f_detach()?)?;
            network.base_mut().params.insert(&slot.name, view.f_detach()?.f_set_requires_grad(true)?);
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
        let (decay, decaying) = (self.options.weight_decay, self.values.f_narrow(0, 0, self.decayed)?);
        match &self.second {
            Some(second) => {
                // Values of a CPU come from memory once, not once an operation.
                let part = if grad.device() == Device::Cpu { CACHED } else { i64::MAX };
                let all = [&self.values, &self.first, second, &grad];
                adamw(all, self.decayed, part, self.steps, self.rate, decay)?;
            }
            None => {
                let _ = grad.f_narrow(0, 0, self.decayed)?.f_add_(&decaying.f_mul_scalar(decay)?)?;
                let _ = self.first.f_mul_scalar_(0.9)?.f_add_(&grad)?;
                let _ = self.values.f_sub_(&self.first.f_mul_scalar(self.rate)?)?;
            }
        }
        for name in self.network.base().params.names().to_vec() {
            if name.ends_with("num_batches_tracked") {
                let mut count = self.network.base().params.get(&name)?.shallow_clone();
                let _ = count.f_add_scalar_(1)?;
            }
        }
        Ok(())
    }
}

/// How many values a step of AdamW takes at a time on a CPU; whole vectors.
const CACHED: i64 = 1 << 17;

/// A step of AdamW on flat values, their first and second moments and gradients, `part` at a time. The first `decayed` decay.
/// The parts change no number.
fn adamw(all: [&Tensor; 4], decayed: i64, part: i64, steps: i64, rate: f64, decay: f64) -> Result<()> {
    let (b1, b2, eps) = (0.9f64, 0.999f64, 1e-8);
    let (c1, c2) = (1.0 - b1.powi(steps as i32), 1.0 - b2.powi(steps as i32));
    let (total, mut start) = (all[0].size1()?, 0);
    while start < total {
        let n = part.min(total - start);
        let narrow = |t: &Tensor| t.f_narrow(0, start, n);
        let (mut values, mut first) = (narrow(all[0])?, narrow(all[1])?);
        let (mut second, grad) = (narrow(all[2])?, narrow(all[3])?);
        let _ = values.f_narrow(0, 0, (decayed - start).clamp(0, n))?.f_mul_scalar_(1.0 - rate * decay)?;
        let _ = first.f_mul_scalar_(b1)?.f_add_(&grad.f_mul_scalar(1.0 - b1)?)?;
        let _ = second.f_mul_scalar_(b2)?.f_addcmul_(&grad, &grad.f_mul_scalar(1.0 - b2)?)?;
        let mut spread = second.f_sqrt()?;
        let _ = spread.f_div_scalar_(c2.sqrt())?.f_add_scalar_(eps)?;
        let _ = values.f_sub_(&first.f_div(&spread)?.f_mul_scalar_(rate / c1)?)?;
        start += n;
    }
    Ok(())
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
        // SAFETY: sets a thread-local flag; the drop below takes it back.
        unsafe { lightbox_autocast(true) };
        Autocast
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        // SAFETY: follows one `true`.
        unsafe { lightbox_autocast(false) };
    }
}

impl<N: Network> Trainer for NetTrainer<N> {
    fn step(&mut self, images: &Array, targets: &Array) -> Result<f64> {
        self.network.begin_step(self.steps);
        tch::with_grad(|| {
            let images = images.share_tensor()?;
            let targets = targets.share_tensor()?.f_to_device(images.device())?;
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
            let loss = match self.options.loss.as_str() {
                "binary-cross-entropy" => {
                    let none = None::<&Tensor>;
                    logits.f_binary_cross_entropy_with_logits(&targets, weights.as_ref(), none, Reduction::Mean)?
                }
                _ => logits.f_cross_entropy_loss(&targets, weights.as_ref(), Reduction::Mean, -100, 0.0)?,
            };
            let value = loss.f_double_value(&[])?;
            let leaves: Vec<&Tensor> =
                self.trained.iter().map(|slot| self.network.base().params.get(&slot.name)).collect::<Result<_>>()?;
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
        Array::from_tensor(&self.network.forward(images.share_tensor()?, false, None)?)
    }

    fn parameters(&self) -> Result<Named> {
        self.network.base().params.snapshot()
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
                put(&mut slot.view(all)?, take(name.clone())?.share_tensor()?, &name)?;
            }
        }
        for name in self.network.base().params.names().to_vec() {
            let array = given.get(&name).ok_or_else(|| Error::invalid(format!("no parameter {name} to restore")))?;
            let mut own = self.network.base().params.get(&name)?.shallow_clone();
            put(&mut own, array.share_tensor()?, &name)?;
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
    fn a_step_in_parts_is_a_step() {
        let n = 1000 * ALIGN;
        let all = || {
            let noise =
                |scale: f64| (Tensor::arange(n, (Kind::Double, Device::Cpu)) * scale).sin().to_kind(Kind::Float);
            [noise(0.37), noise(1.3) * 0.1, noise(2.1).square() * 0.01, noise(0.9) * 0.2]
        };
        let step = |part: i64| {
            let all = all();
            adamw([&all[0], &all[1], &all[2], &all[3]], 70 * ALIGN, part, 3, 0.01, 0.1).unwrap();
            all
        };
        let whole = step(i64::MAX);
        for part in [ALIGN, 48 * ALIGN, 70 * ALIGN] {
            assert_eq!(step(part), whole, "{part}");
        }
        // Against the paper, in double precision.
        let before = all().map(|t| Vec::<f64>::try_from(t.to_kind(Kind::Double)).unwrap());
        let [values, first, second, _] = whole.map(|t| Vec::<f64>::try_from(t.to_kind(Kind::Double)).unwrap());
        for i in (0..n as usize).step_by(97) {
            let [v, m, s, g] = [0, 1, 2, 3].map(|k: usize| before[k][i]);
            let (m, s) = (0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g * g);
            let v = if (i as i64) < 70 * ALIGN { v * (1.0 - 0.01 * 0.1) } else { v };
            let (m_hat, s_hat) = (m / (1.0 - 0.9f64.powi(3)), s / (1.0 - 0.999f64.powi(3)));
            let wanted = [v - 0.01 * m_hat / (s_hat.sqrt() + 1e-8), m, s];
            for (found, wanted) in [values[i], first[i], second[i]].into_iter().zip(wanted) {
                assert!((found - wanted).abs() < 1e-6 + 1e-4 * wanted.abs(), "{i}: {found} {wanted}");
            }
        }
    }

    #[test]
    fn autocast_ends_with_its_guard_on_a_panic_too() {
        let on = || {
            // SAFETY: set and taken back.
            let before = unsafe { lightbox_autocast(true) };
            // SAFETY: as above.
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
