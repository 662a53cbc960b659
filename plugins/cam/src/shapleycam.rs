//! ShapleyCAM: Cai, "CAMs as Shapley Value-based Explainers", 2025, arXiv:2501.06261.
//!
//! `w_c = mean_yx (G - 1/2 H A)_cyx`: the second-order estimate of the channels' Shapley values, with H the Hessian of the
//! logit in the layer. libtorch's second derivatives do not cross the ABI, so `H A` is the central difference of gradients
//! along A: `(G(A + e A) - G(A - e A)) / 2 e`, two runs of what follows the layer. Where that is linear, as behind
//! DenseNet's last layer, H is 0 and this is GradCAM.

use crate::layer::{Cam, Evidence, Layer, Method, Reads, reads_entry};
use lightbox_sdk::prelude::*;

register_explainer!(Method(ShapleyCam));

#[derive(Clone, Copy)]
struct ShapleyCam;

#[derive(Params)]
struct Settings {
    /// step of the difference
    #[param(default = 0.01, range = (1e-6, 1.0), unit = "of A")]
    epsilon: f64,
}

impl Cam for ShapleyCam {
    type Params = Settings;
    const GRADIENT: bool = true;

    fn spec(&self) -> ExplainerSpec {
        ExplainerSpec::new(
            "shapleycam",
            "ShapleyCAM",
            Family::Cam,
            Reference::new("Cai", "CAMs as Shapley Value-based Explainers", "", 2025, "arXiv:2501.06261"),
        )
        .formula("relu(sum_c w_c A_c), w_c = mean_yx (G - 1/2 H A)_cyx, H A by central differences of G")
        .cost("1 F, 1 B, then 2 (P, 1 B)")
        .notes("The logit is the utility, as pytorch-grad-cam's default has it; the paper prefers logit + log softmax.")
    }

    fn reads(&self, model: &ModelSpec, layer: &Site, _: &Settings) -> std::result::Result<Reads, String> {
        reads_entry(model, layer, Passes { partial: 2, backward: 2, forward: 0 })
    }

    fn evidence(&self, layer: &Layer<'_>, params: &Settings) -> Result<Evidence> {
        let (context, epsilon) = (layer.context, params.epsilon);
        let pairs = context.each();
        let mut gradients = Vec::new();
        for step in [epsilon, -epsilon] {
            context.check_cancelled()?;
            let scale = Some(Array::from_vec(&[1], vec![(1.0 + step) as f32])?);
            let scale = scale.map(|s| Array::from_tensor(&s.share_tensor()?.f_to_device(layer.value.device())?));
            let patch = Patch { site: layer.site.name.clone(), scale: scale.transpose()?, shift: None };
            let request = layer.part(&pairs, patch)?;
            let request = Request {
                objectives: vec![vec![context.objective_of(&pairs)?]],
                grads: vec![layer.site.name.clone()],
                ..request
            };
            let response = context.run_model()?.run(&request)?;
            let found = response.gradient(0, &layer.site.name)?;
            gradients.push(layer.site.to_grid(&found.share_tensor()?)?);
        }
        let product = gradients[0].f_sub(&gradients[1])?.f_div_scalar(2.0 * epsilon)?;
        let weights = layer.gradient()?.f_sub(&product.f_mul_scalar(0.5)?)?;
        Ok(Evidence::Weights(layer.mean_places(&weights, false)?))
    }
}
