//! Saliency: Simonyan, Vedaldi and Zisserman, "Deep Inside Convolutional Networks: Visualising Image Classification Models and
//! Saliency Maps", 2013, arXiv:1312.6034.
//!
//! The magnitude of the logit's gradient at each pixel, the largest over channels (section 3.1).

use crate::input::{Channels, bound};
use lightbox_sdk::prelude::*;

register_explainer!(Saliency);

struct Saliency;

#[derive(Params)]
struct Settings {
    #[param(default = Channels::MaxAbs)]
    channels: Channels,
}

impl Explainer for Saliency {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Simonyan, Vedaldi, Zisserman",
            "Deep Inside Convolutional Networks: Visualising Image Classification Models and Saliency Maps",
            "",
            2013,
            "arXiv:1312.6034",
        );
        ExplainerSpec::new("saliency", "Saliency", Family::Gradient, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .formula("max_c |dS/dx_c|")
            .cost("1 F, 1 B")
            .any_dimensions()
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        bound(model, |input| {
            let needs = Needs { gradients: vec![input.clone()], ..Needs::default() };
            Bound::new(needs, move |context| params.channels.map_of(&*context.gradient(&input)?.to_tensor()?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::tests::*;

    #[test]
    fn is_the_largest_magnitude_of_the_gradient() {
        let wanted = (images() * weights()).abs().amax([1i64].as_slice(), false);
        check(&Saliency, square, &[], &wanted);
        check(&Saliency, square, &[("channels", "sum".into())], &flat(&(images() * weights())));
        check(&Saliency, constant, &[], &wanted.zeros_like());
    }
}
