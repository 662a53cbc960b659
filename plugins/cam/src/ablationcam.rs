//! AblationCAM: Desai and Ramaswamy, "Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free
//! Localization", WACV 2020, doi:10.1109/WACV45572.2020.9093360.
//!
//! `w_c = (S - S_c) / S` with S_c the logit when channel c is 0 (equation 4). Only what follows the layer runs, with many
//! channels at a time. pytorch-grad-cam sets a channel to the layer's minimum less 1e7 where the layer has negative values,
//! and lowers that further with every channel of a batch; here it is the paper's 0.

use crate::layer::{Cam, Evidence, Layer, Method, Reads, reads_entry};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};

register_explainer!(Method(AblationCam));

#[derive(Clone, Copy)]
struct AblationCam;

impl Cam for AblationCam {
    type Params = ();
    const GRADIENT: bool = false;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Desai, Ramaswamy",
            "Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free Localization",
            "WACV",
            2020,
            "10.1109/WACV45572.2020.9093360",
        );
        ExplainerSpec::new("ablationcam", "AblationCAM", Family::Cam, reference)
            .formula("relu(sum_c w_c A_c), w_c = (S - S without channel c) / S")
            .cost("1 F, then channels P")
            .notes("pytorch-grad-cam ablates to about -1e7 where the layer has negative values; the paper, and this, to 0. A negative logit turns every weight's sign, as the equation has it.")
    }

    fn reads(&self, model: &ModelSpec, layer: &Site, _: &()) -> std::result::Result<Reads, String> {
        reads_entry(model, layer, Passes::partial(layer.channels as u64))
    }

    fn evidence(&self, layer: &Layer<'_>, _: &()) -> Result<Evidence> {
        let (context, channels) = (layer.context, layer.site.channels);
        let (kind, device) = (layer.value.f_kind()?, layer.value.device());
        let at_once = context.at_once_from(&layer.entry()?.name);
        let scores = context.scores_from(channels, at_once, Score::Logit, |pairs| {
            let mut keep = vec![1f32; pairs.len() * channels];
            pairs.iter().enumerate().for_each(|(row, (_, channel))| keep[row * channels + channel] = 0.0);
            let keep = Tensor::f_from_slice(&keep)?.f_to_device(device)?.f_to_kind(kind)?;
            let scale = layer.channels(&keep.f_reshape([pairs.len() as i64, channels as i64])?)?;
            let scale = Some(Array::from_tensor(&scale.f_contiguous()?)?);
            layer.part(pairs, vec![Patch { site: layer.site.name.clone(), scale, shift: None }])
        })?;
        let whole = context.score_of(&layer.pass.response, &context.each(), Score::Logit)?;
        let mut weights = Vec::new();
        for (row, whole) in scores.outer_iter().zip(whole) {
            if whole == 0.0 {
                return Err(Error::invalid("the logit is 0, and a channel's share of it is not defined"));
            }
            weights.extend(row.iter().map(|s| (whole - s) / whole));
        }
        let weights = Tensor::f_from_slice(&weights)?.f_reshape([-1, channels as i64])?;
        Ok(Evidence::Weights(weights.f_to_kind(Kind::Float)?.f_to_device(device)?))
    }
}
