//! SmoothGrad: Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017, arXiv:1706.03825.
//!
//! The mean of the logit's gradient over noisy copies of the image.

use crate::smoothing::{Signed, Smoothing, Statistic};
use lightbox_sdk::prelude::*;
use std::marker::PhantomData;

register_explainer!(SMOOTHGRAD);

pub const SMOOTHGRAD: Smoothing<Signed> = Smoothing { spec, statistic: Statistic::Mean, settings: PhantomData };

fn spec() -> ExplainerSpec {
    let reference =
        Reference::new("Smilkov et al.", "SmoothGrad: removing noise by adding noise", "", 2017, "arXiv:1706.03825");
    ExplainerSpec::new("smoothgrad", "SmoothGrad", Family::Gradient, reference)
        .formula("mean_i dS/dx(x + sigma n_i), n_i standard normal")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::tests::*;
    use crate::smoothgradsq::SMOOTHGRAD_SQUARED;
    use crate::vargrad::VARGRAD;
    use lightbox_sdk::tch::Tensor;

    /// A statistic of 4000 samples against `wanted`, in any batch, and zero where the gradient is.
    fn statistic(explainer: &impl Explainer, wanted: &Tensor) {
        let given = |samples: i64| {
            [("samples", samples.into()), ("sigma", 0.5.into()), ("relative", false.into()), ("channels", "sum".into())]
        };
        let name = explainer.spec().name;
        let error = error(&maps(explainer, square, &given(4000)), &flat(wanted));
        assert!(error < 0.05, "{name}: {error}");
        // The same draws whatever runs at a time.
        let one = at_once(explainer, square, &given(9), 1);
        assert!(crate::input::tests::error(&one, &at_once(explainer, square, &given(9), 7)) < 1e-4, "{name}");
        check(explainer, constant, &given(3), &flat(&images()).zeros_like());
    }

    /// Of w x^2 / 2 the gradient of a noisy copy is w (x + s n): normal with mean w x and deviation w s.
    #[test]
    fn statistics_are_those_of_a_gradient_with_normal_noise() {
        let (w, x) = (weights(), images());
        statistic(&SMOOTHGRAD, &(&w * &x));
        statistic(&SMOOTHGRAD_SQUARED, &((&w * &x).square() + (&w * 0.5).square()));
        statistic(&VARGRAD, &(&w * 0.5).square().expand_as(&x));
        // A linear model has the same gradient everywhere.
        check(&SMOOTHGRAD, linear, &[("channels", "sum".into())], &flat(&w.expand_as(&x)));
        check(&SMOOTHGRAD, linear_otherwise, &[("channels", "sum".into())], &flat(&w.expand_as(&x)));
        // Of the image's range: twice the image, twice the noise.
        let relative = maps(&VARGRAD, square, &[("samples", 4000.into()), ("sigma", 0.1.into())]);
        let (least, greatest) = lightbox_sdk::tools::maps::range(&x).unwrap();
        let wanted = flat(&(&w * (greatest - least) * 0.1).square().expand_as(&x));
        assert!(error(&relative, &wanted) < 0.08);
    }
}
