//! TokenTM: Wu et al., "Token Transformation Matters: Towards Faithful Post-hoc Explanation for Vision Transformer", CVPR 2024,
//! arXiv:2403.14552.
//!
//! A block is two steps, attention and MLP. A step changes a token's length and direction:
//! `W(t, t') = diag(|t'_i| / |t_i| * softmax_i cos(t_i, t'_i))`. The relevance is
//! `C = (I + W_mlp) (I + A_l W_attn * mean_h relu(dS/dA_l)) C`, beginning with the lengths of the embedded tokens; the map is the
//! class token's row. The equations are those of the port in LibraGrad's repository (Mehri et al., arXiv:2411.16760); the
//! authors' own code is not at hand.

use crate::beyondintuition::lengths;
use crate::stack::{block, blocks, heads, identity, inputs, maps, names, plan, planned, row, tensor};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};
use lightbox_sdk::tools::maps::sum;

register_explainer!(TokenTm);

struct TokenTm;

/// How a step changes tokens [B, N, C], [B, N].
fn change(before: &Tensor, after: &Tensor) -> Result<Tensor> {
    let (from, to) = (lengths(before)?, lengths(after)?);
    let along = sum(&before.f_mul(after)?, &[-1], false)?;
    let cosine = along.f_div(&from.f_mul(&to)?.f_clamp_min(1e-8)?)?;
    Ok(to.f_div(&from.f_add_scalar(1e-8)?)?.f_mul(&cosine.f_softmax(1, Kind::Float)?)?)
}

impl Explainer for TokenTm {
    fn spec(&self) -> ExplainerSpec {
        let citation = "Wu et al.: Token Transformation Matters: Towards Faithful Post-hoc Explanation for Vision \
                        Transformer, CVPR 2024";
        ExplainerSpec::new("tokentm", "TokenTM", Family::Attention, citation, "arXiv:2403.14552")
            .version(env!("CARGO_PKG_VERSION"))
            .formula(
                "row cls of prod_l (I + W_mlp) (I + A_l W_attn * mean_h relu(dS/dA_l)) diag |t_0|, \
                 W = diag(|t'| / |t| * softmax cos(t, t'))",
            )
            .cost("1 F, 1 B")
            .notes("After the port in LibraGrad's repository; the authors' code is not at hand.")
    }

    fn plan(&self, model: &ModelSpec, _: &Params) -> Result<Plan> {
        plan(blocks(model, "gae weighted by its tokens' lengths"), |sites| {
            let mut values = names(sites);
            values.extend(inputs(sites));
            values.extend(sites.iter().map(|s| format!("{}.proj", s.name)));
            values.push(block(sites[sites.len() - 1]));
            Ok(Needs { values, gradients: names(sites), ..Needs::default() })
        })
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        let sites = planned(blocks(&context.model, "gae weighted by its tokens' lengths"))?;
        let tokens = |name: &str| context.value(name)?.share_tensor();
        let mut all: Option<Tensor> = None;
        for (site, input) in sites.iter().zip(inputs(&sites)) {
            let before = tokens(&input)?;
            let middle = before.f_add(&tokens(&format!("{}.proj", site.name))?)?;
            let after = tokens(&block(site))?;
            let a = heads(&tensor(context.value(&site.name)?, site)?)?;
            let g = heads(&tensor(context.gradient(&site.name)?, site)?.f_relu()?)?;
            let one = identity(&a)?;
            let attention = a.f_mul(&change(&before, &middle)?.f_unsqueeze(1)?)?.f_mul(&g)?;
            let state = match all.take() {
                Some(state) => state,
                None => one.f_mul(&lengths(&before)?.f_unsqueeze(1)?)?,
            };
            let state = state.f_add(&attention.f_matmul(&state)?)?;
            // A diagonal factor scales rows.
            let scale = change(&middle, &after)?.f_add_scalar(1.0)?.f_unsqueeze(2)?;
            all = Some(state.f_mul(&scale)?);
        }
        let all = all.ok_or_else(|| Error::invalid("there is no block"))?;
        maps(&row(&all, sites[0], &context.targets)?, sites[0])
    }
}
