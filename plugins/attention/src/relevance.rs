//! What AttnLRP, CP-LRP and LibraGrad share: input times gradient under rules of a transformer.

use lightbox_sdk::prelude::*;
use lightbox_sdk::tools::maps::sum;

/// Rules for linear maps, which the papers leave open.
pub fn parameters(linear: &str) -> [ParamSpec; 4] {
    let text = "the rule of linear maps and convolutions: the plain gradient, epsilon, or gamma";
    [
        ParamSpec::choice("linear", linear, &["gradient", "epsilon", "gamma"], text),
        ParamSpec::number("epsilon", 1e-6, (1e-12, 1e6), "", "the stabiliser of epsilon"),
        ParamSpec::number("gamma", 0.05, (1e-12, 1e6), "", "gamma of linear maps"),
        ParamSpec::number(
            "conv_gamma",
            0.25,
            (1e-12, 1e6),
            "",
            "gamma of convolutions, the patch embedding's above all",
        ),
    ]
}

/// A method of this kind as an explainer.
pub struct Relevance {
    pub spec: fn() -> ExplainerSpec,
    pub rules: &'static [&'static str],
    /// It has a rule for linear maps: [`parameters`].
    pub linear: bool,
}

impl Explainer for Relevance {
    fn spec(&self) -> ExplainerSpec {
        (self.spec)().version(env!("CARGO_PKG_VERSION")).cost("1 F, 1 B").signed()
    }

    fn plan(&self, model: &ModelSpec, params: &Params) -> Result<Plan> {
        plan(model, self.rules, self.linear.then_some(params))
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        explain(context)
    }
}

/// Needs of `rules`, with a gate's where the model has gates, and that of linear maps.
fn plan(model: &ModelSpec, rules: &[&str], linear: Option<&Params>) -> Result<Plan> {
    if model.attention_site.is_none() {
        return Ok(Plan::not_applicable(format!("{} has no attention; lrp is for it", model.name)));
    }
    let mut rules: Vec<String> = rules.iter().map(|r| r.to_string()).collect();
    if model.has_rule("gate:detach") {
        rules.push("gate:detach".into());
    }
    if let Some(params) = linear {
        match params.text("linear")? {
            "epsilon" => rules.push(format!("linear:epsilon={}", params.number("epsilon")?)),
            "gamma" => {
                rules.push(format!("linear:gamma={}", params.number("gamma")?));
                rules.push(format!("conv:gamma={}", params.number("conv_gamma")?));
            }
            _ => {}
        }
    }
    Ok(Needs { gradients: vec!["input".into()], rules, ..Needs::default() }.into())
}

/// `sum_c x_c g_c`.
fn explain(context: &Context<'_>) -> Result<Maps> {
    let gradient = context.gradient("input")?;
    gradient.dims::<4>("the gradient at the image")?;
    let product = context.images.share_tensor()?.f_mul(&gradient.share_tensor()?)?;
    Ok(Array::from_tensor(&sum(&product, &[1], false)?)?.into())
}
