//! EigenGradCAM: pytorch-grad-cam's `EigenGradCAM`: EigenCAM (Muhammad and Yeasin, IJCNN 2020, arXiv:2008.00299) of
//! activation times gradient, so that the class takes part.

use crate::layer::{Cam, Evidence, Layer, Method, principal};
use lightbox_sdk::prelude::*;

register_explainer!(Method(EigenGradCam));

#[derive(Clone, Copy)]
struct EigenGradCam;

impl Cam for EigenGradCam {
    type Params = ();
    const GRADIENT: bool = true;
    const SMOOTHS: bool = false;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Gildenblat and contributors",
            "pytorch-grad-cam, EigenGradCAM, after Muhammad, Yeasin: Eigen-CAM, IJCNN 2020",
            "",
            2021,
            "arXiv:2008.00299",
        );
        ExplainerSpec::new("eigengradcam", "EigenGradCAM", Family::Cam, reference)
            .formula("relu(X v), X the [hw, C] product dS/dA * A less its mean, v its first right singular vector")
            .notes("The sign goes with the sum over channels; pytorch-grad-cam leaves it as it comes.")
    }

    fn evidence(&self, layer: &Layer<'_>, _: &()) -> Result<Evidence> {
        Ok(Evidence::Map(principal(&layer.gradient()?.f_mul(&layer.value)?)?))
    }
}
