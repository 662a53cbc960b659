//! AG-CAM: Leem and Seo, "Attention Guided CAM: Visual Explanations of Vision Transformer Guided by Self-Attention", AAAI 2024,
//! arXiv:2402.04563.
//!
//! `map = sum_l sum_h relu(G_lh) * sigmoid(Q K^T / sqrt d)_lh` on the class token's row, G the gradient of the logit at the
//! softmaxed attention when nothing flows back through what queries, keys and values are made of (rule `attention:detach`):
//! between blocks it goes along the residual and the MLP alone.

use crate::stack::{bound, layers, maps, names, parts, row, tensor};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Tensor;
use lightbox_sdk::tools::maps::sum;

register_explainer!(AgCam);

struct AgCam;

impl Explainer for AgCam {
    type Params = ();

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Leem, Seo",
            "Attention Guided CAM: Visual Explanations of Vision Transformer Guided by Self-Attention",
            "AAAI",
            2024,
            "arXiv:2402.04563",
        );
        ExplainerSpec::new("agcam", "AG-CAM", Family::Attention, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .any_dimensions()
            .formula("sum_l sum_h relu(G_lh[cls]) * sigmoid(Q K^T / sqrt d)_lh[cls], G under attention:detach")
            .cost("1 F, 1 B")
            .notes("On a model with one attention layer: that layer's term.")
    }

    fn bind(&self, model: &ModelSpec, _: ()) -> Result<Bound> {
        bound(layers(model), |blocks| {
            let logits = parts(&blocks, "logits", |b| &b.logits)?;
            let rules = vec!["attention:detach".to_string()];
            let needs = Needs { values: logits.clone(), gradients: names(&blocks), rules, ..Needs::default() };
            Ok(Bound::new(needs, move |context| {
                let mut map: Option<Tensor> = None;
                for (block, logits) in blocks.iter().zip(&logits) {
                    let site = &block.weights;
                    let rows = |array: &Array| row(context, &tensor(array, site)?, site);
                    let gate = rows(context.value(logits)?)?.f_sigmoid()?;
                    let layer = sum(&rows(context.gradient(&site.name)?)?.f_relu()?.f_mul(&gate)?, &[1], false)?;
                    map = Some(match map {
                        None => layer,
                        Some(map) => map.f_add(&layer)?,
                    });
                }
                let map = map.ok_or_else(|| Error::invalid("there is no attention"))?;
                maps(&map, &blocks[0].weights)
            }))
        })
    }
}
