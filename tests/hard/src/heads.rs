//! The class token's row of the last attention, a map a head (Caron et al., ICCV 2021, arXiv:2104.14294).

use lightbox_sdk::prelude::*;

register_explainer!(Heads);

struct Heads;

impl Explainer for Heads {
    fn spec(&self) -> ExplainerSpec {
        let citation = "Caron et al.: Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021";
        ExplainerSpec::new("hard-heads", "Attention, a map a head", Family::Attention, citation, "arXiv:2104.14294")
    }

    fn plan(&self, model: &ModelSpec, _: &Params) -> Result<Plan> {
        match &model.attention_site {
            Some(site) => Ok(Needs { values: vec![site.clone()], ..Needs::default() }.into()),
            None => Ok(Plan::not_applicable(format!("{} has no attention", model.name))),
        }
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        let name = context.model.attention_site.clone().unwrap_or_default();
        let site = context.model.site(&name)?;
        let [h, w] = site.grid.ok_or_else(|| Error::invalid("the attention has no grid"))?;
        let [b, heads, ..] = context.value(&name)?.dims::<4>("attention")?;
        let row = context.value(&name)?.to_tensor()?.f_select(2, 0)?;
        let grid = row.f_narrow(2, site.prefix.len() as i64, (h * w) as i64)?;
        let maps = grid.f_reshape([b as i64, heads as i64, h as i64, w as i64])?;
        Ok(Maps::named(Array::from_tensor(&maps)?, (0..heads).map(|i| format!("head {i}")).collect()))
    }
}
