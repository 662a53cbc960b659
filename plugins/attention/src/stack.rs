//! What methods on attention share: the layers of a model, rows of the tokens that are classified, tokens as a grid.

use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};
use lightbox_sdk::tools::maps::{float, mean};

/// The attentions of a model in their order: one a block where every token asks, or the one of a class token alone.
pub fn layers(model: &ModelSpec) -> std::result::Result<Vec<AttentionBlock>, String> {
    let found = model.attention_blocks();
    if found.is_empty() { Err(model.without_attention()) } else { Ok(found) }
}

/// The same of a model in which every block has attention among all tokens; `instead` is what a single layer's map is called.
pub fn blocks(model: &ModelSpec, instead: &str) -> std::result::Result<Vec<AttentionBlock>, String> {
    let found = layers(model)?;
    if found.iter().any(|b| b.weights.query != "tokens") {
        return Err(format!(
            "{} has one attention layer, that of its class token; on it this is {instead}",
            model.name
        ));
    }
    Ok(found)
}

/// The same where a method begins at the block `start`, which must be there.
pub fn starting(
    blocks: std::result::Result<Vec<AttentionBlock>, String>,
    start: usize,
) -> std::result::Result<Vec<AttentionBlock>, String> {
    blocks.and_then(|blocks| match blocks.len() {
        n if start < n => Ok(blocks),
        n => Err(format!("there is no block {start}, which `start` names: it has {n}")),
    })
}

/// Binds a method to a list of blocks, or says why there is none.
pub fn bound(
    blocks: std::result::Result<Vec<AttentionBlock>, String>,
    make: impl FnOnce(Vec<AttentionBlock>) -> Result<Bound>,
) -> Result<Bound> {
    match blocks {
        Ok(blocks) => make(blocks),
        Err(reason) => Ok(Bound::not_applicable(reason)),
    }
}

/// The sites of the blocks' softmaxed weights.
pub fn names(blocks: &[AttentionBlock]) -> Vec<String> {
    blocks.iter().map(|b| b.weights.name.clone()).collect()
}

/// A site of each block, by name; an error where a block has none.
pub fn parts(
    blocks: &[AttentionBlock],
    what: &str,
    part: impl Fn(&AttentionBlock) -> &Option<Site>,
) -> Result<Vec<String>> {
    blocks.iter().map(|b| Ok(AttentionBlock::require(part(b), what)?.name)).collect()
}

/// An attention site's array, [B, heads, queries, keys].
pub fn tensor(array: &Array, site: &Site) -> Result<Tensor> {
    array.dims::<4>(&site.name)?;
    array.share_tensor()
}

/// Of [B, ..., queries, keys] the rows of the tokens that are classified, their mean where there are two (a distilled model
/// has the mean of two heads): [B, ..., keys]. Of a model with a token a class, the explained class's.
pub fn row(context: &Context<'_>, of: &Tensor, site: &Site) -> Result<Tensor> {
    row_of(of, site, || context.classes())
}

fn row_of(of: &Tensor, site: &Site, classes: impl FnOnce() -> Result<Vec<i64>>) -> Result<Tensor> {
    let at = of.dim() as i64 - 2;
    if site.query == "per-class" {
        let mut size = of.size();
        size[at as usize] = 1;
        let mut shape = vec![1i64; of.dim()];
        shape[0] = -1;
        let index = Tensor::f_from_slice(&classes()?)?.f_to_device(of.device())?;
        let index = index.f_reshape(shape)?.f_expand(size, false)?;
        return Ok(of.f_gather(at, &index, false)?.f_squeeze_dim(at)?);
    }
    let prefix = if site.query == "cls" { 1 } else { site.prefix.len().max(1) as i64 };
    mean(&of.f_narrow(at, 0, prefix)?, &[at], false)
}

/// [B, prefix + grid] as maps [B, grid...].
pub fn maps(values: &Tensor, site: &Site) -> Result<Maps> {
    Ok(Array::from_tensor(&float(&site.tokens_to_grid(values)?)?)?.into())
}

/// The identity, [1, n, n].
pub fn identity(like: &Tensor) -> Result<Tensor> {
    let n = like.size()[like.dim() - 1];
    Ok(Tensor::f_eye(n, (Kind::Float, like.device()))?.f_unsqueeze(0)?)
}

/// Mean over heads of [B, heads, ...].
pub fn heads(t: &Tensor) -> Result<Tensor> {
    mean(t, &[1], false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbox_sdk::tch::Device;

    #[test]
    fn rows_are_those_of_the_tokens_that_are_classified() {
        let site = |query: &str, prefix: &[&str]| Site::attention("a", 2, [1, 2], prefix, query);
        let of = Tensor::arange(2 * 2 * 3 * 4, (Kind::Float, Device::Cpu)).reshape([2, 2, 3, 4]);
        let classes = || Ok(vec![2i64, 1]);
        let first = |site: &Site, b: i64| row_of(&of, site, classes).unwrap().double_value(&[b, 1, 0]);
        assert_eq!(first(&site("tokens", &["cls"]), 1), of.double_value(&[1, 1, 0, 0]));
        let two = (of.double_value(&[1, 1, 0, 0]) + of.double_value(&[1, 1, 1, 0])) / 2.0;
        assert_eq!(first(&site("tokens", &["cls", "dist"]), 1), two);
        assert_eq!(first(&site("per-class", &[]), 0), of.double_value(&[0, 1, 2, 0]));
        assert_eq!(first(&site("per-class", &[]), 1), of.double_value(&[1, 1, 1, 0]));
        assert_eq!(row_of(&of, &site("per-class", &[]), classes).unwrap().size(), [2, 2, 4]);
    }
}
