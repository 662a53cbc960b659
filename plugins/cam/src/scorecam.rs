//! ScoreCAM: Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks", CVPR Workshops
//! 2020, arXiv:1910.01279.
//!
//! Each channel, scaled up and brought to [0, 1], masks the image (which is 0 where the normalised image is 0: ImageNet's mean
//! colour); `w = softmax_c(S(image * mask_c) - S(baseline))` (algorithm 1; what is subtracted cancels in the softmax).
//! `mask` repeats what the peers make of it.

use crate::layer::{Cam, Evidence, Layer, Method, Reads};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};
use lightbox_sdk::tools::maps::{mean, range};

register_explainer!(Method(ScoreCam));

struct ScoreCam;

/// How channels become masks.
pub fn parameters() -> [ParamSpec; 2] {
    let text = "how a channel becomes a mask: scaled up and then to [0, 1]; the same with aligned corners, as \
                pytorch-grad-cam does; to [0, 1] and then scaled up, as torch-cam does";
    [Score::parameter("logit"), ParamSpec::choice("mask", "scaled", &["scaled", "aligned", "normalised"], text)]
}

/// Masks [rows, 1, H, W] in [0, 1] of one channel a row, of `value` [B, C, h, w]; 0 where a channel is constant.
pub fn masks(layer: &Layer<'_>, pairs: Pairs<'_>, channel: impl Fn(usize) -> usize) -> Result<Tensor> {
    let context = layer.context;
    let size = [context.model.input.height as i64, context.model.input.width as i64];
    let mut rows = Vec::new();
    for &(b, variant) in pairs {
        rows.push(layer.value.f_get(b as i64)?.f_get(channel(variant) as i64)?);
    }
    let maps = Tensor::f_stack(&rows, 0)?.f_unsqueeze(1)?;
    let scale = |maps: &Tensor, corners: bool| maps.f_upsample_bilinear2d(size, corners, None::<f64>, None::<f64>);
    let normalise = |maps: &Tensor| {
        let (least, greatest) = range(maps)?;
        Ok::<_, Error>(maps.f_sub(&least)?.f_div(&greatest.f_sub(&least)?.f_add_scalar(1e-8)?)?)
    };
    match context.params.text("mask")? {
        "normalised" => Ok(scale(&normalise(&maps)?, false)?),
        kind => normalise(&scale(&maps, kind == "aligned")?),
    }
}

/// `softmax_c` of the mean over `samples` of the scores [B, C * samples], of the layer's kind.
pub fn weights(scores: &lightbox_sdk::ndarray::Array2<f64>, samples: usize, layer: &Layer<'_>) -> Result<Evidence> {
    let flat: Vec<f64> = scores.iter().copied().collect();
    let (b, n) = scores.dim();
    let scores = Tensor::f_from_slice(&flat)?.f_reshape([b as i64, (n / samples) as i64, samples as i64])?;
    let weights = mean(&scores, &[2], false)?.f_softmax(1, Kind::Double)?;
    Ok(Evidence::Weights(weights.f_to_kind(Kind::Float)?.f_to_device(layer.value.device())?))
}

impl Cam for ScoreCam {
    const GRADIENT: bool = false;

    fn spec(&self) -> ExplainerSpec {
        let citation = "Wang et al.: Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks, CVPR \
                        Workshops 2020";
        ExplainerSpec::new("scorecam", "ScoreCAM", Family::Cam, citation, "arXiv:1910.01279")
            .formula("relu(sum_c w_c A_c), w = softmax_c S(image * mask_c), mask_c = A_c scaled up to [0, 1]")
            .cost("1 F, then channels F")
            .notes("Equals pytorch-grad-cam with mask = aligned, torch-cam with mask = normalised.")
            .parameters(parameters())
    }

    fn reads(&self, _: &ModelSpec, layer: &Site, _: &Params) -> Result<std::result::Result<Reads, String>> {
        Ok(Ok(Reads { extra: Passes::forward(layer.channels as u64), ..Reads::default() }))
    }

    fn evidence(&self, layer: &Layer<'_>) -> Result<Evidence> {
        let score = Score::of(&layer.context.params)?;
        let scores = layer.context.scores(layer.site.channels, score, |pairs| {
            Ok(layer.rows(&layer.pass.images, pairs)?.f_mul(&masks(layer, pairs, |c| c)?)?)
        })?;
        weights(&scores, 1, layer)
    }
}
