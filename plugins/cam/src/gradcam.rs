//! GradCAM: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
//! ICCV 2017, arXiv:1610.02391.
//!
//! `map = relu(sum_c w_c A_c)` with `w_c` the spatial mean of `d logit / d A_c` (equations 1 and 2), at the layer's own
//! resolution. The logit is taken before the softmax, as in the paper. For token layers the tokens of the grid are the
//! positions; prefix tokens take no part in mean or map.

use crate::layer::{Cam, Evidence, Layer, Method};
use lightbox_sdk::prelude::*;

register_explainer!(Method(GradCam));

#[derive(Clone, Copy)]
pub struct GradCam;

impl Cam for GradCam {
    type Params = ();
    const GRADIENT: bool = true;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Selvaraju et al.",
            "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
            "ICCV",
            2017,
            "arXiv:1610.02391",
        );
        ExplainerSpec::new("gradcam", "GradCAM", Family::Cam, reference)
            .formula("relu(sum_c w_c A_c), w_c = mean_yx dS/dA_cyx")
    }

    fn evidence(&self, layer: &Layer<'_>, _: &()) -> Result<Evidence> {
        Ok(Evidence::Weights(layer.mean_places(layer.gradient()?, false)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::tests::check;

    #[test]
    fn equals_the_equations() {
        check(&Method(GradCam), &[], |l, y, x| {
            l.channels(|c| l.places(|v, u| l.g(c, v, u)) / 8.0 * l.a(c, y, x)).max(0.0)
        });
        check(&Method(GradCam), &[("relu", false.into())], |l, y, x| {
            l.channels(|c| l.places(|v, u| l.g(c, v, u)) / 8.0 * l.a(c, y, x))
        });
    }
}
