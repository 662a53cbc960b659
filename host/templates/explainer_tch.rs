//! NAME: say here what the map is, with its formula and paper.

use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Kind;

lightbox_sdk::export!();
register_explainer!(TypeName);

struct TypeName;

impl Explainer for TypeName {
    // Who am I, and what can be set?
    fn spec(&self) -> ExplainerSpec {
        let citation = "Simonyan, Vedaldi, Zisserman: Deep Inside Convolutional Networks, 2013";
        ExplainerSpec::new("NAME", "NAME", Family::Gradient, citation, "arXiv:1312.6034")
    }

    // What do I need of this model? The gradient of the target's logit at the image.
    fn plan(&self, _: &ModelSpec, _: &Params) -> Result<Plan> {
        Ok(Needs { gradients: vec!["input".into()], ..Needs::default() }.into())
    }

    // Maps [B, h, w] of a batch, on the run's device. Here: the largest magnitude over channels.
    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        let gradient = context.gradient("input")?;
        gradient.dims::<4>("the gradient at the image")?;
        // A view lends `&Tensor`; its memory belongs to the host. `f_` calls turn libtorch's exceptions into errors.
        let map = gradient.to_tensor()?.f_abs()?.f_amax([1i64].as_slice(), false)?.f_to_kind(Kind::Float)?;
        Ok(Array::from_tensor(&map)?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_the_largest_magnitude() -> Result<()> {
        let images = Array::from_vec(&[1, 3, 1, 2], vec![0f32; 6])?;
        let gradient = Array::from_vec(&[1, 3, 1, 2], vec![1f32, -2.0, -3.0, 0.5, 2.0, 1.0])?;
        let context = ContextBuilder::new(ModelSpec::new("made", InputSpec::imagenet(2), 2), images);
        let maps = context.gradient("input", gradient).explain(&TypeName)?;
        assert_eq!(maps.array.to_vec::<f32>()?, [3.0, 2.0]);
        Ok(())
    }
}
