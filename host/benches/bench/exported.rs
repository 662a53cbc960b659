//! Networks of torchvision and timm that `torch.export` wrote, against the same networks in eager PyTorch: the forward pass,
//! GradCAM against pytorch-grad-cam, the time to open a file, and the greatest memory of a process that opens it and makes a pass.
//! The peer exports them, so without one there is no row.

use crate::rounds::alternate;
use crate::table::Table;
use crate::{Bench, Result, highest, images, map_difference, plugin, relative_difference, timed};
use lightbox::choice::ExplainerChoice;
use lightbox::engine::{Engine, Settings};
use lightbox::registry;
use lightbox_core::maps;
use lightbox_sdk::ModelHandle;
use lightbox_sdk::spec::ModelOptions;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use tch::Device;

const NETWORKS: [&str; 5] = ["resnet50", "convnext_tiny", "swin_t", "efficientnet_b0", "deit_small_patch16_224"];
/// Where a part that is a process of its own finds its file.
const FILE: &str = "LIGHTBOX_BENCH_PROGRAM";
const BATCH: i64 = 8;

fn open(device: &str, file: &Path) -> Result<ModelHandle> {
    let mut params: BTreeMap<String, serde_json::Value> = BTreeMap::new();
    params.insert("file".into(), file.to_string_lossy().into_owned().into());
    let options = ModelOptions { device: device.into(), params, ..ModelOptions::default() };
    Ok(registry::open(&plugin("exported")?)?.make_model("exported", &options)?)
}

/// Opens a file and makes a pass, in a process of its own; the greatest memory, MiB.
pub fn part(batch: usize) -> Result<()> {
    let file = std::env::var_os(FILE).ok_or("no program")?;
    let engine =
        Engine::new(open("cpu", Path::new(&file))?, Settings::new(Device::Cpu, 0), lightbox::watch::terminal())?;
    let _ = engine.classify(&images(batch as i64, 224)?)?;
    println!("{}", crate::summary::peak());
    Ok(())
}

fn peak(file: &Path) -> Result<String> {
    let mut command = std::process::Command::new(std::env::current_exe()?);
    let output = command.args(["--part", &format!("exported:{BATCH}")]).env(FILE, file).output()?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_string()),
        false => Err(format!("the part ended with {}", output.status).into()),
    }
}

pub fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    if bench.python.is_none() {
        table.text("Exported networks: without a peer nobody exports them.".into());
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut lines = vec![
        "| network | MB | seconds to open | MiB, a pass of 8 | PyTorch's MiB |".to_string(),
        "|---|---:|---:|---:|---:|".into(),
    ];
    let x = images(BATCH, 224)?;
    let networks = if bench.quick { &NETWORKS[..2] } else { &NETWORKS[..] };
    for name in networks {
        let file = folder.path().join(format!("{name}.pt2"));
        let job = json!({ "device": bench.name(), "network": name, "file": file, "targets": [] });
        let mut peer = bench.peer("exported", job, &vec![("images".to_string(), x.shallow_clone())])?;
        // Twice: the first brings the file into the cache, as it was when it was written.
        let (_, seconds) = timed(bench.device, || open(&bench.name(), &file))?;
        let (model, again) = timed(bench.device, || open(&bench.name(), &file))?;
        let mut engine = Engine::new(model, Settings::new(bench.device, 0), lightbox::watch::terminal())?;
        engine.add(&plugin("cam")?, &ExplainerChoice::parse("gradcam")?)?;
        let on_device = x.to_device(bench.device);
        let rounds = alternate(bench.rounds(7), &mut peer, "forward", || {
            timed(bench.device, || Ok(engine.classify(&on_device)?))
        })?;
        rounds.add(
            table,
            format!("forward, {name} exported, {BATCH} images"),
            Some(1.0),
            Some(1e-3),
            |ours, theirs| relative_difference(&ours.to_device(Device::Cpu), theirs),
        )?;
        let classes = highest(&engine, &x)?;
        let ids: Vec<u64> = (0..BATCH as u64).collect();
        let wanted = lightbox::engine::classes(&classes);
        let rounds = alternate(bench.rounds(5), &mut peer, "pytorch-grad-cam", || {
            timed(bench.device, || Ok(engine.run(&on_device, &wanted, &ids, &[0], &mut |_| {})?))
        })?;
        rounds.add(
            table,
            format!("GradCAM, {name} exported, {BATCH} images"),
            Some(3.0),
            Some(2e-2),
            |result, theirs| {
                let map = result.maps[0].1.as_ref().map_err(|e| e.to_string())?.output(0)?.f_to_device(Device::Cpu)?;
                map_difference(&maps::upsample(&map, (224, 224))?, theirs)
            },
        )?;
        let size = std::fs::metadata(&file)?.len() as f64 / 1e6;
        let theirs = match &mut peer {
            Some(peer) => {
                peer.ask("memory")?;
                format!("{:.0}", peer.outputs()?.remove("memory").ok_or("no memory")?.f_double_value(&[])?)
            }
            None => String::new(),
        };
        lines.push(format!("| {name} | {size:.0} | {:.2} | {} | {theirs} |", seconds.min(again), peak(&file)?));
    }
    table.text(lines.join("\n"));
    Ok(())
}
