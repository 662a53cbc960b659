//! SmoothGrad-squared: Hooker et al., "A Benchmark for Interpretability Methods in Deep Neural Networks", NeurIPS 2019, arXiv:1806.10758.
//!
//! The mean of the gradient's square over noisy copies of the image.

use crate::smoothing::{self, Statistic};
use lightbox_sdk::prelude::*;

register_explainer!(SmoothGradSquared);

pub struct SmoothGradSquared;

impl Explainer for SmoothGradSquared {
    fn spec(&self) -> ExplainerSpec {
        let citation = "Hooker et al.: A Benchmark for Interpretability Methods in Deep Neural Networks, NeurIPS 2019";
        ExplainerSpec::new("smoothgradsq", "SmoothGrad-squared", Family::Gradient, citation, "arXiv:1806.10758")
            .version(env!("CARGO_PKG_VERSION"))
            .formula("mean_i (dS/dx(x + sigma n_i))^2, n_i standard normal")
            .cost("1 F, then samples x (1 F, 1 B)")
            .parameters(smoothing::parameters("sum"))
    }

    fn plan(&self, model: &ModelSpec, params: &Params) -> Result<Plan> {
        smoothing::plan(model, params)
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        smoothing::explain(context, Statistic::MeanSquare)
    }
}
