//! What AttnLRP, CP-LRP and LibraGrad share: input times gradient under rules of a transformer.

use lightbox_sdk::prelude::*;
use lightbox_sdk::tools::maps::sum;
use std::marker::PhantomData;

choice! {
    /// the rule of linear maps and convolutions: the plain gradient, epsilon, or gamma
    pub enum LinearRule { Gradient = "gradient", Epsilon = "epsilon", Gamma = "gamma" }
}

/// Rules for linear maps, which the papers leave open.
#[derive(Params)]
pub struct Linear {
    #[param(default = LinearRule::Gamma)]
    linear: LinearRule,
    /// the stabiliser of epsilon
    #[param(default = 1e-6, range = (1e-12, 1e6))]
    epsilon: f64,
    /// gamma of linear maps
    #[param(default = 0.05, range = (1e-12, 1e6))]
    gamma: f64,
    /// gamma of convolutions, the patch embedding's above all
    #[param(default = 0.25, range = (1e-12, 1e6))]
    conv_gamma: f64,
}

/// What a method adds to its own rules.
pub trait LinearRules: Params {
    /// The rules of linear maps.
    fn rules(&self) -> Vec<String>;
}

impl LinearRules for () {
    fn rules(&self) -> Vec<String> {
        Vec::new()
    }
}

impl LinearRules for Linear {
    fn rules(&self) -> Vec<String> {
        match self.linear {
            LinearRule::Gradient => vec![],
            LinearRule::Epsilon => vec![format!("linear:epsilon={}", self.epsilon)],
            LinearRule::Gamma => {
                vec![format!("linear:gamma={}", self.gamma), format!("conv:gamma={}", self.conv_gamma)]
            }
        }
    }
}

/// A method of this kind as an explainer; `P` are the parameters of linear maps, `()` for none.
pub struct Relevance<P> {
    pub spec: fn() -> ExplainerSpec,
    pub rules: &'static [&'static str],
    pub linear: PhantomData<fn() -> P>,
}

impl<P: LinearRules> Explainer for Relevance<P> {
    type Params = P;

    fn spec(&self) -> ExplainerSpec {
        (self.spec)().version(env!("CARGO_PKG_VERSION")).cost("1 F, 1 B").signed().any_dimensions()
    }

    fn bind(&self, model: &ModelSpec, params: P) -> Result<Bound> {
        if model.attention_site.is_none() {
            return Ok(Bound::not_applicable(format!("{}; lrp is for it", model.without_attention())));
        }
        let Some(input) = model.site_of(Role::Input).map(|s| s.name.clone()) else {
            return Ok(Bound::not_applicable(format!("{} has no site for its images", model.name)));
        };
        let mut rules: Vec<String> = self.rules.iter().map(|r| r.to_string()).collect();
        if model.has_rule("gate:detach") {
            rules.push("gate:detach".into());
        }
        rules.extend(params.rules());
        // The map is sum_c x_c g_c.
        Ok(Bound::new(Needs { gradients: vec![input.clone()], rules, ..Needs::default() }, move |context| {
            let gradient = context.gradient(&input)?.share_tensor()?;
            let product = context.images.share_tensor()?.f_mul(&gradient)?;
            Ok(Array::from_tensor(&sum(&product, &[1], false)?)?.into())
        }))
    }
}
