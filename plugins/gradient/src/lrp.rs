//! Layer-wise relevance propagation: Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise
//! Relevance Propagation", PLoS ONE 10(7), 2015, doi:10.1371/journal.pone.0130140; Montavon et al., "Layer-Wise Relevance
//! Propagation: An Overview", 2019, for gamma and composites.
//!
//! The logit is handed back through the network, every map distributing its output's relevance over its inputs by a rule
//! (`sdk/src/rules.rs` has the equations); biases keep their share. A composite gives convolutions, linear layers and the first
//! convolution rules of their own, as Zennit's `EpsilonPlus` and `EpsilonGammaBox` do. Batch norms stand before their ReLU in a
//! DenseNet and cannot be merged into a convolution, so they are maps of their own under epsilon.

use crate::input::{INPUT, channels, map_of, needs_input};
use lightbox_sdk::prelude::*;

register_explainer!(Lrp);

struct Lrp;

/// The rules of a composite.
fn rules(params: &Params) -> Result<Vec<String>> {
    let (epsilon, gamma) = (params.number("epsilon")?, params.number("gamma")?);
    let rule = |operation: &str, name: &str| match name {
        "epsilon" => format!("{operation}:epsilon={epsilon}"),
        "gamma" => format!("{operation}:gamma={gamma}"),
        other => format!("{operation}:{other}"),
    };
    Ok(match params.text("composite")? {
        "epsilon-plus" => vec![rule("conv", "zplus"), rule("linear", "epsilon")],
        "epsilon-gamma-box" => vec![rule("input", "zbox"), rule("conv", "gamma"), rule("linear", "epsilon")],
        one => vec![rule("linear", one)],
    })
}

impl Explainer for Lrp {
    fn spec(&self) -> ExplainerSpec {
        let citation = "Bach et al.: On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise \
                        Relevance Propagation, PLoS ONE 10(7), 2015";
        let composites = ["epsilon", "gamma", "zplus", "epsilon-plus", "epsilon-gamma-box"];
        let text = "one rule for all maps, or Zennit's composites: zplus for convolutions and epsilon for linear layers; \
                    the box rule for the first convolution, gamma for the others, epsilon for linear layers";
        ExplainerSpec::new("lrp", "LRP", Family::Relevance, citation, "10.1371/journal.pone.0130140")
            .version(env!("CARGO_PKG_VERSION"))
            .formula("sum_c R_c, R_i = sum_j (share of i in j's input) R_j from the logit down to the image")
            .cost("1 F, 1 B")
            .notes("Under zplus and the box rule relevance is all but conserved; biases keep their share.")
            .signed()
            .parameters([
                ParamSpec::choice("composite", "epsilon-plus", &composites, text),
                ParamSpec::number("epsilon", 1e-6, (1e-12, 1e6), "", "the stabiliser of epsilon"),
                ParamSpec::number(
                    "gamma",
                    0.25,
                    (1e-12, 1e6),
                    "",
                    "how much more gamma counts what speaks for an output",
                ),
                channels("sum"),
            ])
    }

    fn plan(&self, model: &ModelSpec, params: &Params) -> Result<Plan> {
        if model.attention_site.is_some() {
            let reason = format!("{} has attention, which needs rules of its own: attnlrp, cplrp", model.name);
            return Ok(Plan::not_applicable(reason));
        }
        let needs = Needs { gradients: vec![INPUT.into()], rules: rules(params)?, ..Needs::default() };
        Ok(needs_input(model).unwrap_or_else(|| needs.into()))
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        let gradient = context.gradient(INPUT)?.to_tensor()?;
        map_of(&context.image_tensor()?.f_mul(&gradient)?, &context.params)
    }
}
