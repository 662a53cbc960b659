//! Eight methods of class activation maps that read DenseNet121's last layer: one shared run here, a pass each with
//! pytorch-grad-cam.

use crate::rounds::alternate;
use crate::table::{Comparison, Table};
use crate::{Bench, Result, highest, images, map_difference, timed};
use lightbox_core::maps;
use serde_json::json;
use tch::Device;

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
    let all: Vec<usize> = (0..METHODS.len()).collect();
    let mut forward = vec![];
    let rounds = alternate(bench.rounds(5), &mut peer, "pytorch-grad-cam", || {
        forward.push(timed(bench.device, || Ok(engine.classify(&x)?))?.1);
        timed(bench.device, || Ok(engine.run(&x, &lightbox::engine::classes(&classes), &ids, &all, &mut |_| {})?))
    })?;
    let work = format!("eight class activation maps, densenet121, {batch} images");
    let peer = Some(("our forward pass", "", &forward[1..]));
    table.add(Comparison { work: work.clone(), ours: rounds.ours(), peer, difference: None, target: None });
    rounds.add(table, work, Some(25.0), Some(1e-3), |result, theirs| {
        let mut worst = 0f64;
        for (i, (_, outcome)) in result.maps.iter().enumerate().filter(|(i, _)| METHODS[*i] != UNSIGNED) {
            let map = outcome.as_ref().map_err(|e| e.to_string())?.output(0)?.f_to_device(Device::Cpu)?;
            worst = worst.max(map_difference(&maps::upsample(&map, (224, 224))?, &theirs.f_get(i as i64)?)?);
        }
        Ok(worst)
    })
}
