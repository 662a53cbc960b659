//! Layer-wise relevance propagation: Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise
//! Relevance Propagation", PLoS ONE 10(7), 2015, doi:10.1371/journal.pone.0130140; Montavon et al., "Layer-Wise Relevance
//! Propagation: An Overview", 2019, for gamma and composites.
//!
//! The logit is handed back through the network, every map distributing its output's relevance over its inputs by a rule
//! (`sdk/src/rules.rs` has the equations); biases keep their share. A composite gives convolutions, linear layers and the first
//! convolution rules of their own, as Zennit's `EpsilonPlus` and `EpsilonGammaBox` do. Batch norms stand before their ReLU in a
//! DenseNet and cannot be merged into a convolution, so they are maps of their own under epsilon.

use crate::input::{Channels, bound};
use lightbox_sdk::prelude::*;

register_explainer!(Lrp);

struct Lrp;

choice! {
    /// one rule for all maps, or Zennit's composites: zplus for convolutions and epsilon for linear layers; the box rule for the first convolution, gamma for the others, epsilon for linear layers
    enum Composite {
        Epsilon = "epsilon",
        Gamma = "gamma",
        ZPlus = "zplus",
        EpsilonPlus = "epsilon-plus",
        EpsilonGammaBox = "epsilon-gamma-box",
    }
}

#[derive(Params)]
struct Settings {
    #[param(default = Composite::EpsilonPlus)]
    composite: Composite,
    /// the stabiliser of epsilon
    #[param(default = 1e-6, range = (1e-12, 1e6))]
    epsilon: f64,
    /// how much more gamma counts what speaks for an output
    #[param(default = 0.25, range = (1e-12, 1e6))]
    gamma: f64,
    #[param(default = Channels::Sum)]
    channels: Channels,
}

/// The rules of a composite.
fn rules(params: &Settings) -> Vec<String> {
    let (epsilon, gamma) = (params.epsilon, params.gamma);
    let rule = |operation: &str, name: &str| match name {
        "epsilon" => format!("{operation}:epsilon={epsilon}"),
        "gamma" => format!("{operation}:gamma={gamma}"),
        other => format!("{operation}:{other}"),
    };
    match params.composite {
        Composite::EpsilonPlus => vec![rule("conv", "zplus"), rule("linear", "epsilon")],
        Composite::EpsilonGammaBox => vec![rule("input", "zbox"), rule("conv", "gamma"), rule("linear", "epsilon")],
        one => vec![rule("linear", one.word())],
    }
}

impl Explainer for Lrp {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Bach et al.",
            "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation",
            "PLoS ONE 10(7)",
            2015,
            "10.1371/journal.pone.0130140",
        );
        ExplainerSpec::new("lrp", "LRP", Family::Relevance, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .formula("sum_c R_c, R_i = sum_j (share of i in j's input) R_j from the logit down to the image")
            .cost("1 F, 1 B")
            .notes("Under zplus and the box rule relevance is all but conserved; biases keep their share.")
            .signed()
            .any_dimensions()
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        if model.attention_site.is_some() {
            let reason = format!("{} has attention, which needs rules of its own: attnlrp, cplrp", model.name);
            return Ok(Bound::not_applicable(reason));
        }
        bound(model, |input| {
            let needs = Needs { gradients: vec![input.clone()], rules: rules(&params), ..Needs::default() };
            Bound::new(needs, move |context| {
                let gradient = context.gradient(&input)?.to_tensor()?;
                params.channels.map_of(&context.image_tensor()?.f_mul(&gradient)?)
            })
        })
    }
}
