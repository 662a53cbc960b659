//! Modified backward rules, for models written in plain tch. A rule changes what a gradient is and no value: a model calls
//! these functions in place of libtorch's, and a request that names no rule gets libtorch's own.
//!
//! With the relevance of a tensor written as value times gradient, `R = z g`, a rule of layer-wise relevance propagation
//! (LRP) is one of gradients: from `g_out` to the `g_in` for which `x g_in` is the relevance that the rule gives to `x`. So
//! Achtibat et al. write it, and so relevance is `value * gradient` at any site. Biases keep what falls to them. A rule is
//! named `OPERATION:RULE`; those with a number take another one as `linear:gamma=0.1`. An operation has one rule at a time.
//!
//! | rule | of | gradient | source |
//! |---|---|---|---|
//! | `relu:guided` | ReLU | `max(g, 0)` where `x > 0` | Springenberg et al., arXiv:1412.6806 |
//! | `relu:deconv` | ReLU | `max(g, 0)` | Zeiler and Fergus, arXiv:1311.2901 |
//! | `activation:identity` | GELU | `g y / x`: all relevance passes | Achtibat et al., arXiv:2402.05602, prop. 3.2 |
//! | `relu:rescale` | ReLU of pairs | the secant, see [`relu`] | Shrikumar et al., arXiv:1704.02685, rescale rule |
//! | `pool:rescale` | max pooling of pairs | see [`max_pool2d`] | the same |
//! | `linear:epsilon` | `z = W x + b`, convolutions too | `W^T (g z / (z + e sign z))`, `e` = 1e-6 | Bach et al., PLoS ONE 10(7), 2015, eq. 58 |
//! | `linear:gamma` | the same | see [`linear`]; 0.25 | Montavon et al., "Layer-Wise Relevance Propagation: An Overview", 2019 |
//! | `linear:zplus` | the same | see [`linear`] | Bach et al., eq. 60 with alpha 1, beta 0 |
//! | `conv:...` | convolutions alone, before `linear` | as `linear:...` | |
//! | `input:zbox` | the first convolution | see [`first_conv2d`] | Montavon et al., Pattern Recognition 65, 2017, the z^B rule |
//! | `attention:detach` | what queries, keys and values are made of | none | Leem and Seo, arXiv:2402.04563 |
//! | `norm:detach` | layer norm | that of a division by a constant | Ali et al., arXiv:2202.07304 |
//! | `softmax:detach` | attention's softmax | none: the weights are constants | Ali et al. |
//! | `product:uniform` | attention's two matrix products | half to each factor | Achtibat et al., prop. 3.3 |
//! | `gate:detach` | a product with a gate | that of a product with a constant | Ali et al., as for the softmax |
//!
//! AttnLRP is `activation:identity`, `norm:detach`, `product:uniform` (its rule for the softmax is the plain gradient),
//! with a rule for linear maps; CP-LRP has `softmax:detach` in place of `product:uniform`.
//!
//! Where a value is exactly zero its relevance is zero, and the gradient there is one of several that say so.

use crate::tape::Tape;
use crate::{Error, Result};
use std::ffi::{CStr, c_char, c_void};
use tch::{Kind, Tensor};

/// Rules of [`relu`].
pub const RELU: [&str; 3] = ["relu:guided", "relu:deconv", "relu:rescale"];
/// The rule of [`max_pool2d`].
pub const POOL: [&str; 1] = ["pool:rescale"];
/// Rules of [`conv2d`] that go before those of [`LINEAR`].
pub const CONV: [&str; 3] = ["conv:epsilon", "conv:gamma", "conv:zplus"];
/// The rule of [`first_conv2d`].
pub const INPUT: [&str; 1] = ["input:zbox"];
/// Rules of [`linear`], [`conv2d`] and [`affine`].
pub const LINEAR: [&str; 3] = ["linear:epsilon", "linear:gamma", "linear:zplus"];
/// Rules of a transformer: [`gelu`], [`layer_norm`], [`softmax`] and [`matmul`].
pub const TRANSFORMER: [&str; 5] =
    ["activation:identity", "norm:detach", "softmax:detach", "product:uniform", "attention:detach"];
/// The rule of [`gate`].
pub const GATE: [&str; 1] = ["gate:detach"];

/// What keeps quotients from a division by zero, as in Zennit.
const STABILISER: f64 = 1e-6;
const GAMMA: f64 = 0.25;

