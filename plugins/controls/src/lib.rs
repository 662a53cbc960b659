//! Controls: maps that know nothing of the model. A method that does not beat them has said nothing.
//! Written on ndarray alone; this plugin is built without libtorch.

mod brightness;
mod centre;
mod edges;
mod mean_mask;
mod noise;

use lightbox_sdk::prelude::*;

lightbox_sdk::export!();

/// The specification that all controls share.
fn control(name: &str, title: &str, citation: &str, parameters: Vec<ParamSpec>) -> ExplainerSpec {
    ExplainerSpec {
        name: name.into(),
        title: title.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        reference: Reference { citation: citation.into(), id: String::new() },
        family: Family::Control,
        signed: false,
        formula: String::new(),
        cost: "-".into(),
        notes: String::new(),
        parameters,
        cpu_only: true,
    }
}
