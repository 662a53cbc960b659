//! GradCAM on the last attention: the baseline of Chefer, Gur and Wolf, "Transformer Interpretability Beyond Attention
//! Visualization", CVPR 2021, arXiv:2012.09838.
//!
//! `map = relu(mean_h w_h A_h)` on the class token's row, `w_h` the mean of `dS/dA_h` over the grid's tokens.

use crate::stack::{bound, heads, layers, maps, row, tensor};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tools::maps::mean;

register_explainer!(AttentionGradCam);

struct AttentionGradCam;

impl Explainer for AttentionGradCam {
    type Params = ();

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Chefer, Gur, Wolf",
            "Transformer Interpretability Beyond Attention Visualization",
            "CVPR",
            2021,
            "arXiv:2012.09838",
        );
        ExplainerSpec::new("attentiongradcam", "Attention GradCAM", Family::Attention, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .any_dimensions()
            .formula("relu(mean_h w_h A_h[cls]), w_h = mean over patch tokens (not the class token) of dS/dA_h[cls], the last layer's")
            .cost("1 F, 1 B")
    }

    fn bind(&self, model: &ModelSpec, _: ()) -> Result<Bound> {
        bound(layers(model), |blocks| {
            let site = blocks[blocks.len() - 1].weights.clone();
            let last = vec![site.name.clone()];
            Ok(Bound::new(Needs { values: last.clone(), gradients: last, ..Needs::default() }, move |context| {
                let rows = |array: &Array| row(context, &tensor(array, &site)?, &site);
                let (a, g) = (rows(context.value(&site.name)?)?, rows(context.gradient(&site.name)?)?);
                let tokens = g.size()[2] - site.prefix.len() as i64;
                let weights = mean(&g.f_narrow(2, site.prefix.len() as i64, tokens)?, &[2], true)?;
                maps(&heads(&a.f_mul(&weights)?)?.f_relu()?, &site)
            }))
        })
    }
}
