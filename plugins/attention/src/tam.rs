//! Transition attention maps: Yuan et al., "Explaining Information Flow Inside Vision Transformers Using Markov Chain", NeurIPS
//! Workshop 2021.
//!
//! `s = A_L[cls]; s += s A_l` from the last block down (heads' mean), times the class token's row of
//! `mean_h relu(mean_a dS/dA_L(a x))`, the last attention's gradient along the path from 0 to the image. The reference code
//! stops at block 4 of 12 in some of its scripts and at block 0 in others: `start`.

use crate::integrated;
use crate::stack::{blocks, bound, heads, maps, names, row, starting, tensor};
use lightbox_sdk::prelude::*;

register_explainer!(Tam);

struct Tam;

const INSTEAD: &str = "attention times the integrated gradient of the same layer";

#[derive(Params)]
struct Settings {
    /// points on the path to the image, both ends among them
    #[param(default = 20, range = (2, 10_000))]
    steps: usize,
    /// the last block that the chain goes down to
    #[param(default = 0, range = (0, 1000))]
    start: usize,
}

impl Explainer for Tam {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Yuan, Li, Xiong, Cao, Dou",
            "Explaining Information Flow Inside Vision Transformers Using Markov Chain",
            "NeurIPS Workshop on Explainable AI Approaches for Debugging and Diagnosis",
            2021,
            "",
        );
        ExplainerSpec::new("tam", "Transition attention maps", Family::Attention, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .any_dimensions()
            .formula(
                "s * mean_h relu(mean_a dS/dA_L(a x))[cls], s = A_L[cls] prod_l (I + A_l), l from L - 1 down to start",
            )
            .cost("1 F, then steps x (1 F, 1 B)")
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        let extra = Passes::both(params.steps as u64);
        bound(starting(blocks(model, INSTEAD), params.start), |blocks| {
            let needs = Needs { values: names(&blocks), model: true, extra, ..Needs::default() };
            Ok(Bound::new(needs, move |context| {
                let last = &blocks[blocks.len() - 1].weights;
                let attention = |site: &Site| heads(&tensor(context.value(&site.name)?, site)?);
                let mut state = row(context, &attention(last)?, last)?.f_unsqueeze(1)?;
                for block in blocks[..blocks.len() - 1].iter().skip(params.start).rev() {
                    state = state.f_add(&state.f_matmul(&attention(&block.weights)?)?)?;
                }
                let factor = row(context, &integrated::gradient(context, last, params.steps)?, last)?;
                maps(&state.f_squeeze_dim(1)?.f_mul(&factor)?, last)
            }))
        })
    }
}
