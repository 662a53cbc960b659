//! GradCAM: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
//! ICCV 2017, arXiv:1610.02391.
//!
//! `map = relu(sum_c w_c A_c)` with `w_c` the spatial mean of `d logit / d A_c` (equations 1 and 2), at the layer's own
//! resolution. The logit is taken before the softmax, as in the paper. For token layers the tokens of the grid are the
//! positions; prefix tokens take no part in mean or map.

use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};

register_explainer!(GradCam);

struct GradCam;

/// The layer that the parameters name, or the model's default.
fn layer<'a>(model: &'a ModelSpec, params: &'a Params) -> Result<Option<&'a str>> {
    let named = params.text("layer")?;
    Ok(if named.is_empty() { model.cam_site.as_deref() } else { Some(named) })
}

/// [B, N, C, ...] tokens without their prefix as [B, C, h, w]; feature maps as they are.
fn as_map(value: &Tensor, site: &Site) -> Result<Tensor> {
    match (site.layout, site.grid) {
        (Layout::BCHW, _) => Ok(value.shallow_clone()),
        (Layout::BNC, Some([h, w])) => {
            let [b, _, c]: [i64; 3] = value
                .size()
                .try_into()
                .map_err(|s| Error::invalid(format!("site {} has shape {s:?}, expected [B, N, C]", site.name)))?;
            let tokens = value.f_narrow(1, site.prefix.len() as i64, (h * w) as i64)?;
            Ok(tokens.f_transpose(1, 2)?.f_reshape([b, c, h as i64, w as i64])?)
        }
        _ => Err(Error::unsupported(format!("site {} is neither a feature map nor a token grid", site.name))),
    }
}

impl Explainer for GradCam {
    fn spec(&self) -> ExplainerSpec {
        ExplainerSpec {
            name: "gradcam".into(),
            title: "GradCAM".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            reference: Reference {
                citation: "Selvaraju et al.: Grad-CAM: Visual Explanations from Deep Networks via Gradient-based \
                           Localization, ICCV 2017"
                    .into(),
                id: "arXiv:1610.02391".into(),
            },
            family: Family::Cam,
            signed: false,
            parameters: vec![
                ParamSpec::text("layer", "", "site to read; empty for the model's default, the tensor that is pooled"),
                ParamSpec::flag("relu", true, "keep positive evidence only"),
            ],
            cpu_only: false,
        }
    }

    fn plan(&self, model: &ModelSpec, params: &Params) -> Result<Plan> {
        let Some(name) = layer(model, params)? else {
            return Ok(Plan::not_applicable(format!("{} has no layer for class activation maps", model.name)));
        };
        // A layer that this model lacks and another has is no mistake of the spec.
        let Ok(site) = model.site(name) else {
            return Ok(Plan::not_applicable(format!("{} has no layer {name}", model.name)));
        };
        if !matches!((site.layout, site.grid), (Layout::BCHW | Layout::BNC, Some(_))) {
            return Ok(Plan::not_applicable(format!("{name} is neither a feature map nor a token grid")));
        }
        let sites = vec![name.to_string()];
        Ok(Needs { values: sites.clone(), gradients: sites, ..Needs::default() }.into())
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        let name = layer(&context.model, &context.params)?.ok_or_else(|| Error::invalid("no layer"))?;
        let site = context.model.site(name)?;
        let (value, gradient) = (context.value(name)?.to_tensor()?, context.gradient(name)?.to_tensor()?);
        let (value, gradient) = (as_map(&value, site)?, as_map(&gradient, site)?);
        let weights = gradient.f_mean_dim([2i64, 3].as_slice(), true, Kind::Float)?;
        let map = value.f_mul(&weights)?.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float)?;
        let map = if context.params.flag("relu")? { map.f_relu()? } else { map };
        Ok(Array::from_tensor(&map)?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbox_sdk::tch::{Device, index::*};

    #[test]
    fn tokens_lose_their_prefix() {
        let site = Site {
            layout: Layout::BNC,
            prefix: vec!["cls".into()],
            kind: SiteKind::Tokens,
            ..Site::feature("blocks.0", 3, [2, 2])
        };
        let tokens = Tensor::arange(30, (Kind::Float, Device::Cpu)).reshape([2, 5, 3]);
        let map = as_map(&tokens, &site).unwrap();
        assert_eq!(map.size(), [2, 3, 2, 2]);
        for (row, col) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let token = tokens.i((1, 1 + row * 2 + col));
            assert_eq!(map.i((1, .., row, col)), token);
        }
    }

    /// The paper's two equations, one number at a time.
    #[test]
    fn equals_the_equations() {
        let site = Site::feature("layer", 3, [2, 2]);
        let model = ModelSpec {
            sites: vec![site],
            cam_site: Some("layer".into()),
            ..ModelSpec::new("m", InputSpec::imagenet(4), 2)
        };
        let noise =
            |seed: f64| ((Tensor::arange(24, (Kind::Double, Device::Cpu)) * seed).sin() * 9.0).reshape([2, 3, 2, 2]);
        let (a, g) = (noise(1.7).to_kind(Kind::Float), noise(2.9).to_kind(Kind::Float));
        let images = Array::from_vec(&[2, 3, 4, 4], vec![0f32; 96]).unwrap();
        let maps = ContextBuilder::new(model, images)
            .value("layer", Array::from_tensor(&a).unwrap())
            .gradient("layer", Array::from_tensor(&g).unwrap())
            .explain(&GradCam)
            .unwrap();
        let found = maps.array.to_ndarray::<f32>().unwrap();
        for (b, y, x) in [(0, 0, 0), (0, 1, 0), (1, 0, 1), (1, 1, 1)] {
            let at = |t: &Tensor, c: i64, y: i64, x: i64| t.double_value(&[b, c, y, x]);
            let weight = |c: i64| (0..4).map(|i| at(&g, c, i / 2, i % 2)).sum::<f64>() / 4.0;
            let wanted = (0..3).map(|c| weight(c) * at(&a, c, y, x)).sum::<f64>().max(0.0);
            assert!((f64::from(found[[b as usize, y as usize, x as usize]]) - wanted).abs() < 1e-4);
        }
    }
}
