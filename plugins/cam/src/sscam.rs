//! SS-CAM: Wang et al., "SS-CAM: Smoothed Score-CAM for Sharper Visual Feature Localization", 2020, arXiv:2006.14255.
//!
//! ScoreCAM with normal noise on the masks: `w = softmax_c mean_i S(image * (mask_c + delta_i))`, as torch-cam
//! writes it. The noise is an image's own, the same for every batch size.

use crate::layer::{Cam, Evidence, Layer, Method, Reads};
use crate::scorecam::{self, masks, weights};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Tensor;
use lightbox_sdk::tools::draw::normals;

register_explainer!(Method(SsCam));

#[derive(Clone, Copy)]
struct SsCam;

#[derive(Params)]
struct Settings {
    #[param(flatten)]
    masks: scorecam::Settings,
    /// noisy copies of each mask
    #[param(default = 35, range = (1, 10_000))]
    samples: usize,
    /// the noise's deviation, of masks in [0, 1]
    #[param(default = 2.0, range = (0.0, 100.0))]
    sigma: f64,
}

impl Cam for SsCam {
    type Params = Settings;
    const GRADIENT: bool = false;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Wang et al.",
            "SS-CAM: Smoothed Score-CAM for Sharper Visual Feature Localization",
            "",
            2020,
            "arXiv:2006.14255",
        );
        ExplainerSpec::new("sscam", "SS-CAM", Family::Cam, reference)
            .formula("ScoreCAM with w = softmax_c mean_i S(image * (mask_c + sigma N_i(0, 1)))")
            .cost("1 F, then channels x samples F")
    }

    fn reads(&self, _: &ModelSpec, layer: &Site, params: &Settings) -> std::result::Result<Reads, String> {
        Ok(Reads { extra: Passes::forward((layer.channels * params.samples) as u64), ..Reads::default() })
    }

    fn evidence(&self, layer: &Layer<'_>, params: &Settings) -> Result<Evidence> {
        let (context, samples) = (layer.context, params.samples);
        let mut generators: Vec<_> = (0..context.ids.len()).map(|b| context.rng(b)).collect();
        let scores = context.scores(layer.site.channels * samples, params.masks.score, |pairs| {
            let masks = masks(layer, params.masks.mask, pairs, |variant| variant / samples)?;
            let pixels = masks.size()[1..].iter().product::<i64>() as usize;
            let mut noise = Vec::with_capacity(pairs.len() * pixels);
            pairs.iter().for_each(|(b, _)| noise.extend(normals(&mut generators[*b], pixels)));
            let noise = Tensor::f_from_slice(&noise)?.f_to_device(masks.device())?.f_reshape(masks.size())?;
            let masks = masks.f_add(&noise.f_mul_scalar(params.sigma)?)?;
            Ok(layer.rows(&layer.pass.images, pairs)?.f_mul(&masks)?)
        })?;
        weights(&scores, samples, layer)
    }
}
