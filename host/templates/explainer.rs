//! NAME: say here what the map is, with its formula and paper.

use lightbox_sdk::ndarray::{Axis, s};
use lightbox_sdk::prelude::*;

lightbox_sdk::export!();
register_explainer!(TypeName);

struct TypeName;

impl Explainer for TypeName {
    // What a user may set: a struct that derives `Params`, or nothing.
    type Params = ();

    // Who am I?
    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new("Authors", "Title", "venue", 2026, "arXiv:0000.00000");
        ExplainerSpec::new("NAME", "NAME", Family::Cam, reference)
    }

    // Called once for a model: what do I need of it, or why do I not apply? Here: the layer that class activation maps read,
    // a feature map or a transformer's tokens.
    fn bind(&self, model: &ModelSpec, _: ()) -> Result<Bound> {
        let layer = model.cam_site.as_ref().and_then(|name| model.site(name).ok()).filter(|site| site.has_grid());
        let Some(layer) = layer.cloned() else {
            return Ok(Bound::not_applicable(format!("{} has no feature map", model.name)));
        };
        let needs = Needs { values: vec![layer.name.clone()], ..Needs::default() };
        Ok(Bound::new(needs, move |context| explain(context, &layer)))
    }
}

// Called once a batch: maps [B, h, w]. Here: the mean of the layer's channels.
fn explain(context: &Context<'_>, layer: &Site) -> Result<Maps> {
    let value = context.value(&layer.name)?.view::<f32>()?;
    let channels = if layer.is_map() { Axis(1) } else { Axis(2) };
    let mean = value.mean_axis(channels).ok_or_else(|| Error::invalid("the layer has no channels"))?;
    // Of tokens, those of the grid: the prefix (a class token) is no place.
    let places = mean.as_standard_layout();
    let skip = if layer.is_map() { 0 } else { layer.prefix.len() };
    let rows = places.view().into_shape_with_order((context.ids.len(), skip + layer.places()))?;
    let map = rows.slice(s![.., skip..]).to_owned();
    let [h, w] = layer.grid.as_slice().try_into().map_err(|_| Error::invalid("a grid of two axes is expected"))?;
    Ok(Array::from_ndarray(map.into_shape_with_order((context.ids.len(), h, w))?)?.into())
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
