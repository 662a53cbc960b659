//! LeGrad: Bousselham et al., "LeGrad: An Explainability Method for Vision Transformers via Feature Formation Sensitivity",
//! ICCV 2025, arXiv:2404.03214.
//!
//! Every block's tokens Z_l make a prediction of their own, `s_l = head(norm(mean_tokens Z_l))`, and the map is
//! `sum_l mean_h,queries relu(ds_l / dA_l)` on the grid's tokens (equations 6 to 8). The reference code stops at the last two
//! blocks by default: `layers = 2`. Runs that begin at the last block's end with the mean in every token's place give the
//! gradient that goes back into Z_l; a second one has an objective a block.

use crate::stack::{blocks, bound, heads, maps, parts, tensor};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Tensor;
use lightbox_sdk::tools::maps::{mean, sum};

register_explainer!(LeGrad);

struct LeGrad;

const INSTEAD: &str = "relu of the layer's gradient; there are no intermediate predictions";

#[derive(Params)]
struct Settings {
    /// last blocks that count; 0 for all
    #[param(default = 0, range = (0, 1000))]
    layers: usize,
}

impl Explainer for LeGrad {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Bousselham et al.",
            "LeGrad: An Explainability Method for Vision Transformers via Feature Formation Sensitivity",
            "ICCV",
            2025,
            "arXiv:2404.03214",
        );
        ExplainerSpec::new("legrad", "LeGrad", Family::Attention, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .any_dimensions()
            .formula("sum_l mean_h,queries relu(ds_l / dA_l), s_l = head(norm(mean_tokens Z_l))")
            .cost("1 F, then 1 F, L P, 2 L B for L blocks")
            .notes("The reference code reads the last two blocks by default, the paper all.")
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        bound(blocks(model, INSTEAD), |blocks| {
            let count = match params.layers {
                0 => blocks.len(),
                n => n.min(blocks.len()),
            };
            let used = &blocks[blocks.len() - count..];
            let (n, ends) = (used.len() as u64, parts(used, "end", |b| &b.end)?);
            let extra = Passes { forward: 1, partial: n, backward: 2 * n };
            let sites: Vec<Site> = used.iter().map(|b| b.weights.clone()).collect();
            let needs = Needs { values: ends.clone(), model: true, extra, ..Needs::default() };
            Ok(Bound::new(needs, move |context| explain(context, &sites, &ends)))
        })
    }
}

fn explain(context: &Context<'_>, sites: &[Site], ends: &[String]) -> Result<Maps> {
    let model = context.run_model()?;
    let last = &ends[ends.len() - 1];
    // [B, D] of each block: its tokens' mean.
    let mut means = Vec::new();
    for end in ends {
        means.push(mean(&context.value(end)?.share_tensor()?, &[1], false)?);
    }
    let n = context.value(last)?.dims::<3>(last)?[1] as i64;
    let mut seeds: Vec<Tensor> = Vec::new();
    for m in &means {
        seeds.push(m.f_zeros_like()?);
    }
    let make = |pairs: Pairs<'_>| {
        let row = |&(b, l): &(usize, usize)| Ok(means[l].f_get(b as i64)?);
        let rows = Tensor::f_stack(&pairs.iter().map(row).collect::<Result<Vec<_>>>()?, 0)?.f_unsqueeze(1)?;
        let size = [rows.size()[0], n, rows.size()[2]];
        let start = Request::from_site(last, Array::from_tensor(&rows.f_expand(size, false)?.f_contiguous()?)?)?;
        let objectives = vec![vec![context.objective_of(pairs)?]];
        Ok(Request { objectives, grads: vec![last.clone()], ..start })
    };
    context.sweep(sites.len(), context.at_once_from(last), make, |pairs, response| {
        // All tokens were the mean, so its gradient is theirs together; the mean hands each token its part.
        let whole = response.gradient(0, last)?.share_tensor()?;
        let whole = sum(&whole, &[1], false)?.f_div_scalar(n as f64)?;
        for (row, &(b, l)) in pairs.iter().enumerate() {
            seeds[l].f_get(b as i64)?.f_copy_(&whole.f_get(row as i64)?)?;
        }
        Ok(())
    })?;
    for seed in &mut seeds {
        let size = [seed.size()[0], n, seed.size()[1]];
        *seed = seed.f_unsqueeze(1)?.f_expand(size, false)?.f_contiguous()?;
    }
    let mut objectives = Vec::new();
    for (end, seed) in ends.iter().zip(&seeds) {
        objectives.push(vec![Objective::Site(end.clone(), Array::from_tensor(seed)?)]);
    }
    let grads = sites.iter().map(|s| s.name.clone()).collect();
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
    maps(&map, &sites[0])
}
