//! LibraGrad: Mehri, Soleymani Baghshah and Pilehvar, "LibraGrad: Balancing Gradient Flow for Universally Better Vision
//! Transformer Attributions", CVPR 2025, arXiv:2411.16760.
//!
//! Input times gradient where the gradient is pruned to the paths that keep the output: constant attention weights, constant
//! deviations of layer norms, `x` times a constant for the activation; linear maps as they are. On a plain ViT these are
//! CP-LRP's rules without one for linear maps.

use crate::relevance::Relevance;
use lightbox_sdk::prelude::*;
use std::marker::PhantomData;

register_explainer!(Relevance::<()> { spec, rules: &RULES, linear: PhantomData });

const RULES: [&str; 3] = ["activation:identity", "norm:detach", "softmax:detach"];

fn spec() -> ExplainerSpec {
    let reference = Reference::new(
        "Mehri, Soleymani Baghshah, Pilehvar",
        "LibraGrad: Balancing Gradient Flow for Universally Better Vision Transformer Attributions",
        "CVPR",
        2025,
        "arXiv:2411.16760",
    );
    ExplainerSpec::new("libragrad", "LibraGrad input x gradient", Family::Relevance, reference)
        .formula("sum_c x_c g_c, g the gradient under activation:identity, norm:detach, softmax:detach")
        .notes("The paper's FullGrad+ variants, which add the biases' parts, are not among it.")
}
