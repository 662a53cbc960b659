//! Eight methods of class activation maps that read DenseNet121's last layer: one shared run here, a pass each with
//! pytorch-grad-cam.

use crate::table::{Comparison, Table};
use crate::{Bench, Result, highest, images, map_difference, timed};
use lightbox_core::maps;
use serde_json::json;
use tch::{Device, Tensor};

const METHODS: [&str; 8] = [
    "cam/gradcam",
    "cam/hirescam",
    "cam/gradcam-elementwise",
    "cam/gradcampp",
    "cam/xgradcam",
    "cam/layercam",
    "cam/eigencam",
    "cam/eigengradcam",
];

/// Not compared: the sign of its first component is LAPACK's choice with the peer, and after the ReLU another map.
const UNSIGNED: &str = "cam/eigengradcam";

pub fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    let (engine, mut state) = bench.engine("densenet121", 0, &METHODS)?;
    let batch = if bench.device == Device::Cpu { 8 } else { 64 };
    let x = images(batch, 224)?;
    state.push(("images".into(), x.shallow_clone()));
    let classes = highest(&engine, &x)?;
    let ids: Vec<u64> = (0..batch as u64).collect();
    let mut peer = bench.peer("cams", json!({ "device": bench.name(), "targets": classes }), &state)?;
    let x = x.to_device(bench.device);
    let (mut ours, mut forward, mut theirs, mut maps) = (vec![], vec![], vec![], vec![]);
    for round in 0..bench.rounds(5) + 1 {
        let (_, pass) = timed(bench.device, || Ok(engine.classify(&x)?))?;
        let all: Vec<usize> = (0..METHODS.len()).collect();
        let (result, time) = timed(bench.device, || Ok(engine.run(&x, &classes, &ids, &all, &mut |_| {})?))?;
        maps = result.maps;
        let peers = peer.as_mut().map(|p| p.ask("pytorch-grad-cam")).transpose()?;
        if round > 0 {
            ours.push(time);
            forward.push(pass);
            theirs.extend(peers);
        }
    }
    let mut worst = None;
    if let Some(peer) = &mut peer {
        let outputs = peer.outputs()?;
        let found = outputs.get("pytorch-grad-cam").ok_or("no maps")?;
        for (i, (_, outcome)) in maps.into_iter().enumerate() {
            let map: Tensor = outcome?.output(0)?.f_to_device(Device::Cpu)?;
            let difference = map_difference(&maps::upsample(&map, (224, 224))?, &found.f_get(i as i64)?)?;
            eprintln!("   {} {difference:.1e}", METHODS[i]);
            if METHODS[i] == UNSIGNED {
                continue;
            }
            worst = Some(f64::max(worst.unwrap_or(0.0), difference));
        }
    }
    let work = format!("eight class activation maps, densenet121, {batch} images");
    let version = Table::version(&peer, "pytorch-grad-cam").to_string();
    if !theirs.is_empty() {
        table.add(Comparison {
            work: work.clone(),
            ours: &ours,
            peer: Some(("pytorch-grad-cam", &version, &theirs)),
            difference: worst.map(|d| (d, 1e-3)),
            target: Some(25.0),
        });
    }
    let peer = Some(("our forward pass", "", &forward[..]));
    table.add(Comparison { work, ours: &ours, peer, difference: None, target: None });
    Ok(())
}
