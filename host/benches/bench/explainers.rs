//! Forward pass, GradCAM and last attention of a model, against eager PyTorch and the libraries that have them.

use crate::table::{Comparison, Table};
use crate::{Bench, Result, highest, images, map_difference, relative_difference, timed};
use lightbox_core::maps;
use serde_json::json;
use std::collections::BTreeMap;
use tch::{Device, Tensor};

pub fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    // Targets of docs/architecture: GradCAM of pytorch-grad-cam, of the forward pass of PyTorch, of our own.
    model(bench, table, "densenet121", &["cam/gradcam"], [Some(4.0), Some(1.4), None])?;
    model(
        bench,
        table,
        "deit_small_patch16_224",
        &["cam/gradcam", "attention/attention"],
        [Some(2.7), None, Some(0.91)],
    )?;
    model(bench, table, "patchconvnet_s60", &["cam/gradcam", "attention/attention"], [None; 3])
}

fn model(bench: &Bench, table: &mut Table, name: &str, explainers: &[&str], targets: [Option<f64>; 3]) -> Result<()> {
    let (engine, mut state) = bench.engine(name, 0, explainers)?;
    let batch = if bench.device == Device::Cpu { 8 } else { 128 };
    let x = images(batch, 224)?;
    state.push(("images".into(), x.shallow_clone()));
    let classes = highest(&engine, &x)?;
    let ids: Vec<u64> = (0..batch as u64).collect();
    let job = json!({ "model": name, "device": bench.name(), "targets": classes });
    let mut peer = bench.peer("explainers", job, &state)?;
    let sides: Vec<String> = peer.iter().flat_map(|p| p.versions.keys().cloned()).collect();
    let x = x.to_device(bench.device);

    let mut ours: Vec<Vec<f64>> = vec![vec![]; 1 + explainers.len()];
    let mut theirs: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let (mut logits, mut found): (Option<Tensor>, Vec<Option<Tensor>>) = (None, vec![None, None]);
    for round in 0..bench.rounds(11) + 1 {
        let (value, first) = timed(bench.device, || Ok(engine.classify(&x)?))?;
        logits = Some(value);
        let mut times = vec![first];
        for (i, found) in found.iter_mut().enumerate().take(explainers.len()) {
            let run = || Ok(engine.run(&x, &lightbox::engine::classes(&classes), &ids, &[i], &mut |_| {})?);
            let (mut result, time) = timed(bench.device, run)?;
            *found = Some(result.maps.remove(0).1?.output(0)?);
            times.push(time);
        }
        if round > 0 {
            ours.iter_mut().zip(times).for_each(|(all, time)| all.push(time));
        }
        for side in &sides {
            let Some(peer) = &mut peer else { continue };
            let time = peer.ask(side)?;
            if round > 0 {
                theirs.entry(side.clone()).or_default().push(time);
            }
        }
    }
    let outputs = peer.as_mut().map(|p| p.outputs()).transpose()?.unwrap_or_default();
    let batch = format!("{name}, {batch} images");
    let difference = |explainer: Option<usize>, side: &str| -> Result<Option<(f64, f64)>> {
        let Some(theirs) = outputs.get(side) else { return Ok(None) };
        let found = match explainer {
            None => logits.as_ref().map(|l| relative_difference(l, theirs)),
            Some(i) => found[i].as_ref().map(|map| {
                let map = map.f_to_device(Device::Cpu)?;
                let size = theirs.size();
                let (h, w) = (size[1] as usize, size[2] as usize);
                map_difference(&maps::upsample(&map, (h, w))?, theirs)
            }),
        };
        Ok(found.transpose()?.map(|d| (d, 1e-3)))
    };
    let version = |side: &str| Table::version(&peer, side).to_string();
    for (i, explainer) in [None].into_iter().chain((0..explainers.len()).map(Some)).enumerate() {
        let what = explainer.map_or("forward pass", |i| if i == 0 { "GradCAM" } else { "last attention" });
        let work = || format!("{what}, {batch}");
        let wanted = |side: &str| match (what, side) {
            ("forward pass", "forward") | ("last attention", "attention") => true,
            ("GradCAM", side) => !["forward", "attention"].contains(&side),
            _ => false,
        };
        for side in sides.iter().filter(|s| wanted(s)) {
            let label = match side.as_str() {
                "forward" => "PyTorch, eager",
                "attention" => "PyTorch, a hook",
                other => other,
            };
            table.add(Comparison {
                work: work(),
                ours: &ours[i],
                peer: Some((label, &version(side), &theirs[side])),
                difference: difference(explainer, side)?,
                target: targets[0].filter(|_| side == "pytorch-grad-cam"),
            });
        }
        if explainer.is_none() && sides.is_empty() {
            table.add(Comparison { work: work(), ours: &ours[0], peer: None, difference: None, target: None });
        }
        if explainer == Some(0) && theirs.contains_key("forward") {
            table.add(Comparison {
                work: work(),
                ours: &ours[i],
                peer: Some(("PyTorch's forward pass", &version("forward"), &theirs["forward"])),
                difference: None,
                target: targets[1],
            });
        }
        if explainer.is_some() {
            table.add(Comparison {
                work: work(),
                ours: &ours[i],
                peer: Some(("our forward pass", "", &ours[0])),
                difference: None,
                target: targets[2],
            });
        }
    }
    Ok(())
}
