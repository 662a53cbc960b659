//! AblationCAM (Desai and Ramaswamy, "Ablation-CAM", WACV 2020): a channel's weight is the share of the target's logit that
//! its removal costs, `w_c = (y - y_c) / y`; the map is `relu(sum_c w_c A_c)`.
//!
//! Only what follows the layer runs, with many channels a batch. Where a run can begin at the layer itself it does; else at
//! the last site before it, with the channels removed by a patch of the layer: DeiT's `blocks.11.norm1` is not all that
//! goes on from there, `blocks.10` is.

use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};

register_explainer!(Ablation);

struct Ablation;

/// Where runs begin for a layer: the last site before it, or itself, at which one can.
fn entry<'a>(model: &'a ModelSpec, layer: &str) -> Option<&'a Site> {
    let at = model.sites.iter().position(|s| s.name == layer)?;
    model.sites[..=at].iter().rev().find(|s| s.start)
}

#[derive(Params)]
struct Settings {
    /// channels at once
    #[param(default = 64, range = (1, 4096), unit = "runs")]
    batch: usize,
    /// run the whole model for every channel: slow, for comparison
    #[param(default = false)]
    whole: bool,
}

impl Explainer for Ablation {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new("Desai, Ramaswamy", "Ablation-CAM", "WACV", 2020, "");
        ExplainerSpec::new("hard-ablation", "AblationCAM", Family::Cam, reference)
    }

    fn bind(&self, model: &ModelSpec, settings: Settings) -> Result<Bound> {
        let Some(layer) = model.cam_site.as_ref().and_then(|name| model.site(name).ok()).cloned() else {
            return Ok(Bound::not_applicable("there is no layer to ablate"));
        };
        let mut values = vec![layer.name.clone()];
        if !settings.whole {
            let Some(entry) = entry(model, &layer.name) else {
                return Ok(Bound::not_applicable(format!("no run of {} can begin before {}", model.name, layer.name)));
            };
            if !values.contains(&entry.name) {
                values.push(entry.name.clone());
            }
        }
        let needs = Needs { values, model: true, ..Needs::default() };
        Ok(Bound::new(needs, move |context| explain(context, &layer, &settings)))
    }
}

fn explain(context: &Context<'_>, site: &Site, settings: &Settings) -> Result<Maps> {
    let (layer, whole, batch) = (&site.name, settings.whole, settings.batch as i64);
    let value = context.value(layer)?.to_tensor()?;
    let (b, channels, model) = (value.size()[0], site.channels as i64, context.run_model()?);
    let targets = context.classes()?;
    let tokens = site.is_tokens();
    let logits = context.logits.to_tensor()?.f_to_kind(Kind::Double)?;
    let mut weights = Vec::new();
    for (i, &target) in targets.iter().enumerate() {
        let whole_logit = logits.f_double_value(&[i as i64, target])?;
        let mut first = 0;
        while first < channels {
            context.check_cancelled()?;
            context.progress(i as u64 * channels as u64 + first as u64, (b * channels) as u64);
            let n = batch.min(channels - first);
            // [n, channels] ones, with a zero each.
            let keep = Tensor::f_eye_m(n, channels, (Kind::Float, value.device()))?;
            let keep = keep.f_roll([first], [1])?.f_neg()?.f_add_scalar(1.0)?;
            let shape = if tokens { vec![n, 1, channels] } else { vec![n, channels, 1, 1] };
            let scale = Some(Array::from_tensor(&keep.f_reshape(shape)?)?);
            let patches = vec![Patch { site: layer.clone(), scale, shift: None }];
            let repeat = |a: &Array| -> Result<Array> {
                let one = a.to_tensor()?.f_narrow(0, i as i64, 1)?;
                let mut size = one.size();
                size[0] = n;
                Array::from_tensor(&one.f_expand(size, false)?.f_contiguous()?)
            };
            let request = if whole {
                Request::forward(repeat(&context.images)?)
            } else {
                let from = entry(&context.model, layer).ok_or_else(|| Error::invalid("no site to begin at"))?;
                Request::from_site(&from.name, repeat(context.value(&from.name)?)?)?
            };
            let found = model.run(&Request { patches, ..request })?.logits;
            let found = found.to_tensor()?.f_select(1, target)?.f_to_kind(Kind::Double)?;
            weights.push(found.f_neg()?.f_add_scalar(whole_logit)?.f_div_scalar(whole_logit)?);
            first += n;
        }
    }
    let weights = Tensor::f_cat(&weights, 0)?.f_reshape([b, channels])?.f_to_kind(Kind::Float)?;
    let map = if tokens {
        site.tokens_to_grid(&value.f_matmul(&weights.f_unsqueeze(2)?)?.f_squeeze_dim(2)?)?
    } else {
        let weights = weights.f_reshape([b, channels, 1, 1])?;
        value.f_mul(&weights)?.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float)?
    };
    Ok(Array::from_tensor(&map.f_relu()?)?.into())
}