/// Where a run's rules are found; there is none in training.
pub type At<'a, 'b> = Option<&'a mut Tape<'b>>;

/// The rule that the request has for an operation, and its number.
fn asked<'r>(at: &'r At<'_, '_>, operation: &str) -> Result<Option<(&'r str, Option<f64>)>> {
    let Some(tape) = at else { return Ok(None) };
    let mine = |rule: &'r String| rule.strip_prefix(operation).and_then(|rest| rest.strip_prefix(':'));
    let mut found = tape.rules().iter().filter_map(mine);
    let Some(rule) = found.next() else { return Ok(None) };
    if let Some(other) = found.next() {
        return Err(Error::invalid(format!("{operation} has one rule, and {rule} and {other} are asked for")));
    }
    let (name, number) = match rule.split_once('=') {
        None => (rule, None),
        Some((name, text)) => {
            // Above 0 in float32 too, or it could keep nothing from a division by zero.
            let usable = |n: &f64| (*n as f32).is_finite() && *n as f32 > 0.0;
            let number = text.parse::<f64>().ok().filter(usable);
            let wrong = || Error::invalid(format!("rule {operation}:{rule}: {text} is no number above 0"));
            (name, Some(number.ok_or_else(wrong)?))
        }
    };
    match number {
        Some(_) if !["epsilon", "gamma"].contains(&name) => {
            Err(Error::invalid(format!("rule {operation}:{name} takes no number")))
        }
        number => Ok(Some((name, number))),
    }
}

fn unknown<T>(operation: &str, rule: &str) -> Result<T> {
    Err(Error::unsupported(format!("there is no rule {operation}:{rule}")))
}

/// `value` with the gradient of `other`; the value is the same to the last bit, since `x - x` is zero.
fn graft(value: &Tensor, other: &Tensor) -> Result<Tensor> {
    Ok(value.f_detach()?.f_add(&other.f_sub(&other.f_detach()?)?)?)
}

/// Zeros that hang on `x`, with a gradient of zero; where a mask has put infinities too.
fn nothing(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_nan_to_num(0.0, 0.0, 0.0)?.f_mul_scalar(0.0)?)
}

/// `z` away from zero, by `e` in its own direction.
fn stabilised(z: &Tensor, e: f64) -> Result<Tensor> {
    let sign = z.f_ge(0.0)?.f_to_kind(z.f_kind()?)?.f_mul_scalar(2.0)?.f_sub_scalar(1.0)?;
    Ok(z.f_add(&sign.f_mul_scalar(e)?)?)
}

/// `value` with the gradient of `u`, scaled such that `u` takes the value's relevance.
fn relevant(value: &Tensor, u: &Tensor, e: f64) -> Result<Tensor> {
    let scale = value.f_div(&stabilised(u, e)?)?.f_detach()?;
    graft(value, &u.f_mul(&scale)?)
}

unsafe extern "C" {
    fn lightbox_relu(x: *const c_void, rule: i64, error: *mut c_char, error_len: usize) -> *mut c_void;
}

/// The two halves of a batch of images and their baselines.
fn halves(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let n = x.size().first().copied().unwrap_or(0);
    if n % 2 != 0 {
        return Err(Error::invalid(format!(
            "a rule of pairs, and {n} rows: the first half's baselines are the second"
        )));
    }
    Ok((x.f_narrow(0, 0, n / 2)?, x.f_narrow(0, n / 2, n / 2)?))
}

/// `up / down` where `down` is not about zero, `other` where it is.
fn quotient(up: &Tensor, down: &Tensor, other: &Tensor) -> Result<Tensor> {
    let usable = down.f_abs()?.f_gt(1e-10)?;
    let safe = down.f_where_self(&usable, &down.f_ones_like()?)?;
    Ok(up.f_div(&safe)?.f_where_self(&usable, other)?)
}

