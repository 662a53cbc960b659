//! What the metrics of maps cost that ask the model nothing: seven of them together against Quantus, on the same maps and one
//! thread; and each alone.

use crate::rounds::alternate;
use crate::table::{Spread, Table};
use crate::{Bench, Result};
use lightbox_core::checkpoint::State;
use lightbox_core::data::resize::upsample;
use lightbox_core::maps;
use lightbox_core::metrics::batch_cache::BatchCache;
use lightbox_core::metrics::{self, Batch, Evaluation, Form, Masks, Metric, NoBench, Size};
use serde_json::json;
use std::fmt::Write as _;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

const SIDE: usize = 224;
/// What Quantus is right in, where no two pixels are equal.
const SEVEN: [&str; 7] = ["hit", "top-k", "relevance-rank", "relevance-mass", "pixel-auroc", "gini", "entropy"];

/// Metrics of maps alone, and of maps and findings.
pub fn of_maps() -> Vec<&'static dyn Metric> {
    let plain = |m: &&dyn Metric| {
        let needs = m.needs();
        needs.maps.is_some() && !needs.asks() && needs.masks != Masks::Shortcut
    };
    metrics::all().iter().copied().filter(plain).collect()
}

/// Maps and masks of images, [n, side, side].
struct Set {
    raw: Tensor,
    scaled: Tensor,
    masks: Tensor,
}

impl Set {
    fn new(raw: Tensor) -> Result<Self> {
        let (n, side) = (raw.size()[0] as usize, raw.size()[1] as usize);
        let mut masks = vec![0u8; n * side * side];
        for (i, mask) in masks.chunks_exact_mut(side * side).enumerate() {
            let (cx, cy, radius) = ((i * 7 + 9) % (side - 8), (i * 5 + 11) % (side - 8), side / 24);
            for (p, v) in mask.iter_mut().enumerate() {
                let (dx, dy) = ((p % side).abs_diff(cx), (p / side).abs_diff(cy));
                *v = u8::from(dx * dx + dy * dy <= radius * radius);
            }
        }
        let masks = Tensor::f_from_slice(&masks)?.f_reshape(raw.size())?;
        Ok(Set { scaled: maps::min_max(&raw)?, raw, masks })
    }

    /// Scores of all maps by metrics that share what they make, as in a run.
    fn score(&self, evaluations: &mut [(&'static dyn Metric, Box<dyn Evaluation>)]) -> Result<Vec<Vec<f64>>> {
        let n = self.raw.size()[0] as usize;
        let faults = maps::faults(&self.raw)?;
        let (scene, cell) = (BatchCache::default(), BatchCache::default());
        let mut all = Vec::new();
        for (metric, evaluation) in evaluations {
            let needs = metric.needs();
            let batch = Batch {
                images: &self.raw,
                targets: &vec![1; n],
                ids: &(0..n as u64).collect::<Vec<_>>(),
                maps: Some(match needs.maps {
                    Some((Size::Mask | Size::Native, Form::MinMax)) => &self.scaled,
                    _ => &self.raw,
                }),
                faults: &faults,
                masks: (needs.masks == Masks::Finding).then_some(&self.masks),
                known: &vec![true; n],
                signed: false,
                scene: &scene,
                cell: &cell,
            };
            let scores = evaluation.update(&batch, &mut NoBench)?;
            all.push(scores.iter().map(|s| s.value.unwrap_or(f64::NAN)).collect());
        }
        Ok(all)
    }
}

fn start(names: &[&str]) -> Result<Vec<(&'static dyn Metric, Box<dyn Evaluation>)>> {
    let mut all = Vec::new();
    for name in names {
        let metric = metrics::find(name)?;
        all.push((metric, metric.start(&metric.spec().resolve(&[].into())?, 0)?));
    }
    Ok(all)
}

/// No two pixels of a map are equal.
fn distinct(n: i64, side: i64) -> Result<Tensor> {
    let one = || Tensor::f_randperm(side * side, (Kind::Float, Device::Cpu));
    let all = (0..n).map(|_| one()).collect::<std::result::Result<Vec<_>, _>>()?;
    Ok(((Tensor::f_stack(&all, 0)? + 1.0) / (side * side) as f64).f_reshape([n, side, side])?)
}

/// One map of 7 x 7 a map, after ReLU, at another size.
fn smooth(n: usize, side: usize) -> Result<Tensor> {
    let small =
        Vec::<f32>::try_from(Tensor::f_randn([n as i64, 7, 7], (Kind::Float, Device::Cpu))?.relu().flatten(0, -1))?;
    Ok(Tensor::f_from_slice(&upsample(&small, n, (7, 7), (side, side)))?.f_reshape([
        n as i64,
        side as i64,
        side as i64,
    ])?)
}

pub fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    // Quantus works on one thread.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    let there = |table: &mut Table| {
        tch::set_num_threads(1);
        against_quantus(bench, table).and_then(|()| each_alone(bench, table)).map_err(|e| e.to_string())
    };
    Ok(pool.install(|| there(table))?)
}

