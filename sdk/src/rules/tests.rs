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
    assert!(numbers(&plain.1).iter().zip(expected).any(|(a, b)| (a - b).abs() > 1e-3), "{rule} is the plain gradient");
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
    let masked = |at: &At<'_, '_>, x: &Tensor| softmax(at, &(x + Tensor::from_slice(&[0.0, f64::NEG_INFINITY, 0.0])));
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
    for rules in [&["linear:epsilon=1e-9"][..], &["linear:zplus"], &["linear:gamma"], &["conv:zplus", "linear:epsilon"]]
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
