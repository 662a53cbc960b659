//! ShapleyCAM: Cai, "CAMs as Shapley Value-based Explainers", 2025, arXiv:2501.06261.
//!
//! `w_c = mean_yx (G - 1/2 H A)_cyx`: the second-order estimate of the channels' Shapley values, with H the Hessian of the
//! logit in the layer and `H A` its exact product with the layer's value, by differentiating twice. Where what follows the layer
//! is piecewise linear, as all of a DenseNet is, H is 0 and this is GradCAM.

use crate::layer::{Cam, Evidence, Layer, Method, Reads, reads_entry};
use lightbox_sdk::prelude::*;

register_explainer!(Method(ShapleyCam));

#[derive(Clone, Copy)]
struct ShapleyCam;

impl Cam for ShapleyCam {
    type Params = ();
    const GRADIENT: bool = true;

    fn spec(&self) -> ExplainerSpec {
        ExplainerSpec::new(
            "shapleycam",
            "ShapleyCAM",
            Family::Cam,
            Reference::new("Cai", "CAMs as Shapley Value-based Explainers", "", 2025, "arXiv:2501.06261"),
        )
        .formula("relu(sum_c w_c A_c), w_c = mean_yx (G - 1/2 H A)_cyx")
        .cost("1 F, 1 B, then P, 2 B")
        .notes(
            "The logit is the utility, as pytorch-grad-cam's default has it; the paper prefers logit + log softmax. H A is exact. \
             Where what follows the layer is piecewise linear, as in a DenseNet, H is 0 and this is GradCAM.",
        )
    }

    fn reads(&self, model: &ModelSpec, layer: &Site, _: &()) -> std::result::Result<Reads, String> {
        reads_entry(model, layer, Passes { partial: 1, backward: 2, forward: 0 })
    }

    fn evidence(&self, layer: &Layer<'_>, _: &()) -> Result<Evidence> {
        let context = layer.context;
        let pairs = context.each();
        let (site, direction) = (layer.site.name.clone(), Array::from_tensor(layer.raw(&layer.site.name)?)?);
        let request = Request {
            objectives: vec![vec![context.objective_of(&pairs)?]],
            grads: vec![site.clone()],
            products: vec![HessianProduct { site: site.clone(), direction }],
            ..layer.part(&pairs, vec![])?
        };
        let response = context.run_model()?.run(&request)?;
        let product = layer.site.to_grid(&response.product(0, &site)?.share_tensor()?)?;
        let weights = layer.gradient()?.f_sub(&product.f_mul_scalar(0.5)?)?;
        Ok(Evidence::Weights(layer.mean_places(&weights, false)?))
    }
}
