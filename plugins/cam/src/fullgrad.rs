//! FullGrad: Srinivas and Fleuret, "Full-Gradient Representation for Neural Network Visualization", NeurIPS 2019,
//! arXiv:1905.00780.
//!
//! A network of ReLUs and maps with biases satisfies `S = sum x dS/dx + sum_layers sum b dS/db` (proposition 1), with a batch
//! norm's bias being its shift less its scaled mean. The map is `sum psi(|x * dS/dx|) + sum_layers sum_c psi(|b_c * dS/db_c|)`
//! (equation 9), where psi brings every channel to [0, 1] and scales it to the image. Scaling is linear, so the channels of a
//! layer are summed first and scaled once.
//!
//! It reads sites of kind `bias`, whose value is the bias at every place and whose gradient dS/db. The map of the image itself
//! is taken channel by channel, as pytorch-grad-cam does.

use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Tensor;
use lightbox_sdk::tools::maps::{range, resize, sum};

register_explainer!(FullGrad);

pub struct FullGrad;

/// Sum over channels of `|t|` [B, C, grid...], each brought to [0, 1] as pytorch-grad-cam does.
fn channels(t: &Tensor) -> Result<Tensor> {
    let size = t.size();
    let flat = t.f_abs()?.f_flatten(0, 1)?;
    let (least, _) = range(&flat)?;
    let flat = flat.f_sub(&least)?;
    let (_, greatest) = range(&flat)?;
    sum(&flat.f_div(&greatest.f_add_scalar(1e-7)?)?.f_reshape(size)?, &[1], false)
}

impl Explainer for FullGrad {
    type Params = ();

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Srinivas, Fleuret",
            "Full-Gradient Representation for Neural Network Visualization",
            "NeurIPS",
            2019,
            "arXiv:1905.00780",
        );
        ExplainerSpec::new("fullgrad", "FullGrad", Family::Cam, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .formula("sum psi(|x * dS/dx|) + sum_layers sum_c psi(|b_c * dS/db_c|), psi a channel to [0, 1], scaled up")
            .cost("1 F, 1 B")
            .any_dimensions()
    }

    fn bind(&self, model: &ModelSpec, _: ()) -> Result<Bound> {
        let biases: Vec<String> = model.sites.iter().filter(|s| s.role == Role::Bias).map(|s| s.name.clone()).collect();
        if biases.is_empty() {
            return Ok(Bound::not_applicable(format!(
                "{} has no sites of biases; the full gradient is that of a piecewise linear network",
                model.name
            )));
        }
        let Some(input) = model.site_of(Role::Input).map(|s| s.name.clone()) else {
            return Ok(Bound::not_applicable(format!("{} has no site for its images", model.name)));
        };
        let gradients = [biases.clone(), vec![input.clone()]].concat();
        Ok(Bound::new(Needs { values: biases.clone(), gradients, ..Needs::default() }, move |context| {
            let (images, gradient) = (context.image_tensor()?, context.gradient(&input)?.to_tensor()?);
            let mut map = channels(&images.f_mul(&gradient)?)?;
            for site in &biases {
                let (bias, gradient) = (context.value(site)?.to_tensor()?, context.gradient(site)?.to_tensor()?);
                map = map.f_add(&resize(&channels(&bias.f_mul(&gradient)?)?, &images.size()[2..])?)?;
            }
            Ok(Array::from_tensor(&map)?.into())
        }))
    }
}
