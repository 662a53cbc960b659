//! Attention rollout: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, arXiv:2005.00928.
//!
//! `R = prod_l norm((A_l + I) / 2)`, the first layer rightmost, rows normalised to sum 1; the map is the class token's row
//! (equation 1). `discard` sets the least weights of each layer to 0 first, as Gildenblat's vit-explain does, which spares
//! the class token's weight on itself. vit-explain divides columns by rows' sums; `normalise = columns` repeats it.

use crate::stack::{blocks, heads, identity, maps, names, plan, planned, row, starting, tensor};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Tensor;
use lightbox_sdk::tools::maps::sum;

register_explainer!(Rollout);

struct Rollout;

/// Parameters that the rollout with gradients has too.
pub fn parameters(discard: f64) -> [ParamSpec; 3] {
    let text = "what is divided by a row's sum: the row, or, as in vit-explain, the column";
    [
        ParamSpec::number("discard", discard, (0.0, 0.999), "share", "of each layer's weights that is set to 0"),
        ParamSpec::choice("normalise", "rows", &["rows", "columns"], text),
        ParamSpec::integer("start", 0, (0, 1000), "", "the first block that counts"),
    ]
}

/// `F` [B, N, N] without its least entries.
pub fn discard(fused: &Tensor, share: f64, spare_first: bool) -> Result<Tensor> {
    let (b, n) = (fused.size()[0], fused.size()[1]);
    let count = ((n * n) as f64 * share) as i64;
    if count == 0 {
        return Ok(fused.shallow_clone());
    }
    let flat = fused.f_reshape([b, n * n])?;
    let (_, least) = flat.f_topk(count, 1, false, false)?;
    let mut keep = flat.f_ones_like()?;
    let _ = keep.f_scatter_value_(1, &least, 0.0)?;
    if spare_first {
        let _ = keep.f_narrow(1, 0, 1)?.f_fill_(1.0)?;
    }
    Ok(flat.f_mul(&keep)?.f_reshape([b, n, n])?)
}

/// The product of the layers.
pub fn product(layers: impl Iterator<Item = Result<Tensor>>, columns: bool) -> Result<Tensor> {
    let mut result: Option<Tensor> = None;
    for layer in layers {
        let a = layer?;
        let a = a.f_add(&identity(&a)?)?.f_div_scalar(2.0)?;
        let sums = sum(&a, &[2], !columns)?;
        let a = a.f_div(&if columns { sums.f_unsqueeze(1)? } else { sums })?;
        result = Some(match result {
            None => a,
            Some(before) => a.f_matmul(&before)?,
        });
    }
    result.ok_or_else(|| Error::invalid("parameter start: no block is left"))
}

impl Explainer for Rollout {
    fn spec(&self) -> ExplainerSpec {
        let citation = "Abnar, Zuidema: Quantifying Attention Flow in Transformers, ACL 2020";
        ExplainerSpec::new("rollout", "Attention rollout", Family::Attention, citation, "arXiv:2005.00928")
            .version(env!("CARGO_PKG_VERSION"))
            .formula("row cls of prod_l rownorm((fuse_heads A_l + I) / 2)")
            .cost("1 F")
            .notes("The same for every class. vit-explain divides columns by the rows' sums: normalise = columns.")
            .parameters([ParamSpec::choice("fusion", "mean", &["mean", "max", "min"], "how heads become one matrix")])
            .parameters(parameters(0.0))
    }

    fn plan(&self, model: &ModelSpec, params: &Params) -> Result<Plan> {
        plan(starting(blocks(model, "attention"), params)?, |sites| {
            Ok(Needs { values: names(sites), ..Needs::default() })
        })
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        let sites = planned(blocks(&context.model, "attention"))?;
        let (fusion, share) = (context.params.text("fusion")?, context.params.number("discard")?);
        let start = context.params.integer("start")? as usize;
        let fused = sites.iter().skip(start).map(|site| {
            let a = tensor(context.value(&site.name)?, site)?;
            let fused = match fusion {
                "max" => a.f_amax([1i64].as_slice(), false)?,
                "min" => a.f_amin([1i64].as_slice(), false)?,
                _ => heads(&a)?,
            };
            discard(&fused, share, true)
        });
        let all = product(fused, context.params.text("normalise")? == "columns")?;
        maps(&row(&all, sites[0], &context.targets)?, sites[0])
    }
}
