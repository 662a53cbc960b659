//! The image's own brightness: nodules are brighter than lung, and so is much else.

use lightbox_sdk::prelude::*;

register_explainer!(Brightness);

struct Brightness;

impl Explainer for Brightness {
    type Params = ();

    fn spec(&self) -> ExplainerSpec {
        crate::control("brightness", "Image brightness", "Control: the grey value", "mean_c x_c")
    }

    fn bind(&self, _: &ModelSpec, _: ()) -> Result<Bound> {
        Ok(Bound::new(Needs::default(), |context| Ok(Array::from_ndarray(context.grey()?)?.into())))
    }
}
