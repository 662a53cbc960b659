//! ScoreCAM: Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks", CVPR Workshops
//! 2020, arXiv:1910.01279.
//!
//! Each channel, scaled up and brought to [0, 1], masks the image (which is 0 where the normalised image is 0: ImageNet's mean
//! colour); `w = softmax_c(S(image * mask_c) - S(baseline))` (algorithm 1; what is subtracted cancels in the softmax).
//! `mask` repeats what the peers make of it.

use crate::layer::{Cam, Evidence, Layer, Method, Reads};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};
use lightbox_sdk::tools::maps::{mean, range, resize_channels};

register_explainer!(Method(ScoreCam));

#[derive(Clone, Copy)]
struct ScoreCam;

choice! {
    /// how a channel becomes a mask: scaled up and then to [0, 1]; the same with aligned corners, as pytorch-grad-cam does; to [0, 1] and then scaled up, as torch-cam does
    pub enum MaskForm { Scaled = "scaled", Aligned = "aligned", Normalised = "normalised" }
}

/// How channels become masks, and what is read of the target.
#[derive(Params)]
pub struct Settings {
    #[param(default = Score::Logit)]
    pub score: Score,
    #[param(default = MaskForm::Scaled)]
    pub mask: MaskForm,
}

/// Masks [rows, 1, size...] in [0, 1] of one channel a row, of `value` [B, C, grid...]; 0 where a channel is constant.
pub fn masks(layer: &Layer<'_>, form: MaskForm, pairs: Pairs<'_>, channel: impl Fn(usize) -> usize) -> Result<Tensor> {
    let size: Vec<i64> = layer.context.model.input.size.iter().map(|n| *n as i64).collect();
    let mut rows = Vec::new();
    for &(b, variant) in pairs {
        rows.push(layer.value.f_get(b as i64)?.f_get(channel(variant) as i64)?);
    }
    let maps = Tensor::f_stack(&rows, 0)?.f_unsqueeze(1)?;
    let scale = |maps: &Tensor, corners: bool| match (corners, size.len()) {
        (true, 2) => Ok::<_, Error>(maps.f_upsample_bilinear2d(size.as_slice(), true, None::<f64>, None::<f64>)?),
        (true, 3) => Ok(maps.f_upsample_trilinear3d(size.as_slice(), true, None::<f64>, None::<f64>, None::<f64>)?),
        _ => resize_channels(maps, &size),
    };
    let normalise = |maps: &Tensor| {
        let (least, greatest) = range(maps)?;
        Ok::<_, Error>(maps.f_sub(&least)?.f_div(&greatest.f_sub(&least)?.f_add_scalar(1e-8)?)?)
    };
    match form {
        MaskForm::Normalised => scale(&normalise(&maps)?, false),
        form => normalise(&scale(&maps, form == MaskForm::Aligned)?),
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
    type Params = Settings;
    const GRADIENT: bool = false;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Wang et al.",
            "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks",
            "CVPR Workshops",
            2020,
            "arXiv:1910.01279",
        );
        ExplainerSpec::new("scorecam", "ScoreCAM", Family::Cam, reference)
            .formula("relu(sum_c w_c A_c), w = softmax_c S(image * mask_c), mask_c = A_c scaled up to [0, 1]")
            .cost("1 F, then channels F")
            .notes("Equals pytorch-grad-cam with mask = aligned, torch-cam with mask = normalised.")
    }

    fn reads(&self, _: &ModelSpec, layer: &Site, _: &Settings) -> std::result::Result<Reads, String> {
        Ok(Reads { extra: Passes::forward(layer.channels as u64), ..Reads::default() })
    }

    fn evidence(&self, layer: &Layer<'_>, params: &Settings) -> Result<Evidence> {
        let scores = layer.context.scores(layer.site.channels, params.score, |pairs| {
            Ok(layer.rows(&layer.pass.images, pairs)?.f_mul(&masks(layer, params.mask, pairs, |c| c)?)?)
        })?;
        weights(&scores, 1, layer)
    }
}
