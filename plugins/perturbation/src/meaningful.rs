//! Meaningful perturbation: Fong and Vedaldi, "Interpretable Explanations of Black Boxes by Meaningful Perturbation", ICCV 2017,
//! arXiv:1704.03296.
//!
//! The smallest, smoothest cover that makes the score fall: `min_m S(x m + blurred (1 - m)) + l1 mean |1 - m| + tv TV_b(m)`
//! (equation 4), m on a coarse grid and scaled up. The map is `1 - m`. Adam with a rate of 0.1 from m = 1. Both
//! penalties are means, and their weights those of a later version of Gildenblat's port (its first has 1e-4 and 1e-2), not the
//! paper's sums. No jitter, no noise: the result is the same again.

use crate::cover::{blend, bound};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};
use lightbox_sdk::tools::fill::{Fill, fill};
use lightbox_sdk::tools::maps::sum;

register_explainer!(Meaningful);

struct Meaningful;

/// Of Adam.
const RATE: f64 = 0.1;
const BETAS: [f64; 2] = [0.9, 0.999];
const EPS: f64 = 1e-8;

/// The gradient of `l1 mean |1 - m| + tv (mean |dy m|^b + mean |dx m|^b)`, of each of [B, 1, g, g]; m is in [0, 1].
fn regulariser(m: &Tensor, l1: f64, tv: f64, power: f64) -> Result<Tensor> {
    let g = m.size()[2];
    // d/dm of |1 - m| is -1 up to m = 1, where PyTorch's is 0.
    let below = m.f_lt(1.0)?.f_to_kind(m.f_kind()?)?;
    let mut gradient = below.f_mul_scalar(-l1 / (g * g) as f64)?;
    for dim in [2, 3] {
        let step = m.f_narrow(dim, 1, g - 1)?.f_sub(&m.f_narrow(dim, 0, g - 1)?)?;
        let slope = step.f_abs()?.f_pow_tensor_scalar(power - 1.0)?.f_mul(&step.f_sign()?)?;
        let slope = slope.f_mul_scalar(tv * power / (g * (g - 1)) as f64)?;
        let _ = gradient.f_narrow(dim, 1, g - 1)?.f_add_(&slope)?;
        let _ = gradient.f_narrow(dim, 0, g - 1)?.f_sub_(&slope)?;
    }
    gradient = gradient.f_contiguous()?;
    Ok(gradient)
}

#[derive(Params)]
struct Settings {
    /// steps of Adam
    #[param(default = 300, range = (1, 100_000))]
    iterations: usize,
    /// of the mask that is learned
    #[param(default = 28, range = (2, 512), unit = "a side")]
    grid: usize,
    /// the price of what is covered
    #[param(default = 0.01, range = (0.0, 1e6))]
    l1: f64,
    /// the price of edges
    #[param(default = 0.2, range = (0.0, 1e6))]
    tv: f64,
    /// the power of differences of neighbours
    #[param(default = 3.0, range = (1.0, 10.0))]
    tv_beta: f64,
    #[param(default = Fill::Blur)]
    fill: Fill,
    #[param(default = Score::Probability)]
    score: Score,
}

impl Explainer for Meaningful {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Fong, Vedaldi",
            "Interpretable Explanations of Black Boxes by Meaningful Perturbation",
            "ICCV",
            2017,
            "arXiv:1704.03296",
        );
        ExplainerSpec::new("meaningful", "Meaningful perturbation", Family::Perturbation, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .formula("1 - argmin_m S(x m + blurred (1 - m)) + l1 mean |1 - m| + tv TV_b(m)")
            .cost("1 F, then iterations x (1 F, 1 B), 2 F of score = probability")
            .notes("Without the reference code's jitter and noise, so that it is the same again.")
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        let n = params.iterations as u64;
        let forward = if params.score == Score::Logit { n } else { 2 * n };
        let extra = Passes { forward, partial: 0, backward: n };
        Ok(bound(model, extra, move |context| explain(context, &params)))
    }
}

