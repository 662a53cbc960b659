//! AttnLRP: Achtibat et al., "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers", ICML 2024,
//! arXiv:2402.05602.
//!
//! Relevance of the logit at the pixels, `sum_c x_c g_c`, with gradients under the paper's rules: the identity rule for the
//! activation, layer norms with a constant deviation, half of a matrix product's relevance to each factor, the softmax's own
//! gradient (`sdk/src/rules.rs`). The paper's recipe for vision transformers has gamma for linear maps and the patch embedding;
//! LXT's module hooks miss the attention's own projections there, which this does not.

use crate::relevance::{Linear, Relevance};
use lightbox_sdk::prelude::*;
use std::marker::PhantomData;

register_explainer!(Relevance::<Linear> { spec, rules: &RULES, linear: PhantomData });

const RULES: [&str; 3] = ["activation:identity", "norm:detach", "product:uniform"];

fn spec() -> ExplainerSpec {
    let reference = Reference::new(
        "Achtibat et al.",
        "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers",
        "ICML",
        2024,
        "arXiv:2402.05602",
    );
    ExplainerSpec::new("attnlrp", "AttnLRP", Family::Relevance, reference)
        .formula("sum_c x_c g_c, g the gradient under activation:identity, norm:detach, product:uniform and a rule of linear maps")
        .notes("A convolutional trunk's gates are constants (gate:detach).")
}
