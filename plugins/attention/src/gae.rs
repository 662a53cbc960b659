//! Generic attention explainability: Chefer, Gur and Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal
//! and Encoder-Decoder Transformers", ICCV 2021, arXiv:2103.15679.
//!
//! `R = I; R += mean_h relu(A_l * dS/dA_l) R` layer by layer (equations 5 and 6); the map is the class token's row. A model with
//! the one attention of its class token has one term.

use crate::stack::{heads, identity, layers, maps, names, plan, planned, row, starting, tensor};
use lightbox_sdk::prelude::*;

register_explainer!(Gae);

struct Gae;

impl Explainer for Gae {
    fn spec(&self) -> ExplainerSpec {
        let citation = "Chefer, Gur, Wolf: Generic Attention-model Explainability for Interpreting Bi-Modal and \
                        Encoder-Decoder Transformers, ICCV 2021";
        ExplainerSpec::new("gae", "Generic attention explainability", Family::Attention, citation, "arXiv:2103.15679")
            .version(env!("CARGO_PKG_VERSION"))
            .formula("row cls of prod_l (I + mean_h relu(A_l * dS/dA_l))")
            .cost("1 F, 1 B")
            .notes("On a model with one attention layer: its mean_h relu(A * dS/dA).")
            .parameters([ParamSpec::integer("start", 0, (0, 1000), "", "the first block that counts")])
    }

    fn plan(&self, model: &ModelSpec, params: &Params) -> Result<Plan> {
        plan(starting(layers(model), params)?, |sites| {
            Ok(Needs { values: names(sites), gradients: names(sites), ..Needs::default() })
        })
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        let sites = planned(layers(&context.model))?;
        let term = |site: &Site| {
            let (a, g) = (tensor(context.value(&site.name)?, site)?, tensor(context.gradient(&site.name)?, site)?);
            heads(&a.f_mul(&g)?.f_relu()?)
        };
        if sites[0].query != "tokens" {
            let last = sites[sites.len() - 1];
            return maps(&row(&term(last)?, last, &context.targets)?, last);
        }
        let mut all = None;
        for site in sites.iter().skip(context.params.integer("start")? as usize) {
            let term = term(site)?;
            let before = match all.take() {
                Some(before) => before,
                None => identity(&term)?,
            };
            all = Some(before.f_add(&term.f_matmul(&before)?)?);
        }
        let all = all.ok_or_else(|| Error::invalid("parameter start: no block is left"))?;
        maps(&row(&all, sites[0], &context.targets)?, sites[0])
    }
}
