//! The mean of the training set's masks: where nodules are, before any image is seen.

use lightbox_sdk::ndarray::{Array3, Ix2};
use lightbox_sdk::prelude::*;

register_explainer!(MeanMask);

struct MeanMask;

impl Explainer for MeanMask {
    type Params = ();

    fn spec(&self) -> ExplainerSpec {
        crate::control(
            "mean-mask",
            "Mean training mask",
            "Control: the position of nodules in training",
            "mean of the training masks",
        )
    }

    fn bind(&self, _: &ModelSpec, _: ()) -> Result<Bound> {
        Ok(Bound::new(Needs { mean_mask: true, ..Needs::default() }, |context| {
            let mask = context.mean_mask()?.view::<f32>()?.into_dimensionality::<Ix2>()?;
            let [b, ..] = context.size()?;
            let (h, w) = mask.dim();
            Ok(Array::from_ndarray(Array3::from_shape_fn((b, h, w), |(_, y, x)| mask[[y, x]]))?.into())
        }))
    }
}
