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
    fn spec(&self) -> ExplainerSpec {
        ExplainerSpec {
            name: self.0.into(),
            title: "Of the next ABI".into(),
            version: "0.1.0".into(),
            reference: Reference { citation: "none".into(), id: String::new() },
            family: Family::Control,
            signed: false,
            formula: String::new(),
            cost: String::new(),
            notes: String::new(),
            parameters: vec![],
            cpu_only: true,
        }
    }

    fn plan(&self, _: &ModelSpec, _: &Params) -> Result<Plan> {
        Ok(Needs { model: self.0 == "newer-noise", ..Needs::default() }.into())
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        let [b, h, w] = context.size()?;
        if self.0 == "newer-noise" {
            context.run_model()?.run(&Request::forward(context.images.clone()))?;
        }
        Ok(Array::from_ndarray(Array3::<f32>::from_elem((b, h, w), 0.5))?.into())
    }
}
