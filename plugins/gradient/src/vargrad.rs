//! VarGrad: Adebayo et al., "Local Explanation Methods for Deep Neural Networks Lack Sensitivity to Parameter Values", ICLR Workshop 2018, arXiv:1810.03307.
//!
//! The variance of the logit's gradient over noisy copies of the image, over n.

use crate::smoothing::{self, Statistic};
use lightbox_sdk::prelude::*;

register_explainer!(VarGrad);

pub struct VarGrad;

impl Explainer for VarGrad {
    fn spec(&self) -> ExplainerSpec {
        let citation = "Adebayo et al.: Local Explanation Methods for Deep Neural Networks Lack Sensitivity to Parameter Values, ICLR Workshop 2018";
        ExplainerSpec::new("vargrad", "VarGrad", Family::Gradient, citation, "arXiv:1810.03307")
            .version(env!("CARGO_PKG_VERSION"))
            .formula("var_i dS/dx(x + sigma n_i), n_i standard normal")
            .cost("1 F, then samples x (1 F, 1 B)")
            .parameters(smoothing::parameters("sum"))
    }

    fn plan(&self, model: &ModelSpec, params: &Params) -> Result<Plan> {
        smoothing::plan(model, params)
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        smoothing::explain(context, Statistic::Variance)
    }
}
