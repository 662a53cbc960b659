//! A plugin of the next version of the ABI: its root module has one field more, its explainer trait one method more.
//! Today's host must load it.

use lightbox_sdk::ndarray::Array3;
use lightbox_sdk::prelude::*;

lightbox_sdk::export!();
register_explainer!(Newer("newer"));
register_explainer!(Newer("newer-noise"));

/// The second runs the model, with what only the next ABI knows of requests.
struct Newer(&'static str);

impl Explainer for Newer {
    type Params = ();

    fn spec(&self) -> ExplainerSpec {
        let spec = ExplainerSpec::new(self.0, "Of the next ABI", Family::Control, Reference::own("none"));
        ExplainerSpec { cpu_only: true, ..spec }
    }

    fn bind(&self, _: &ModelSpec, _: ()) -> Result<Bound> {
        let noise = self.0 == "newer-noise";
        Ok(Bound::new(Needs { model: noise, ..Needs::default() }, move |context| {
            let [b, h, w] = context.size()?;
            if noise {
                context.run_model()?.run(&Request::forward(context.images.clone()))?;
            }
            Ok(Array::from_ndarray(Array3::<f32>::from_elem((b, h, w), 0.5))?.into())
        }))
    }
}
