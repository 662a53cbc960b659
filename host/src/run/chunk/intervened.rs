//! What the model says of a chunk's images with the planted shortcut painted in and out, where the task asks for it.

use crate::engine::Engine;
use crate::error::{Error, Exit, Result};
use crate::images::normalised;
use lightbox_core::data::Source;
use lightbox_core::data::preparation::Preparation;
use lightbox_core::intervention::Intervention;
use lightbox_core::task::Task;
use lightbox_sdk::spec::InputSpec;
use rayon::prelude::*;
use tch::Kind;

/// An intervention on each of these images.
pub fn intervene(
    engine: &Engine,
    (source, task, input): (&dyn Source, &Task, &InputSpec),
    images: &[usize],
    (model, fold, training): (&str, usize, usize),
    batch: usize,
) -> Result<Vec<Intervention>> {
    let preparation = Preparation { size: input.flat()?, colour: source.is_colour(), intensity: source.intensity() };
    let samples = source.samples();
    let mut found = Vec::with_capacity(images.len());
    for part in images.chunks(batch.max(1)) {
        let mut answers = Vec::new();
        for present in [false, true] {
            if crate::signals::interrupted() {
                return Err(Error::new(Exit::Interrupted, "interrupted"));
            }
            let one = |&i: &usize| {
                let image = source.with_shortcut(i, present)?;
                let none = || Error::input("task.intervene: the data source has no planted shortcut");
                Ok(preparation.levels(&image.ok_or_else(none)?)?)
            };
            let levels = part.par_iter().map(one).collect::<Result<Vec<_>>>()?;
            let logits = engine.classify(&normalised(&levels, input, preparation.size)?)?;
            let list = |t: &tch::Tensor| -> Result<Vec<f64>> {
                Ok(Vec::<f64>::try_from(t.f_select(1, 1)?.f_to_kind(Kind::Double)?.f_to_device(tch::Device::Cpu)?)?)
            };
            answers.push((list(&logits)?, list(&task.scores(&logits)?)?));
        }
        let [without, with] = &answers[..] else { return Err(Error::input("two answers were expected")) };
        for (at, &i) in part.iter().enumerate() {
            found.push(Intervention {
                image: samples[i].id.clone(),
                model: model.into(),
                fold,
                training,
                finding: samples[i].has(1),
                planted: source.has_shortcut(i),
                logits: [without.0[at], with.0[at]],
                scores: [without.1[at], with.1[at]],
            });
        }
    }
    Ok(found)
}
