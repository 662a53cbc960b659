//! Pixel-wise average precision of 224x224 maps against scikit-learn, alternately, on the same maps and one thread.

use lightbox_core::checkpoint;
use lightbox_core::data::resize::upsample;
use lightbox_core::metrics::average_precision::{Score, pixel_average_precision};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

#[path = "peer.rs"]
mod peer;

const SIDE: usize = 224;
const MAPS: usize = 64;
const ROUNDS: usize = 7;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    if let Err(e) = run() {
        eprintln!("error: {e}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    tch::manual_seed(0);
    let float = (Kind::Float, Device::Cpu);
    let count = MAPS as i64;
    let all = |t: &Tensor| Vec::<f32>::try_from(t.flatten(0, -1));
    let cases = [
        ("noise", all(&Tensor::rand([count, 224, 224], float))?),
        (
            "7x7 upsampled, ReLU",
            upsample(&all(&Tensor::randn([count, 7, 7], float).relu())?, MAPS, (7, 7), (SIDE, SIDE)),
        ),
        ("tied, 16 levels", all(&(Tensor::rand([count, 224, 224], float) * 16.0).floor())?),
    ];
    let mut masks = vec![0u8; MAPS * SIDE * SIDE];
    for (i, mask) in masks.chunks_exact_mut(SIDE * SIDE).enumerate() {
        let (cx, cy) = (40 + i * 2, 180 - i * 2);
        for (p, v) in mask.iter_mut().enumerate() {
            let (dx, dy) = ((p % SIDE).abs_diff(cx), (p / SIDE).abs_diff(cy));
            *v = u8::from(dx * dx + dy * dy <= 64);
        }
    }
    for (name, maps) in cases {
        let folder = std::env::temp_dir().join(format!("lightbox-bench-{}.safetensors", std::process::id()));
        let shape = [count, SIDE as i64, SIDE as i64];
        let state = [
            ("maps".to_string(), Tensor::from_slice(&maps).reshape(shape)),
            ("masks".to_string(), Tensor::from_slice(&masks).reshape(shape)),
        ];
        checkpoint::write(&folder, &state)?;
        let mut peer = peer::Peer::start(&["ap", &folder.to_string_lossy()])?;
        let (mut ours, mut theirs, mut worst) = (vec![], vec![], 0f64);
        for round in 0..ROUNDS + 1 {
            let start = Instant::now();
            let scores: Vec<Score> = maps
                .chunks_exact(SIDE * SIDE)
                .zip(masks.chunks_exact(SIDE * SIDE))
                .map(|(map, mask)| pixel_average_precision(map, mask))
                .collect();
            let time = start.elapsed().as_secs_f64();
            let answer = peer.as_mut().map(|p| p.ask()).transpose()?;
            if round > 0 {
                ours.push(time);
            }
            if let Some(answer) = answer.filter(|_| round > 0) {
                theirs.push(answer[0]);
                for (score, wanted) in scores.iter().zip(&answer[1..]) {
                    let Score::Value(value) = score else { return Err("a map failed".into()) };
                    worst = worst.max((value - wanted).abs());
                }
            }
        }
        let _ = std::fs::remove_file(&folder);
        let ours = median(ours);
        print!("{name:20}  {:7.3} ms a map", ours / MAPS as f64 * 1e3);
        match theirs.is_empty() {
            true => println!("  (no peer: set LIGHTBOX_PEER_PYTHON)"),
            false => {
                let theirs = median(theirs);
                let (each, ratio) = (theirs / MAPS as f64 * 1e3, theirs / ours);
                println!("  scikit-learn {each:7.3} ms  {ratio:6.1} times ours  largest difference {worst:.1e}");
            }
        }
    }
    Ok(())
}
