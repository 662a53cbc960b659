//! GradCAM++: Chattopadhay et al., "Grad-CAM++: Generalized Gradient-based Visual Explanations for Deep Convolutional
//! Networks", WACV 2018, arXiv:1710.11063.
//!
//! `w_c = sum_yx alpha_cyx relu(G_cyx)` with `alpha = G^2 / (2 G^2 + G^3 sum_yx A_c)` (equations 5 and 19, for a score that
//! is an exponential of the logit, whose higher derivatives are powers of the gradient G), and 0 where G is 0. torch-cam 0.5
//! never applies the denominator (its division writes to a copy).

use crate::layer::{Cam, Evidence, Layer, Method};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};
use lightbox_sdk::tools::maps::{places, sum};

register_explainer!(Method(GradCamPlusPlus));

/// In the denominator, as in pytorch-grad-cam.
const EPS: f64 = 1e-6;

#[derive(Clone, Copy)]
pub struct GradCamPlusPlus;

/// The weights of equations 5 and 19 from the first three powers of the gradient, or their means over samples.
pub fn weights(value: &Tensor, first: &Tensor, second: &Tensor, third: &Tensor) -> Result<Tensor> {
    let denominator = second.f_mul_scalar(2.0)?.f_add(&third.f_mul(&sum(value, &places(value), true)?)?)?;
    let alpha = second.f_div(&denominator.f_add_scalar(EPS)?)?;
    let alpha = alpha.f_where_self(&first.f_ne(0.0)?, &alpha.f_zeros_like()?)?;
    sum(&alpha.f_mul(&first.f_relu()?)?, &places(value), false)
}

impl Cam for GradCamPlusPlus {
    type Params = ();
    const GRADIENT: bool = true;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Chattopadhay et al.",
            "Grad-CAM++: Generalized Gradient-based Visual Explanations for Deep Convolutional Networks",
            "WACV",
            2018,
            "arXiv:1710.11063",
        );
        ExplainerSpec::new("gradcampp", "GradCAM++", Family::Cam, reference)
            .formula(
                "relu(sum_c w_c A_c), w_c = sum_yx alpha relu(G), alpha = G^2 / (2 G^2 + G^3 sum_yx A_c), G = dS/dA_c",
            )
            .notes("torch-cam 0.5 leaves out alpha's denominator; pytorch-grad-cam agrees with this map.")
    }

    fn evidence(&self, layer: &Layer<'_>, _: &()) -> Result<Evidence> {
        // In double precision: cubes of small gradients stand beside EPS.
        let g = &layer.gradient()?.f_to_kind(Kind::Double)?;
        let second = g.f_mul(g)?;
        let weights = weights(&layer.value, g, &second, &second.f_mul(g)?)?;
        Ok(Evidence::Weights(weights.f_to_kind(layer.value.f_kind()?)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::tests::check;

    #[test]
    fn equals_the_equations() {
        check(&Method(GradCamPlusPlus), &[], |l, y, x| {
            let weight = |c: i64| {
                let all = l.places(|v, u| l.a(c, v, u));
                l.places(|v, u| {
                    let g = l.g(c, v, u);
                    if g == 0.0 { 0.0 } else { g * g / (2.0 * g * g + all * g.powi(3) + EPS) * g.max(0.0) }
                })
            };
            l.channels(|c| weight(c) * l.a(c, y, x)).max(0.0)
        });
    }
}
