//! KernelSHAP: Lundberg and Lee, "A Unified Approach to Interpreting Model Predictions", NeurIPS 2017, arXiv:1705.07874.
//!
//! Shapley values of superpixels by weighted least squares with the kernel `(M - 1) / (k (M - k))` a size k of the set that is on
//! (theorem 2). As in the `shap` package, sizes are taken in the order of their weight, each set with its complement; a size
//! whose sets all fit the budget is run in full, and the rest is drawn. The values sum to `S(x) - S(all covered)` exactly: that
//! is a constraint of the regression, not a sample with a large weight as in Captum. With all 2^M - 2 sets they are the
//! Shapley values.

use crate::cover::{SegmentFill, Segments, bound, paint, scores, segments};
use crate::regress::solve;
use lightbox_sdk::prelude::*;
use lightbox_sdk::rand::Rng;
use lightbox_sdk::tch::Tensor;
use lightbox_sdk::tools::draw::choose;
use lightbox_sdk::tools::segment;
use std::collections::BTreeMap;

register_explainer!(KernelShap);

struct KernelShap;

/// All sets of `k` of 0..m.
fn combinations(m: usize, k: usize) -> Vec<Vec<usize>> {
    let (mut all, mut now) = (Vec::new(), (0..k).collect::<Vec<_>>());
    loop {
        all.push(now.clone());
        let Some(i) = (0..k).rev().find(|i| now[*i] != i + m - k) else { return all };
        now[i] += 1;
        (i + 1..k).for_each(|j| now[j] = now[j - 1] + 1);
    }
}

/// The number of sets of `k` of `m`, as large as it gets.
fn count(m: usize, k: usize) -> f64 {
    (0..k).map(|i| (m - i) as f64 / (i + 1) as f64).product()
}

/// Sets of superpixels that are on, with their weights: at most `budget`.
fn sets(m: usize, budget: usize, rng: &mut impl Rng) -> (Vec<Vec<bool>>, Vec<f64>) {
    if m < 2 {
        return (vec![], vec![]);
    }
    // Sizes k and m - k are one; the middle of an even m stands alone.
    let sizes: Vec<usize> = (1..=m / 2).collect();
    let pairs = |k: usize| if 2 * k == m { 1.0 } else { 2.0 };
    let mut weight: Vec<f64> = sizes.iter().map(|k| pairs(*k) * (m - 1) as f64 / (k * (m - k)) as f64).collect();
    let total: f64 = weight.iter().sum();
    weight.iter_mut().for_each(|w| *w /= total);
    let (mut rows, mut weights) = (Vec::new(), Vec::new());
    let row = |on: &[usize], flipped: bool| {
        let mut row = vec![flipped; m];
        on.iter().for_each(|i| row[*i] = !flipped);
        row
    };
    let (mut left, mut rest, mut full) = (budget as f64, 1.0, 0);
    for (&k, w) in sizes.iter().zip(&weight) {
        let n = count(m, k) * pairs(k);
        // Would this size's share of what is left hold all its sets?
        if left * w / rest < n * (1.0 - 1e-8) || n > left {
            break;
        }
        for on in combinations(m, k) {
            rows.push(row(&on, false));
            weights.push(w / n);
            if pairs(k) > 1.0 {
                rows.push(row(&on, true));
                weights.push(w / n);
            }
        }
        (left, rest, full) = (left - n, rest - w, full + 1);
    }
    if full == sizes.len() || left < 1.0 {
        return (rows, weights);
    }
    // What is left is drawn: a size by its weight, a set of it, and its complement.
    let mut drawn: BTreeMap<Vec<bool>, f64> = BTreeMap::new();
    let mut order: Vec<Vec<bool>> = Vec::new();
    for _ in 0..4 * budget {
        if drawn.len() as f64 >= left {
            break;
        }
        let mut at = rng.random::<f64>() * rest;
        let mut k = sizes[sizes.len() - 1];
        for (size, w) in sizes.iter().zip(&weight).skip(full) {
            if at < *w {
                k = *size;
                break;
            }
            at -= w;
        }
        let on = choose(rng, m, k);
        for flipped in [false, true] {
            let row = row(&on, flipped);
            if drawn.contains_key(&row) || (drawn.len() as f64) < left {
                let weight = drawn.entry(row.clone()).or_insert_with(|| {
                    order.push(row);
                    0.0
                });
                *weight += 1.0;
            }
        }
    }
    let all: f64 = drawn.values().sum();
    for row in order {
        weights.push(drawn[&row] / all * rest);
        rows.push(row);
    }
    (rows, weights)
}

