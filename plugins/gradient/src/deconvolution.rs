//! Deconvolution: Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, arXiv:1311.2901.
//!
//! The gradient at the image where every ReLU passes back positive gradients alone, open or not.

use crate::input::{INPUT, channels, map_of, needs_input};
use lightbox_sdk::prelude::*;

register_explainer!(Deconvolution);

struct Deconvolution;

impl Explainer for Deconvolution {
    fn spec(&self) -> ExplainerSpec {
        let citation = "Zeiler, Fergus: Visualizing and Understanding Convolutional Networks, ECCV 2014";
        ExplainerSpec::new("deconvolution", "Deconvolution", Family::Gradient, citation, "arXiv:1311.2901")
            .version(env!("CARGO_PKG_VERSION"))
            .formula("max_c |g_c|, g the gradient under relu: g_in = max(g_out, 0)")
            .cost("1 F, 1 B")
            .parameters([channels("max-abs")])
    }

    fn plan(&self, model: &ModelSpec, _: &Params) -> Result<Plan> {
        let (gradients, rules) = (vec![INPUT.to_string()], vec!["relu:deconv".to_string()]);
        let needs = Needs { gradients, rules, ..Needs::default() };
        Ok(needs_input(model).unwrap_or_else(|| needs.into()))
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        map_of(&*context.gradient(INPUT)?.to_tensor()?, &context.params)
    }
}
