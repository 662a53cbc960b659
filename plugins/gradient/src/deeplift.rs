//! DeepLIFT, rescale rule: Shrikumar, Greenside and Kundaje, "Learning Important Features Through Propagating Activation
//! Differences", ICML 2017, arXiv:1704.02685.
//!
//! `(x - x') m`, where the multiplier m is the gradient with every ReLU's slope replaced by the secant between image and
//! baseline (section 3.5.1) and max pooling by the same idea (`sdk/src/rules.rs`). Sums to `S(x) - S(x')`. Image and baseline
//! go through the model as one batch.
//!
//! Captum hooks modules, so a ReLU that a model calls as a function keeps its gradient and the sum is wrong; on networks
//! without ReLU modules its DeepLIFT is input times gradient. Its max pooling loses what overlapping windows share.

use crate::input::{INPUT, baseline, baseline_parameter, channels, map_of, needs_input};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Tensor;

register_explainer!(DeepLift);

struct DeepLift;

const RULES: [&str; 2] = ["relu:rescale", "pool:rescale"];

impl Explainer for DeepLift {
    fn spec(&self) -> ExplainerSpec {
        let citation = "Shrikumar, Greenside, Kundaje: Learning Important Features Through Propagating Activation \
                        Differences, ICML 2017";
        ExplainerSpec::new("deeplift", "DeepLIFT (rescale)", Family::Gradient, citation, "arXiv:1704.02685")
            .version(env!("CARGO_PKG_VERSION"))
            .formula("sum_c (x - x')_c m_c, m the gradient with secants from x' to x in place of slopes")
            .cost("1 F, then 2 F, 2 B")
            .notes(
                "Sums to S(x) - S(x'). Captum's misses ReLUs that are called as functions, and loses what overlapping \
                 pools share.",
            )
            .signed()
            .parameters([baseline_parameter(&[]), channels("sum")])
    }

    fn plan(&self, model: &ModelSpec, _: &Params) -> Result<Plan> {
        if let Some(missing) = RULES.iter().find(|r| !model.has_rule(r)) {
            let reason = format!("{} has no rule {missing}; the rescale rule is one of ReLUs and pools", model.name);
            return Ok(Plan::not_applicable(reason));
        }
        let needs = Needs { model: true, extra: Passes::both(2), ..Needs::default() };
        Ok(needs_input(model).unwrap_or_else(|| needs.into()))
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        let images = context.image_tensor()?;
        let from = baseline(context, context.params.text("baseline")?)?;
        let targets = context.targets.to_vec::<i64>()?;
        // So many pairs that the rows are about those that the memory is for.
        let at_once = (context.at_once() / 2).max(1) as i64;
        let (mut parts, mut first) = (Vec::new(), 0);
        while first < targets.len() as i64 {
            context.check_cancelled()?;
            let n = at_once.min(targets.len() as i64 - first);
            let pair = Tensor::f_cat(&[images.f_narrow(0, first, n)?, from.f_narrow(0, first, n)?], 0)?;
            let own = &targets[first as usize..(first + n) as usize];
            let classes = Array::from_vec(&[2 * n as usize], [own, own].concat())?;
            let request = Request::explain(Array::from_tensor(&pair.f_contiguous()?)?, classes, &[], &[INPUT.into()]);
            let rules = RULES.map(String::from).to_vec();
            let response = context.run_model()?.run(&Request { rules, ..request })?;
            let found = response.gradient(0, INPUT)?;
            parts.push(found.share_tensor()?.f_narrow(0, 0, n)?);
            first += n;
        }
        map_of(&images.f_sub(&from)?.f_mul(&Tensor::f_cat(&parts, 0)?)?, &context.params)
    }
}
