//! Integrated gradients: Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, arXiv:1703.01365.
//!
//! `(x - x') int_0^1 dS/dx (x' + a (x - x')) da` (equation 1). The sum over pixels and channels is `S(x) - S(x')`
//! (proposition 1), up to the integral's error. Gauss and Legendre's rule is Captum's default; Captum's trapezoid has weights
//! that sum to (n - 1) / n, here they sum to 1.

use crate::input::{Channels, bound};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Tensor;
use lightbox_sdk::tools::fill::{Fill, fill};
use lightbox_sdk::tools::path::Rule;

register_explainer!(IntegratedGradients);

pub struct IntegratedGradients;

/// The attribution [B, C, size...] of the path from `baseline` by `steps` of position and weight, by gradients at `input`.
pub fn integrate(context: &Context<'_>, input: &str, baseline: &Tensor, steps: &[(f64, f64)]) -> Result<Tensor> {
    let images = context.image_tensor()?;
    let way = images.f_sub(baseline)?;
    let mut sum = images.f_zeros_like()?;
    let points = |pairs: Pairs<'_>| {
        let mut rows = Vec::new();
        for &(b, step) in pairs {
            let (from, way) = (baseline.f_get(b as i64)?, way.f_get(b as i64)?);
            rows.push(from.f_add(&way.f_mul_scalar(steps[step].0)?)?);
        }
        Ok(Tensor::f_stack(&rows, 0)?)
    };
    context.gradients(steps.len(), &[input.to_string()], points, |pairs, found| {
        add_rows(&mut sum, &found[0], pairs, |step| steps[step].1)
    })?;
    Ok(sum.f_mul(&way)?)
}

#[derive(Params)]
pub struct Settings {
    /// points on the path
    #[param(default = 50, range = (1, 100_000))]
    steps: usize,
    #[param(default = Rule::GaussLegendre)]
    rule: Rule,
    /// what the image is compared with: 0 after normalisation (the mean colour), black, white, the image blurred
    #[param(default = Fill::Zero)]
    baseline: Fill,
    #[param(default = Channels::Sum)]
    channels: Channels,
}

impl Explainer for IntegratedGradients {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Sundararajan, Taly, Yan",
            "Axiomatic Attribution for Deep Networks",
            "ICML",
            2017,
            "arXiv:1703.01365",
        );
        let name = "integratedgradients";
        ExplainerSpec::new(name, "Integrated gradients", Family::Gradient, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .formula("sum_c (x - x')_c int_0^1 dS/dx_c(x' + a (x - x')) da")
            .cost("1 F, then steps x (1 F, 1 B)")
            .notes("Sums to S(x) - S(x'), up to the integral's error. Captum's trapezoid loses 1 / steps of it.")
            .signed()
            .any_dimensions()
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        let needs = Needs { model: true, extra: Passes::both(params.steps as u64), ..Needs::default() };
        bound(model, |input| {
            Bound::new(needs, move |context| {
                let from = fill(context, params.baseline)?;
                let steps = params.rule.steps(params.steps);
                params.channels.map_of(&integrate(context, &input, &from, &steps)?)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::tests::*;

    #[test]
    fn is_complete_invariant_and_linear() {
        let own = flat(&(images() * weights()));
        check(&IntegratedGradients, linear, &[], &own);
        check(&IntegratedGradients, linear_otherwise, &[], &own);
        check(&IntegratedGradients, constant, &[], &own.zeros_like());
        // Of w x^2 / 2 from 0 a pixel's part is w x^2 / 2, by any rule that is exact on a line.
        let wanted = flat(&(images() * images() * weights())) / 2.0;
        for rule in ["gauss-legendre", "trapezoid", "middle"] {
            check(&IntegratedGradients, square, &[("rule", rule.into()), ("steps", 4.into())], &wanted);
        }
        let left = maps(&IntegratedGradients, square, &[("rule", "left".into()), ("steps", 4.into())]);
        assert!(error(&left, &wanted) > 0.1);
    }
}
