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
use tch::Tensor;

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
    map(at, "linear", x, weight, bias, |x, w, b| Ok(x.f_linear(w, b)?))
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
    let operation = if asked(at, "conv")?.is_some() { "conv" } else { "linear" };
    map(at, operation, x, weight, bias, |x, w, b| Ok(x.f_conv2d(w, b, [stride], [padding], [1], groups)?))
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
    (low, high): (&[f64], &[f64]),
) -> Result<Tensor> {
    match asked(at, "input")? {
        None => conv2d(at, x, weight, bias, (stride, padding, groups)),
        Some(("zbox", _)) => {
            let f = |x: &Tensor, w: &Tensor, b| x.f_conv2d(w, b, [stride], [padding], [1], groups);
            let value = f(x, weight, bias)?;
            // The bounds as multiples of x, so that value times gradient is their share.
            let bound = |values: &[f64]| -> Result<Tensor> {
                let bound = Tensor::f_from_slice(values)?.f_to_device(x.device())?.f_to_kind(x.f_kind()?)?;
                let factor = bound.f_reshape([1, -1, 1, 1])?.f_div(&stabilised(&x.f_detach()?, STABILISER)?)?;
                Ok(x.f_mul(&factor)?)
            };
            let least = f(&bound(low)?, &weight.f_clamp_min(0.0)?, None::<&Tensor>)?;
            let most = f(&bound(high)?, &weight.f_clamp_max(0.0)?, None::<&Tensor>)?;
            relevant(&value, &f(x, weight, None)?.f_sub(&least)?.f_sub(&most)?, STABILISER)
        }
        Some((other, _)) => unknown("input", other),
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
mod tests {
    //! Every rule against its own equation, in double precision, one number after the other.

    use super::*;
    use crate::tape::site;
    use crate::{Array, Objective, Request};
    use tch::{Device, Kind};

    /// Values from -1 to 1 without a pattern, the same every time.
    fn noise(shape: &[i64], salt: f64) -> Tensor {
        let n = shape.iter().product::<i64>();
        let angles = (Tensor::arange(n, (Kind::Double, Device::Cpu)) + salt) * 12.9898;
        (angles.sin() * 43758.5453).frac().reshape(shape)
    }

    fn numbers(t: &Tensor) -> Vec<f64> {
        Vec::try_from(&t.detach().to_kind(Kind::Double).flatten(0, -1)).unwrap()
    }

    type Layer<'a> = &'a dyn Fn(&At<'_, '_>, &Tensor) -> Result<Tensor>;

    /// What a layer makes of `x` and of the gradient `g` of its result, with a rule.
    fn run(layer: Layer<'_>, x: &Tensor, g: &Tensor, rules: &[&str]) -> Result<(Tensor, Tensor)> {
        let images = Array::from_tensor(x)?;
        let request = Request {
            values: vec!["z".into()],
            grads: vec!["x".into()],
            objectives: vec![vec![Objective::Site("z".into(), Array::from_tensor(g)?)]],
            rules: rules.iter().map(|r| r.to_string()).collect(),
            ..Request::forward(images)
        };
        let response = Tape::run(&request, |tape, images| {
            let tape = &mut Some(tape);
            let x = site(tape, "x", images)?;
            let z = layer(tape, &x)?;
            site(tape, "z", z)
        })?;
        Ok((response.values["z"].share_tensor()?, response.grads[0]["x"].share_tensor()?))
    }

    /// The rule's gradient is the one expected, and the value that of the plain layer to the last bit.
    fn check(layer: Layer<'_>, x: &Tensor, g: &Tensor, rule: &str, expected: &[f64]) {
        let plain = run(layer, x, g, &[]).unwrap();
        let ruled = run(layer, x, g, &[rule]).unwrap();
        assert_eq!(plain.0, ruled.0, "{rule} changes values");
        let found = numbers(&ruled.1);
        assert_eq!(found.len(), expected.len());
        for (i, (a, b)) in found.iter().zip(expected).enumerate() {
            assert!((a - b).abs() < 1e-5 * b.abs().max(1.0), "{rule} at {i}: {a}, by hand {b}");
        }
        assert!(
            numbers(&plain.1).iter().zip(expected).any(|(a, b)| (a - b).abs() > 1e-3),
            "{rule} is the plain gradient"
        );
    }

    /// The relevance that a unit `z = sum x w + b` hands to each input: of `r`, by LRP's equations.
    fn shares(x: &[f64], w: &[f64], b: f64, r: f64, rule: &str) -> Vec<f64> {
        let z: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>() + b;
        let (up, down) = (|v: f64| v.max(0.0), |v: f64| v.min(0.0));
        // What of the product x w counts, and what of the bias.
        let part = |x: f64, w: f64| match rule {
            "linear:epsilon=0.1" => x * w,
            "linear:zplus" => up(x * w),
            // With the sign of the output a contribution counts 1.25 times.
            _ if z > 0.0 => x * w + 0.25 * up(x * w),
            _ => x * w + 0.25 * down(x * w),
        };
        let bias = match rule {
            "linear:epsilon=0.1" => b,
            "linear:zplus" => up(b),
            _ if z > 0.0 => b + 0.25 * up(b),
            _ => b + 0.25 * down(b),
        };
        let whole: f64 = x.iter().zip(w).map(|(x, w)| part(*x, *w)).sum::<f64>() + bias;
        let e = if rule == "linear:epsilon=0.1" { 0.1 } else { 1e-6 };
        let whole = whole + if whole < 0.0 { -e } else { e };
        x.iter().zip(w).map(|(x, w)| part(*x, *w) * r / whole).collect()
    }

    const LINEAR_RULES: [&str; 3] = ["linear:epsilon=0.1", "linear:gamma", "linear:zplus"];

    #[test]
    fn a_linear_map_under_rules() {
        let (x, w, b, g) = (noise(&[3, 5], 1.0), noise(&[4, 5], 20.0), noise(&[4], 50.0), noise(&[3, 4], 70.0));
        let (xs, ws, bs, gs) = (numbers(&x), numbers(&w), numbers(&b), numbers(&g));
        for rule in LINEAR_RULES {
            let mut expected = vec![0.0; 15];
            for n in 0..3 {
                for k in 0..4 {
                    let (x, w) = (&xs[5 * n..5 * n + 5], &ws[5 * k..5 * k + 5]);
                    let z: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>() + bs[k];
                    let relevance = shares(x, w, bs[k], z * gs[4 * n + k], rule);
                    relevance.iter().enumerate().for_each(|(i, r)| expected[5 * n + i] += r / x[i]);
                }
            }
            check(&|at, x| linear(at, x, &w, Some(&b)), &x, &g, rule, &expected);
        }
    }

    #[test]
    fn a_convolution_under_rules() {
        let (x, w, b) = (noise(&[1, 2, 5, 5], 3.0), noise(&[2, 1, 3, 3], 9.0), noise(&[2], 5.0));
        let g = noise(&[1, 2, 3, 3], 31.0);
        let (xs, ws, bs, gs) = (numbers(&x), numbers(&w), numbers(&b), numbers(&g));
        for rule in LINEAR_RULES {
            // Stride 2, padding 1, a group a channel.
            let mut expected = vec![0.0; 50];
            for (c, row, column) in (0..2).flat_map(|c| (0..9).map(move |p| (c, p / 3, p % 3))) {
                let (mut at, mut window, mut weights) = (vec![], vec![], vec![]);
                for (i, j) in (0..9).map(|p| (p / 3, p % 3)) {
                    let (y, x) = ((2 * row + i) as i64 - 1, (2 * column + j) as i64 - 1);
                    if (0..5).contains(&y) && (0..5).contains(&x) {
                        let place = 25 * c + 5 * y as usize + x as usize;
                        at.push(place);
                        window.push(xs[place]);
                        weights.push(ws[9 * c + 3 * i + j]);
                    }
                }
                let z: f64 = window.iter().zip(&weights).map(|(x, w)| x * w).sum::<f64>() + bs[c];
                let relevance = shares(&window, &weights, bs[c], z * gs[9 * c + 3 * row + column], rule);
                at.iter().zip(relevance).for_each(|(place, r)| expected[*place] += r / xs[*place]);
            }
            check(&|at, x| conv2d(at, x, &w, Some(&b), (2, 1, 2)), &x, &g, rule, &expected);
        }
    }

    #[test]
    fn an_affine_map_follows_epsilon_under_any() {
        let (x, g) = (noise(&[6], 2.0), noise(&[6], 8.0));
        for (rule, e) in [("linear:epsilon=0.3", 0.3), ("linear:gamma=0.5", 1e-6)] {
            let one = |(x, g): (&f64, &f64)| {
                let z = 0.7 * x - 0.2;
                0.7 * z * g / (z + if z < 0.0 { -e } else { e })
            };
            let expected: Vec<f64> = numbers(&x).iter().zip(&numbers(&g)).map(one).collect();
            let layer = |at: &At<'_, '_>, x: &Tensor| affine(at, x * 0.7 - 0.2);
            let found = numbers(&run(&layer, &x, &g, &[rule]).unwrap().1);
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?} {expected:?}");
        }
    }

    #[test]
    fn activations_under_rules() {
        let (x, g) = (noise(&[40], 4.0) * 3.0, noise(&[40], 6.0));
        let by = |f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
            numbers(&x).iter().zip(&numbers(&g)).map(|(x, g)| f(*x, *g)).collect()
        };
        check(&relu, &x, &g, "relu:guided", &by(&|x, g| if x > 0.0 { g.max(0.0) } else { 0.0 }));
        check(&relu, &x, &g, "relu:deconv", &by(&|_, g| g.max(0.0)));
        // Phi by the trapezoidal rule.
        let phi = |x: f64| -> f64 {
            let (from, n) = (-12.0, 200_000);
            let step = (x - from) / n as f64;
            let density = |t: f64| (-t * t / 2.0).exp() / std::f64::consts::TAU.sqrt();
            (1..n).map(|i| density(from + step * i as f64)).sum::<f64>() * step + density(x) * step / 2.0
        };
        check(&gelu, &x, &g, "activation:identity", &by(&|x, g| g * phi(x)));
    }

    #[test]
    fn a_norm_whose_deviation_is_a_constant() {
        let (x, w, b, g) = (noise(&[2, 6], 7.0), noise(&[6], 11.0), noise(&[6], 13.0), noise(&[2, 6], 17.0));
        let (xs, ws, gs) = (numbers(&x), numbers(&w), numbers(&g));
        let mut expected = Vec::new();
        for n in 0..2 {
            let x = &xs[6 * n..6 * n + 6];
            let mean = x.iter().sum::<f64>() / 6.0;
            let deviation = (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 6.0 + 0.01).sqrt();
            let slope = |k: usize| gs[6 * n + k] * ws[k] / deviation;
            let mean_slope = (0..6).map(slope).sum::<f64>() / 6.0;
            expected.extend((0..6).map(|k| slope(k) - mean_slope));
        }
        check(&|at, x| layer_norm(at, x, &w, &b, 0.01), &x, &g, "norm:detach", &expected);
    }

    #[test]
    fn products_softmax_and_gates_under_rules() {
        let (x, other, g) = (noise(&[2, 3], 19.0), noise(&[3, 2], 23.0), noise(&[2, 2], 29.0));
        let (os, gs) = (numbers(&other), numbers(&g));
        // Half of what the product with a constant would give.
        let of = |i: usize, k: usize| (0..2).map(|j| gs[2 * i + j] * os[2 * k + j] / 2.0).sum();
        let expected: Vec<f64> = (0..6).map(|p| of(p / 3, p % 3)).collect();
        check(&|at, x| matmul(at, x, &other), &x, &g, "product:uniform", &expected);
        let other = |x: &Tensor| noise(&[2, 3], 37.0) + x * 0.0;
        let g = noise(&[2, 3], 41.0);
        check(&softmax, &x, &g, "softmax:detach", &[0.0; 6]);
        // A key that is masked out.
        let masked =
            |at: &At<'_, '_>, x: &Tensor| softmax(at, &(x + Tensor::from_slice(&[0.0, f64::NEG_INFINITY, 0.0])));
        check(&masked, &x, &g, "softmax:detach", &[0.0; 6]);
        // A gate that depends on x: only the other factor's gradient is left.
        let layer = |at: &At<'_, '_>, x: &Tensor| gate(at, &other(x), &(x * 2.0));
        check(&layer, &x, &g, "gate:detach", &[0.0; 6]);
        let layer = |at: &At<'_, '_>, x: &Tensor| gate(at, x, &(x * 2.0));
        let expected: Vec<f64> = numbers(&x).iter().zip(&numbers(&g)).map(|(x, g)| 2.0 * x * g).collect();
        check(&layer, &x, &g, "gate:detach", &expected);
    }

    #[test]
    fn secants_join_images_and_baselines() {
        // Three images and their baselines, of which one number is the same.
        let (x, g) = (noise(&[6, 4], 3.0), noise(&[6, 4], 4.0));
        let _ = x.get(0).get(1).fill_(0.25);
        let _ = x.get(3).get(1).fill_(0.25);
        let layer = |at: &At<'_, '_>, x: &Tensor| relu(at, x);
        let (a, b) = (numbers(&x), numbers(&g));
        let slope = |i: usize| {
            let (x1, x0) = (a[i % 12], a[i % 12 + 12]);
            if x1 == x0 { f64::from(u8::from(x1 > 0.0)) } else { (x1.max(0.0) - x0.max(0.0)) / (x1 - x0) }
        };
        let expected: Vec<f64> = (0..24).map(|i| b[i] * slope(i)).collect();
        check(&layer, &x, &g, "relu:rescale", &expected);
        assert!(run(&layer, &x.narrow(0, 0, 3), &g.narrow(0, 0, 3), &["relu:rescale"]).is_err());
    }

    /// Windows of three pixels that overlap by one: what each hands to the pixels of the image, added up.
    #[test]
    fn a_pool_of_pairs_explains_the_difference_of_its_maxima() {
        let (x, g) = (noise(&[4, 2, 5, 5], 8.0), noise(&[4, 2, 2, 2], 9.0));
        let layer = |at: &At<'_, '_>, x: &Tensor| max_pool2d(at, x, (3, 2, 0));
        let mut expected = vec![0.0; 200];
        let at = |n: i64, c: i64, y: i64, x: i64| ((n * 2 + c) * 25 + y * 5 + x) as usize;
        let values = numbers(&x);
        for (n, c, v, u) in (0..16).map(|i| (i / 8, i / 4 % 2, i / 2 % 2, i % 2)) {
            let window = |n: i64| (0..9).map(move |i| at(n, c, 2 * v + i / 3, 2 * u + i % 3));
            let largest = |n: i64| window(n).max_by(|a, b| values[*a].total_cmp(&values[*b])).unwrap();
            let (ours, theirs) = (largest(n), largest(n + 2));
            let (y, y0) = (values[ours], values[theirs]);
            let most = y.max(y0);
            let gradient = g.double_value(&[n, c, v, u]);
            let mut give = |pixel: usize, amount: f64| {
                if amount != 0.0 {
                    expected[pixel] += gradient * amount / (values[pixel] - values[pixel + 100]);
                }
            };
            give(ours, most - y0);
            give(theirs - 100, y - most);
        }
        let ruled = run(&layer, &x, &g, &["pool:rescale"]).unwrap();
        let found = numbers(&ruled.1);
        for (i, (a, b)) in found[..100].iter().zip(&expected[..100]).enumerate() {
            assert!((a - b).abs() < 1e-6 * b.abs().max(1.0), "{i}: {a}, by hand {b}");
        }
        // One window: the relevance of the differences is the maximum's.
        let (x, g) = (x.narrow(2, 0, 3).narrow(3, 0, 3), Tensor::ones([4, 2, 1, 1], (Kind::Double, Device::Cpu)));
        let (value, gradient) = run(&layer, &x, &g, &["pool:rescale"]).unwrap();
        let share = (x.narrow(0, 0, 2) - x.narrow(0, 2, 2)) * gradient.narrow(0, 0, 2);
        let wanted = (value.narrow(0, 0, 2) - value.narrow(0, 2, 2)).sum(Kind::Double).double_value(&[]);
        assert!((share.sum(Kind::Double).double_value(&[]) - wanted).abs() < 1e-9);
    }

    #[test]
    fn the_box_rule_gives_the_first_convolution_the_terms_that_are_not_negative() {
        let (x, g, w) = (noise(&[2, 3, 1, 1], 1.0), noise(&[2, 4, 1, 1], 2.0), noise(&[4, 3, 1, 1], 5.0));
        let bias = noise(&[4], 6.0);
        let (low, high) = ([-1.0, -1.5, -2.0], [1.0, 2.0, 1.25]);
        let layer = |at: &At<'_, '_>, x: &Tensor| first_conv2d(at, x, &w, Some(&bias), (1, 0, 1), (&low, &high));
        let (xs, ws, gs, bs) = (numbers(&x), numbers(&w), numbers(&g), numbers(&bias));
        let mut expected = vec![0.0; 6];
        for (b, o) in (0..8).map(|i| (i / 4, i % 4)) {
            let term = |c: usize| {
                let (x, w) = (xs[b * 3 + c], ws[o * 3 + c]);
                x * w - low[c] * w.max(0.0) - high[c] * w.min(0.0)
            };
            let z = (0..3).map(|c| xs[b * 3 + c] * ws[o * 3 + c]).sum::<f64>() + bs[o];
            let all: f64 = (0..3).map(term).sum();
            (0..3).for_each(|c| expected[b * 3 + c] += gs[b * 4 + o] * z * term(c) / all / xs[b * 3 + c]);
        }
        check(&layer, &x, &g, "input:zbox", &expected);
    }

    /// What reaches the image is what left the logit, in a network without biases; with them it is less by the biases' part.
    #[test]
    fn relevance_is_conserved() {
        let (x, w1, w2) = (noise(&[2, 3, 4, 4], 1.0).abs(), noise(&[5, 3, 3, 3], 2.0), noise(&[2, 20], 3.0));
        let bias = noise(&[5], 4.0);
        for rules in
            [&["linear:epsilon=1e-9"][..], &["linear:zplus"], &["linear:gamma"], &["conv:zplus", "linear:epsilon"]]
        {
            let net = |biased: bool| {
                let (w1, w2, bias) = (&w1, &w2, &bias);
                move |at: &At<'_, '_>, x: &Tensor| {
                    let y = relu(at, &conv2d(at, x, w1, biased.then_some(bias), (1, 0, 1))?)?;
                    linear(at, &y.f_flatten(1, -1)?, w2, None)
                }
            };
            let gap = |biased: bool| {
                let g = Tensor::from_slice(&[1.0, 0.0]).expand([2, 2], false).contiguous();
                let (z, gradient) = run(&net(biased), &x, &g, rules).unwrap();
                let relevance = (&x * gradient).sum(Kind::Double).double_value(&[]);
                let logits = z.select(1, 0).sum(Kind::Double).double_value(&[]);
                (relevance - logits).abs() / logits.abs()
            };
            assert!(gap(false) < 1e-4, "{rules:?}: {}", gap(false));
            assert!(gap(true) > 1e-3, "{rules:?} with biases: {}", gap(true));
        }
    }

    #[test]
    fn a_convolutions_own_rule_goes_first() {
        let (x, g, w) = (noise(&[2, 3, 2, 2], 1.0), noise(&[2, 4, 2, 2], 2.0), noise(&[4, 3, 1, 1], 5.0));
        let layer = |at: &At<'_, '_>, x: &Tensor| conv2d(at, x, &w, None, (1, 0, 1));
        let of = |rules: &[&str]| run(&layer, &x, &g, rules).unwrap().1;
        assert_eq!(of(&["conv:zplus", "linear:epsilon"]), of(&["linear:zplus"]));
        assert_ne!(of(&["linear:epsilon=0.1"]), of(&["linear:zplus"]));
        let flat = |at: &At<'_, '_>, x: &Tensor| linear(at, x, &noise(&[5, 2], 7.0), None);
        let g = noise(&[2, 3, 2, 5], 2.0);
        assert_eq!(run(&flat, &x, &g, &["conv:zplus"]).unwrap().1, run(&flat, &x, &g, &[]).unwrap().1);
        let detached = |at: &At<'_, '_>, x: &Tensor| Ok(x.f_add(&attention_input(at, x)?.f_mul_scalar(3.0)?)?);
        let g = noise(&[2, 3, 2, 2], 2.0);
        assert_eq!(run(&detached, &x, &g, &["attention:detach"]).unwrap().1, g);
        assert!(relative(&run(&detached, &x, &g, &[]).unwrap().1, &(&g * 4.0)) < 1e-12);
    }

    fn relative(a: &Tensor, b: &Tensor) -> f64 {
        ((a - b).abs().max() / b.abs().max()).double_value(&[])
    }

    #[test]
    fn the_specification_knows_which_rules_take_no_number() {
        let all = [&RELU[..], &POOL, &CONV, &INPUT, &LINEAR, &TRANSFORMER, &GATE].concat();
        let mut without: Vec<&str> =
            all.into_iter().filter(|r| !r.ends_with(":epsilon") && !r.ends_with(":gamma")).collect();
        let mut known = crate::spec::RULES_WITHOUT_NUMBER.to_vec();
        without.sort_unstable();
        known.sort_unstable();
        assert_eq!(without, known);
    }

    #[test]
    fn what_is_no_rule_is_an_error() {
        let (x, g) = (noise(&[2, 2], 1.0), noise(&[2, 2], 2.0));
        let check = |rules: &[&str], message: &str| {
            let layer = |at: &At<'_, '_>, x: &Tensor| softmax(at, &linear(at, &relu(at, x)?, &g, None)?);
            let error = run(&layer, &x, &g, rules).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        check(&["relu:guided", "relu:deconv"], "relu has one rule, and guided and deconv are asked for");
        check(&["relu:upside"], "there is no rule relu:upside");
        check(&["linear:gamma=much"], "rule linear:gamma=much: much is no number above 0");
        check(&["linear:epsilon=-1"], "no number above 0");
        check(&["linear:epsilon=0"], "no number above 0");
        check(&["linear:epsilon=1e-60"], "no number above 0");
        check(&["softmax:detach=2"], "rule softmax:detach takes no number");
        check(&["linear:alpha"], "there is no rule linear:alpha");
    }
}
