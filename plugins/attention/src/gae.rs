//! Generic attention explainability: Chefer, Gur and Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal
//! and Encoder-Decoder Transformers", ICCV 2021, arXiv:2103.15679.
//!
//! `R = I; R += mean_h relu(A_l * dS/dA_l) R` layer by layer (equations 5 and 6); the map is the class token's row. A model with
//! the one attention of its class token has one term.

use crate::stack::{bound, heads, identity, layers, maps, names, row, starting, tensor};
use lightbox_sdk::prelude::*;

register_explainer!(Gae);

struct Gae;

#[derive(Params)]
struct Settings {
    /// the first block that counts
    #[param(default = 0, range = (0, 1000))]
    start: usize,
}

impl Explainer for Gae {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Chefer, Gur, Wolf",
            "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers",
            "ICCV",
            2021,
            "arXiv:2103.15679",
        );
        ExplainerSpec::new("gae", "Generic attention explainability", Family::Attention, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .any_dimensions()
            .formula("row cls of prod_l (I + mean_h relu(A_l * dS/dA_l))")
            .cost("1 F, 1 B")
            .notes("On a model with one attention layer: its mean_h relu(A * dS/dA).")
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        bound(starting(layers(model), params.start), |blocks| {
            let needs = Needs { values: names(&blocks), gradients: names(&blocks), ..Needs::default() };
            Ok(Bound::new(needs, move |context| explain(context, &blocks, params.start)))
        })
    }
}

fn explain(context: &Context<'_>, blocks: &[AttentionBlock], start: usize) -> Result<Maps> {
    let term = |site: &Site| {
        let (a, g) = (tensor(context.value(&site.name)?, site)?, tensor(context.gradient(&site.name)?, site)?);
        heads(&a.f_mul(&g)?.f_relu()?)
    };
    let (first, last) = (&blocks[0].weights, &blocks[blocks.len() - 1].weights);
    if first.query != "tokens" {
        return maps(&row(context, &term(last)?, last)?, last);
    }
    let mut all = None;
    for block in &blocks[start..] {
        let term = term(&block.weights)?;
        let before = match all.take() {
            Some(before) => before,
            None => identity(&term)?,
        };
        all = Some(before.f_add(&term.f_matmul(&before)?)?);
    }
    let all = all.ok_or_else(|| Error::invalid("parameter start: no block is left"))?;
    maps(&row(context, &all, first)?, first)
}
