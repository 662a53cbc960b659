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

/// The layer that the parameters name, or the model's last attention.
fn layer<'a>(model: &'a ModelSpec, params: &'a Params) -> Result<Option<&'a str>> {
    let named = params.text("layer")?;
    Ok(if named.is_empty() { model.attention_site.as_deref() } else { Some(named) })
}

impl Explainer for Attention {
    fn spec(&self) -> ExplainerSpec {
        let citation = "Caron et al.: Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021";
        ExplainerSpec::new("attention", "Attention of the class token", Family::Attention, citation, "arXiv:2104.14294")
            .version(env!("CARGO_PKG_VERSION"))
            .formula("fuse_heads A[head, query, grid tokens], A softmaxed, the last layer's")
            .cost("1 F")
            .notes("The same for every class, but where a model has a token a class.")
            .parameters([
                ParamSpec::text("layer", "", "attention site to read; empty for the model's last"),
                ParamSpec::choice("fusion", "max", &["max", "mean", "min", "index"], "how heads become one map"),
                ParamSpec::integer("head", -1, (-1, 1023), "", "the head of fusion = index, which needs it; else -1"),
                ParamSpec::choice("token", "cls", &["cls", "dist", "both"], "whose row: distilled models have two"),
            ])
    }

    fn plan(&self, model: &ModelSpec, params: &Params) -> Result<Plan> {
        let Some(name) = layer(model, params)? else {
            return Ok(Plan::not_applicable(format!("{} has no attention", model.name)));
        };
        // A layer that this model lacks and another has is no mistake of the spec.
        let Ok(site) = model.site(name) else {
            return Ok(Plan::not_applicable(format!("{} has no layer {name}", model.name)));
        };
        if site.kind != SiteKind::Attention || site.grid.is_none() {
            return Ok(Plan::not_applicable(format!("{name} holds no attention weights over a grid")));
        }
        if params.text("token")? != "cls" && !(site.query == "tokens" && site.prefix.iter().any(|p| p == "dist")) {
            return Ok(Plan::not_applicable(format!("{} has no distillation token", model.name)));
        }
        let (index, head) = (params.text("fusion")? == "index", params.integer("head")?);
        if index != (head >= 0) {
            return Err(Error::invalid("parameter head: fusion = index needs it, the others take all heads"));
        }
        if index && head as usize >= site.channels {
            return Err(Error::invalid(format!("parameter head: {name} has {} heads, counted from 0", site.channels)));
        }
        Ok(Needs { values: vec![name.to_string()], ..Needs::default() }.into())
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        let name = layer(&context.model, &context.params)?.ok_or_else(|| Error::invalid("no layer"))?;
        let site = context.model.site(name)?;
        let [h, w] = site.grid.ok_or_else(|| Error::invalid(format!("site {name} has no grid")))?;
        let weights = context.value(name)?;
        let [b, heads, _, keys] = weights.dims("attention")?;
        if keys != site.prefix.len() + h * w {
            return Err(Error::invalid(format!("site {name} has {keys} keys, expected {}", site.prefix.len() + h * w)));
        }
        let weights = weights.to_tensor()?;
        let row = |role: &str| -> Result<Tensor> {
            let at = site.prefix.iter().position(|p| p == role);
            let at = at.ok_or_else(|| Error::invalid(format!("site {name} has no {role} token")))?;
            Ok(weights.f_select(2, at as i64)?)
        };
        let rows = match site.query.as_str() {
            "cls" => weights.f_select(2, 0)?,
            "per-class" => {
                let targets = context.targets.to_tensor()?.f_to_device(weights.device())?;
                let index = targets.f_reshape([b as i64, 1, 1, 1])?;
                let index = index.f_expand([b as i64, heads as i64, 1, keys as i64], false)?;
                weights.f_gather(2, &index, false)?.f_select(2, 0)?
            }
            _ => match context.params.text("token")? {
                "both" => row("cls")?.f_add(&row("dist")?)?.f_div_scalar(2.0)?,
                role => row(role)?,
            },
        };
        let grid = rows.f_narrow(2, site.prefix.len() as i64, (h * w) as i64)?;
        let map = match context.params.text("fusion")? {
            "mean" => grid.f_mean_dim([1i64].as_slice(), false, Kind::Float)?,
            "min" => grid.f_amin([1i64].as_slice(), false)?,
            "index" => grid.f_select(1, context.params.integer("head")?)?,
            _ => grid.f_amax([1i64].as_slice(), false)?,
        };
        Ok(Array::from_tensor(&map.f_reshape([b as i64, h as i64, w as i64])?)?.into())
    }
}
