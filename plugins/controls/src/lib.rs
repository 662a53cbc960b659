//! Controls: maps that know nothing of the model. A method that does not beat them has said nothing.
//! Written on ndarray alone; this plugin is built without libtorch.

mod brightness;
mod centre;
mod edges;
mod given;
mod mean_mask;
mod noise;

use lightbox_sdk::prelude::*;

lightbox_sdk::export!();

/// The specification that all controls share.
fn control(name: &str, title: &str, source: &str, formula: &str) -> ExplainerSpec {
    ExplainerSpec::new(name, title, Family::Control, Reference::own(source))
        .version(env!("CARGO_PKG_VERSION"))
        .formula(formula)
        .cost("none: it looks at no model")
}
