//! EigenCAM: Muhammad and Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", IJCNN 2020,
//! arXiv:2008.00299.
//!
//! The projection of the layer on its first right singular vector; no class takes part. As in pytorch-grad-cam the places are
//! centred first. A singular vector has no sign: here the map goes with the sum over channels, in the peers with whatever
//! LAPACK returns, so that theirs may be the negative.

use crate::layer::{Cam, Evidence, Layer, Method, principal};
use lightbox_sdk::prelude::*;

register_explainer!(Method(EigenCam));

#[derive(Clone, Copy)]
pub struct EigenCam;

impl Cam for EigenCam {
    type Params = ();
    const GRADIENT: bool = false;
    const SMOOTHS: bool = false;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Muhammad, Yeasin",
            "Eigen-CAM: Class Activation Map using Principal Components",
            "IJCNN",
            2020,
            "arXiv:2008.00299",
        );
        ExplainerSpec::new("eigencam", "EigenCAM", Family::Cam, reference)
            .formula("relu(X v), X the [hw, C] layer less its mean, v its first right singular vector")
            .notes("The same for every class. The sign goes with the sum over channels; pytorch-grad-cam leaves it as it comes.")
    }

    fn evidence(&self, layer: &Layer<'_>, _: &()) -> Result<Evidence> {
        Ok(Evidence::Map(principal(&layer.value)?))
    }
}
