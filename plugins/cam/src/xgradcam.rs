//! XGradCAM: Fu et al., "Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs", BMVC 2020,
//! arXiv:2008.02312.
//!
//! `w_c = sum_yx A_cyx dS/dA_cyx / sum_yx A_cyx` (equation 8), the gradient weighted by the activation, which best satisfies
//! sensitivity and conservation.

use crate::layer::{Cam, Evidence, Layer, Method};
use lightbox_sdk::prelude::*;

register_explainer!(Method(XGradCam));

/// Keeps a channel that is zero everywhere from a division by zero, as in pytorch-grad-cam.
const EPS: f64 = 1e-7;

#[derive(Clone, Copy)]
pub struct XGradCam;

impl Cam for XGradCam {
    type Params = ();
    const GRADIENT: bool = true;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Fu et al.",
            "Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs",
            "BMVC",
            2020,
            "arXiv:2008.02312",
        );
        ExplainerSpec::new("xgradcam", "XGradCAM", Family::Cam, reference)
            .formula("relu(sum_c w_c A_c), w_c = sum_yx A_cyx dS/dA_cyx / sum_yx A_cyx")
    }

    fn evidence(&self, layer: &Layer<'_>, _: &()) -> Result<Evidence> {
        let shares = layer.sum_places(&layer.gradient()?.f_mul(&layer.value)?, false)?;
        Ok(Evidence::Weights(shares.f_div(&layer.sum_places(&layer.value, false)?.f_add_scalar(EPS)?)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::tests::check;

    #[test]
    fn equals_the_equation() {
        check(&Method(XGradCam), &[], |l, y, x| {
            let weight = |c: i64| l.places(|v, u| l.a(c, v, u) * l.g(c, v, u)) / (l.places(|v, u| l.a(c, v, u)) + EPS);
            l.channels(|c| weight(c) * l.a(c, y, x)).max(0.0)
        });
    }
}
