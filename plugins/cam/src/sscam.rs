//! SS-CAM: Wang et al., "SS-CAM: Smoothed Score-CAM for Sharper Visual Feature Localization", 2020, arXiv:2006.14255.
//!
//! ScoreCAM with normal noise on the masks: `w = softmax_c mean_i S(image * (mask_c + delta_i))`, as torch-cam
//! writes it. The noise is an image's own, the same for every batch size.

use crate::layer::{Cam, Evidence, Layer, Method, Reads};
use crate::scorecam::{masks, parameters, weights};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Tensor;
use lightbox_sdk::tools::draw::normals;

register_explainer!(Method(SsCam));

struct SsCam;

impl Cam for SsCam {
    const GRADIENT: bool = false;

    fn spec(&self) -> ExplainerSpec {
        let citation = "Wang et al.: SS-CAM: Smoothed Score-CAM for Sharper Visual Feature Localization, 2020";
        ExplainerSpec::new("sscam", "SS-CAM", Family::Cam, citation, "arXiv:2006.14255")
            .formula("ScoreCAM with w = softmax_c mean_i S(image * (mask_c + sigma N_i(0, 1)))")
            .cost("1 F, then channels x samples F")
            .parameters(parameters())
            .parameters([
                ParamSpec::integer("samples", 35, (1, 10_000), "", "noisy copies of each mask"),
                ParamSpec::number("sigma", 2.0, (0.0, 100.0), "", "the noise's deviation, of masks in [0, 1]"),
            ])
    }

    fn reads(&self, _: &ModelSpec, layer: &Site, params: &Params) -> Result<std::result::Result<Reads, String>> {
        let extra = Passes::forward(layer.channels as u64 * params.integer("samples")? as u64);
        Ok(Ok(Reads { extra, ..Reads::default() }))
    }

    fn evidence(&self, layer: &Layer<'_>) -> Result<Evidence> {
        let (context, score) = (layer.context, Score::of(&layer.context.params)?);
        let (samples, sigma) = (context.params.integer("samples")? as usize, context.params.number("sigma")?);
        let mut generators: Vec<_> = (0..context.ids.len()).map(|b| context.rng(b)).collect();
        let scores = context.scores(layer.site.channels * samples, score, |pairs| {
            let masks = masks(layer, pairs, |variant| variant / samples)?;
            let pixels = masks.size()[1..].iter().product::<i64>() as usize;
            let mut noise = Vec::with_capacity(pairs.len() * pixels);
            pairs.iter().for_each(|(b, _)| noise.extend(normals(&mut generators[*b], pixels)));
            let noise = Tensor::f_from_slice(&noise)?.f_to_device(masks.device())?.f_reshape(masks.size())?;
            let masks = masks.f_add(&noise.f_mul_scalar(sigma)?)?;
            Ok(layer.rows(&layer.pass.images, pairs)?.f_mul(&masks)?)
        })?;
        weights(&scores, samples, layer)
    }
}
