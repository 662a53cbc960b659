//! Beyond Intuition: Chen et al., "Beyond Intuition: Rethinking Token Attributions inside Transformers", TMLR 2023.
//!
//! `R = I; R += W_l R` from the block `start` on, times `mean_h relu(mean_a dS/dA_L(a x))`; the map is the class token's row.
//! Head-wise, `W_l = sum_h I_h A_lh` with `I_h` in proportion to `mean_ij |A_h^T dS/dA_h|`. Token-wise, `W_l = A_l diag(m)`
//! with `m_j` the length of what token j's value becomes (projected, without the bias) over the length of the token itself,
//! and magnitudes of R. The reference code starts at block 3 (heads) and 5 or 6 (tokens) of 12.

use crate::integrated;
use crate::stack::{block, blocks, heads, identity, inputs, maps, names, plan, planned, row, starting, tensor};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};
use lightbox_sdk::tools::maps::{mean, sum};

register_explainer!(BeyondIntuition);

struct BeyondIntuition;

const INSTEAD: &str = "attention times the integrated gradient of the same layer";

/// Lengths of vectors along the last dimension.
pub fn lengths(t: &Tensor) -> Result<Tensor> {
    Ok(sum(&t.f_mul(t)?, &[-1], false)?.f_sqrt()?)
}

impl Explainer for BeyondIntuition {
    fn spec(&self) -> ExplainerSpec {
        let citation = "Chen, Li, Yu, Dou, Xiong: Beyond Intuition: Rethinking Token Attributions inside Transformers, \
                        TMLR 2023";
        let text = "what weighs the attention: heads by their gradients, or tokens by what their values become";
        ExplainerSpec::new("beyondintuition", "Beyond Intuition", Family::Attention, citation, "")
            .version(env!("CARGO_PKG_VERSION"))
            .formula("row cls of (prod_l (I + W_l)) * mean_h relu(mean_a dS/dA_L(a x))")
            .cost("1 F, 1 B (heads), then steps x (1 F, 1 B)")
            .parameters([
                ParamSpec::choice("variant", "heads", &["heads", "tokens"], text),
                integrated::parameter(),
                ParamSpec::integer("start", 0, (0, 1000), "", "the first block that counts"),
            ])
    }

    fn plan(&self, model: &ModelSpec, params: &Params) -> Result<Plan> {
        let extra = Passes::both(params.integer("steps")? as u64);
        let by_heads = params.text("variant")? == "heads";
        plan(starting(blocks(model, INSTEAD), params)?, |sites| {
            let (mut values, mut gradients) = (names(sites), vec![]);
            if by_heads {
                gradients = names(sites);
            } else {
                values.extend(inputs(sites));
                values.extend(sites.iter().map(|s| format!("{}.v", s.name)));
            }
            Ok(Needs { values, gradients, model: true, extra, ..Needs::default() })
        })
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        let sites = planned(blocks(&context.model, INSTEAD))?;
        let (steps, start) = (context.params.integer("steps")? as usize, context.params.integer("start")? as usize);
        let by_heads = context.params.text("variant")? == "heads";
        let parameters = if by_heads { vec![] } else { context.run_model()?.parameters()? };
        let inputs = inputs(&sites);
        let last = sites[sites.len() - 1];
        let mut all: Option<Tensor> = None;
        for (site, input) in sites.iter().zip(&inputs).skip(start) {
            let a = tensor(context.value(&site.name)?, site)?;
            let weighted = if by_heads {
                let g = tensor(context.gradient(&site.name)?, site)?;
                let share = mean(&a.f_transpose(-2, -1)?.f_matmul(&g)?.f_abs()?, &[-2, -1], true)?;
                let share = share.f_div(&sum(&share, &[1], true)?.f_clamp_min(1e-30)?)?;
                sum(&a.f_mul(&share)?, &[1], false)?
            } else {
                let v = context.value(&format!("{}.v", site.name))?.share_tensor()?;
                let z = context.value(input)?.share_tensor()?;
                let name = format!("{}.attn.proj.weight", block(site));
                let weight = parameters.iter().find(|(n, _)| *n == name);
                let (_, weight) = weight.ok_or_else(|| Error::invalid(format!("the model has no parameter {name}")))?;
                let v = v.f_transpose(1, 2)?.f_flatten(2, -1)?;
                let changed = v.f_linear(&weight.share_tensor()?, None::<&Tensor>)?;
                let m = lengths(&changed)?.f_div(&lengths(&z)?)?;
                heads(&a)?.f_mul(&m.f_unsqueeze(1)?)?
            };
            let before = match all.take() {
                Some(before) => before,
                None => identity(&weighted)?,
            };
            all = Some(before.f_add(&weighted.f_matmul(&before)?)?);
        }
        let all = all.ok_or_else(|| Error::invalid("parameter start: no block is left"))?.f_abs()?;
        let factor = integrated::gradient(context, last, steps)?.f_to_kind(Kind::Float)?;
        maps(&row(&all.f_mul(&factor)?, last, &context.targets)?, last)
    }
}
