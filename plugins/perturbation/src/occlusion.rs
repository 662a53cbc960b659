//! Occlusion: Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, arXiv:1311.2901.
//!
//! A window slides over the image; what the score falls by when it is covered counts for all its pixels, and a pixel's value
//! is the mean over the windows that covered it. As in Captum the last window of a row is cut off at the edge.

use crate::cover::{blend, bound};
use lightbox_sdk::ndarray::Array3;
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Tensor;
use lightbox_sdk::tools::fill::{Fill, fill};

register_explainer!(Occlusion);

struct Occlusion;

/// Where windows begin along a side.
fn starts(side: usize, window: usize, stride: usize) -> Vec<usize> {
    let count = side.saturating_sub(window).div_ceil(stride) + 1;
    // With a stride wider than the window the last could begin behind the edge.
    (0..count).map(|i| i * stride).filter(|start| *start < side.max(1)).collect()
}

#[derive(Params)]
struct Settings {
    /// side of the square that is covered
    #[param(default = 32, range = (1, 4096), unit = "px")]
    window: usize,
    /// from one window to the next
    #[param(default = 16, range = (1, 4096), unit = "px")]
    stride: usize,
    #[param(default = Fill::Zero)]
    fill: Fill,
    #[param(default = Score::Logit)]
    score: Score,
}

impl Explainer for Occlusion {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Zeiler, Fergus",
            "Visualizing and Understanding Convolutional Networks",
            "ECCV",
            2014,
            "arXiv:1311.2901",
        );
        ExplainerSpec::new("occlusion", "Occlusion", Family::Perturbation, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .formula("mean over windows that hold the pixel of S(x) - S(x with the window covered)")
            .cost("1 F, then (ceil((side - window) / stride) + 1)^2 F")
            .signed()
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        let count = |side: &usize| starts(*side, params.window, params.stride).len();
        let extra = Passes::forward(model.input.size.iter().map(count).product::<usize>() as u64);
        Ok(bound(model, extra, move |context| explain(context, &params)))
    }
}

fn explain(context: &Context<'_>, params: &Settings) -> Result<Maps> {
    let [b, h, w] = context.size()?;
    let (window, stride) = (params.window, params.stride);
    let (rows, columns) = (starts(h, window, stride), starts(w, window, stride));
    let (fill, score) = (fill(context, params.fill)?, params.score);
    let place = |k: usize| (rows[k / columns.len()], columns[k % columns.len()]);
    let count = rows.len() * columns.len();
    let after = context.scores(count, score, |pairs| {
        let mask = Tensor::f_ones([pairs.len() as i64, 1, h as i64, w as i64], (fill.f_kind()?, fill.device()))?;
        for (row, &(_, k)) in pairs.iter().enumerate() {
            let (y, x) = place(k);
            let (tall, wide) = (window.min(h - y) as i64, window.min(w - x) as i64);
            let part = mask.f_get(row as i64)?.f_narrow(1, y as i64, tall)?.f_narrow(2, x as i64, wide)?;
            let _ = { part }.f_fill_(0.0)?;
        }
        blend(context, &fill, pairs, &mask)
    })?;
    let before = context.scores_now(score)?;
    let (mut sums, mut counts) = (Array3::<f64>::zeros((b, h, w)), Array3::<f64>::zeros((b, h, w)));
    for ((i, k), after) in after.indexed_iter() {
        let (top, left) = place(k);
        for y in top..(top + window).min(h) {
            for x in left..(left + window).min(w) {
                sums[[i, y, x]] += before[i] - after;
                counts[[i, y, x]] += 1.0;
            }
        }
    }
    // A stride wider than the window leaves pixels that nothing covered, which cost nothing.
    let map = Array3::from_shape_fn((b, h, w), |at| (sums[at] / counts[at].max(1.0)) as f32);
    Ok(Array::from_ndarray(map)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cover::tests::{MEANS, close, linear, maps, product, quarters};

    #[test]
    fn a_quarter_is_what_its_absence_costs() {
        let params = [("window", 2.into()), ("stride", 2.into())];
        let without = |b: usize| {
            [0, 1, 2, 3].map(|i| {
                let mut q = MEANS[b];
                q[i] = 0.0;
                product(MEANS[b]) - product(q)
            })
        };
        close(&quarters(&maps(&Occlusion, product, &params, 3)), without, 1e-5);
        // Overlapping windows of a linear function: the mean of what windows cost.
        let map = maps(&Occlusion, linear, &[("window", 2.into()), ("stride", 1.into())], 5);
        let terms = [1.0, -1.0, -0.25, 0.375];
        assert!((f64::from(map[[0, 0, 0]]) - terms[0]).abs() < 1e-5);
        let middle =
            (terms[0] + (terms[0] + terms[1]) / 2.0 + (terms[0] + terms[2]) / 2.0 + terms.iter().sum::<f64>() / 4.0)
                / 4.0;
        assert!((f64::from(map[[0, 1, 1]]) - middle).abs() < 1e-5);
        assert_eq!(starts(10, 4, 3), [0, 3, 6]);
        assert_eq!(starts(11, 4, 3), [0, 3, 6, 9]);
        assert_eq!(starts(3, 4, 3), [0]);
        assert_eq!(starts(10, 2, 7), [0, 7]);
        assert_eq!(starts(224, 8, 50), [0, 50, 100, 150, 200]);
        // Pixels that no window covers cost nothing.
        let sparse = maps(&Occlusion, linear, &[("window", 1.into()), ("stride", 3.into())], 5);
        assert!(sparse[[0, 1, 1]] == 0.0 && sparse[[0, 0, 0]] != 0.0);
    }
}
