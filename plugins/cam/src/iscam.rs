//! IS-CAM: Naidu et al., "IS-CAM: Integrated Score-CAM for axiomatic-based explanations", 2020, arXiv:2010.03023.
//!
//! ScoreCAM whose score is integrated over the mask's strength: `w = softmax_c mean_i S(image * (i / N) mask_c)`,
//! i = 1..N. torch-cam 0.5 adds the strengths up as it goes (0.1, 0.3, 0.6, ... 5.5 for N = 10), far beyond the image itself;
//! `accumulate` repeats that.

use crate::layer::{Cam, Evidence, Layer, Method, Reads};
use crate::scorecam::{self, masks, weights};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Tensor;
use lightbox_sdk::tools::maps::per_row;

register_explainer!(Method(IsCam));

#[derive(Clone, Copy)]
struct IsCam;

#[derive(Params)]
struct Settings {
    #[param(flatten)]
    masks: scorecam::Settings,
    /// strengths of each mask
    #[param(default = 10, range = (1, 10_000))]
    steps: usize,
    /// add the strengths up, as torch-cam does
    #[param(default = false)]
    accumulate: bool,
}

impl Cam for IsCam {
    type Params = Settings;
    const GRADIENT: bool = false;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Naidu et al.",
            "IS-CAM: Integrated Score-CAM for axiomatic-based explanations",
            "",
            2020,
            "arXiv:2010.03023",
        );
        ExplainerSpec::new("iscam", "IS-CAM", Family::Cam, reference)
            .formula("ScoreCAM with w = softmax_c mean_i S(image * i / N mask_c), i = 1..N")
            .cost("1 F, then channels x steps F")
            .notes("torch-cam 0.5 accumulates the steps' strengths up to 5.5; accumulate = true repeats it.")
    }

    fn reads(&self, _: &ModelSpec, layer: &Site, params: &Settings) -> std::result::Result<Reads, String> {
        Ok(Reads { extra: Passes::forward((layer.channels * params.steps) as u64), ..Reads::default() })
    }

    fn evidence(&self, layer: &Layer<'_>, params: &Settings) -> Result<Evidence> {
        let (context, steps) = (layer.context, params.steps);
        let strength = |step: usize| {
            let i = step as f64 + 1.0;
            (if params.accumulate { i * (i + 1.0) / 2.0 } else { i }) / steps as f64
        };
        let scores = context.scores(layer.site.channels * steps, params.masks.score, |pairs| {
            let masks = masks(layer, params.masks.mask, pairs, |variant| variant / steps)?;
            let strengths: Vec<f32> = pairs.iter().map(|(_, variant)| strength(variant % steps) as f32).collect();
            let strengths = Tensor::f_from_slice(&strengths)?.f_to_device(masks.device())?;
            let strengths = per_row(&strengths, masks.dim())?;
            Ok(layer.rows(&layer.pass.images, pairs)?.f_mul(&masks.f_mul(&strengths)?)?)
        })?;
        weights(&scores, steps, layer)
    }
}