/// `max(x, 0)`. Under `rescale` the second half of the batch holds the baselines x' of the first, and the gradient is
/// `(relu(x) - relu(x')) / (x - x')`; where x = x' it is the ReLU's own.
pub fn relu(at: &At<'_, '_>, x: &Tensor) -> Result<Tensor> {
    let Some((name, _)) = asked(at, "relu")? else { return Ok(x.f_relu()?) };
    if name == "rescale" {
        let value = x.f_relu()?;
        let plain = x.f_detach()?;
        let ((x1, x0), (y1, y0)) = (halves(&plain)?, halves(&value.f_detach()?)?);
        let own = x1.f_gt(0.0)?.f_to_kind(x1.f_kind()?)?;
        let slope = quotient(&y1.f_sub(&y0)?, &x1.f_sub(&x0)?, &own)?;
        return graft(&value, &x.f_mul(&Tensor::f_cat(&[&slope, &slope], 0)?)?);
    }
    let Some(rule) = RELU.iter().position(|r| r.ends_with(&format!(":{name}"))) else { return unknown("relu", name) };
    let mut error = [0 as c_char; 512];
    // SAFETY: the tensor lives through the call; `error` is as long as it says.
    let made = unsafe { lightbox_relu(x.as_ptr() as *const c_void, rule as i64, error.as_mut_ptr(), error.len()) };
    if made.is_null() {
        // SAFETY: the shim writes at most one byte less than the buffer, which began as zeros.
        let message = unsafe { CStr::from_ptr(error.as_ptr()) }.to_string_lossy();
        return Err(Error::new(crate::ErrorKind::Torch, message));
    }
    // SAFETY: a new `at::Tensor` that nobody else owns.
    Ok(unsafe { Tensor::from_ptr(made.cast()) })
}

/// `x Phi(x)` with the normal distribution's `Phi` by the error function.
pub fn gelu(at: &At<'_, '_>, x: &Tensor) -> Result<Tensor> {
    let value = x.f_gelu("none")?;
    match asked(at, "activation")? {
        None => Ok(value),
        Some(("identity", _)) => {
            let phi = x.f_mul_scalar(0.5f64.sqrt())?.f_erf()?.f_add_scalar(1.0)?.f_mul_scalar(0.5)?;
            graft(&value, &x.f_mul(&phi.f_detach()?)?)
        }
        Some((other, _)) => unknown("activation", other),
    }
}

/// Max pooling with a square kernel. Under `rescale`, the second half of the batch the baselines x' of the first, what a
/// window's maximum y exceeds the baseline's y' by goes to the image's largest pixel, and what it falls short by to the
/// baseline's: `(max(y, y') - y')` to the one and `(y - max(y, y'))` to the other, each over that pixel's `x - x'`. A pixel that
/// is in several windows gets all its parts; Captum keeps one.
pub fn max_pool2d(at: &At<'_, '_>, x: &Tensor, (kernel, stride, padding): (i64, i64, i64)) -> Result<Tensor> {
    match asked(at, "pool")? {
        None => Ok(x.f_max_pool2d([kernel], [stride], [padding], [1], false)?),
        Some(("rescale", _)) => {
            let (value, index) = x.f_max_pool2d_with_indices([kernel], [stride], [padding], [1], false)?;
            let flat = x.f_flatten(2, -1)?;
            let ((live, _), (x1, x0)) = (halves(&flat)?, halves(&flat.f_detach()?)?);
            let ((y1, y0), (i1, i0)) = (halves(&value.f_detach()?)?, halves(&index)?);
            let most = y1.f_maximum(&y0)?;
            let part = |index: &Tensor, amount: &Tensor| -> Result<Tensor> {
                let at = |t: &Tensor| Ok::<_, Error>(t.f_gather(2, &index.f_flatten(2, -1)?, false)?.f_view_as(index)?);
                let slope = quotient(amount, &at(&x1)?.f_sub(&at(&x0)?)?, &amount.f_zeros_like()?)?;
                Ok(at(&live)?.f_mul(&slope)?)
            };
            let ours = part(&i1, &most.f_sub(&y0)?)?.f_add(&part(&i0, &y1.f_sub(&most)?)?)?;
            graft(&value, &Tensor::f_cat(&[&ours, &y0], 0)?)
        }
        Some((other, _)) => unknown("pool", other),
    }
}

/// `z = x W^T + b`. With `+` and `-` for positive and negative parts, `u` what takes the relevance,
/// `R_in = x (du/dx) R_out / u`:
///
/// - `epsilon`: `u = z`.
/// - `gamma`: where `z > 0`, `u = x+ (W + gamma W+) + x- (W + gamma W-) + b + gamma b+`, where `z < 0` with `W+` and `W-`
///   exchanged and `b-`: what speaks for the output's sign counts more.
/// - `zplus`: `u = x+ W+ + x- W- + b+`.
pub fn linear(at: &At<'_, '_>, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    // A float32 head on values in bfloat16.
    let x = if x.f_kind()? == Kind::BFloat16 { x.f_to_kind(weight.f_kind()?)? } else { x.shallow_clone() };
    map(at, "linear", &x, weight, bias, |x, w, b| Ok(x.f_linear(w, b)?))
}

