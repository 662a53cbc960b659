//! Relevance at the image: value times gradient, summed over channels, under the rules that a parameter names. With
//! `linear:gamma+activation:identity+norm:detach+product:uniform` that is AttnLRP (Achtibat et al., ICML 2024,
//! arXiv:2402.05602), with none it is gradient times input.

use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Kind;

register_explainer!(Relevance);

struct Relevance;

impl Explainer for Relevance {
    fn spec(&self) -> ExplainerSpec {
        let citation = "Achtibat et al.: AttnLRP, ICML 2024";
        let spec = ExplainerSpec::new("hard-relevance", "Relevance", Family::Gradient, citation, "arXiv:2402.05602");
        let rules = ParamSpec::text("rules", "", "backward rules, joined by +; none for the plain gradient");
        ExplainerSpec { signed: true, parameters: vec![rules], ..spec }
    }

    fn plan(&self, _: &ModelSpec, params: &Params) -> Result<Plan> {
        let rules = params.text("rules")?.split('+').filter(|r| !r.is_empty()).map(String::from).collect();
        let site = vec!["input".to_string()];
        Ok(Needs { values: site.clone(), gradients: site, rules, ..Needs::default() }.into())
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        let (value, gradient) = (context.value("input")?.to_tensor()?, context.gradient("input")?.to_tensor()?);
        context.value("input")?.dims::<4>("the image")?;
        let map = value.f_mul(&gradient)?.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float)?;
        Ok(Array::from_tensor(&map)?.into())
    }
}
