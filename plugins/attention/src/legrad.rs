//! LeGrad: Bousselham et al., "LeGrad: An Explainability Method for Vision Transformers via Feature Formation Sensitivity",
//! ICCV 2025, arXiv:2404.03214.
//!
//! Every block's tokens Z_l make a prediction of their own, `s_l = head(norm(mean_tokens Z_l))`, and the map is
//! `sum_l mean_h,queries relu(ds_l / dA_l)` on the grid's tokens (equations 6 to 8). The reference code stops at the last two
//! blocks by default: `layers = 2`. A run that begins at the last block's end with the mean in every token's place gives the
//! gradient that goes back into Z_l; a second one has an objective a block.

use crate::stack::{block, blocks, heads, maps, plan, planned, tensor};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Tensor;
use lightbox_sdk::tools::maps::{mean, sum};

register_explainer!(LeGrad);

struct LeGrad;

const INSTEAD: &str = "relu of the layer's gradient; there are no intermediate predictions";

/// The blocks that count.
fn used<'a>(sites: &[&'a Site], params: &Params) -> Result<Vec<&'a Site>> {
    let count = match params.integer("layers")? {
        0 => sites.len(),
        n => (n as usize).min(sites.len()),
    };
    Ok(sites[sites.len() - count..].to_vec())
}

impl Explainer for LeGrad {
    fn spec(&self) -> ExplainerSpec {
        let citation = "Bousselham et al.: LeGrad: An Explainability Method for Vision Transformers via Feature \
                        Formation Sensitivity, ICCV 2025";
        ExplainerSpec::new("legrad", "LeGrad", Family::Attention, citation, "arXiv:2404.03214")
            .version(env!("CARGO_PKG_VERSION"))
            .formula("sum_l mean_h,queries relu(ds_l / dA_l), s_l = head(norm(mean_tokens Z_l))")
            .cost("1 F, then 1 F, L P, 2 L B for L blocks")
            .notes("The reference code reads the last two blocks by default, the paper all.")
            .parameters([ParamSpec::integer("layers", 0, (0, 1000), "", "last blocks that count; 0 for all")])
    }

    fn plan(&self, model: &ModelSpec, params: &Params) -> Result<Plan> {
        plan(blocks(model, INSTEAD), |sites| {
            let used = used(sites, params)?;
            let n = used.len() as u64;
            let extra = Passes { forward: 1, partial: n, backward: 2 * n };
            let mut values: Vec<String> = used.iter().map(|s| block(s)).collect();
            values.dedup();
            Ok(Needs { values, model: true, extra, ..Needs::default() })
        })
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        let sites = used(&planned(blocks(&context.model, INSTEAD))?, &context.params)?;
        let model = context.run_model()?;
        let last = block(sites[sites.len() - 1]);
        let mut means = Vec::new();
        for site in &sites {
            let z = context.value(&block(site))?.share_tensor()?;
            means.push(mean(&z, &[1], true)?.f_expand_as(&z)?);
        }
        let targets = context.targets.to_vec::<i64>()?;
        let mut seeds: Vec<Tensor> = Vec::new();
        for rows in means {
            context.check_cancelled()?;
            let (b, n) = (rows.size()[0] as usize, rows.size()[1]);
            let objective = Objective::Class(Array::from_vec(&[b], targets.clone())?);
            let request = Request {
                objectives: vec![vec![objective]],
                grads: vec![last.clone()],
                ..Request::from_site(&last, Array::from_tensor(&rows.f_contiguous()?)?)?
            };
            let mut response = model.run(&request)?;
            let gradient = response.grads.pop().and_then(|mut set| set.remove(&last));
            let gradient = gradient.ok_or_else(|| Error::output("the model handed back no gradient"))?;
            // All tokens were the mean, so its gradient is theirs together; the mean hands each token its part.
            let whole = sum(&gradient.share_tensor()?, &[1], true)?.f_div_scalar(n as f64)?;
            seeds.push(whole.f_expand_as(&rows)?.f_contiguous()?);
        }
        let mut objectives = Vec::new();
        for (site, seed) in sites.iter().zip(&seeds) {
            objectives.push(vec![Objective::Site(block(site), Array::from_tensor(seed)?)]);
        }
        let grads = crate::stack::names(&sites);
        let response = model.run(&Request { objectives, grads, ..Request::forward(context.images.clone()) })?;
        let mut map: Option<Tensor> = None;
        for (site, set) in sites.iter().zip(&response.grads) {
            let gradient = set.get(&site.name);
            let gradient = gradient.ok_or_else(|| Error::output(format!("no gradient at {}", site.name)))?;
            let layer = mean(&heads(&tensor(gradient, site)?.f_relu()?)?, &[1], false)?;
            map = Some(match map {
                None => layer,
                Some(map) => map.f_add(&layer)?,
            });
        }
        let map = map.ok_or_else(|| Error::invalid("there is no block"))?;
        maps(&map, sites[0])
    }
}
