//! Input times gradient: Shrikumar et al., "Not Just a Black Box: Learning Important Features Through Propagating Activation
//! Differences", 2016, arXiv:1605.01713.
//!
//! `x dS/dx`: of a linear model each pixel's part of the logit.

use crate::input::{INPUT, channels, map_of, needs_input};
use lightbox_sdk::prelude::*;

register_explainer!(InputXGradient);

struct InputXGradient;

impl Explainer for InputXGradient {
    fn spec(&self) -> ExplainerSpec {
        let citation = "Shrikumar et al.: Not Just a Black Box: Learning Important Features Through Propagating \
                        Activation Differences, 2016";
        ExplainerSpec::new("inputxgradient", "Input x gradient", Family::Gradient, citation, "arXiv:1605.01713")
            .version(env!("CARGO_PKG_VERSION"))
            .formula("sum_c x_c dS/dx_c")
            .cost("1 F, 1 B")
            .notes("x is the normalised image: a pixel of the mean colour gets 0.")
            .signed()
            .parameters([channels("sum")])
    }

    fn plan(&self, model: &ModelSpec, _: &Params) -> Result<Plan> {
        let needs = Needs { gradients: vec![INPUT.into()], ..Needs::default() };
        Ok(needs_input(model).unwrap_or_else(|| needs.into()))
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        let gradient = context.gradient(INPUT)?.to_tensor()?;
        map_of(&context.image_tensor()?.f_mul(&gradient)?, &context.params)
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
