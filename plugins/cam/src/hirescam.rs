//! HiResCAM: Draelos and Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural
//! networks", 2020, arXiv:2011.08891.
//!
//! `map = relu(sum_c dS/dA_c * A_c)`: the gradient is not averaged (equation 4). For a network that ends in one linear layer on
//! the flattened or pooled layer the sum of the map without the ReLU is the logit less its bias.
//!
//! Where a layer norm alone reads the layer, as it does PatchConvNet's last block, the gradient is orthogonal to the value at
//! every place, and the sum is rounding. A map whose largest sum is under 1e-5 of its largest sum of magnitudes is set to zero;
//! pytorch-grad-cam scales the rounding to [0, 1].

use crate::layer::{Cam, Evidence, Layer, Method};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Tensor;
use lightbox_sdk::tools::maps::sum;

register_explainer!(Method(HiResCam));

/// What of a sum of float32 terms is rounding, of their magnitudes.
const ROUNDING: f64 = 1e-5;

#[derive(Clone, Copy)]
pub struct HiResCam;

impl Cam for HiResCam {
    type Params = ();
    const GRADIENT: bool = true;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Draelos, Carin",
            "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks",
            "",
            2020,
            "arXiv:2011.08891",
        );
        ExplainerSpec::new("hirescam", "HiResCAM", Family::Cam, reference)
            .formula("relu(sum_c dS/dA_c * A_c)")
            .notes(
                "Its faithfulness does not hold with smoothing. A layer that a layer norm alone reads, as PatchConvNet's last \
                 block, has a map of zeros: its gradient is orthogonal to its value.",
            )
    }

    fn evidence(&self, layer: &Layer<'_>, _: &()) -> Result<Evidence> {
        let product = layer.gradient()?.f_mul(&layer.value)?;
        let all: Vec<i64> = (1..product.dim() as i64).collect();
        let most = |t: &Tensor| t.f_abs()?.f_amax(all.as_slice(), true);
        let sums = most(&sum(&product, &[1], true)?)?;
        let scale = most(&sum(&product.f_abs()?, &[1], true)?)?;
        let real = sums.f_ge_tensor(&scale.f_mul_scalar(ROUNDING)?)?.f_to_kind(product.f_kind()?)?;
        Ok(Evidence::Product(product.f_mul(&real)?))
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
