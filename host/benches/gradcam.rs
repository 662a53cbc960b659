//! GradCAM at the last layer of DenseNet121 against the model's own forward pass and, where a Python with pytorch-grad-cam
//! is named, against the peer. Measured alternately in one run; ratios of medians.
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
    let binary = std::env::current_exe()?;
    let folder = binary.parent().and_then(|p| p.parent()).ok_or("no target folder")?.join("plugins");
    let file = |name: &str| -> PathBuf { folder.join(format!("liblightbox_{name}.so")) };
    let options = ModelOptions { device: lightbox::device::name(device), ..ModelOptions::default() };
    let model = registry::open(&file("densenet"))?.make_model("densenet121", &options)?;
    let mut engine = Engine::new(model, device, 0)?;
    engine.prepare(&file("cam"), &ExplainerChoice::parse("gradcam")?)?;
    let batch = if device == Device::Cpu { BATCH } else { 128 };
    let images = Tensor::randn([batch, 3, 224, 224], (Kind::Float, Device::Cpu)).to_device(device);
    let targets = vec![0i64; batch as usize];
    let ids: Vec<u64> = (0..batch as u64).collect();
    let mut peer = peer::Peer::start(&["gradcam", &batch.to_string(), &lightbox::device::name(device)])?;

    let (mut forward, mut gradcam, mut theirs, mut their_forward) = (vec![], vec![], vec![], vec![]);
    for round in 0..ROUNDS + 1 {
        let start = Instant::now();
        let _ = engine.classify(&images)?;
        let f = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let result = engine.run(&images, Some(&targets), &ids, &[0], &mut |_| {})?;
        let g = start.elapsed().as_secs_f64();
        assert!(result.maps[0].1.is_ok());
        let p = peer.as_mut().map(|p| p.ask()).transpose()?;
        if round > 0 {
            forward.push(f);
            gradcam.push(g);
            if let Some(times) = p {
                theirs.push(times[0]);
                their_forward.push(times[1]);
            }
        }
    }
    let (f, g) = (median(forward), median(gradcam));
    println!(
        "DenseNet121, {batch} images of 224x224, {device:?}, {} threads, median of {ROUNDS}",
        tch::get_num_threads()
    );
    println!("forward pass                 {:8.1} ms", f * 1e3);
    println!("GradCAM, features.relu5      {:8.1} ms   {:.3} of the forward pass", g * 1e3, g / f);
    if peer.is_some() {
        let (p, e) = (median(theirs), median(their_forward));
        println!("pytorch-grad-cam GradCAM     {:8.1} ms   {:.2} times ours", p * 1e3, p / g);
        println!("PyTorch eager forward pass   {:8.1} ms   {:.2} times our GradCAM", e * 1e3, e / g);
    } else {
        println!("(no peer: set LIGHTBOX_PEER_PYTHON to a Python with tests/oracle/requirements.txt)");
    }
    Ok(())
}
