//! TokenTM: Wu et al., "Token Transformation Matters: Towards Faithful Post-hoc Explanation for Vision Transformer", CVPR 2024,
//! arXiv:2403.14552.
//!
//! A block is two steps, attention and MLP. A step changes a token's length and direction:
//! `W(t, t') = diag(|t'_i| / |t_i| * softmax_i cos(t_i, t'_i))`. The relevance is
//! `C = (I + W_mlp) (I + A_l W_attn * mean_h relu(dS/dA_l)) C`, beginning with the lengths of the embedded tokens; the map is the
//! class token's row. The equations are those of the port in LibraGrad's repository (Mehri et al., arXiv:2411.16760); the
//! authors' own code is not at hand.

use crate::beyondintuition::lengths;
use crate::stack::{blocks, bound, heads, identity, maps, names, parts, row, tensor};
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
    type Params = ();

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Wu et al.",
            "Token Transformation Matters: Towards Faithful Post-hoc Explanation for Vision Transformer",
            "CVPR",
            2024,
            "arXiv:2403.14552",
        );
        ExplainerSpec::new("tokentm", "TokenTM", Family::Attention, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .any_dimensions()
            .formula(
                "row cls of prod_l (I + W_mlp) (I + A_l W_attn * mean_h relu(dS/dA_l)) diag |t_0|, \
                 W = diag(|t'| / |t| * softmax cos(t, t'))",
            )
            .cost("1 F, 1 B")
            .notes("After the port in LibraGrad's repository; the authors' code is not at hand.")
    }

    fn bind(&self, model: &ModelSpec, _: ()) -> Result<Bound> {
        bound(blocks(model, "gae weighted by its tokens' lengths"), |blocks| {
            let inputs = parts(&blocks, "tokens", |b| &b.input)?;
            let outputs = parts(&blocks, "projection", |b| &b.output)?;
            let ends = parts(&blocks, "end", |b| &b.end)?;
            let mut values = [names(&blocks), inputs.clone(), outputs.clone(), ends.clone()].concat();
            values.sort();
            values.dedup();
            Ok(Bound::new(Needs { values, gradients: names(&blocks), ..Needs::default() }, move |context| {
                let tokens = |name: &str| context.value(name)?.share_tensor();
                let mut all: Option<Tensor> = None;
                for (i, block) in blocks.iter().enumerate() {
                    let site = &block.weights;
                    let before = tokens(&inputs[i])?;
                    let middle = before.f_add(&tokens(&outputs[i])?)?;
                    let after = tokens(&ends[i])?;
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
                maps(&row(context, &all, &blocks[0].weights)?, &blocks[0].weights)
            }))
        })
    }
}
