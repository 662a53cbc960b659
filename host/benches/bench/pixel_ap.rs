//! Pixel-wise average precision of maps of 224 x 224 against scikit-learn, on the same maps and one thread.

use crate::rounds::alternate;
use crate::table::Table;
use crate::{Bench, Result};
use lightbox_core::checkpoint::State;
use lightbox_core::data::resize::upsample;
use lightbox_core::metrics::average_precision::{Score, pixel_average_precision};
use serde_json::json;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

const SIDE: usize = 224;
const MAPS: usize = 64;
/// So that a round of ours is as long as a tenth of the peer's.
const REPEATS: usize = 8;

pub fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    tch::manual_seed(0);
    let float = (Kind::Float, Device::Cpu);
    let count = MAPS as i64;
    let all = |t: &Tensor| Vec::<f32>::try_from(t.flatten(0, -1));
    let small = all(&Tensor::randn([count, 7, 7], float).relu())?;
    let cases = [
        ("uniform noise", all(&Tensor::rand([count, 224, 224], float))?),
        ("7 x 7 upsampled, after ReLU", upsample(&small, MAPS, (7, 7), (SIDE, SIDE))),
        ("16 tied levels", all(&(Tensor::rand([count, 224, 224], float) * 16.0).floor())?),
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
        let shape = [count, SIDE as i64, SIDE as i64];
        let state: State = vec![
            ("maps".to_string(), Tensor::from_slice(&maps).reshape(shape)),
            ("masks".to_string(), Tensor::from_slice(&masks).reshape(shape)),
        ];
        let mut peer = bench.peer("pixel-ap", json!({}), &state)?;
        let rounds = alternate(bench.rounds(25), &mut peer, "scikit-learn", || {
            let start = Instant::now();
            let mut scores = Vec::new();
            for _ in 0..REPEATS {
                scores = maps
                    .chunks_exact(SIDE * SIDE)
                    .zip(masks.chunks_exact(SIDE * SIDE))
                    .map(|(map, mask)| pixel_average_precision(map, mask))
                    .collect::<Vec<_>>();
            }
            Ok((scores, start.elapsed().as_secs_f64() / REPEATS as f64))
        })?;
        let work = format!("pixel AP, a map, one thread, {name}");
        rounds.each(MAPS).add(table, work, Some(50.0), Some(1e-12), |scores, theirs| {
            let mut worst = 0f64;
            for (score, wanted) in scores.iter().zip(Vec::<f64>::try_from(theirs)?) {
                let Score::Value(value) = score else { return Err("a map failed".into()) };
                worst = worst.max((value - wanted).abs());
            }
            Ok(worst)
        })?;
    }
    Ok(())
}
