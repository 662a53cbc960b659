//! Seg-Eigen-CAM: Chung and Ying, "Seg-Eigen-CAM: Eigen-Value-Based Visual Explanations for Semantic Segmentation Models",
//! Applied Sciences 15(13), 2025, doi:10.3390/app15137562.
//!
//! EigenCAM of `|dS/dA| * A` (equation 10), with the sign for which the map's largest magnitude is positive (equation 13).

use crate::layer::{Cam, Evidence, Layer, Method, principal};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Kind;
use lightbox_sdk::tools::maps::range;

register_explainer!(Method(SegEigenCam));

#[derive(Clone, Copy)]
struct SegEigenCam;

impl Cam for SegEigenCam {
    type Params = ();
    const GRADIENT: bool = true;
    const SMOOTHS: bool = false;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Chung, Ying",
            "Seg-Eigen-CAM: Eigen-Value-Based Visual Explanations for Semantic Segmentation Models",
            "Applied Sciences 15(13)",
            2025,
            "10.3390/app15137562",
        );
        ExplainerSpec::new("segeigencam", "Seg-Eigen-CAM", Family::Cam, reference).formula(
            "relu(+-X v), X the [hw, C] product |dS/dA| * A less its mean, the sign that of its largest magnitude",
        )
    }

    fn evidence(&self, layer: &Layer<'_>, _: &()) -> Result<Evidence> {
        let map = principal(&layer.gradient()?.f_abs()?.f_mul(&layer.value)?)?;
        let (least, greatest) = range(&map)?;
        let flipped = least.f_abs()?.f_gt_tensor(&greatest.f_abs()?)?.f_to_kind(Kind::Float)?;
        Ok(Evidence::Map(map.f_mul(&flipped.f_mul_scalar(-2.0)?.f_add_scalar(1.0)?)?))
    }
}
