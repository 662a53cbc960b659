//! CAM: Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, arXiv:1512.04150, the first of its
//! kind.
//!
//! For a network that ends in a mean over places and one linear layer: `map = sum_c W_target,c A_c` (equation 2). The row of W
//! is the logit's gradient at the pooled features, so no gradient goes through the layer. Whether the features are the
//! layer's mean is looked at, and an error where they are not.

use crate::layer::weighted;
use lightbox_sdk::prelude::*;
use lightbox_sdk::tools::maps::{float, mean, places};

register_explainer!(ClosedForm);

struct ClosedForm;

/// The pooled features and the layer that is pooled.
fn pooled(model: &ModelSpec) -> Option<(&Site, &Site)> {
    let features = model.sites.iter().find(|s| s.role == Role::Pooled)?;
    let layer = model.site(model.cam_site.as_deref()?).ok()?;
    (layer.is_map() && layer.channels == features.channels).then_some((features, layer))
}

#[derive(Params)]
struct Settings {
    /// keep positive evidence only
    #[param(default = false)]
    relu: bool,
}

impl Explainer for ClosedForm {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Zhou et al.",
            "Learning Deep Features for Discriminative Localization",
            "CVPR",
            2016,
            "arXiv:1512.04150",
        );
        ExplainerSpec::new("cam", "CAM", Family::Cam, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .formula("sum_c W_tc A_c, W the weights of the linear head on the mean over places")
            .cost("1 F, 1 B of the head alone")
            .notes(
                "GradCAM without its ReLU, times the number of places. torch-cam's documentation names a ReLU that its code \
                 does not apply, and neither does the paper.",
            )
            .signed()
            .any_dimensions()
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        let Some((features, layer)) = pooled(model) else {
            let reason = format!("{} does not end in a mean over places and one linear layer", model.name);
            return Ok(Bound::not_applicable(reason));
        };
        let (features, layer) = (features.name.clone(), layer.name.clone());
        let (values, gradients) = (vec![layer.clone(), features.clone()], vec![features.clone()]);
        Ok(Bound::new(Needs { values, gradients, ..Needs::default() }, move |context| {
            let (value, vector) = (context.grid(&layer)?, context.value(&features)?.to_tensor()?);
            let off = mean(&value, &places(&value), false)?.f_sub(&vector)?.f_abs()?.f_max()?.f_double_value(&[])?;
            let size = vector.f_abs()?.f_max()?.f_double_value(&[])?;
            if off > 1e-3 * size {
                return Err(Error::invalid(format!("{features} is not the mean of {layer} over places")));
            }
            let weights = context.gradient(&features)?.to_tensor()?;
            let map = float(&weighted(&value, &weights)?)?;
            let map = if params.relu { map.f_relu()? } else { map };
            Ok(Array::from_tensor(&map)?.into())
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbox_sdk::tch::{Device, Kind, Tensor};

    #[test]
    fn is_the_head_on_every_place_and_refuses_features_that_are_not_the_mean() {
        let sites = vec![Site::feature("layer", 2, [1, 3]), Site::vector("pooled", Role::Pooled, 2)];
        let model =
            ModelSpec { sites, cam_site: Some("layer".into()), ..ModelSpec::new("m", InputSpec::imagenet(4), 2) };
        let value = Tensor::arange(6, (Kind::Float, Device::Cpu)).reshape([1, 2, 1, 3]);
        let explain = |features: [f32; 2]| {
            let images = Array::from_vec(&[1, 3, 4, 4], vec![0f32; 48]).unwrap();
            let builder = ContextBuilder::new(model.clone(), images)
                .value("layer", Array::from_tensor(&value).unwrap())
                .value("pooled", Array::from_vec(&[1, 2], features.to_vec()).unwrap())
                .gradient("pooled", Array::from_vec(&[1, 2], vec![2f32, -1.0]).unwrap());
            builder.explain(&ClosedForm).map(|m| m.array.to_vec::<f32>().unwrap())
        };
        assert_eq!(explain([1.0, 4.0]).unwrap(), [-3.0, -2.0, -1.0]);
        assert!(explain([1.0, 5.0]).unwrap_err().to_string().contains("pooled is not the mean of layer"));
    }
}