fn count(bench: &Bench) -> usize {
    if bench.quick { 4 } else { 16 }
}

fn against_quantus(bench: &Bench, table: &mut Table) -> Result<()> {
    tch::manual_seed(0);
    let n = count(bench);
    let set = Set::new(distinct(n as i64, SIDE as i64)?)?;
    let state: State = vec![("maps".into(), set.raw.shallow_clone()), ("masks".into(), set.masks.shallow_clone())];
    let mut peer = bench.peer("map-metrics", json!({ "top": SIDE * SIDE / 100 }), &state)?;
    let rounds = alternate(bench.rounds(5), &mut peer, "quantus", || {
        let mut evaluations = start(&SEVEN)?;
        let began = Instant::now();
        Ok((set.score(&mut evaluations)?, began.elapsed().as_secs_f64()))
    })?;
    let work = format!("seven metrics of maps ({}), a map of {SIDE} x {SIDE}, one thread", SEVEN.join(", "));
    rounds.each(n).add(table, work, None, Some(1e-4), |values, theirs| {
        let mut worst = 0f64;
        for (k, values) in values.iter().enumerate() {
            for (value, wanted) in values.iter().zip(Vec::<f64>::try_from(theirs.f_get(k as i64)?)?) {
                worst = worst.max((value - wanted).abs());
            }
        }
        Ok(worst)
    })
}

fn each_alone(bench: &Bench, table: &mut Table) -> Result<()> {
    let n = count(bench);
    let mut text = String::from(
        "Metrics of maps, microseconds a map on one thread, of noise without ties and of 7 x 7 values upsampled after ReLU; \
         what several of them share is counted for each.\n\n\
         | metric | noise, 64 x 64 | smooth, 64 x 64 | noise, 224 x 224 | smooth, 224 x 224 |\n|---|---:|---:|---:|---:|\n",
    );
    let mut sets = Vec::new();
    for side in [64, SIDE] {
        sets.push(Set::new(distinct(n as i64, side as i64)?)?);
        sets.push(Set::new(smooth(n, side)?)?);
    }
    let mut sums = [0.0; 4];
    let mut line = |name: &str, times: [f64; 4]| {
        let _ = writeln!(text, "| {name} | {} |", times.map(|t| format!("{t:.0}")).join(" | "));
    };
    for metric in of_maps() {
        let name = metric.spec().name;
        let mut times = [0.0; 4];
        for (set, time) in sets.iter().zip(&mut times) {
            let mut rounds = Vec::new();
            for _ in 0..bench.rounds(9) {
                let mut evaluations = start(&[name])?;
                let began = Instant::now();
                set.score(&mut evaluations)?;
                rounds.push(began.elapsed().as_secs_f64() / n as f64 * 1e6);
            }
            *time = Spread::of(&rounds).median;
        }
        sums.iter_mut().zip(times).for_each(|(sum, time)| *sum += time);
        line(name, times);
    }
    line("all", sums);
    table.text(text);
    Ok(())
}
