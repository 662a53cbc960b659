//! NAME: say here what the map is, with its formula and paper.

use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Kind;

lightbox_sdk::export!();
register_explainer!(TypeName);

struct TypeName;

// What a user may set: a name, a text, a default and a range each; checked before we see it. `()` where there is nothing.
#[derive(Params)]
struct Settings {
    /// keep the gradient's sign: the sum over channels in place of the largest magnitude
    #[param(default = false)]
    signed: bool,
}

impl Explainer for TypeName {
    type Params = Settings;

    // Who am I?
    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new("Simonyan, Vedaldi, Zisserman", "Deep Inside Convolutional Networks", "", 2013, "arXiv:1312.6034");
        ExplainerSpec::new("NAME", "NAME", Family::Gradient, reference).signed()
    }

    // Called once for a model: what do I need of it, or why do I not apply? The gradient of the target's logit at the image.
    fn bind(&self, model: &ModelSpec, settings: Settings) -> Result<Bound> {
        let Some(input) = model.site_of(Role::Input).map(|site| site.name.clone()) else {
            return Ok(Bound::not_applicable(format!("{} has no site for its images", model.name)));
        };
        let needs = Needs { gradients: vec![input.clone()], ..Needs::default() };
        Ok(Bound::new(needs, move |context| explain(context, &input, &settings)))
    }
}

// Called once a batch: maps [B, h, w], on the run's device.
fn explain(context: &Context<'_>, input: &str, settings: &Settings) -> Result<Maps> {
    // A view lends `&Tensor`; its memory belongs to the host. `f_` calls turn libtorch's exceptions into errors.
    let gradient = context.gradient(input)?.to_tensor()?;
    let map = match settings.signed {
        true => gradient.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float)?,
        false => gradient.f_abs()?.f_amax([1i64].as_slice(), false)?.f_to_kind(Kind::Float)?,
    };
    Ok(Array::from_tensor(&map)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_the_largest_magnitude() -> Result<()> {
        let images = Array::from_vec(&[1, 3, 1, 2], vec![0f32; 6])?;
        let gradient = Array::from_vec(&[1, 3, 1, 2], vec![1f32, -2.0, -3.0, 0.5, 2.0, 1.0])?;
        let model = ModelSpec { sites: vec![Site::input(3, [1, 2])], ..ModelSpec::new("made", InputSpec::imagenet(2), 2) };
        let context = ContextBuilder::new(model, images);
        let maps = context.gradient("input", gradient).explain(&TypeName)?;
        assert_eq!(maps.array.to_vec::<f32>()?, [3.0, 2.0]);
        Ok(())
    }
}
