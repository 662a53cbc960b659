//! DeepLIFT, rescale rule: Shrikumar, Greenside and Kundaje, "Learning Important Features Through Propagating Activation
//! Differences", ICML 2017, arXiv:1704.02685.
//!
//! `(x - x') m`, where the multiplier m is the gradient with every ReLU's slope replaced by the secant between image and
//! baseline (section 3.5.1) and max pooling by the same idea (`sdk/src/rules.rs`). Sums to `S(x) - S(x')`. Image and baseline
//! go through the model as one batch.
//!
//! Captum hooks modules, so a ReLU that a model calls as a function keeps its gradient and the sum is wrong; on networks
//! without ReLU modules its DeepLIFT is input times gradient. Its max pooling loses what overlapping windows share.

use crate::input::{Channels, bound};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Tensor;
use lightbox_sdk::tools::fill::{Fill, fill};

register_explainer!(DeepLift);

struct DeepLift;

const RULES: [&str; 2] = ["relu:rescale", "pool:rescale"];

#[derive(Params)]
struct Settings {
    /// what the image is compared with: 0 after normalisation (the mean colour), black, white, the image blurred
    #[param(default = Fill::Zero)]
    baseline: Fill,
    #[param(default = Channels::Sum)]
    channels: Channels,
}

impl Explainer for DeepLift {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Shrikumar, Greenside, Kundaje",
            "Learning Important Features Through Propagating Activation Differences",
            "ICML",
            2017,
            "arXiv:1704.02685",
        );
        ExplainerSpec::new("deeplift", "DeepLIFT (rescale)", Family::Gradient, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .formula("sum_c (x - x')_c m_c, m the gradient with secants from x' to x in place of slopes")
            .cost("1 F, then 2 F, 2 B")
            .notes(
                "Sums to S(x) - S(x'). Captum's misses ReLUs that are called as functions, and loses what overlapping \
                 pools share.",
            )
            .signed()
            .any_dimensions()
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        if let Some(missing) = RULES.iter().find(|r| !model.has_rule(r)) {
            let reason = format!("{} has no rule {missing}; the rescale rule is one of ReLUs and pools", model.name);
            return Ok(Bound::not_applicable(reason));
        }
        let needs = Needs { model: true, extra: Passes::both(2), ..Needs::default() };
        bound(model, |input| Bound::new(needs, move |context| explain(context, &input, &params)))
    }
}

fn explain(context: &Context<'_>, input: &str, params: &Settings) -> Result<Maps> {
    let images = context.image_tensor()?;
    let from = fill(context, params.baseline)?;
    // So many pairs that the rows are about those that the memory is for.
    let at_once = (context.at_once() / 2).max(1);
    let mut parts = Vec::new();
    for rows in context.each().chunks(at_once) {
        context.check_cancelled()?;
        let (first, n) = (rows[0].0 as i64, rows.len() as i64);
        let pair = Tensor::f_cat(&[images.f_narrow(0, first, n)?, from.f_narrow(0, first, n)?], 0)?;
        let objective = context.objective_of(&[rows, rows].concat())?;
        let request =
            Request::explain(Array::from_tensor(&pair.f_contiguous()?)?, objective, &[], &[input.to_string()]);
        let rules = RULES.map(String::from).to_vec();
        let response = context.run_model()?.run(&Request { rules, pairs: true, ..request })?;
        parts.push(response.gradient(0, input)?.share_tensor()?.f_narrow(0, 0, n)?);
    }
    params.channels.map_of(&images.f_sub(&from)?.f_mul(&Tensor::f_cat(&parts, 0)?)?)
}