/// A convolution of [B, C, H, W] with square stride and zero padding, under a rule `conv:...` if there is one, else that of
/// [`linear`].
pub fn conv2d(
    at: &At<'_, '_>,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    (stride, padding, groups): (i64, i64, i64),
) -> Result<Tensor> {
    linear_map(at, true, x, weight, bias, |x, w, b| Ok(x.f_conv2d(w, b, [stride], [padding], [1], groups)?))
}

/// The convolution that reads the image, whose values lie from `low` to `high`, one number a channel. Under `input:zbox` what
/// takes the relevance is `u = x W - low W+ - high W-`, in which no term is negative. A pixel that is exactly 0 gets none, since
/// relevance is value times gradient; Zennit gives it its share.
pub fn first_conv2d(
    at: &At<'_, '_>,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    (stride, padding, groups): (i64, i64, i64),
    bounds: (&[f64], &[f64]),
) -> Result<Tensor> {
    first_map(at, x, weight, bias, bounds, |x, w, b| Ok(x.f_conv2d(w, b, [stride], [padding], [1], groups)?))
}

/// A convolution of any number of spatial axes, or a linear map of rows, that is computed by `f(x, weight, bias)`: under a rule
/// `conv:...` if it is a convolution and there is one, else under that of [`linear`].
pub fn linear_map(
    at: &At<'_, '_>,
    is_convolution: bool,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    f: impl Fn(&Tensor, &Tensor, Option<&Tensor>) -> Result<Tensor>,
) -> Result<Tensor> {
    let operation = if is_convolution && asked(at, "conv")?.is_some() { "conv" } else { "linear" };
    map(at, operation, x, weight, bias, f)
}

/// The same for the convolution that reads the images, see [`first_conv2d`]: their values lie from `low` to `high`.
pub fn first_map(
    at: &At<'_, '_>,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    (low, high): (&[f64], &[f64]),
    f: impl Fn(&Tensor, &Tensor, Option<&Tensor>) -> Result<Tensor>,
) -> Result<Tensor> {
    match asked(at, "input")? {
        None => linear_map(at, true, x, weight, bias, f),
        Some(("zbox", _)) => {
            let value = f(x, weight, bias)?;
            // The bounds as multiples of x, so that value times gradient is their share.
            let bound = |values: &[f64]| -> Result<Tensor> {
                let bound = Tensor::f_from_slice(values)?.f_to_device(x.device())?.f_to_kind(x.f_kind()?)?;
                let shape = [vec![1, -1], vec![1; x.dim().saturating_sub(2)]].concat();
                let factor = bound.f_reshape(shape)?.f_div(&stabilised(&x.f_detach()?, STABILISER)?)?;
                Ok(x.f_mul(&factor)?)
            };
            let least = f(&bound(low)?, &weight.f_clamp_min(0.0)?, None::<&Tensor>)?;
            let most = f(&bound(high)?, &weight.f_clamp_max(0.0)?, None::<&Tensor>)?;
            relevant(&value, &f(x, weight, None)?.f_sub(&least)?.f_sub(&most)?, STABILISER)
        }
        Some((other, _)) => unknown("input", other),
    }
}

/// An activation `value` of `x` that is `x` times a gate of itself (SiLU, Hardswish, Mish): under `activation:identity` all
/// relevance passes, the gradient is `g value / x`.
pub fn activation(at: &At<'_, '_>, x: &Tensor, value: Tensor) -> Result<Tensor> {
    match asked(at, "activation")? {
        None => Ok(value),
        Some(("identity", _)) => {
            let slope = value.f_div(&stabilised(x, STABILISER)?)?.f_detach()?;
            graft(&value, &x.f_mul(&slope)?)
        }
        Some((other, _)) => unknown("activation", other),
    }
}

/// What a transformer block's queries, keys and values are made of. Under `attention:detach` no gradient goes on to it.
pub fn attention_input(at: &At<'_, '_>, x: &Tensor) -> Result<Tensor> {
    match asked(at, "attention")? {
        None => Ok(x.shallow_clone()),
        // Gradients of zero, not none.
        Some(("detach", _)) => graft(x, &nothing(x)?),
        Some((other, _)) => unknown("attention", other),
    }
}

