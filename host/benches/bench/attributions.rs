//! Methods that run DenseNet121 many times: integrated gradients, ScoreCAM, AblationCAM, RISE.

use crate::rounds::alternate;
use crate::table::Table;
use crate::{Bench, Result, highest, images, map_difference, timed};
use lightbox_core::maps;
use lightbox_sdk::explainer::image_rng;
use lightbox_sdk::tools::masks::smooth;
use serde_json::json;
use tch::{Device, Tensor};

struct Case<'a> {
    work: String,
    explainer: String,
    side: i64,
    images: i64,
    job: serde_json::Value,
    peer: &'a str,
    /// How much the maps may differ.
    allowed: f64,
    /// Masks [n, side, side] that both sides use, where the method draws.
    masks: Option<Tensor>,
}

/// Images that go through the model at a time, on either side.
const AT_ONCE: usize = 16;

fn case(bench: &Bench, table: &mut Table, case: &Case<'_>) -> Result<()> {
    let (mut engine, mut state) = bench.engine("densenet121", case.side, &[&case.explainer])?;
    engine.set_at_once(AT_ONCE);
    let x = images(case.images, case.side)?;
    state.push(("images".into(), x.shallow_clone()));
    state.extend(case.masks.iter().map(|m| ("masks".to_string(), m.shallow_clone())));
    let classes = highest(&engine, &x)?;
    let ids: Vec<u64> = (0..case.images as u64).collect();
    let mut job = case.job.clone();
    (job["device"], job["targets"], job["at_once"]) = (json!(bench.name()), json!(classes), json!(AT_ONCE));
    let mut peer = bench.peer("attributions", job, &state)?;
    let x = x.to_device(bench.device);
    let rounds = alternate(bench.rounds(5), &mut peer, case.peer, || {
        let (mut result, time) = timed(bench.device, || {
            Ok(engine.run(&x, &lightbox::engine::classes(&classes), &ids, &[0], &mut |_| {})?)
        })?;
        Ok((result.maps.remove(0).1?.output(0)?.f_to_device(Device::Cpu)?, time))
    })?;
    let side = case.side as usize;
    rounds.add(table, case.work.clone(), None, Some(case.allowed), |map, theirs| {
        map_difference(&maps::upsample(map, (side, side))?, theirs)
    })
}

// Of gradients at the image float32 itself leaves 1e-3 (against float64): where a ReLU's input is about 0, rounding opens it.
pub fn ig(bench: &Bench, table: &mut Table) -> Result<()> {
    let steps = if bench.quick { 4 } else { 16 };
    case(
        bench,
        table,
        &Case {
            work: format!("integrated gradients, {steps} steps, densenet121, 2 images"),
            explainer: format!("gradient/integratedgradients:steps={steps}"),
            side: 224,
            images: 2,
            job: json!({ "method": "ig", "steps": steps }),
            peer: "captum",
            allowed: 5e-3,
            masks: None,
        },
    )
}

pub fn scorecam(bench: &Bench, table: &mut Table) -> Result<()> {
    case(
        bench,
        table,
        &Case {
            work: "ScoreCAM, densenet121, one image of 64 x 64".into(),
            explainer: "cam/scorecam:mask=aligned".into(),
            side: 64,
            images: 1,
            job: json!({ "method": "scorecam" }),
            peer: "pytorch-grad-cam",
            allowed: 1e-3,
            masks: None,
        },
    )
}

pub fn ablationcam(bench: &Bench, table: &mut Table) -> Result<()> {
    case(
        bench,
        table,
        &Case {
            work: "AblationCAM, densenet121, one image of 64 x 64".into(),
            explainer: "cam/ablationcam".into(),
            side: 64,
            images: 1,
            job: json!({ "method": "ablationcam" }),
            peer: "pytorch-grad-cam",
            allowed: 1e-3,
            masks: None,
        },
    )
}

pub fn rise(bench: &Bench, table: &mut Table) -> Result<()> {
    let (masks, side) = (if bench.quick { 32 } else { 256 }, 224);
    // Those that the explainer draws for the first image of a run of seed 0.
    let mut rng = image_rng(0, "rise", 0);
    let drawn = (0..masks).map(|_| smooth(&mut rng, 8, 0.1, &[side; 2])).collect::<std::result::Result<Vec<_>, _>>()?;
    case(
        bench,
        table,
        &Case {
            work: format!("RISE, {masks} masks, densenet121, one image of 224 x 224"),
            explainer: format!("perturbation/rise:masks={masks}"),
            side: side as i64,
            images: 1,
            job: json!({ "method": "rise", "masks": masks }),
            peer: "plain PyTorch",
            allowed: 1e-3,
            masks: Some(Tensor::f_cat(&drawn, 0)?),
        },
    )
}
