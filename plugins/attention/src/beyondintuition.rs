//! Beyond Intuition: Chen et al., "Beyond Intuition: Rethinking Token Attributions inside Transformers", TMLR 2023.
//!
//! `R = I; R += W_l R` from the block `start` on, times `mean_h relu(mean_a dS/dA_L(a x))`; the map is the class token's row.
//! Head-wise, `W_l = sum_h I_h A_lh` with `I_h` in proportion to `mean_ij |A_h^T dS/dA_h|`. Token-wise, `W_l = A_l diag(m)`
//! with `m_j` the length of what token j's value becomes (projected, without the bias) over the length of the token itself,
//! and magnitudes of R. The reference code starts at block 3 (heads) and 5 or 6 (tokens) of 12.

use crate::integrated;
use crate::stack::{blocks, bound, heads, identity, maps, names, parts, row, starting, tensor};
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

choice! {
    /// what weighs the attention: heads by their gradients, or tokens by what their values become
    enum Variant { Heads = "heads", Tokens = "tokens" }
}

#[derive(Params)]
struct Settings {
    #[param(default = Variant::Heads)]
    variant: Variant,
    /// points on the path to the image, both ends among them
    #[param(default = 20, range = (2, 10_000))]
    steps: usize,
    /// the first block that counts
    #[param(default = 0, range = (0, 1000))]
    start: usize,
}

impl Explainer for BeyondIntuition {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Chen, Li, Yu, Dou, Xiong",
            "Beyond Intuition: Rethinking Token Attributions inside Transformers",
            "TMLR",
            2023,
            "",
        );
        ExplainerSpec::new("beyondintuition", "Beyond Intuition", Family::Attention, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .any_dimensions()
            .formula("row cls of (prod_l (I + W_l)) * mean_h relu(mean_a dS/dA_L(a x))")
            .cost("1 F, 1 B (heads), then steps x (1 F, 1 B)")
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        let extra = Passes::both(params.steps as u64);
        bound(starting(blocks(model, INSTEAD), params.start), |blocks| {
            let (mut values, mut gradients) = (names(&blocks), vec![]);
            match params.variant {
                Variant::Heads => gradients = names(&blocks),
                Variant::Tokens => {
                    values.extend(parts(&blocks, "tokens", |b| &b.input)?);
                    values.extend(parts(&blocks, "values", |b| &b.value)?);
                    parts(&blocks, "projection", |b| &b.output)?;
                }
            }
            let needs = Needs { values, gradients, model: true, extra, ..Needs::default() };
            Ok(Bound::new(needs, move |context| explain(context, &blocks, &params)))
        })
    }
}

/// `W_l` by heads, [B, N, N].
fn by_heads(context: &Context<'_>, site: &Site) -> Result<Tensor> {
    let a = tensor(context.value(&site.name)?, site)?;
    let g = tensor(context.gradient(&site.name)?, site)?;
    let share = mean(&a.f_transpose(-2, -1)?.f_matmul(&g)?.f_abs()?, &[-2, -1], true)?;
    let share = share.f_div(&sum(&share, &[1], true)?.f_clamp_min(1e-30)?)?;
    sum(&a.f_mul(&share)?, &[1], false)
}

/// `W_l` by tokens, [B, N, N].
fn by_tokens(context: &Context<'_>, block: &AttentionBlock, parameters: &Named) -> Result<Tensor> {
    let a = tensor(context.value(&block.weights.name)?, &block.weights)?;
    let site = |site: &Option<Site>, what: &str| AttentionBlock::require(site, what);
    let v = context.value(&site(&block.value, "values")?.name)?.share_tensor()?;
    let z = context.value(&site(&block.input, "tokens")?.name)?.share_tensor()?;
    let name = site(&block.output, "projection")?.weight;
    let weight = parameters.iter().find(|(n, _)| *n == name);
    let (_, weight) = weight.ok_or_else(|| Error::invalid(format!("the model has no parameter {name}")))?;
    let v = v.f_transpose(1, 2)?.f_flatten(2, -1)?;
    let changed = v.f_linear(&weight.share_tensor()?, None::<&Tensor>)?;
    let m = lengths(&changed)?.f_div(&lengths(&z)?)?;
    Ok(heads(&a)?.f_mul(&m.f_unsqueeze(1)?)?)
}

fn explain(context: &Context<'_>, blocks: &[AttentionBlock], params: &Settings) -> Result<Maps> {
    let tokens = params.variant == Variant::Tokens;
    let parameters = if tokens { context.run_model()?.parameters()? } else { vec![] };
    let last = &blocks[blocks.len() - 1].weights;
    let mut all: Option<Tensor> = None;
    for block in &blocks[params.start..] {
        let weighted = match params.variant {
            Variant::Heads => by_heads(context, &block.weights)?,
            Variant::Tokens => by_tokens(context, block, &parameters)?,
        };
        let before = match all.take() {
            Some(before) => before,
            None => identity(&weighted)?,
        };
        all = Some(before.f_add(&weighted.f_matmul(&before)?)?);
    }
    let all = all.ok_or_else(|| Error::invalid("parameter start: no block is left"))?.f_abs()?;
    let factor = integrated::gradient(context, last, params.steps)?.f_to_kind(Kind::Float)?;
    maps(&row(context, &all.f_mul(&factor)?, last)?, last)
}
