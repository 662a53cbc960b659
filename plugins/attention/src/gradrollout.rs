//! Gradient rollout: Gildenblat's vit-explain, "Exploring Explainability for Vision Transformers", 2020, after Abnar and
//! Zuidema, ACL 2020, arXiv:2005.00928.
//!
//! Rollout of `relu(mean_heads A_l * dS/dA_l)`. vit-explain collects gradients in the order of the backward pass, so that the
//! first layer's attention meets the last one's gradient; `paired = reversed` repeats it.

use crate::rollout::{Chain, discard, product};
use crate::stack::{blocks, bound, heads, maps, names, row, starting, tensor};
use lightbox_sdk::prelude::*;

register_explainer!(GradRollout);

struct GradRollout;

choice! {
    /// each attention with its own gradient, or, as vit-explain does, the first with the last's
    enum Paired { Aligned = "aligned", Reversed = "reversed" }
}

#[derive(Params)]
struct Settings {
    #[param(default = Paired::Aligned)]
    paired: Paired,
    #[param(flatten)]
    chain: Chain,
}

impl Explainer for GradRollout {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Gildenblat",
            "Exploring Explainability for Vision Transformers (vit-explain)",
            "",
            2020,
            "",
        );
        ExplainerSpec::new("gradrollout", "Gradient rollout", Family::Attention, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .any_dimensions()
            .formula("row cls of prod_l rownorm((relu(mean_heads A_l * dS/dA_l) + I) / 2)")
            .cost("1 F, 1 B")
            .notes("vit-explain pairs attention and gradients in opposite order: paired = reversed repeats it.")
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        bound(starting(blocks(model, "gae"), params.chain.start), |blocks| {
            let needs = Needs { values: names(&blocks), gradients: names(&blocks), ..Needs::default() };
            Ok(Bound::new(needs, move |context| {
                let reversed = params.paired == Paired::Reversed;
                let fused = blocks.iter().enumerate().skip(params.chain.start).map(|(l, block)| {
                    let other = &if reversed { &blocks[blocks.len() - 1 - l] } else { block }.weights;
                    let site = &block.weights;
                    let (a, g) =
                        (tensor(context.value(&site.name)?, site)?, tensor(context.gradient(&other.name)?, other)?);
                    discard(&heads(&a.f_mul(&g)?)?.f_relu()?, params.chain.discard, false)
                });
                let all = product(fused, params.chain.normalise)?;
                maps(&row(context, &all, &blocks[0].weights)?, &blocks[0].weights)
            }))
        })
    }
}
