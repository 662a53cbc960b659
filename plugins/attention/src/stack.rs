//! What methods on attention share: the layers of a model, rows of the tokens that are classified, tokens as a grid.

use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};
use lightbox_sdk::tools::maps::{float, mean};

/// Attention layers in their order: one a block where every token asks, or the one layer of a class token alone.
pub fn layers(model: &ModelSpec) -> std::result::Result<Vec<&Site>, String> {
    let found: Vec<&Site> = model.sites.iter().filter(|s| s.kind == SiteKind::Attention && s.grid.is_some()).collect();
    if found.is_empty() { Err(format!("{} has no attention", model.name)) } else { Ok(found) }
}

/// The same of a model in which every block has attention among all tokens; `instead` is what a single layer's map is called.
pub fn blocks<'a>(model: &'a ModelSpec, instead: &str) -> std::result::Result<Vec<&'a Site>, String> {
    let found = layers(model)?;
    if found.iter().any(|s| s.query != "tokens") {
        return Err(format!(
            "{} has one attention layer, that of its class token; on it this is {instead}",
            model.name
        ));
    }
    Ok(found)
}

/// The same where a method begins at the block of the parameter `start`, which must be there.
pub fn starting<'a>(
    sites: std::result::Result<Vec<&'a Site>, String>,
    params: &Params,
) -> Result<std::result::Result<Vec<&'a Site>, String>> {
    let start = params.integer("start")? as usize;
    Ok(sites.and_then(|sites| match sites.len() {
        n if start < n => Ok(sites),
        n => Err(format!("there is no block {start}, which `start` names: it has {n}")),
    }))
}

pub fn names(sites: &[&Site]) -> Vec<String> {
    sites.iter().map(|s| s.name.clone()).collect()
}

/// Needs from a list of layers or the reason why there is none.
pub fn plan<'a>(
    sites: std::result::Result<Vec<&'a Site>, String>,
    needs: impl FnOnce(&[&'a Site]) -> Result<Needs>,
) -> Result<Plan> {
    Ok(match sites {
        Ok(sites) => needs(&sites)?.into(),
        Err(reason) => Plan::not_applicable(reason),
    })
}

/// What `f` makes of the layers of a model that was planned for.
pub fn planned(sites: std::result::Result<Vec<&Site>, String>) -> Result<Vec<&Site>> {
    sites.map_err(Error::invalid)
}

/// The block that an attention site is in: `blocks.3` of `blocks.3.attn`.
pub fn block(site: &Site) -> String {
    site.name.strip_suffix(".attn").unwrap_or(&site.name).to_string()
}

/// The site in front of each block: the end of the one before, `embed` for the first.
pub fn inputs(sites: &[&Site]) -> Vec<String> {
    let ends = sites.iter().map(|s| block(s));
    std::iter::once("embed".to_string()).chain(ends).take(sites.len()).collect()
}

/// An attention site's array, [B, heads, queries, keys].
pub fn tensor(array: &Array, site: &Site) -> Result<Tensor> {
    array.dims::<4>(&site.name)?;
    array.share_tensor()
}

/// Of [B, ..., queries, keys] the rows of the tokens that are classified, their mean where there are two (a distilled model
/// has the mean of two heads): [B, ..., keys]. Of a model with a token a class, the explained class's.
pub fn row(of: &Tensor, site: &Site, targets: &Array) -> Result<Tensor> {
    let at = of.dim() as i64 - 2;
    if site.query == "per-class" {
        let mut size = of.size();
        size[at as usize] = 1;
        let mut shape = vec![1i64; of.dim()];
        shape[0] = -1;
        let index = targets.share_tensor()?.f_to_device(of.device())?.f_reshape(shape)?.f_expand(size, false)?;
        return Ok(of.f_gather(at, &index, false)?.f_squeeze_dim(at)?);
    }
    let prefix = if site.query == "cls" { 1 } else { site.prefix.len().max(1) as i64 };
    mean(&of.f_narrow(at, 0, prefix)?, &[at], false)
}

/// [B, prefix + grid] as the maps [B, h, w].
pub fn grid(values: &Tensor, site: &Site) -> Result<Tensor> {
    let [h, w] = site.grid.ok_or_else(|| Error::invalid(format!("site {} has no grid", site.name)))?;
    let (b, n) = (values.size()[0], (h * w) as i64);
    let tokens = values.f_narrow(1, site.prefix.len() as i64, n)?;
    float(&tokens.f_reshape([b, h as i64, w as i64])?)
}

pub fn maps(values: &Tensor, site: &Site) -> Result<Maps> {
    Ok(Array::from_tensor(&grid(values, site)?)?.into())
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
        let targets = Array::from_vec(&[2], vec![2i64, 1]).unwrap();
        let first = |site: &Site, b: i64| row(&of, site, &targets).unwrap().double_value(&[b, 1, 0]);
        assert_eq!(first(&site("tokens", &["cls"]), 1), of.double_value(&[1, 1, 0, 0]));
        let two = (of.double_value(&[1, 1, 0, 0]) + of.double_value(&[1, 1, 1, 0])) / 2.0;
        assert_eq!(first(&site("tokens", &["cls", "dist"]), 1), two);
        assert_eq!(first(&site("per-class", &[]), 0), of.double_value(&[0, 1, 2, 0]));
        assert_eq!(first(&site("per-class", &[]), 1), of.double_value(&[1, 1, 1, 0]));
        assert_eq!(row(&of, &site("per-class", &[]), &targets).unwrap().size(), [2, 2, 4]);
    }
}
