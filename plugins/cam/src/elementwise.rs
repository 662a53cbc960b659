//! GradCAM, element-wise: pytorch-grad-cam's `GradCAMElementWise`, in the manner of HiResCAM (arXiv:2011.08891).
//!
//! `map = sum_c relu(dS/dA_c * A_c)`: evidence against the class is dropped at every channel, not from the sum.

use crate::layer::{Cam, Evidence, Layer, Method};
use lightbox_sdk::prelude::*;

register_explainer!(Method(ElementWise));

#[derive(Clone, Copy)]
pub struct ElementWise;

impl Cam for ElementWise {
    type Params = ();
    const GRADIENT: bool = true;

    fn spec(&self) -> ExplainerSpec {
        let reference =
            Reference::new("Gildenblat and contributors", "pytorch-grad-cam, GradCAMElementWise", "", 2021, "");
        ExplainerSpec::new("gradcam-elementwise", "GradCAM, element-wise", Family::Cam, reference)
            .formula("sum_c relu(dS/dA_c * A_c)")
    }

    fn evidence(&self, layer: &Layer<'_>, _: &()) -> Result<Evidence> {
        Ok(Evidence::Product(layer.gradient()?.f_mul(&layer.value)?.f_relu()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::tests::check;

    #[test]
    fn equals_the_equation() {
        check(&Method(ElementWise), &[], |l, y, x| l.channels(|c| (l.g(c, y, x) * l.a(c, y, x)).max(0.0)));
    }
}
