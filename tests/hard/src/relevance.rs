//! Relevance at the image: value times gradient, summed over channels, under the rules that a parameter names. With
//! `linear:gamma+activation:identity+norm:detach+product:uniform` that is AttnLRP (Achtibat et al., ICML 2024,
//! arXiv:2402.05602), with none it is gradient times input.

use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Kind;

register_explainer!(Relevance);

struct Relevance;

#[derive(Params)]
struct Settings {
    /// backward rules, joined by +; none for the plain gradient
    #[param(default = "")]
    rules: String,
}

impl Explainer for Relevance {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new("Achtibat et al.", "AttnLRP", "ICML", 2024, "arXiv:2402.05602");
        ExplainerSpec::new("hard-relevance", "Relevance", Family::Gradient, reference).signed()
    }

    fn bind(&self, _: &ModelSpec, params: Settings) -> Result<Bound> {
        let rules = params.rules.split('+').filter(|r| !r.is_empty()).map(String::from).collect();
        let site = vec!["input".to_string()];
        Ok(Bound::new(Needs { values: site.clone(), gradients: site, rules, ..Needs::default() }, |context| {
            let (value, gradient) = (context.value("input")?.to_tensor()?, context.gradient("input")?.to_tensor()?);
            context.value("input")?.dims::<4>("the image")?;
            let map = value.f_mul(&gradient)?.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float)?;
            Ok(Array::from_tensor(&map)?.into())
        }))
    }
}
