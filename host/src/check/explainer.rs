//! What is asked of an explainer.

use super::{
    EXPLAINER_MADE, PLANS, Status, Test, difference, finite, images, keeps_globals, made, pass, refuses, rows, tensor,
};
use crate::engine::host_calls;
use crate::loader::Plugin;
use lightbox_sdk::spec::{ExplainerSpec, ModelSpec, Params, Plan};
use lightbox_sdk::{Array, ExplainInput, ExplainerHandle, ModelHandle, Request};
use std::collections::BTreeMap;
use tch::Kind;

/// The tests of one explainer on a model. `dead`: its making or planning has ended the process before.
pub(super) fn check(
    plugin: &Plugin,
    spec: &ExplainerSpec,
    model: &mut dyn FnMut() -> std::result::Result<ModelHandle, String>,
    dead: bool,
    test: &mut Test<'_>,
) {
    let subject = spec.name.clone();
    let mut cell: Option<(ExplainerHandle, Params)> = None;
    let mut make = || {
        let explainer = plugin.make_explainer(&spec.name).map_err(|e| e.to_string())?;
        let params = Params::resolve(&spec.parameters, &BTreeMap::new()).map_err(|e| e.to_string())?;
        Ok((explainer, params))
    };
    test(&subject, EXPLAINER_MADE, &mut || {
        made(&mut cell, &mut make)?;
        if spec.reference.citation.is_empty() || spec.title.is_empty() {
            return Ok((Status::Warn, "title or reference is empty".into()));
        }
        pass()
    });
    // Dead in its making there is no test of the plan; dead in the plan there is none after it.
    if dead {
        test(&subject, PLANS, &mut || Err("not tried".into()));
        return;
    }
    if made(&mut cell, &mut make).is_err() {
        return;
    }
    let Some((explainer, params)) = cell else { return };
    let mut ready: Option<(ModelHandle, ModelSpec, Plan)> = None;
    let mut plan = || {
        let model = model()?;
        let model_spec = model.spec().map_err(|e| e.to_string())?;
        let plan = explainer.plan(&model_spec, &params).map_err(|e| e.to_string())?;
        if let Plan::Run(needs) = &plan {
            for site in needs.values.iter().chain(&needs.gradients) {
                model_spec.site(site).map_err(|e| e.to_string())?;
            }
        }
        Ok((model, model_spec, plan))
    };
    test(&subject, PLANS, &mut || match made(&mut ready, &mut plan) {
        Ok(()) => match &ready {
            Some((_, model, Plan::NotApplicable { reason })) => {
                Ok((Status::Warn, format!("not applicable to {}: {reason}", model.name)))
            }
            _ => pass(),
        },
        Err(e) if e.starts_with("no model is at hand") => Ok((Status::Warn, e)),
        Err(e) => Err(e),
    });
    if made(&mut ready, &mut plan).is_err() {
        return;
    }
    let Some((model, model_spec, Plan::Run(needs))) = ready else { return };

    let side = [model_spec.input.height, model_spec.input.width];
    let mask = Array::from_vec(&side, (0..side[0] * side[1]).map(|i| (i % 97) as f32 / 97.0).collect());
    let explain =
        |explainer: &ExplainerHandle, images: &Array, ids: &[u64]| -> std::result::Result<Array, lightbox_sdk::Error> {
            let n = images.shape()[0];
            let targets = Array::from_vec(&[n], vec![0i64; n])?;
            let request = Request::explain(images.clone(), targets.clone(), &needs.values, &needs.gradients);
            let mut response = model.run(&request)?;
            explainer.explain(ExplainInput {
                images: images.clone(),
                targets,
                logits: response.logits,
                ids: ids.to_vec(),
                model: &model_spec,
                params: &params,
                seed: 3,
                values: response.values,
                gradients: response.grads.pop().unwrap_or_default(),
                mean_mask: if needs.mean_mask { Some(mask.clone()?) } else { None },
                runner: needs.model.then(|| model.as_ref()),
                host: host_calls(),
            })
        };
    let batch = images(&model_spec, 3);
    let ids = [11, 22, 33];
    let map = || explain(&explainer, &batch, &ids).map_err(|e| e.to_string());

    test(&subject, "maps have the right shape and are finite", &mut || {
        let map = map()?;
        let shape = map.shape();
        if shape.len() != 3 || shape[0] != 3 || shape.contains(&0) {
            return Err(format!("the map has shape {shape:?}, expected [3, h, w]"));
        }
        if map.dtype() != lightbox_sdk::DType::F32 {
            return Err(format!("the map is {:?}, expected F32", map.dtype()));
        }
        finite(&map, "the map")?;
        if !spec.signed && tensor(&map)?.min().double_value(&[]) < 0.0 {
            return Ok((Status::Warn, "the map has negative values, the specification says unsigned".into()));
        }
        pass()
    });
    test(&subject, "is deterministic", &mut || match difference(&map()?, &map()?)? {
        0.0 => pass(),
        d => Err(format!("two calls differ by {d:.1e}; draw random numbers from Context::rng")),
    });
    test(&subject, "gives an image the same map in any batch", &mut || {
        let whole = map()?;
        for i in 0..3 {
            let image = rows(&batch, i, 1).map_err(|e| e.to_string())?;
            let alone = explain(&explainer, &image, &ids[i..=i]).map_err(|e| e.to_string())?;
            let d = difference(&alone, &rows(&whole, i, 1).map_err(|e| e.to_string())?)?;
            if d > 1e-3 {
                return Err(format!("image {i} alone and in a batch differ by {d:.1e}"));
            }
        }
        pass()
    });
    test(&subject, "does not write to its input", &mut || {
        let copy = Array::from_tensor(&tensor(&batch)?.to_kind(Kind::Float).copy()).map_err(|e| e.to_string())?;
        map()?;
        if difference(&batch, &copy)? == 0.0 { pass() } else { Err("the images have changed".into()) }
    });
    test(&subject, "leaves grad mode, threads and random generator as they were", &mut || {
        keeps_globals(&mut || map().map(drop))
    });
    test(&subject, "refuses wrong parameters with an error", &mut || {
        let wrong = BTreeMap::from([("no-such-parameter".to_string(), serde_json::Value::from(1))]);
        match Params::resolve(&spec.parameters, &wrong) {
            Ok(_) => Err("an unknown parameter is accepted".into()),
            Err(_) => pass(),
        }
    });
    test(&subject, "refuses wrong input with an error", &mut || {
        // Arrays of another shape than planned for: an error or, where they are not read, a map; never a panic.
        let odd = Array::from_vec(&[3, 5], vec![0f32; 15]).map_err(|e| e.to_string())?;
        let replace = |names: &[String]| names.iter().map(|n| (n.clone(), odd.clone())).collect::<BTreeMap<_, _>>();
        let outcome = explainer.explain(ExplainInput {
            images: odd.clone(),
            targets: odd.clone(),
            logits: odd.clone(),
            ids: vec![],
            model: &model_spec,
            params: &params,
            seed: 0,
            values: replace(&needs.values),
            gradients: replace(&needs.gradients),
            mean_mask: needs.mean_mask.then(|| odd.clone()),
            runner: needs.model.then(|| model.as_ref()),
            host: host_calls(),
        });
        refuses(outcome, "a batch of the wrong shape")?;
        pass()
    });
}
