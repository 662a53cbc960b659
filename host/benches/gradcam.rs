//! GradCAM and attention at the last layer of DenseNet121, DeiT-S and PatchConvNet-S60 against the model's own forward pass
//! and, where a Python with pytorch-grad-cam is named, against the peer. Measured alternately in one run; ratios of
//! medians. PatchConvNet is in no package, so it has no peer here.
//!
//! ```sh
//! cargo xtask bench
//! LIGHTBOX_PEER_PYTHON=.lightbox/oracle/bin/python cargo xtask bench
//! ```

use lightbox::engine::{Engine, ExplainerChoice};
use lightbox::registry;
use lightbox_sdk::spec::ModelOptions;
use std::path::PathBuf;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

#[path = "peer.rs"]
mod peer;

const ROUNDS: usize = 9;
const BATCH: i64 = 8;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    lightbox::device::open_cuda();
    lightbox::device::keep_memory();
    if let Err(e) = run() {
        eprintln!("error: {e}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let device = lightbox::device::choose(&std::env::var("LIGHTBOX_BENCH_DEVICE").unwrap_or("auto".into()))?;
    measure(device, "densenet", "densenet121", &["gradcam"], true)?;
    measure(device, "deit", "deit_small_patch16_224", &["gradcam", "attention"], true)?;
    measure(device, "patchconvnet", "patchconvnet_s60", &["gradcam", "attention"], false)
}

fn measure(
    device: Device,
    plugin: &str,
    model: &str,
    explainers: &[&str],
    has_peer: bool,
) -> Result<(), Box<dyn std::error::Error>> {
    let binary = std::env::current_exe()?;
    let folder = binary.parent().and_then(|p| p.parent()).ok_or("no target folder")?.join("plugins");
    let file = |name: &str| -> PathBuf { folder.join(format!("liblightbox_{name}.so")) };
    let name = lightbox::device::name(device);
    let options = ModelOptions { device: name.clone(), ..ModelOptions::default() };
    let mut engine = Engine::new(
        registry::open(&file(plugin))?.make_model(model, &options)?,
        device,
        0,
        lightbox::engine::terminal(),
    )?;
    for explainer in explainers {
        let plugin = if *explainer == "gradcam" { "cam" } else { explainer };
        engine.add(&file(plugin), &ExplainerChoice::parse(explainer)?)?;
    }
    let batch = if device == Device::Cpu { BATCH } else { 128 };
    let images = Tensor::randn([batch, 3, 224, 224], (Kind::Float, Device::Cpu)).to_device(device);
    let targets = vec![0i64; batch as usize];
    let ids: Vec<u64> = (0..batch as u64).collect();
    let mut peer = match has_peer {
        true => peer::Peer::start(&["gradcam", model, &batch.to_string(), &name])?,
        false => None,
    };

    let mut forward = vec![];
    let mut ours = vec![vec![]; explainers.len()];
    let (mut theirs, mut their_forward) = (vec![], vec![]);
    for round in 0..ROUNDS + 1 {
        let start = Instant::now();
        let _ = engine.classify(&images)?;
        let mut times = vec![start.elapsed().as_secs_f64()];
        for i in 0..explainers.len() {
            let start = Instant::now();
            let result = engine.run(&images, &targets, &ids, &[i], &mut |_| {})?;
            times.push(start.elapsed().as_secs_f64());
            assert!(result.maps[0].1.is_ok());
        }
        let p = peer.as_mut().map(|p| p.ask()).transpose()?;
        if round > 0 {
            forward.push(times[0]);
            ours.iter_mut().zip(&times[1..]).for_each(|(all, time)| all.push(*time));
            if let Some(times) = p {
                theirs.push(times[0]);
                their_forward.push(times[1]);
            }
        }
    }
    let f = median(forward);
    let threads = tch::get_num_threads();
    println!("{model}, {batch} images of 224x224, {device:?}, {threads} threads, median of {ROUNDS}");
    println!("forward pass                 {:8.1} ms", f * 1e3);
    let ours: Vec<f64> = ours.into_iter().map(median).collect();
    for (name, time) in explainers.iter().zip(&ours) {
        println!("{name:28} {:8.1} ms   {:.3} of the forward pass", time * 1e3, time / f);
    }
    if peer.is_some() {
        let (p, e) = (median(theirs), median(their_forward));
        println!("pytorch-grad-cam GradCAM     {:8.1} ms   {:.2} times our GradCAM", p * 1e3, p / ours[0]);
        println!("PyTorch eager forward pass   {:8.1} ms   {:.2} times our GradCAM", e * 1e3, e / ours[0]);
    } else if has_peer {
        println!("(no peer: set LIGHTBOX_PEER_PYTHON to a Python with tests/oracle/requirements.txt)");
    }
    println!();
    Ok(())
}
