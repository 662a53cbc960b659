//! IS-CAM: Naidu et al., "IS-CAM: Integrated Score-CAM for axiomatic-based explanations", 2020, arXiv:2010.03023.
//!
//! ScoreCAM whose score is integrated over the mask's strength: `w = softmax_c mean_i S(image * (i / N) mask_c)`,
//! i = 1..N. torch-cam 0.5 adds the strengths up as it goes (0.1, 0.3, 0.6, ... 5.5 for N = 10), far beyond the image itself;
//! `accumulate` repeats that.

use crate::layer::{Cam, Evidence, Layer, Method, Reads};
use crate::scorecam::{masks, parameters, weights};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Tensor;

register_explainer!(Method(IsCam));

struct IsCam;

impl Cam for IsCam {
    const GRADIENT: bool = false;

    fn spec(&self) -> ExplainerSpec {
        let citation = "Naidu et al.: IS-CAM: Integrated Score-CAM for axiomatic-based explanations, 2020";
        ExplainerSpec::new("iscam", "IS-CAM", Family::Cam, citation, "arXiv:2010.03023")
            .formula("ScoreCAM with w = softmax_c mean_i S(image * i / N mask_c), i = 1..N")
            .cost("1 F, then channels x steps F")
            .notes("torch-cam 0.5 accumulates the steps' strengths up to 5.5; accumulate = true repeats it.")
            .parameters(parameters())
            .parameters([
                ParamSpec::integer("steps", 10, (1, 10_000), "", "strengths of each mask"),
                ParamSpec::flag("accumulate", false, "add the strengths up, as torch-cam does"),
            ])
    }

    fn reads(&self, _: &ModelSpec, layer: &Site, params: &Params) -> Result<std::result::Result<Reads, String>> {
        let extra = Passes::forward(layer.channels as u64 * params.integer("steps")? as u64);
        Ok(Ok(Reads { extra, ..Reads::default() }))
    }

    fn evidence(&self, layer: &Layer<'_>) -> Result<Evidence> {
        let (context, score) = (layer.context, Score::of(&layer.context.params)?);
        let (steps, accumulate) = (context.params.integer("steps")? as usize, context.params.flag("accumulate")?);
        let strength = |step: usize| {
            let i = step as f64 + 1.0;
            (if accumulate { i * (i + 1.0) / 2.0 } else { i }) / steps as f64
        };
        let scores = context.scores(layer.site.channels * steps, score, |pairs| {
            let masks = masks(layer, pairs, |variant| variant / steps)?;
            let strengths: Vec<f32> = pairs.iter().map(|(_, variant)| strength(variant % steps) as f32).collect();
            let strengths = Tensor::f_from_slice(&strengths)?.f_to_device(masks.device())?.f_reshape([-1, 1, 1, 1])?;
            Ok(layer.rows(&layer.pass.images, pairs)?.f_mul(&masks.f_mul(&strengths)?)?)
        })?;
        weights(&scores, steps, layer)
    }
}