/// Values phi of `min sum_i w_i (y_i - none - z_i phi)^2` with `sum phi = all - none`: the last is left out and follows.
fn regress(rows: &[Vec<bool>], y: &[f64], weights: &[f64], none: f64, all: f64) -> Result<Vec<f64>> {
    let m = rows.first().map_or(1, Vec::len);
    if m < 2 {
        return Ok(vec![all - none; m]);
    }
    let number = |on: bool| f64::from(u8::from(on));
    let (mut x, mut right) = (Vec::new(), Vec::new());
    for (row, y) in rows.iter().zip(y) {
        let last = number(row[m - 1]);
        x.extend(row[..m - 1].iter().map(|on| number(*on) - last));
        right.push(y - none - last * (all - none));
    }
    let (n, d) = (rows.len() as i64, m as i64 - 1);
    let x = Tensor::f_from_slice(&x)?.f_reshape([n, d])?;
    let xw = x.f_mul(&Tensor::f_from_slice(weights)?.f_reshape([n, 1])?)?.f_transpose(0, 1)?;
    let mut phi = solve(&xw.f_matmul(&x)?, &xw.f_matmul(&Tensor::f_from_slice(&right)?.f_reshape([n, 1])?)?)?;
    phi.push(all - none - phi.iter().sum::<f64>());
    Ok(phi)
}

#[derive(Params)]
struct Settings {
    /// sets of superpixels at most
    #[param(default = 2048, range = (2, 1_000_000))]
    samples: usize,
    #[param(default = SegmentFill::Zero)]
    fill: SegmentFill,
    #[param(default = Score::Logit)]
    score: Score,
    #[param(flatten)]
    segments: Segments,
}

impl Explainer for KernelShap {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Lundberg, Lee",
            "A Unified Approach to Interpreting Model Predictions",
            "NeurIPS",
            2017,
            "arXiv:1705.07874",
        );
        ExplainerSpec::new("kernelshap", "KernelSHAP", Family::Perturbation, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .formula(
                "phi of min sum_z k(|z|) (S(z) - S(0) - z phi)^2 with sum phi = S(x) - S(0), k = (M - 1) / (C(M, |z|) |z| (M - |z|))",
            )
            .cost("1 F, then at most samples + 1 F")
            .notes("Sums to S(x) - S(all covered) exactly; Captum's sums to it approximately.")
            .signed()
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        let extra = Passes::forward(params.samples as u64 + 1);
        Ok(bound(model, extra, move |context| explain(context, &params)))
    }
}

fn explain(context: &Context<'_>, params: &Settings) -> Result<Maps> {
    let (samples, score) = (params.samples, params.score);
    let labels = segments(context, &params.segments)?;
    let (mut choices, mut weights) = (Vec::new(), Vec::new());
    for (b, labels) in labels.iter().enumerate() {
        let m = segment::count(labels);
        let (mut rows, weight) = sets(m, samples, &mut context.rng(b));
        rows.push(vec![false; m]);
        choices.push(rows);
        weights.push(weight);
    }
    let found = scores(context, &labels, &choices, (params.fill, score))?;
    let whole = context.scores_now(score)?;
    let mut values = Vec::new();
    for (b, mut y) in found.into_iter().enumerate() {
        let none = y.pop().ok_or_else(|| Error::invalid("there is no score"))?;
        let rows = &choices[b][..choices[b].len() - 1];
        values.push(match rows.len() {
            0 => vec![whole[b] - none],
            _ => regress(rows, &y, &weights[b], none, whole[b])?,
        });
    }
    paint(&labels, &values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cover::tests::{MEANS, close, maps, product, quarters, shapley};
    use lightbox_sdk::rand::SeedableRng;

    #[test]
    fn all_sets_give_shapleys_values() {
        let params = [("grid", 2.into()), ("samples", 14.into())];
        close(&quarters(&maps(&KernelShap, product, &params, 3)), |b| shapley(product, MEANS[b]), 1e-4);
        // Fewer sets: other values, the same sum.
        let few = quarters(&maps(&KernelShap, product, &[("grid", 2.into()), ("samples", 8.into())], 3));
        for (b, found) in few.iter().enumerate() {
            assert!((found.iter().sum::<f64>() - (product(MEANS[b]) - 0.5)).abs() < 1e-4);
        }
        let one = maps(&KernelShap, product, &[("grid", 1.into())], 3);
        assert!((f64::from(one[[0, 2, 2]]) - (product(MEANS[0]) - 0.5)).abs() < 1e-4);
    }

    #[test]
    fn a_budget_is_kept_and_sets_have_their_kernels_weight() {
        let mut rng = lightbox_sdk::rand::rngs::StdRng::seed_from_u64(3);
        let (rows, weights) = sets(5, 100, &mut rng);
        assert_eq!(rows.len(), 30);
        for (row, w) in rows.iter().zip(&weights) {
            let k = row.iter().filter(|on| **on).count();
            let kernel = 4.0 / (count(5, k) * (k * (5 - k)) as f64);
            let all: f64 = (1..5).map(|k| 4.0 / (k * (5 - k)) as f64).sum();
            assert!((w - kernel / all).abs() < 1e-12);
        }
        for budget in [40, 500, 3000] {
            let (rows, weights) = sets(40, budget, &mut rng);
            assert!(rows.len() <= budget && rows.len() + 1 >= budget, "{} of {budget}", rows.len());
            assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            let mut unique = rows.clone();
            unique.sort();
            unique.dedup();
            assert_eq!(unique.len(), rows.len());
            // The sets that are run in full, of one superpixel on or one off.
            let ends = rows.iter().filter(|r| matches!(r.iter().filter(|on| **on).count(), 1 | 39)).count();
            assert!(budget < 80 || ends == 80, "{ends}");
        }
        assert_eq!(combinations(4, 2).len(), 6);
    }
}
