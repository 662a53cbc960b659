//! KPCA-CAM: Karmani et al., "KPCA-CAM: Visual Explainability of Deep Computer Vision Models using Kernel PCA", 2024,
//! arXiv:2410.00267.
//!
//! The first kernel principal component of the places, with the kernel `tanh(x y / C + 1)` on centred values as in
//! pytorch-grad-cam and scikit-learn's `KernelPCA(kernel="sigmoid")`. The component's entry of largest magnitude is positive,
//! scikit-learn's rule. No class takes part.

use crate::layer::{Cam, Evidence, Layer, Method};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};
use lightbox_sdk::tools::maps::{float, mean};

register_explainer!(Method(KpcaCam));

#[derive(Clone, Copy)]
struct KpcaCam;

impl Cam for KpcaCam {
    type Params = ();
    const GRADIENT: bool = false;
    const SMOOTHS: bool = false;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Karmani et al.",
            "KPCA-CAM: Visual Explainability of Deep Computer Vision Models using Kernel PCA",
            "",
            2024,
            "arXiv:2410.00267",
        );
        ExplainerSpec::new("kpcacam", "KPCA-CAM", Family::Cam, reference)
            .formula("relu(sqrt(l) u), l and u the first eigenpair of the centred kernel tanh(X X^T / C + 1)")
            .notes("The same for every class.")
    }

    fn evidence(&self, layer: &Layer<'_>, _: &()) -> Result<Evidence> {
        let size = layer.value.size();
        let (b, c, n) = (size[0], size[1], size[2..].iter().product::<i64>());
        let mut maps = Vec::new();
        // An image at a time: the kernel is a matrix of places by places.
        for i in 0..b {
            layer.context.check_cancelled()?;
            let x = layer.value.f_get(i)?.f_to_kind(Kind::Double)?.f_reshape([c, n])?.f_transpose(0, 1)?;
            let x = x.f_sub(&mean(&x, &[0], true)?)?;
            let kernel = x.f_matmul(&x.f_transpose(0, 1)?)?.f_div_scalar(c as f64)?.f_add_scalar(1.0)?.f_tanh()?;
            let rows = mean(&kernel, &[0], true)?;
            let centred = kernel.f_sub(&rows)?.f_sub(&mean(&kernel, &[1], true)?)?.f_add(&mean(&rows, &[1], true)?)?;
            let (values, vectors) = centred.f_linalg_eigh("L")?;
            let first: Tensor = vectors.f_select(1, n - 1)?;
            let largest = first.f_gather(0, &first.f_abs()?.f_argmax(0, true)?, false)?;
            let length = values.f_narrow(0, n - 1, 1)?.f_clamp_min(0.0)?.f_sqrt()?;
            maps.push(float(&first.f_mul(&length)?.f_mul(&largest.f_sign()?)?.f_reshape(&size[2..])?)?);
        }
        Ok(Evidence::Map(Tensor::f_stack(&maps, 0)?))
    }
}
