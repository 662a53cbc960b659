//! Attention rollout: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, arXiv:2005.00928.
//!
//! `R = prod_l norm((A_l + I) / 2)`, the first layer rightmost, rows normalised to sum 1; the map is the class token's row
//! (equation 1). `discard` sets the least weights of each layer to 0 first, as Gildenblat's vit-explain does, which spares
//! the class token's weight on itself. vit-explain divides columns by rows' sums; `normalise = columns` repeats it.

use crate::stack::{blocks, bound, heads, identity, maps, names, row, starting, tensor};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Tensor;
use lightbox_sdk::tools::maps::sum;

register_explainer!(Rollout);

struct Rollout;

choice! {
    /// what is divided by a row's sum: the row, or, as in vit-explain, the column
    pub enum Normalise { Rows = "rows", Columns = "columns" }
}

/// Parameters that the rollout with gradients has too.
#[derive(Params)]
pub struct Chain {
    /// of each layer's weights that is set to 0
    #[param(default = 0.0, range = (0.0, 0.999), unit = "share")]
    pub discard: f64,
    #[param(default = Normalise::Rows)]
    pub normalise: Normalise,
    /// the first block that counts
    #[param(default = 0, range = (0, 1000))]
    pub start: usize,
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
pub fn product(layers: impl Iterator<Item = Result<Tensor>>, normalise: Normalise) -> Result<Tensor> {
    let columns = normalise == Normalise::Columns;
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

choice! {
    /// how heads become one matrix
    enum Fusion { Mean = "mean", Max = "max", Min = "min" }
}

#[derive(Params)]
struct Settings {
    #[param(default = Fusion::Mean)]
    fusion: Fusion,
    #[param(flatten)]
    chain: Chain,
}

impl Explainer for Rollout {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Abnar, Zuidema",
            "Quantifying Attention Flow in Transformers",
            "ACL",
            2020,
            "arXiv:2005.00928",
        );
        ExplainerSpec::new("rollout", "Attention rollout", Family::Attention, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .any_dimensions()
            .formula("row cls of prod_l rownorm((fuse_heads A_l + I) / 2)")
            .cost("1 F")
            .notes("The same for every class. vit-explain divides columns by the rows' sums: normalise = columns.")
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        bound(starting(blocks(model, "attention"), params.chain.start), |blocks| {
            Ok(Bound::new(Needs { values: names(&blocks), ..Needs::default() }, move |context| {
                let fused = blocks.iter().skip(params.chain.start).map(|block| {
                    let a = tensor(context.value(&block.weights.name)?, &block.weights)?;
                    let fused = match params.fusion {
                        Fusion::Max => a.f_amax([1i64].as_slice(), false)?,
                        Fusion::Min => a.f_amin([1i64].as_slice(), false)?,
                        Fusion::Mean => heads(&a)?,
                    };
                    discard(&fused, params.chain.discard, true)
                });
                let all = product(fused, params.chain.normalise)?;
                maps(&row(context, &all, &blocks[0].weights)?, &blocks[0].weights)
            }))
        })
    }
}
