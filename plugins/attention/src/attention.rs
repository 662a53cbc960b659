//! Attention maps: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021,
//! arXiv:2104.14294, show the class token's row of the last attention, a map a head; the study of nodules takes the maximum
//! over heads.
//!
//! `map = fuse_heads A[head, query, grid tokens]`, softmaxed weights, not normalised. The query is the class token; for a
//! model with one token a class, the explained class's.

use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};

register_explainer!(Attention);

struct Attention;

choice! {
    /// how heads become one map
    enum Fusion { Max = "max", Mean = "mean", Min = "min", Index = "index" }
}

choice! {
    /// whose row: distilled models have two
    enum Token { Cls = "cls", Dist = "dist", Both = "both" }
}

#[derive(Params)]
struct Settings {
    /// attention site to read; empty for the model's last
    #[param(default = "")]
    layer: String,
    #[param(default = Fusion::Max)]
    fusion: Fusion,
    /// the head of fusion = index, which needs it; else -1
    #[param(default = -1, range = (-1, 1023))]
    head: i64,
    #[param(default = Token::Cls)]
    token: Token,
}

impl Explainer for Attention {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Caron et al.",
            "Emerging Properties in Self-Supervised Vision Transformers",
            "ICCV",
            2021,
            "arXiv:2104.14294",
        );
        ExplainerSpec::new("attention", "Attention of the class token", Family::Attention, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .any_dimensions()
            .formula("fuse_heads A[head, query, grid tokens], A softmaxed, the last layer's")
            .cost("1 F")
            .notes("The same for every class, but where a model has a token a class.")
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        let named = if params.layer.is_empty() { model.attention_site.clone() } else { Some(params.layer.clone()) };
        let Some(name) = named else {
            return Ok(Bound::not_applicable(model.without_attention()));
        };
        // A layer that this model lacks and another has is no mistake of the spec.
        let Ok(site) = model.site(&name) else {
            return Ok(Bound::not_applicable(format!("{} has no layer {name}", model.name)));
        };
        if !site.is_attention() {
            return Ok(Bound::not_applicable(format!("{name} holds no attention weights over a grid")));
        }
        let has_two = site.query == "tokens" && site.prefix.iter().any(|p| p == "dist");
        if params.token != Token::Cls && !has_two {
            return Ok(Bound::not_applicable(format!("{} has no distillation token", model.name)));
        }
        let (index, head) = (params.fusion == Fusion::Index, params.head);
        if index != (head >= 0) {
            return Err(Error::invalid("parameter head: fusion = index needs it, the others take all heads"));
        }
        if index && head as usize >= site.channels {
            return Err(Error::invalid(format!("parameter head: {name} has {} heads, counted from 0", site.channels)));
        }
        let site = site.clone();
        Ok(Bound::new(Needs { values: vec![name], ..Needs::default() }, move |context| {
            explain(context, &site, &params)
        }))
    }
}

fn explain(context: &Context<'_>, site: &Site, params: &Settings) -> Result<Maps> {
    let (name, weights) = (&site.name, context.value(&site.name)?);
    let [b, heads, _, keys] = weights.dims("attention")?;
    if keys != site.prefix.len() + site.places() {
        let wanted = site.prefix.len() + site.places();
        return Err(Error::invalid(format!("site {name} has {keys} keys, expected {wanted}")));
    }
    let weights = weights.to_tensor()?;
    let row = |role: &str| -> Result<Tensor> {
        let at = site.prefix.iter().position(|p| p == role);
        let at = at.ok_or_else(|| Error::invalid(format!("site {name} has no {role} token")))?;
        Ok(weights.f_select(2, at as i64)?)
    };
    let rows = match (site.query.as_str(), params.token) {
        ("cls", _) => weights.f_select(2, 0)?,
        ("per-class", _) => {
            let index = Tensor::f_from_slice(&context.classes()?)?.f_to_device(weights.device())?;
            let index = index.f_reshape([b as i64, 1, 1, 1])?;
            let index = index.f_expand([b as i64, heads as i64, 1, keys as i64], false)?;
            weights.f_gather(2, &index, false)?.f_select(2, 0)?
        }
        (_, Token::Both) => row("cls")?.f_add(&row("dist")?)?.f_div_scalar(2.0)?,
        (_, token) => row(token.word())?,
    };
    let grid = rows.f_narrow(2, site.prefix.len() as i64, site.places() as i64)?;
    let map = match params.fusion {
        Fusion::Mean => grid.f_mean_dim([1i64].as_slice(), false, Kind::Float)?,
        Fusion::Min => grid.f_amin([1i64].as_slice(), false)?,
        Fusion::Index => grid.f_select(1, params.head)?,
        Fusion::Max => grid.f_amax([1i64].as_slice(), false)?,
    };
    let shape = [vec![b as i64], site.grid.iter().map(|n| *n as i64).collect()].concat();
    Ok(Array::from_tensor(&map.f_reshape(shape)?)?.into())
}
