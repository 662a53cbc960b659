//! Guided backpropagation: Springenberg et al., "Striving for Simplicity: The All Convolutional Net", ICLR Workshop 2015,
//! arXiv:1412.6806.
//!
//! The gradient at the image where every ReLU passes back positive gradients alone, and only where it was open. Peers change
//! modules, so they miss a ReLU that a model calls as a function, as torchvision's DenseNet does its last.

use crate::input::{Channels, bound};
use lightbox_sdk::prelude::*;

register_explainer!(GuidedBackprop);

struct GuidedBackprop;

#[derive(Params)]
struct Settings {
    #[param(default = Channels::MaxAbs)]
    channels: Channels,
}

impl Explainer for GuidedBackprop {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Springenberg et al.",
            "Striving for Simplicity: The All Convolutional Net",
            "ICLR Workshop",
            2015,
            "arXiv:1412.6806",
        );
        ExplainerSpec::new("guidedbackprop", "Guided backpropagation", Family::Gradient, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .formula("max_c |g_c|, g the gradient under relu: g_in = max(g_out, 0) where x > 0")
            .cost("1 F, 1 B")
            .notes(
                "Close to an edge detector: Adebayo et al. (arXiv:1810.03292) found it all but blind to the weights.",
            )
            .any_dimensions()
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        bound(model, |input| {
            // A model without the rule is not applicable; the host says so.
            let needs = Needs { gradients: vec![input.clone()], rules: vec!["relu:guided".into()], ..Needs::default() };
            Bound::new(needs, move |context| params.channels.map_of(&*context.gradient(&input)?.to_tensor()?))
        })
    }
}
