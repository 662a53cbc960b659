//! What SmoothGrad, SmoothGrad-squared and VarGrad share: gradients of noisy copies of the image.

use crate::input::{INPUT, channels, map_of, needs_input, noise};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};
use lightbox_sdk::tools::maps::range;

/// Statistic of the gradients over samples.
#[derive(Clone, Copy, PartialEq)]
pub enum Statistic {
    Mean,
    MeanSquare,
    /// Over n, as in Captum.
    Variance,
}

/// Parameters; the largest or the sum of magnitudes over channels where the statistic has signs.
pub fn parameters(channel: &str) -> [ParamSpec; 4] {
    let relative = "sigma is a share of the image's range, as in the paper, not of normalised values, as in Captum";
    [
        ParamSpec::integer("samples", 25, (1, 100_000), "", "noisy copies of the image"),
        ParamSpec::number("sigma", 0.15, (0.0, 100.0), "", "the noise's deviation"),
        ParamSpec::flag("relative", true, relative),
        channels(channel),
    ]
}

/// A method of this kind as an explainer.
pub struct Smoothing {
    pub spec: fn() -> ExplainerSpec,
    pub statistic: Statistic,
}

impl Explainer for Smoothing {
    fn spec(&self) -> ExplainerSpec {
        (self.spec)().version(env!("CARGO_PKG_VERSION")).cost("1 F, then samples x (1 F, 1 B)")
    }

    fn plan(&self, model: &ModelSpec, params: &Params) -> Result<Plan> {
        plan(model, params)
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        explain(context, self.statistic)
    }
}

fn plan(model: &ModelSpec, params: &Params) -> Result<Plan> {
    let extra = Passes::both(params.integer("samples")? as u64);
    let needs = Needs { model: true, extra, ..Needs::default() };
    Ok(needs_input(model).unwrap_or_else(|| needs.into()))
}

fn explain(context: &Context<'_>, statistic: Statistic) -> Result<Maps> {
    let images = context.image_tensor()?;
    let (samples, sigma) = (context.params.integer("samples")? as usize, context.params.number("sigma")?);
    let mut generators: Vec<_> = (0..context.ids.len()).map(|b| context.rng(b)).collect();
    let scale = match context.params.flag("relative")? {
        true => {
            let (least, greatest) = range(&images)?;
            greatest.f_sub(&least)?.f_mul_scalar(sigma)?
        }
        false => range(&images)?.0.f_ones_like()?.f_mul_scalar(sigma)?,
    };
    let scale = Array::from_tensor(&scale)?;
    let noisy = |pairs: Pairs<'_>| {
        let clean = context.rows(&context.images, pairs)?;
        let noise = noise(&mut generators, pairs, &clean)?;
        Ok(clean.f_add(&noise.f_mul(&context.rows(&scale, pairs)?)?)?)
    };
    // In double precision: the variance is a small difference of large sums.
    let zeros = images.f_zeros_like()?.f_to_kind(Kind::Double)?;
    let (mut sum, mut squares): (Tensor, Tensor) = (zeros.f_zeros_like()?, zeros);
    context.gradients(samples, &[INPUT.to_string()], noisy, |pairs, found| {
        let g = &found[0].f_to_kind(Kind::Double)?;
        add_rows(&mut sum, g, pairs, |_| 1.0 / samples as f64)?;
        add_rows(&mut squares, &g.f_mul(g)?, pairs, |_| 1.0 / samples as f64)
    })?;
    let map = match statistic {
        Statistic::Mean => sum,
        Statistic::MeanSquare => squares,
        Statistic::Variance => squares.f_sub(&sum.f_mul(&sum)?)?.f_clamp_min(0.0)?,
    };
    map_of(&map, &context.params)
}
