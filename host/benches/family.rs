//! The family of class activation maps on DenseNet121's last layer against the model's own forward pass, all in one shared run,
//! and against pytorch-grad-cam, which makes a pass a method. Measured alternately in one run; ratios of medians.
//!
//! The families: those whose gradient is one at the last layer, and with those whose gradient goes through the whole trunk
//! (refinecam, fullgrad).

use lightbox::engine::{Engine, ExplainerChoice};
use lightbox::registry;
use lightbox_sdk::spec::ModelOptions;
use std::path::PathBuf;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

#[path = "peer.rs"]
mod peer;

const ROUNDS: usize = 7;
const BATCH: i64 = 8;
/// Values and gradients of the last layer alone.
const LAST: [&str; 12] = [
    "cam",
    "gradcam",
    "hirescam",
    "gradcam-elementwise",
    "gradcampp",
    "xgradcam",
    "layercam",
    "eigencam",
    "eigengradcam",
    "segeigencam",
    "kpcacam",
    "fem",
];
/// Gradients through the trunk.
const DEEP: [&str; 2] = ["refinecam", "fullgrad"];

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
    let name = lightbox::device::name(device);
    let options = ModelOptions { device: name.clone(), ..ModelOptions::default() };
    let model = registry::open(&file("densenet"))?.make_model("densenet121", &options)?;
    let mut engine = Engine::new(model, device, 0, lightbox::engine::terminal())?;
    for explainer in LAST.iter().chain(&DEEP) {
        engine.add(&file("cam"), &ExplainerChoice::parse(explainer)?)?;
    }
    let batch = if device == Device::Cpu { BATCH } else { 64 };
    let images = Tensor::randn([batch, 3, 224, 224], (Kind::Float, Device::Cpu)).to_device(device);
    let targets = vec![0i64; batch as usize];
    let ids: Vec<u64> = (0..batch as u64).collect();
    let mut peer = peer::Peer::start(&["family", &batch.to_string(), &name])?;
    let (last, all): (Vec<usize>, Vec<usize>) = ((0..LAST.len()).collect(), (0..engine.explainers.len()).collect());
    let (mut forward, mut arithmetic, mut family, mut whole, mut theirs) = (vec![], vec![], vec![], vec![], vec![]);
    for round in 0..ROUNDS + 1 {
        let start = Instant::now();
        let _ = engine.classify(&images)?;
        let f = start.elapsed().as_secs_f64();
        let timed = |active: &[usize]| -> Result<(f64, f64), Box<dyn std::error::Error>> {
            let start = Instant::now();
            let result = engine.run(&images, &targets, &ids, active, &mut |_| {})?;
            let time = start.elapsed().as_secs_f64();
            assert!(result.maps.iter().all(|(_, m)| m.is_ok()) && result.maps.len() == active.len());
            Ok((time, result.seconds.iter().map(|(_, s)| s).sum()))
        };
        let (one, own) = timed(&last)?;
        let (two, _) = timed(&all)?;
        let p = peer.as_mut().map(|p| p.ask()).transpose()?;
        if round > 0 {
            forward.push(f);
            arithmetic.push(own);
            family.push(one);
            whole.push(two);
            theirs.extend(p.and_then(|p| p.first().copied()));
        }
    }
    let (f, a, one, two) = (median(forward), median(arithmetic), median(family), median(whole));
    let threads = tch::get_num_threads();
    println!("densenet121, {batch} images of 224x224, {device:?}, {threads} threads, median of {ROUNDS}");
    println!("forward pass                          {:8.1} ms", f * 1e3);
    println!(
        "{} methods at the last layer          {:8.1} ms, of which their own arithmetic {:.1} ms",
        LAST.len(),
        one * 1e3,
        a * 1e3
    );
    println!("   of a forward pass and the arithmetic   {:.3}   (target: at most 1.3)", one / (f + a));
    println!("with refinecam and fullgrad           {:8.1} ms   {:.2} of a forward pass", two * 1e3, two / f);
    match theirs.is_empty() {
        true => println!("(no peer: set LIGHTBOX_PEER_PYTHON to a Python with tests/oracle/requirements.txt)"),
        false => {
            let p = median(theirs);
            println!(
                "pytorch-grad-cam, 11 of the {}         {:8.1} ms   {:.1} times ours",
                LAST.len(),
                p * 1e3,
                p / one
            );
        }
    }
    Ok(())
}