fn map(
    at: &At<'_, '_>,
    operation: &str,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    f: impl Fn(&Tensor, &Tensor, Option<&Tensor>) -> Result<Tensor>,
) -> Result<Tensor> {
    let z = f(x, weight, bias)?;
    let Some((rule, number)) = asked(at, operation)? else { return Ok(z) };
    let positive = |t: &Tensor| t.f_clamp_min(0.0);
    let negative = |t: &Tensor| t.f_clamp_max(0.0);
    match rule {
        "epsilon" => relevant(&z, &z, number.unwrap_or(STABILISER)),
        "gamma" => {
            let gamma = number.unwrap_or(GAMMA);
            let more = |t: &Tensor, part: &Tensor| t.f_add(&part.f_mul_scalar(gamma)?);
            let (w_up, w_down) = (more(weight, &positive(weight)?)?, more(weight, &negative(weight)?)?);
            let (b_up, b_down) = match bias {
                Some(b) => (Some(more(b, &positive(b)?)?), Some(more(b, &negative(b)?)?)),
                None => (None, None),
            };
            let (up, down) = (positive(x)?, negative(x)?);
            let pro = f(&up, &w_up, b_up.as_ref())?.f_add(&f(&down, &w_down, None)?)?;
            let con = f(&up, &w_down, b_down.as_ref())?.f_add(&f(&down, &w_up, None)?)?;
            relevant(&z, &pro.f_where_self(&z.f_ge(0.0)?, &con)?, STABILISER)
        }
        "zplus" => {
            let bias = bias.map(positive).transpose()?;
            let part = f(&positive(x)?, &positive(weight)?, bias.as_ref())?;
            relevant(&z, &part.f_add(&f(&negative(x)?, &negative(weight)?, None)?)?, STABILISER)
        }
        other => unknown(operation, other),
    }
}

/// `z = a x + b`, a batch norm in inference, for instance, after it was computed. It has one input an output, so that gamma
/// and zplus have nothing to weigh: under any rule for linear maps or convolutions it follows epsilon.
pub fn affine(at: &At<'_, '_>, z: Tensor) -> Result<Tensor> {
    let rule = asked(at, "linear")?;
    match if rule.is_some() { rule } else { asked(at, "conv")? } {
        None => Ok(z),
        Some(("epsilon", number)) => relevant(&z, &z, number.unwrap_or(STABILISER)),
        Some(_) => relevant(&z, &z, STABILISER),
    }
}

/// Layer normalisation over the last dimension.
pub fn layer_norm(at: &At<'_, '_>, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let value = x.f_layer_norm(weight.size(), Some(weight), Some(bias), eps, true)?;
    match asked(at, "norm")? {
        None => Ok(value),
        Some(("detach", _)) => {
            let centred = x.f_sub(&x.f_mean_dim([-1i64].as_slice(), true, x.f_kind()?)?)?;
            let square = centred.f_mul(&centred)?.f_mean_dim([-1i64].as_slice(), true, x.f_kind()?)?;
            let deviation = square.f_add_scalar(eps)?.f_sqrt()?.f_detach()?;
            graft(&value, &centred.f_div(&deviation)?.f_mul(weight)?.f_add(bias)?)
        }
        Some((other, _)) => unknown("norm", other),
    }
}

/// The softmax of attention over the last dimension.
pub fn softmax(at: &At<'_, '_>, logits: &Tensor) -> Result<Tensor> {
    let value = logits.f_softmax(-1, logits.f_kind()?)?;
    match asked(at, "softmax")? {
        None => Ok(value),
        // Gradients of zero, not none: what comes before can still be asked for one.
        Some(("detach", _)) => graft(&value, &nothing(logits)?),
        Some((other, _)) => unknown("softmax", other),
    }
}

/// A matrix product of two values of the model.
pub fn matmul(at: &At<'_, '_>, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let value = a.f_matmul(b)?;
    match asked(at, "product")? {
        None => Ok(value),
        Some(("uniform", _)) => graft(&value, &value.f_mul_scalar(0.5)?),
        Some((other, _)) => unknown("product", other),
    }
}

/// `x` times a gate, elementwise and broadcasting.
pub fn gate(at: &At<'_, '_>, x: &Tensor, gate: &Tensor) -> Result<Tensor> {
    match asked(at, "gate")? {
        None => Ok(x.f_mul(gate)?),
        Some(("detach", _)) => {
            // Gradients of zero for the gate, not none.
            let constant = graft(gate, &nothing(gate)?)?;
            Ok(x.f_mul(&constant)?)
        }
        Some((other, _)) => unknown("gate", other),
    }
}

#[cfg(test)]
mod tests;