fn explain(context: &Context<'_>, params: &Settings) -> Result<Maps> {
    let (iterations, grid) = (params.iterations, params.grid as i64);
    let (l1, tv, power) = (params.l1, params.tv, params.tv_beta);
    let (score, model) = (params.score, context.run_model()?);
    let [b, h, w] = context.size()?;
    let fill = fill(context, params.fill)?;
    let input =
        context.model.site_of(Role::Input).ok_or_else(|| Error::invalid("the model has no site for its images"))?;
    let mut maps = Vec::new();
    // An image at a time: three hundred steps turn the rounding of another batch size into another map.
    for (at, pairs) in context.each().chunks(1).enumerate() {
        let n = pairs.len() as i64;
        let mut mask = Tensor::f_ones([n, 1, grid, grid], (Kind::Float, fill.device()))?;
        let (mut first, mut second) = (mask.f_zeros_like()?, mask.f_zeros_like()?);
        let way = context.rows(&context.images, pairs)?.f_sub(&fill.f_narrow(0, pairs[0].0 as i64, n)?)?;
        for step in 1..=iterations {
            context.check_cancelled()?;
            context.progress((at * iterations + step) as u64, (b * iterations) as u64);
            let up = |m: &Tensor| m.f_upsample_bilinear2d([h as i64, w as i64], false, None::<f64>, None::<f64>);
            let covered = Array::from_tensor(&blend(context, &fill, pairs, &up(&mask)?)?.f_contiguous()?)?;
            let objective = match score {
                Score::Logit => context.objective_of(pairs)?,
                Score::Probability => {
                    // The score's slope needs a pass of its own: it must be known before the run.
                    context.score_objective(&model.run(&Request::forward(covered.clone()))?, pairs)?
                }
            };
            let request = Request {
                objectives: vec![vec![objective]],
                grads: vec![input.name.clone()],
                ..Request::forward(covered)
            };
            let response = model.run(&request)?;
            let found = response.gradient(0, &input.name)?.share_tensor()?;
            let pixels = sum(&found.f_mul(&way)?, &[1], true)?;
            let (size, cells) = ([h as i64, w as i64], [n, 1, grid, grid]);
            let score = Tensor::f_upsample_bilinear2d_backward(&pixels, size, cells, false, None, None)?;
            let gradient = score.f_add(&regulariser(&mask, l1, tv, power)?)?;
            first = first.f_mul_scalar(BETAS[0])?.f_add(&gradient.f_mul_scalar(1.0 - BETAS[0])?)?;
            second = second.f_mul_scalar(BETAS[1])?.f_add(&gradient.f_square()?.f_mul_scalar(1.0 - BETAS[1])?)?;
            let t = step as i32;
            let (m, v) = (first.f_div_scalar(1.0 - BETAS[0].powi(t))?, second.f_div_scalar(1.0 - BETAS[1].powi(t))?);
            mask = mask.f_sub(&m.f_div(&v.f_sqrt()?.f_add_scalar(EPS)?)?.f_mul_scalar(RATE)?)?.f_clamp(0.0, 1.0)?;
        }
        maps.push(mask.f_neg()?.f_add_scalar(1.0)?.f_squeeze_dim(1)?);
    }
    Ok(Array::from_tensor(&Tensor::f_cat(&maps, 0)?)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbox_sdk::tch::Device;

    #[test]
    fn the_regularisers_gradient_is_its_derivative() {
        let m = ((Tensor::arange(25, (Kind::Double, Device::Cpu)) * 1.7).sin() * 0.4 + 0.5).reshape([1, 1, 5, 5]);
        let value = |m: &Tensor| {
            let l1 = (m - 1.0).abs().mean(Kind::Double) * 0.3;
            let d =
                |dim: i64| (m.narrow(dim, 1, 4) - m.narrow(dim, 0, 4)).abs().pow_tensor_scalar(3.0).mean(Kind::Double);
            (l1 + (d(2) + d(3)) * 0.7).double_value(&[])
        };
        let found = regulariser(&m, 0.3, 0.7, 3.0).unwrap();
        for (y, x) in (0..25).map(|i| (i / 5, i % 5)) {
            let moved = |step: f64| {
                let other = m.copy();
                let _ = other.get(0).get(0).get(y).get(x).f_add_scalar_(step).unwrap();
                value(&other)
            };
            let wanted = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!((found.double_value(&[0, 0, y, x]) - wanted).abs() < 1e-6);
        }
    }
}
