//! CP-LRP: Ali et al., "XAI for Transformers: Better Explanations through Conservative Propagation", ICML 2022,
//! arXiv:2202.07304.
//!
//! As AttnLRP, but attention weights are constants: relevance goes through the values alone.

use crate::relevance::{explain, parameters, plan};
use lightbox_sdk::prelude::*;

register_explainer!(CpLrp);

struct CpLrp;

const RULES: [&str; 3] = ["activation:identity", "norm:detach", "softmax:detach"];

impl Explainer for CpLrp {
    fn spec(&self) -> ExplainerSpec {
        let citation =
            "Ali et al.: XAI for Transformers: Better Explanations through Conservative Propagation, ICML 2022";
        ExplainerSpec::new("cplrp", "CP-LRP", Family::Relevance, citation, "arXiv:2202.07304")
            .version(env!("CARGO_PKG_VERSION"))
            .formula("sum_c x_c g_c, g the gradient under activation:identity, norm:detach, softmax:detach and a rule of linear maps")
            .cost("1 F, 1 B")
            .notes("The paper leaves linear maps to the plain gradient (linear = gradient); gamma is LXT's recipe for vision transformers.")
            .signed()
            .parameters(parameters("gamma"))
    }

    fn plan(&self, model: &ModelSpec, params: &Params) -> Result<Plan> {
        plan(model, &RULES, Some(params))
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        explain(context)
    }
}
