//! Gradient SHAP, expected gradients: Erion et al., "Improving performance of deep learning models with axiomatic attribution
//! priors and expected gradients", Nature Machine Intelligence 2021, arXiv:1906.10670; Lundberg and Lee, NeurIPS 2017.
//!
//! The mean over samples of `(x - x') dS/dx (x' + a (x - x'))`, with a uniform in [0, 1), x' a draw from the baselines and x with
//! normal noise if `sigma` is not 0. `baseline = training` draws x' from images of the training set, as the paper does.

use crate::input::{Channels, bound};
use lightbox_sdk::prelude::*;
use lightbox_sdk::rand::Rng;
use lightbox_sdk::tch::Tensor;
use lightbox_sdk::tools::draw::normals;
use lightbox_sdk::tools::fill::{Fill, fill};
use lightbox_sdk::tools::maps::per_row;

register_explainer!(GradientShap);

struct GradientShap;

choice! {
    /// what the image is compared with: 0 after normalisation (the mean colour), black, white, the image blurred, or images of the training set
    enum References { Zero = "zero", Black = "black", White = "white", Blur = "blur", Training = "training" }
}

impl References {
    /// The baseline that is the same for every sample; none where samples draw from the training set.
    fn constant(self) -> Option<Fill> {
        match self {
            References::Zero => Some(Fill::Zero),
            References::Black => Some(Fill::Black),
            References::White => Some(Fill::White),
            References::Blur => Some(Fill::Blur),
            References::Training => None,
        }
    }
}

#[derive(Params)]
struct Settings {
    /// draws; Captum's default is 5
    #[param(default = 20, range = (1, 100_000))]
    samples: usize,
    #[param(default = References::Zero)]
    baseline: References,
    /// images kept for baseline = training
    #[param(default = 32, range = (1, 4096))]
    references: usize,
    /// deviation of noise on the image
    #[param(default = 0.0, range = (0.0, 100.0), unit = "normalised values")]
    sigma: f64,
    #[param(default = Channels::Sum)]
    channels: Channels,
}

impl Explainer for GradientShap {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Erion et al.",
            "Improving performance of deep learning models with axiomatic attribution priors and expected gradients",
            "Nature Machine Intelligence",
            2021,
            "arXiv:1906.10670",
        );
        ExplainerSpec::new("gradientshap", "Gradient SHAP", Family::Gradient, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .formula("mean_i sum_c (x - x'_i)_c dS/dx_c(x'_i + a_i (x - x'_i)), a_i uniform in [0, 1)")
            .cost("1 F, then samples x (1 F, 1 B)")
            .notes("Sums to S(x) - mean S(x') in expectation.")
            .signed()
            .any_dimensions()
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        let learns = params.baseline == References::Training;
        let fit = learns.then(|| FitNeeds { values: vec![], images: params.references });
        let needs = Needs { model: true, extra: Passes::both(params.samples as u64), fit, ..Needs::default() };
        bound(model, |input| Bound::new(needs, move |context| explain(context, &input, &params)).with_fit(keep_images))
    }
}

/// The images of the training set from which baselines are drawn.
fn keep_images(context: &FitContext<'_>) -> Result<Named> {
    let (mut kept, mut next) = (Vec::new(), context.first_batch()?);
    while let Some(batch) = next {
        context.check_cancelled()?;
        kept.push(batch.images.to_cpu()?.share_tensor()?);
        next = context.next_batch()?;
    }
    Ok(vec![("images".into(), Array::from_tensor(&Tensor::f_cat(&kept, 0)?)?)])
}

fn explain(context: &Context<'_>, input: &str, params: &Settings) -> Result<Maps> {
    let images = context.image_tensor()?;
    let (samples, sigma) = (params.samples, params.sigma);
    let mut generators: Vec<_> = (0..context.ids.len()).map(|b| context.rng(b)).collect();
    let (constant, fitted) = match params.baseline.constant() {
        None => (None, Some(context.fitted("images")?.share_tensor()?.f_to_device(images.device())?)),
        Some(baseline) => (Some(fill(context, baseline)?), None),
    };
    let mut sum = images.f_zeros_like()?;
    let ways = std::cell::RefCell::new(None);
    let points = |pairs: Pairs<'_>| {
        let (mut from, mut at, mut noise) = (Vec::new(), Vec::new(), Vec::new());
        for &(b, _) in pairs {
            // One sample's draws before the next one's, so that it does not matter how many run at a time.
            if sigma > 0.0 {
                noise.extend(normals(&mut generators[b], images.size()[1..].iter().product::<i64>() as usize));
            }
            at.push(generators[b].random::<f32>());
            from.push(match (&constant, &fitted) {
                (Some(constant), _) => constant.f_get(b as i64)?,
                (_, Some(all)) => all.f_get(generators[b].random_range(0..all.size()[0]))?,
                _ => return Err(Error::invalid("there is no baseline")),
            });
        }
        let from = Tensor::f_stack(&from, 0)?;
        let mut to = context.rows(&context.images, pairs)?;
        if sigma > 0.0 {
            let noise = Tensor::f_from_slice(&noise)?.f_to_device(to.device())?.f_reshape(to.size())?;
            to = to.f_add(&noise.f_mul_scalar(sigma)?)?;
        }
        let at = Tensor::f_from_slice(&at)?.f_to_device(to.device())?;
        let at = per_row(&at, to.dim())?;
        let way = to.f_sub(&from)?;
        let point = from.f_add(&way.f_mul(&at)?)?;
        ways.replace(Some(way));
        Ok(point)
    };
    context.gradients(samples, &[input.to_string()], points, |pairs, found| {
        let way = ways.take().ok_or_else(|| Error::invalid("there is no path"))?;
        add_rows(&mut sum, &found[0].f_mul(&way)?, pairs, |_| 1.0 / samples as f64)
    })?;
    params.channels.map_of(&sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::tests::*;

    #[test]
    fn is_exact_on_a_linear_model_and_right_on_the_mean() {
        check(&GradientShap, linear, &[("samples", 3.into())], &flat(&(images() * weights())));
        let wanted = flat(&(images() * images() * weights())) / 2.0;
        let found = maps(&GradientShap, square, &[("samples", 2000.into())]);
        assert!(error(&found, &wanted) < 0.05);
        // The same draws whatever runs at a time.
        let small = [("samples", 7.into()), ("sigma", 0.2.into())];
        let one = at_once(&GradientShap, square, &small, 1);
        assert!(error(&one, &at_once(&GradientShap, square, &small, 5)) < 1e-5);
        check(&GradientShap, constant, &[], &wanted.zeros_like());
    }
}
