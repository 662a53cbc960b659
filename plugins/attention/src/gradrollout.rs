//! Gradient rollout: Gildenblat's vit-explain, "Exploring Explainability for Vision Transformers", 2020, after Abnar and
//! Zuidema, ACL 2020, arXiv:2005.00928.
//!
//! Rollout of `relu(mean_heads A_l * dS/dA_l)`. vit-explain collects gradients in the order of the backward pass, so that the
//! first layer's attention meets the last one's gradient; `paired = reversed` repeats it.

use crate::rollout::{discard, parameters, product};
use crate::stack::{blocks, heads, maps, names, plan, planned, row, starting, tensor};
use lightbox_sdk::prelude::*;

register_explainer!(GradRollout);

struct GradRollout;

impl Explainer for GradRollout {
    fn spec(&self) -> ExplainerSpec {
        let citation = "Gildenblat: Exploring Explainability for Vision Transformers (vit-explain), 2020";
        let text = "each attention with its own gradient, or, as vit-explain does, the first with the last's";
        ExplainerSpec::new("gradrollout", "Gradient rollout", Family::Attention, citation, "")
            .version(env!("CARGO_PKG_VERSION"))
            .formula("row cls of prod_l rownorm((relu(mean_heads A_l * dS/dA_l) + I) / 2)")
            .cost("1 F, 1 B")
            .notes("vit-explain pairs attention and gradients in opposite order: paired = reversed repeats it.")
            .parameters([ParamSpec::choice("paired", "aligned", &["aligned", "reversed"], text)])
            .parameters(parameters(0.0))
    }

    fn plan(&self, model: &ModelSpec, params: &Params) -> Result<Plan> {
        plan(starting(blocks(model, "gae"), params)?, |sites| {
            Ok(Needs { values: names(sites), gradients: names(sites), ..Needs::default() })
        })
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        let sites = planned(blocks(&context.model, "gae"))?;
        let share = context.params.number("discard")?;
        let reversed = context.params.text("paired")? == "reversed";
        let start = context.params.integer("start")? as usize;
        let fused = sites.iter().enumerate().skip(start).map(|(l, site)| {
            let other = if reversed { sites[sites.len() - 1 - l] } else { site };
            let (a, g) = (tensor(context.value(&site.name)?, site)?, tensor(context.gradient(&other.name)?, other)?);
            discard(&heads(&a.f_mul(&g)?)?.f_relu()?, share, false)
        });
        let all = product(fused, context.params.text("normalise")? == "columns")?;
        maps(&row(&all, sites[0], &context.targets)?, sites[0])
    }
}
