//! What SmoothGrad, SmoothGrad-squared and VarGrad share: gradients of noisy copies of the image.

use crate::input::{Channels, bound, noise};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};
use lightbox_sdk::tools::maps::range;
use std::marker::PhantomData;

/// Statistic of the gradients over samples.
#[derive(Clone, Copy, PartialEq)]
pub enum Statistic {
    Mean,
    MeanSquare,
    /// Over n, as in Captum.
    Variance,
}

/// How many noisy copies, and how noisy.
#[derive(Params)]
pub struct Noise {
    /// noisy copies of the image
    #[param(default = 25, range = (1, 100_000))]
    pub samples: usize,
    /// the noise's deviation
    #[param(default = 0.15, range = (0.0, 100.0))]
    pub sigma: f64,
    /// sigma is a share of the image's range, as in the paper, not of normalised values, as in Captum
    #[param(default = true)]
    pub relative: bool,
}

/// The parameters of a statistic with signs.
#[derive(Params)]
pub struct Signed {
    #[param(flatten)]
    noise: Noise,
    #[param(default = Channels::SumAbs)]
    channels: Channels,
}

/// The parameters of a statistic without.
#[derive(Params)]
pub struct Unsigned {
    #[param(flatten)]
    noise: Noise,
    #[param(default = Channels::Sum)]
    channels: Channels,
}

/// Parameters of either kind.
pub trait Settings: Params {
    fn parts(self) -> (Noise, Channels);
}

impl Settings for Signed {
    fn parts(self) -> (Noise, Channels) {
        (self.noise, self.channels)
    }
}

impl Settings for Unsigned {
    fn parts(self) -> (Noise, Channels) {
        (self.noise, self.channels)
    }
}

/// A method of this kind as an explainer.
pub struct Smoothing<S> {
    pub spec: fn() -> ExplainerSpec,
    pub statistic: Statistic,
    pub settings: PhantomData<fn() -> S>,
}

impl<S: Settings> Explainer for Smoothing<S> {
    type Params = S;

    fn spec(&self) -> ExplainerSpec {
        let spec = (self.spec)().version(env!("CARGO_PKG_VERSION")).cost("1 F, then samples x (1 F, 1 B)");
        spec.any_dimensions()
    }

    fn bind(&self, model: &ModelSpec, params: S) -> Result<Bound> {
        let ((settings, channels), statistic) = (params.parts(), self.statistic);
        let needs = Needs { model: true, extra: Passes::both(settings.samples as u64), ..Needs::default() };
        bound(model, |input| {
            Bound::new(needs, move |context| channels.map_of(&explain(context, &input, &settings, statistic)?))
        })
    }
}

fn explain(context: &Context<'_>, input: &str, settings: &Noise, statistic: Statistic) -> Result<Tensor> {
    let images = context.image_tensor()?;
    let (samples, sigma) = (settings.samples, settings.sigma);
    let mut generators: Vec<_> = (0..context.ids.len()).map(|b| context.rng(b)).collect();
    let scale = match settings.relative {
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
    context.gradients(samples, &[input.to_string()], noisy, |pairs, found| {
        let g = &found[0].f_to_kind(Kind::Double)?;
        add_rows(&mut sum, g, pairs, |_| 1.0 / samples as f64)?;
        add_rows(&mut squares, &g.f_mul(g)?, pairs, |_| 1.0 / samples as f64)
    })?;
    Ok(match statistic {
        Statistic::Mean => sum,
        Statistic::MeanSquare => squares,
        Statistic::Variance => squares.f_sub(&sum.f_mul(&sum)?)?.f_clamp_min(0.0)?,
    })
}
