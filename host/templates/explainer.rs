//! NAME: say here what the map is, with its formula and paper.

use lightbox_sdk::ndarray::{Axis, Ix4};
use lightbox_sdk::prelude::*;

lightbox_sdk::export!();
register_explainer!(TypeName);

struct TypeName;

/// The site whose values make the map: the one that class activation maps read.
fn layer(model: &ModelSpec) -> Option<&Site> {
    model.cam_site.as_ref().and_then(|name| model.site(name).ok()).filter(|site| site.layout == Layout::BCHW)
}

impl Explainer for TypeName {
    // Who am I, and what can be set?
    fn spec(&self) -> ExplainerSpec {
        let citation = "Authors: Title, venue, year";
        ExplainerSpec::new("NAME", "NAME", Family::Cam, citation, "")
    }

    // What do I need of this model, or why do I not apply?
    fn plan(&self, model: &ModelSpec, _: &Params) -> Result<Plan> {
        match layer(model) {
            Some(site) => Ok(Needs { values: vec![site.name.clone()], ..Needs::default() }.into()),
            None => Ok(Plan::not_applicable(format!("{} has no feature map", model.name))),
        }
    }

    // Maps [B, h, w] of a batch. Here: the mean of the layer's channels.
    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        let site = layer(&context.model).ok_or_else(|| Error::invalid("no layer"))?;
        let value = context.value(&site.name)?.view::<f32>()?.into_dimensionality::<Ix4>()?;
        let map = value.mean_axis(Axis(1)).ok_or_else(|| Error::invalid("the layer has no channels"))?;
        Ok(Array::from_ndarray(map)?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_the_mean_of_the_channels() -> Result<()> {
        let model = ModelSpec {
            sites: vec![Site::feature("layer", 2, [1, 2])],
            cam_site: Some("layer".into()),
            ..ModelSpec::new("made", InputSpec::imagenet(4), 2)
        };
        let images = Array::from_vec(&[1, 3, 4, 4], vec![0f32; 48])?;
        let value = Array::from_vec(&[1, 2, 1, 2], vec![1f32, 2.0, 3.0, 6.0])?;
        let maps = ContextBuilder::new(model, images).value("layer", value).explain(&TypeName)?;
        assert_eq!(maps.array.to_vec::<f32>()?, [2.0, 4.0]);
        Ok(())
    }
}
