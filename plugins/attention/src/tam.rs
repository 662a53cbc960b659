//! Transition attention maps: Yuan et al., "Explaining Information Flow Inside Vision Transformers Using Markov Chain", NeurIPS
//! Workshop 2021.
//!
//! `s = A_L[cls]; s += s A_l` from the last block down (heads' mean), times the class token's row of
//! `mean_h relu(mean_a dS/dA_L(a x))`, the last attention's gradient along the path from 0 to the image. The reference code
//! stops at block 4 of 12 in some of its scripts and at block 0 in others: `start`.

use crate::integrated;
use crate::stack::{blocks, heads, maps, names, plan, planned, row, starting, tensor};
use lightbox_sdk::prelude::*;

register_explainer!(Tam);

struct Tam;

const INSTEAD: &str = "attention times the integrated gradient of the same layer";

impl Explainer for Tam {
    fn spec(&self) -> ExplainerSpec {
        let citation = "Yuan, Li, Xiong, Cao, Dou: Explaining Information Flow Inside Vision Transformers Using Markov \
                        Chain, NeurIPS Workshop on Explainable AI Approaches for Debugging and Diagnosis 2021";
        ExplainerSpec::new("tam", "Transition attention maps", Family::Attention, citation, "")
            .version(env!("CARGO_PKG_VERSION"))
            .formula(
                "s * mean_h relu(mean_a dS/dA_L(a x))[cls], s = A_L[cls] prod_l (I + A_l), l from L - 1 down to start",
            )
            .cost("1 F, then steps x (1 F, 1 B)")
            .parameters([
                integrated::parameter(),
                ParamSpec::integer("start", 0, (0, 1000), "", "the last block that the chain goes down to"),
            ])
    }

    fn plan(&self, model: &ModelSpec, params: &Params) -> Result<Plan> {
        let extra = Passes::both(params.integer("steps")? as u64);
        plan(starting(blocks(model, INSTEAD), params)?, |sites| {
            Ok(Needs { values: names(sites), model: true, extra, ..Needs::default() })
        })
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        let sites = planned(blocks(&context.model, INSTEAD))?;
        let (steps, start) = (context.params.integer("steps")? as usize, context.params.integer("start")? as usize);
        let last = sites[sites.len() - 1];
        let attention = |site: &Site| heads(&tensor(context.value(&site.name)?, site)?);
        let mut state = row(&attention(last)?, last, &context.targets)?.f_unsqueeze(1)?;
        for site in sites[..sites.len() - 1].iter().skip(start).rev() {
            state = state.f_add(&state.f_matmul(&attention(site)?)?)?;
        }
        let factor = row(&integrated::gradient(context, last, steps)?, last, &context.targets)?;
        maps(&state.f_squeeze_dim(1)?.f_mul(&factor)?, last)
    }
}
