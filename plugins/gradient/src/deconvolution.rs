//! Deconvolution: Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, arXiv:1311.2901.
//!
//! The gradient at the image where every ReLU passes back positive gradients alone, open or not.

use crate::input::{Channels, bound};
use lightbox_sdk::prelude::*;

register_explainer!(Deconvolution);

struct Deconvolution;

#[derive(Params)]
struct Settings {
    #[param(default = Channels::MaxAbs)]
    channels: Channels,
}

impl Explainer for Deconvolution {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Zeiler, Fergus",
            "Visualizing and Understanding Convolutional Networks",
            "ECCV",
            2014,
            "arXiv:1311.2901",
        );
        ExplainerSpec::new("deconvolution", "Deconvolution", Family::Gradient, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .formula("max_c |g_c|, g the gradient under relu: g_in = max(g_out, 0)")
            .cost("1 F, 1 B")
            .any_dimensions()
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        bound(model, |input| {
            // A model without the rule is not applicable; the host says so.
            let needs = Needs { gradients: vec![input.clone()], rules: vec!["relu:deconv".into()], ..Needs::default() };
            Bound::new(needs, move |context| params.channels.map_of(&*context.gradient(&input)?.to_tensor()?))
        })
    }
}
