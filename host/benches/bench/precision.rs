//! What lower precision costs and brings: GradCAM in float32 and in bfloat16 (on CUDA in TF32 too), alternately, and how far
//! the maps move. There is no peer; the weights are random.

use crate::table::{Spread, Table};
use crate::{Bench, Result, highest, images, map_difference, relative_difference, timed};
use lightbox::engine::Engine;
use lightbox_core::maps;
use lightbox_core::stats::correlation::spearman;
use std::fmt::Write as _;
use tch::{Device, Kind, Tensor};

/// The mean rank correlation of maps, each with its other.
fn correlation(ours: &Tensor, theirs: &Tensor) -> Result<f64> {
    let n = ours.size()[0];
    let row = |t: &Tensor, i: i64| -> Result<Vec<f64>> {
        Ok(Vec::<f64>::try_from(t.f_get(i)?.f_flatten(0, -1)?.f_to_kind(Kind::Double)?)?)
    };
    let mut sum = 0.0;
    for i in 0..n {
        sum += spearman(&row(ours, i)?, &row(theirs, i)?).ok_or("a constant map")?;
    }
    Ok(sum / n as f64)
}

/// Whether its products are TF32's, and the model in its precision.
type Way = (&'static str, bool, Engine);

pub fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    let (batch, cuda) = if bench.device == Device::Cpu { (8, false) } else { (128, true) };
    let mut text = format!(
        "GradCAM of {batch} images. The ratio is float32's time over the other's; logits differ by so much of the largest, maps by so \
         much of their range after scaling to [0, 1].\n\n\
         | model | computed in | time | ratio | least to greatest | logits | maps | rank correlation |\n|---|---|---:|---:|---:|---:|---:|---:|\n"
    );
    for model in ["densenet121", "deit_small_patch16_224", "patchconvnet_s60"] {
        let engine = |precision: &str| bench.engine_in(model, precision, &["cam/gradcam"]);
        let mut ways: Vec<Way> = vec![("float32", false, engine("float32")?), ("bfloat16", false, engine("bfloat16")?)];
        if cuda {
            ways.push(("TF32", true, engine("float32")?));
        }
        let x = images(batch, 224)?.to_device(bench.device);
        let classes = highest(&ways[0].2, &x)?;
        let ids: Vec<u64> = (0..batch as u64).collect();
        let mut times: Vec<Vec<f64>> = vec![vec![]; ways.len()];
        let mut found: Vec<Option<(Tensor, Tensor)>> = ways.iter().map(|_| None).collect();
        for round in 0..bench.rounds(9) + 1 {
            for (at, (_, tf32, engine)) in ways.iter().enumerate() {
                lightbox::device::tf32(*tf32)?;
                let (mut result, time) = timed(bench.device, || {
                    Ok(engine.run(&x, &lightbox::engine::classes(&classes), &ids, &[0], &mut |_| {})?)
                })?;
                let map = result.maps.remove(0).1?.output(0)?.f_to_device(Device::Cpu)?;
                found[at] = Some((result.logits, maps::upsample(&map, (224, 224))?));
                if round > 0 {
                    times[at].push(time);
                }
            }
        }
        lightbox::device::tf32(false)?;
        let (logits, full) = found[0].take().ok_or("no round")?;
        let _ = writeln!(text, "| {model} | float32 | {:.0} ms | | | | | |", Spread::of(&times[0]).median * 1e3);
        for (at, (name, ..)) in ways.iter().enumerate().skip(1) {
            let (low_logits, low) = found[at].take().ok_or("no round")?;
            let ratios: Vec<f64> = times[0].iter().zip(&times[at]).map(|(a, b)| a / b).collect();
            let ratio = Spread::of(&ratios);
            let _ = writeln!(
                text,
                "| {model} | {name} | {:.0} ms | {:.2} | {:.2} to {:.2} | {:.0e} | {:.0e} | {:.3} |",
                Spread::of(&times[at]).median * 1e3,
                ratio.median,
                ratio.least,
                ratio.greatest,
                relative_difference(&low_logits, &logits)?,
                map_difference(&low, &full)?,
                correlation(&low, &full)?
            );
        }
    }
    table.text(text);
    Ok(())
}
