//! LayerCAM: Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE TIP 2021,
//! doi:10.1109/TIP.2021.3089943.
//!
//! `map = relu(sum_c relu(dS/dA_c) * A_c)` (equations 5 to 7): positive gradients weigh each place by itself, which serves
//! shallow layers too.

use crate::layer::{Cam, Evidence, Layer, Method};
use lightbox_sdk::prelude::*;

register_explainer!(Method(LayerCam));

#[derive(Clone, Copy)]
pub struct LayerCam;

impl Cam for LayerCam {
    type Params = ();
    const GRADIENT: bool = true;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Jiang et al.",
            "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization",
            "IEEE TIP",
            2021,
            "10.1109/TIP.2021.3089943",
        );
        ExplainerSpec::new("layercam", "LayerCAM", Family::Cam, reference).formula("relu(sum_c relu(dS/dA_c) * A_c)")
    }

    fn evidence(&self, layer: &Layer<'_>, _: &()) -> Result<Evidence> {
        Ok(Evidence::Product(layer.gradient()?.f_relu()?.f_mul(&layer.value)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::tests::check;

    #[test]
    fn equals_the_equation() {
        check(&Method(LayerCam), &[], |l, y, x| l.channels(|c| l.g(c, y, x).max(0.0) * l.a(c, y, x)).max(0.0));
    }
}
