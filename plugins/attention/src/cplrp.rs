//! CP-LRP: Ali et al., "XAI for Transformers: Better Explanations through Conservative Propagation", ICML 2022,
//! arXiv:2202.07304.
//!
//! As AttnLRP, but attention weights are constants: relevance goes through the values alone.

use crate::relevance::{Linear, Relevance};
use lightbox_sdk::prelude::*;
use std::marker::PhantomData;

register_explainer!(Relevance::<Linear> { spec, rules: &RULES, linear: PhantomData });

const RULES: [&str; 3] = ["activation:identity", "norm:detach", "softmax:detach"];

fn spec() -> ExplainerSpec {
    let reference = Reference::new(
        "Ali et al.",
        "XAI for Transformers: Better Explanations through Conservative Propagation",
        "ICML",
        2022,
        "arXiv:2202.07304",
    );
    ExplainerSpec::new("cplrp", "CP-LRP", Family::Relevance, reference)
        .formula("sum_c x_c g_c, g the gradient under activation:identity, norm:detach, softmax:detach and a rule of linear maps")
        .notes("The paper leaves linear maps to the plain gradient (linear = gradient); gamma is LXT's recipe for vision transformers.")
}
