//! HiResCAM: Draelos and Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural
//! networks", 2020, arXiv:2011.08891.
//!
//! `map = relu(sum_c dS/dA_c * A_c)`: the gradient is not averaged (equation 4). For a network that ends in one linear layer on
//! the flattened or pooled layer the sum of the map without the ReLU is the logit less its bias.

use crate::layer::{Cam, Evidence, Layer, Method};
use lightbox_sdk::prelude::*;

register_explainer!(Method(HiResCam));

pub struct HiResCam;

impl Cam for HiResCam {
    const GRADIENT: bool = true;

    fn spec(&self) -> ExplainerSpec {
        let citation = "Draelos, Carin: Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional \
                        neural networks, 2020";
        ExplainerSpec::new("hirescam", "HiResCAM", Family::Cam, citation, "arXiv:2011.08891")
            .formula("relu(sum_c dS/dA_c * A_c)")
            .notes("Its faithfulness does not hold with smoothing.")
    }

    fn evidence(&self, layer: &Layer<'_>) -> Result<Evidence> {
        Ok(Evidence::Product(layer.gradient()?.f_mul(&layer.value)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::tests::check;

    #[test]
    fn equals_the_equation() {
        check(&Method(HiResCam), &[], |l, y, x| l.channels(|c| l.g(c, y, x) * l.a(c, y, x)).max(0.0));
    }
}
