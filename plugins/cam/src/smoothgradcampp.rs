//! Smooth GradCAM++: Omeiza et al., "Smooth Grad-CAM++: An Enhanced Inference Level Visualization Technique for Deep
//! Convolutional Neural Network Models", 2019, arXiv:1908.01224.
//!
//! GradCAM++ with the derivatives' means over noisy copies of the image (equations 7 to 9):
//! `alpha = mean G^2 / (2 mean G^2 + mean G^3 sum_yx A_c)`, `w_c = sum_yx alpha relu(mean G)`, A of the clean image. The paper
//! writes the first derivative's mean in alpha's numerator; as torch-cam says, GradCAM++'s own derivation has the second's.
//! torch-cam 0.5 takes the last sample's gradient for the mean in the weights, and that sample's layer in the map.

use crate::gradcampp;
use crate::layer::{Cam, Evidence, Layer, Method, Reads};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};
use lightbox_sdk::tools::draw::normals;

register_explainer!(Method(SmoothGradCamPlusPlus));

#[derive(Clone, Copy)]
struct SmoothGradCamPlusPlus;

#[derive(Params)]
struct Settings {
    /// noisy copies of the image
    #[param(default = 4, range = (1, 10_000))]
    samples: usize,
    /// the noise's deviation
    #[param(default = 0.3, range = (0.0, 100.0), unit = "normalised values")]
    sigma: f64,
}

impl Cam for SmoothGradCamPlusPlus {
    type Params = Settings;
    const GRADIENT: bool = false;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Omeiza et al.",
            "Smooth Grad-CAM++: An Enhanced Inference Level Visualization Technique for Deep Convolutional Neural Network Models",
            "",
            2019,
            "arXiv:1908.01224",
        );
        ExplainerSpec::new("smoothgradcampp", "Smooth GradCAM++", Family::Cam, reference)
            .formula("GradCAM++ with G, G^2 and G^3 averaged over samples of image + sigma N(0, 1)")
            .cost("1 F, then samples x (1 F, 1 B)")
            .notes(
                "torch-cam 0.5 takes the last sample's gradient for the mean, and its noisy layer for the clean one.",
            )
    }

    fn reads(&self, _: &ModelSpec, _: &Site, params: &Settings) -> std::result::Result<Reads, String> {
        Ok(Reads { extra: Passes::both(params.samples as u64), ..Reads::default() })
    }

    fn evidence(&self, layer: &Layer<'_>, params: &Settings) -> Result<Evidence> {
        let (context, samples) = (layer.context, params.samples);
        let zeros = layer.value.f_zeros_like()?.f_to_kind(Kind::Double)?;
        let mut sums = [zeros.f_zeros_like()?, zeros.f_zeros_like()?, zeros];
        let per_image = layer.pass.images.size()[1..].iter().product::<i64>() as usize;
        let mut generators: Vec<_> = (0..context.ids.len()).map(|b| context.rng(b)).collect();
        let images = |pairs: Pairs<'_>| {
            let clean = layer.rows(&layer.pass.images, pairs)?;
            let mut noise = Vec::with_capacity(pairs.len() * per_image);
            pairs.iter().for_each(|(b, _)| noise.extend(normals(&mut generators[*b], per_image)));
            let noise = Tensor::f_from_slice(&noise)?.f_to_device(clean.device())?.f_reshape(clean.size())?;
            Ok(clean.f_add(&noise.f_mul_scalar(params.sigma)?)?)
        };
        let sites = [layer.site.name.clone()];
        context.gradients(samples, &sites, images, |pairs, found| {
            let g = layer.site.to_grid(&found[0])?.f_to_kind(Kind::Double)?;
            let second = g.f_mul(&g)?;
            let third = second.f_mul(&g)?;
            for (sum, power) in sums.iter_mut().zip([g, second, third]) {
                add_rows(sum, &power, pairs, |_| 1.0 / samples as f64)?;
            }
            Ok(())
        })?;
        let [first, second, third] = &sums;
        let weights = gradcampp::weights(&layer.value, first, second, third)?;
        Ok(Evidence::Weights(weights.f_to_kind(layer.value.f_kind()?)?))
    }
}
