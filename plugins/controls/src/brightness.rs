//! The image's own brightness: nodules are brighter than lung, and so is much else.

use lightbox_sdk::prelude::*;

register_explainer!(Brightness);

struct Brightness;

impl Explainer for Brightness {
    fn spec(&self) -> ExplainerSpec {
        crate::control("brightness", "Image brightness", "Control: the grey value", "mean_c x_c")
    }

    fn plan(&self, _: &ModelSpec, _: &Params) -> Result<Plan> {
        Ok(Needs::default().into())
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        Ok(Array::from_ndarray(context.grey()?)?.into())
    }
}
