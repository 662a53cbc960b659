//! One epoch of training DenseNet121 and DeiT-S against PyTorch, from the same weights, with the same optimiser and order.

use crate::rounds::alternate;
use crate::table::Table;
use crate::{Bench, Result, images, plugin, relative_difference, timed};
use lightbox::registry;
use lightbox_sdk::Array;
use lightbox_sdk::spec::{ModelOptions, TrainerOptions};
use serde_json::json;
use tch::Tensor;

pub fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    for (family, model) in [("densenet", "densenet121"), ("deit", "deit_small_patch16_224")] {
        one(bench, table, family, model)?;
    }
    Ok(())
}

fn one(bench: &Bench, table: &mut Table, family: &str, model: &str) -> Result<()> {
    let (n, batch) = if bench.quick { (8, 8) } else { (32, 8) };
    let (_, mut state) = bench.engine(model, 0, &[])?;
    let x = images(n, 224)?;
    let classes: Vec<i64> = (0..n).map(|i| (i * 37) % 1000).collect();
    state.push(("images".into(), x.shallow_clone()));
    let job = json!({ "model": model, "targets": classes, "batch": batch, "device": bench.name() });
    let mut peer = bench.peer("training", job, &state)?;
    let options = ModelOptions { device: bench.name(), seed: 1, ..ModelOptions::default() };
    let training = TrainerOptions {
        optimizer: "adamw".into(),
        learning_rate: 1e-4,
        weight_decay: 0.01,
        loss: "cross-entropy".into(),
        class_weights: vec![],
        precision: "float32".into(),
    };
    let (x, y) = (x.to_device(bench.device), Tensor::from_slice(&classes).to_device(bench.device));
    let rounds = alternate(bench.rounds(3), &mut peer, "pytorch", || {
        let made = registry::open(&plugin(family)?)?.make_model(model, &options)?;
        let mut trainer = made.trainer(&training)?;
        timed(bench.device, || {
            let mut losses = Vec::new();
            for start in (0..n).step_by(batch as usize) {
                let part = |t: &Tensor| Array::from_tensor(&t.narrow(0, start, batch.min(n - start)));
                losses.push(trainer.step(&part(&x)?, &part(&y)?)?);
            }
            Ok(losses)
        })
    })?;
    let work = format!("an epoch of {n} images, batches of {batch}, {model} (difference of losses)");
    rounds.add(table, work, None, Some(1e-3), |losses, theirs| {
        relative_difference(&Tensor::f_from_slice(losses)?, theirs)
    })
}
