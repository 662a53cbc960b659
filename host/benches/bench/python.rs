//! What it costs that an explainer is in Python: GradCAM there and here on the same model, alternately, and the way of a batch over
//! the wire and back. Both are ours, so that no peer stands beside them.

use crate::table::Table;
use crate::{Bench, Result, built, images, plugin, timed};
use lightbox::choice::ExplainerChoice;
use lightbox::engine::{Engine, Settings};
use lightbox::registry;
use lightbox_sdk::host::{Serving, Silent};
use lightbox_sdk::spec::{InputSpec, ModelOptions, ModelSpec};
use lightbox_sdk::{Array, ExplainInput, Target};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

const BATCH: i64 = 8;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn project() -> Result<PathBuf> {
    Ok(Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("no project")?.to_path_buf())
}

/// The seconds of a batch's way to an explainer that does nothing, and back.
fn transport(file: &Path, rounds: usize) -> Result<f64> {
    let explainer = registry::open(file)?.make_explainer("py-nothing")?;
    let model = ModelSpec::new("none", InputSpec::imagenet(224), 2);
    let bound = explainer.bind(&model, &[], &BTreeMap::new())?;
    let array = Array::from_tensor(&images(BATCH, 224)?)?;
    let logits = Array::from_vec(&[BATCH as usize, 2], vec![0f32; 2 * BATCH as usize])?;
    let (silent, mut seconds) = (Silent, Vec::new());
    let serving = Serving::new(&silent);
    for _ in 0..rounds + 10 {
        let targets = vec![Target::Class(0); BATCH as usize];
        let input = ExplainInput::new(array.clone(), targets, logits.clone(), &serving);
        let started = Instant::now();
        bound.explain(input)?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    Ok(median(seconds.split_off(10)))
}

pub fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    let own = project()?.join(".lightbox/recompute/bin/python");
    let Some(python) = bench.python.clone().or(Some(own).filter(|p| p.is_file())) else {
        table.text("Explainers in Python: no interpreter with NumPy.".into());
        return Ok(());
    };
    // SAFETY: this process has no other thread that reads its environment now.
    unsafe { std::env::set_var("LIGHTBOX_PYTHON", python) };
    let file = project()?.join("tests/python/plain.py");
    let model = registry::open(&built()?.join("plugins/liblightbox_densenet.so"))?;
    let options = ModelOptions { device: bench.name(), ..ModelOptions::default() };
    let mut engine = Engine::new(
        model.make_model("densenet121", &options)?,
        Settings::new(bench.device, 0),
        lightbox::watch::terminal(),
    )?;
    engine.add(&plugin("cam")?, &ExplainerChoice::parse("gradcam")?)?;
    engine.add(&file, &ExplainerChoice::parse("py-gradcam")?)?;
    let x = images(BATCH, 224)?.to_device(bench.device);
    let wanted: Vec<Option<Target>> = vec![Some(Target::Class(1)); BATCH as usize];
    let ids: Vec<u64> = (0..BATCH as u64).collect();
    let batches = if bench.quick { 2 } else { 8 };
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..bench.rounds(7) + 1 {
        for (index, own) in times.iter_mut().enumerate() {
            let (_, seconds) = timed(bench.device, || {
                for _ in 0..batches {
                    engine.run(&x, &wanted, &ids, &[index], &mut |_| {})?.maps[0]
                        .1
                        .as_ref()
                        .map_err(|e| e.to_string())?;
                }
                Ok(())
            })?;
            if round > 0 {
                own.push(seconds);
            }
        }
    }
    let [ours, theirs] = times.map(median);
    let way = transport(&file, 200)?;
    table.text(format!(
        "GradCAM of densenet121, {} images, in Rust {ours:.3} s, in Python over the wire {theirs:.3} s: {:.3} times (goal 1.03), \
         medians, alternately. A batch of {BATCH} x 3 x 224 x 224 float32 there and back: {:.2} ms (goal 2).",
        batches * BATCH,
        theirs / ours,
        way * 1e3
    ));
    Ok(())
}
