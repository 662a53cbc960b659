//! Input times gradient: Shrikumar et al., "Not Just a Black Box: Learning Important Features Through Propagating Activation
//! Differences", 2016, arXiv:1605.01713.
//!
//! `x dS/dx`: of a linear model each pixel's part of the logit.

use crate::input::{Channels, bound};
use lightbox_sdk::prelude::*;

register_explainer!(InputXGradient);

struct InputXGradient;

#[derive(Params)]
struct Settings {
    #[param(default = Channels::Sum)]
    channels: Channels,
}

impl Explainer for InputXGradient {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Shrikumar et al.",
            "Not Just a Black Box: Learning Important Features Through Propagating Activation Differences",
            "",
            2016,
            "arXiv:1605.01713",
        );
        ExplainerSpec::new("inputxgradient", "Input x gradient", Family::Gradient, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .formula("sum_c x_c dS/dx_c")
            .cost("1 F, 1 B")
            .notes("x is the normalised image: a pixel of the mean colour gets 0.")
            .signed()
            .any_dimensions()
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        bound(model, |input| {
            let needs = Needs { gradients: vec![input.clone()], ..Needs::default() };
            Bound::new(needs, move |context| {
                params.channels.map_of(&context.image_tensor()?.f_mul(&*context.gradient(&input)?.to_tensor()?)?)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::tests::*;

    #[test]
    fn is_each_pixels_part_of_a_linear_model() {
        let wanted = flat(&(images() * weights()));
        check(&InputXGradient, linear, &[], &wanted);
        check(&InputXGradient, linear_otherwise, &[], &wanted);
        check(&InputXGradient, constant, &[], &wanted.zeros_like());
    }
}
