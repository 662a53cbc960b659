//! The class token's row of the last attention, a map a head (Caron et al., ICCV 2021, arXiv:2104.14294).

use lightbox_sdk::prelude::*;

register_explainer!(Heads);

struct Heads;

impl Explainer for Heads {
    type Params = ();

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Caron et al.",
            "Emerging Properties in Self-Supervised Vision Transformers",
            "ICCV",
            2021,
            "arXiv:2104.14294",
        );
        ExplainerSpec::new("hard-heads", "Attention, a map a head", Family::Attention, reference)
    }

    fn bind(&self, model: &ModelSpec, _: ()) -> Result<Bound> {
        let site = model.attention_site.as_ref().and_then(|name| model.site(name).ok()).cloned();
        let Some(site) = site else {
            return Ok(Bound::not_applicable(model.without_attention()));
        };
        Ok(Bound::new(Needs { values: vec![site.name.clone()], ..Needs::default() }, move |context| {
            let [b, heads, ..] = context.value(&site.name)?.dims::<4>("attention")?;
            let row = context.value(&site.name)?.to_tensor()?.f_select(2, 0)?;
            let grid = row.f_narrow(2, site.prefix.len() as i64, site.places() as i64)?;
            let mut shape = vec![b as i64, heads as i64];
            shape.extend(site.grid.iter().map(|n| *n as i64));
            let maps = grid.f_reshape(shape)?;
            Ok(Maps::named(Array::from_tensor(&maps)?, (0..heads).map(|i| format!("head {i}")).collect()))
        }))
    }
}
