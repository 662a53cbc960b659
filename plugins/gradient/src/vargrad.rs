//! VarGrad: Adebayo et al., "Local Explanation Methods for Deep Neural Networks Lack Sensitivity to Parameter Values", ICLR Workshop 2018, arXiv:1810.03307.
//!
//! The variance of the logit's gradient over noisy copies of the image, over n.

use crate::smoothing::{Smoothing, Statistic, Unsigned};
use lightbox_sdk::prelude::*;
use std::marker::PhantomData;

register_explainer!(VARGRAD);

pub const VARGRAD: Smoothing<Unsigned> = Smoothing { spec, statistic: Statistic::Variance, settings: PhantomData };

fn spec() -> ExplainerSpec {
    let reference = Reference::new(
        "Adebayo et al.",
        "Local Explanation Methods for Deep Neural Networks Lack Sensitivity to Parameter Values",
        "ICLR Workshop",
        2018,
        "arXiv:1810.03307",
    );
    ExplainerSpec::new("vargrad", "VarGrad", Family::Gradient, reference)
        .formula("var_i dS/dx(x + sigma n_i), n_i standard normal")
}
