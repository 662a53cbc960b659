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
//! | `linear:epsilon` | `z = W x + b`, convolutions too | `W^T (g z / (z + e sign z))`, `e` = 1e-6 | Bach et al., PLoS ONE 10(7), 2015, eq. 58 |
//! | `linear:gamma` | the same | see [`linear`]; 0.25 | Montavon et al., "Layer-Wise Relevance Propagation: An Overview", 2019 |
//! | `linear:zplus` | the same | see [`linear`] | Bach et al., eq. 60 with alpha 1, beta 0 |
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
pub const RELU: [&str; 2] = ["relu:guided", "relu:deconv"];
/// Rules of [`linear`], [`conv2d`] and [`affine`].
pub const LINEAR: [&str; 3] = ["linear:epsilon", "linear:gamma", "linear:zplus"];
/// Rules of a transformer: [`gelu`], [`layer_norm`], [`softmax`] and [`matmul`].
pub const TRANSFORMER: [&str; 4] = ["activation:identity", "norm:detach", "softmax:detach", "product:uniform"];
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

/// `max(x, 0)`.
pub fn relu(at: &At<'_, '_>, x: &Tensor) -> Result<Tensor> {
    let Some((name, _)) = asked(at, "relu")? else { return Ok(x.f_relu()?) };
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

/// `z = x W^T + b`. With `+` and `-` for positive and negative parts, `u` what takes the relevance,
/// `R_in = x (du/dx) R_out / u`:
///
/// - `epsilon`: `u = z`.
/// - `gamma`: where `z > 0`, `u = x+ (W + gamma W+) + x- (W + gamma W-) + b + gamma b+`, where `z < 0` with `W+` and `W-`
///   exchanged and `b-`: what speaks for the output's sign counts more.
/// - `zplus`: `u = x+ W+ + x- W- + b+`.
pub fn linear(at: &At<'_, '_>, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    map(at, x, weight, bias, |x, w, b| Ok(x.f_linear(w, b)?))
}

/// A convolution of [B, C, H, W] with square stride and zero padding, under the rules of [`linear`].
pub fn conv2d(
    at: &At<'_, '_>,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    (stride, padding, groups): (i64, i64, i64),
) -> Result<Tensor> {
    map(at, x, weight, bias, |x, w, b| Ok(x.f_conv2d(w, b, [stride], [padding], [1], groups)?))
}

fn map(
    at: &At<'_, '_>,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    f: impl Fn(&Tensor, &Tensor, Option<&Tensor>) -> Result<Tensor>,
) -> Result<Tensor> {
    let z = f(x, weight, bias)?;
    let Some((rule, number)) = asked(at, "linear")? else { return Ok(z) };
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
        other => unknown("linear", other),
    }
}

/// `z = a x + b`, a batch norm in inference, for instance, after it was computed. It has one input an output, so that gamma
/// and zplus have nothing to weigh: under any rule for linear maps it follows epsilon.
pub fn affine(at: &At<'_, '_>, z: Tensor) -> Result<Tensor> {
    match asked(at, "linear")? {
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
    fn the_specification_knows_which_rules_take_no_number() {
        let all = [&RELU[..], &LINEAR, &TRANSFORMER, &GATE].concat();
        let mut without: Vec<&str> =
            all.into_iter().filter(|r| !["linear:epsilon", "linear:gamma"].contains(r)).collect();
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
