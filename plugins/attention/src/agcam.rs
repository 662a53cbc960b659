//! AG-CAM: Leem and Seo, "Attention Guided CAM: Visual Explanations of Vision Transformer Guided by Self-Attention", AAAI 2024,
//! arXiv:2402.04563.
//!
//! `map = sum_l sum_h relu(G_lh) * sigmoid(Q K^T / sqrt d)_lh` on the class token's row, G the gradient of the logit at the
//! softmaxed attention when nothing flows back through what queries, keys and values are made of (rule `attention:detach`):
//! between blocks it goes along the residual and the MLP alone.

use crate::stack::{layers, maps, names, plan, planned, row, tensor};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Tensor;
use lightbox_sdk::tools::maps::sum;

register_explainer!(AgCam);

struct AgCam;

fn logits(site: &Site) -> String {
    format!("{}.logits", site.name)
}

impl Explainer for AgCam {
    fn spec(&self) -> ExplainerSpec {
        let citation = "Leem, Seo: Attention Guided CAM: Visual Explanations of Vision Transformer Guided by \
                        Self-Attention, AAAI 2024";
        ExplainerSpec::new("agcam", "AG-CAM", Family::Attention, citation, "arXiv:2402.04563")
            .version(env!("CARGO_PKG_VERSION"))
            .formula("sum_l sum_h relu(G_lh[cls]) * sigmoid(Q K^T / sqrt d)_lh[cls], G under attention:detach")
            .cost("1 F, 1 B")
            .notes("On a model with one attention layer: that layer's term.")
    }

    fn plan(&self, model: &ModelSpec, _: &Params) -> Result<Plan> {
        plan(layers(model), |sites| {
            let values = sites.iter().map(|s| logits(s)).collect();
            let rules = vec!["attention:detach".to_string()];
            Ok(Needs { values, gradients: names(sites), rules, ..Needs::default() })
        })
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        let sites = planned(layers(&context.model))?;
        let mut map: Option<Tensor> = None;
        for site in &sites {
            let rows = |array: &Array| row(&tensor(array, site)?, site, &context.targets);
            let gate = rows(context.value(&logits(site))?)?.f_sigmoid()?;
            let layer = sum(&rows(context.gradient(&site.name)?)?.f_relu()?.f_mul(&gate)?, &[1], false)?;
            map = Some(match map {
                None => layer,
                Some(map) => map.f_add(&layer)?,
            });
        }
        let map = map.ok_or_else(|| Error::invalid("there is no attention"))?;
        maps(&map, sites[0])
    }
}
