//! SmoothGrad-squared: Hooker et al., "A Benchmark for Interpretability Methods in Deep Neural Networks", NeurIPS 2019, arXiv:1806.10758.
//!
//! The mean of the gradient's square over noisy copies of the image.

use crate::smoothing::{Smoothing, Statistic, Unsigned};
use lightbox_sdk::prelude::*;
use std::marker::PhantomData;

register_explainer!(SMOOTHGRAD_SQUARED);

pub const SMOOTHGRAD_SQUARED: Smoothing<Unsigned> =
    Smoothing { spec, statistic: Statistic::MeanSquare, settings: PhantomData };

fn spec() -> ExplainerSpec {
    let reference = Reference::new(
        "Hooker et al.",
        "A Benchmark for Interpretability Methods in Deep Neural Networks",
        "NeurIPS",
        2019,
        "arXiv:1806.10758",
    );
    ExplainerSpec::new("smoothgradsq", "SmoothGrad-squared", Family::Gradient, reference)
        .formula("mean_i (dS/dx(x + sigma n_i))^2, n_i standard normal")
}
