//! The way of a chunk of test images through a worker, a stage a file:
//!
//! 1. [`prepared`]: which images are explained and for what, and which are only classified; batches from the store.
//! 2. [`classified`]: what the model says of each image.
//!    [`intervened`] says it of images with a planted shortcut painted in and out, where the task asks for it.
//! 3. [`explained`]: the shared run and the explainers, again without one that wrote to its input.
//! 4. [`scored`]: the metrics' answers, of those that ask nothing on another thread where cores are free.
//! 5. [`written`]: maps as they come, a file an explainer; tables, states and last the record.
//!
//! Nothing turns back: maps stay on the device until they are scored, and one copy goes to a file.

pub(super) mod classified;
mod explained;
mod intervened;
pub(super) mod prepared;
mod scored;
mod written;

use super::events::Event;
use super::folder::{INTERVENTIONS, write_lines};
use super::scorer::failed;
use super::state;
use super::timings::Timings;
use super::unit::FailureKind;
use super::unit::Unit;
use super::unit_result::UnitResult;
use super::worker::Worker;
use crate::engine::Engine;
use crate::error::{Error, Exit, Result};
use classified::Classified;
use explained::Explaining;
use lightbox_sdk::spec::Plan;
use prepared::Prepared;
use scored::Scored;
use std::collections::HashSet;
use std::time::Instant;
use written::Written;

/// How much memory the maps of a batch may take, all explainers' together; as much again waits to be scored beside the next
/// batch.
const MAPS: usize = 512 << 20;

/// Rows that are explained at a time: the run's batch size, or fewer where so many explainers' maps of the model's size would
/// take more memory than [`MAPS`]. What explainers run the model on keeps the batch size.
fn rows_at_a_time(batch_size: usize, explainers: usize, [height, width]: [usize; 2]) -> usize {
    let row = (explainers * height * width * size_of::<f32>()).max(1);
    batch_size.min((MAPS / row).max(1))
}

/// Adds the seconds of a call to a part.
fn timed<T>(part: &mut f64, call: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let value = call();
    *part += started.elapsed().as_secs_f64();
    value
}

/// Explainers that have failed in this unit, and who is told.
struct Failures<'a> {
    worker: &'a Worker,
    engine: &'a Engine,
    model: &'a str,
    broken: HashSet<usize>,
}

impl Failures<'_> {
    fn is_broken(&self, index: usize) -> bool {
        self.broken.contains(&index)
    }

    /// The explainers that still run.
    fn active(&self) -> Vec<usize> {
        (0..self.engine.explainers.len()).filter(|i| !self.is_broken(*i)).collect()
    }

    /// An explainer has failed; said once.
    fn add(&mut self, index: usize, kind: FailureKind, reason: String) {
        if self.broken.insert(index) {
            let label = &self.engine.explainers[index].label;
            self.worker.sink.say(failed(self.model, label, kind, reason));
        }
    }

    /// An explainer's error is its own, but for what ends the run.
    fn take(&mut self, index: usize, outcome: Result<()>) -> Result<()> {
        match outcome {
            Ok(()) => Ok(()),
            Err(e) if crate::signals::interrupted() => Err(Error::new(Exit::Interrupted, e.message)),
            Err(e) if e.exit == Exit::DiskFull => Err(e),
            Err(e) => {
                self.add(index, FailureKind::Error, e.to_string());
                Ok(())
            }
        }
    }
}

impl Worker {
    /// Classifies, explains and scores a chunk.
    pub fn explain(&mut self, unit: &Unit, stem: &str) -> Result<UnitResult> {
        let Unit::Explain { model: label, fold, training, chunk, explainers, predict, .. } = unit else {
            return Err(Error::new(Exit::Other, "no unit of explanations"));
        };
        self.open_engine(label, *fold, *training, explainers)?;
        let (store, source, plan) = (self.store_of(label)?, self.source()?, self.plan.clone());
        let spec = &plan.spec;
        let engine = self.opened()?;
        let samples = source.samples();
        // The fold's validation images, on which some metrics are tuned: what they score is no result.
        let validating = *chunk >= plan.chunks();
        let prepared = Prepared::new(spec, &plan.split, samples, &store, (*fold, *chunk), *predict)?;
        let place = (label.as_str(), *fold, *training);
        let mut failures = Failures { worker: self, engine, model: label, broken: HashSet::new() };
        for (index, explainer) in engine.explainers.iter().enumerate() {
            if let Plan::NotApplicable { reason } = &explainer.plan {
                // The survey heard otherwise.
                let text = format!("it does not apply in fold {fold}: {reason}");
                failures.add(index, FailureKind::Error, text);
            }
        }
        let choices = if validating { state::tuned_metrics(spec)? } else { state::map_metrics(spec)? };
        let with_chance = *predict && !spec.explainers.is_empty();
        let mut classified = Classified::new(label, samples, &spec.task);
        let mut scored = Scored::new(self, engine, spec, &choices, with_chance, samples, place)?;
        let mut written = Written::new(&self.folder, stem, engine);
        let mut explaining = Explaining::new(self, engine, unit, samples);
        let mut timings = Timings::default();
        let (mut done, of) = (0, prepared.rows.len() + prepared.rest.len());
        let progress = |done: usize| self.sink.say(Event::Progress { unit: unit.key(), done, of });

        let rows = rows_at_a_time(spec.batch_size, engine.explainers.len(), plan.input(label)?.flat()?);
        let mut batches = prepared.explained_batches(&store, rows);
        while let Some(batch) = timed(&mut timings.data, || batches.next()) {
            let batch = explaining.run(batch?, &store, &mut failures, &mut timings)?;
            if *predict {
                classified.add(&batch.rows.images(), &batch.logits)?;
            }
            let rows = batch.rows.clone();
            let maps = timed(&mut timings.metrics, || scored.begin(&batch, &store))?;
            for (index, outcome) in maps {
                let outcome = outcome.map_err(Error::from).and_then(|outputs| {
                    explaining.in_cell(index, || {
                        timed(&mut timings.metrics, || scored.ask(index, &outputs))?;
                        timed(&mut timings.files, || written.maps(index, &prepared.rows, &outputs))?;
                        scored.hand_over(index, &outputs)
                    })
                });
                failures.take(index, outcome)?;
            }
            for (index, error) in timed(&mut timings.metrics, || scored.score_rest())? {
                failures.add(index, FailureKind::Error, error.to_string());
            }
            done += rows.len();
            progress(done);
        }
        let mut batches = store.batches(prepared.rest.chunks(spec.batch_size).map(<[usize]>::to_vec).collect());
        while let Some(batch) = timed(&mut timings.data, || batches.next()) {
            let (indices, images) = batch?;
            let logits = timed(&mut timings.model, || engine.classify(&images))?;
            classified.add(&indices, &logits)?;
            done += indices.len();
            progress(done);
        }
        for (index, error) in timed(&mut timings.metrics, || scored.finish())? {
            failures.add(index, FailureKind::Error, error.to_string());
        }
        let mut result = UnitResult { images: prepared.images(), timings, ..UnitResult::default() };
        let started = Instant::now();
        written.finish(self, spec, *chunk, &mut scored, &explaining, &failures, &prepared, &mut result)?;
        if *predict {
            result.predictions = Some(self.identities.predictions(*chunk)?.to_string());
            classified.write(&self.folder.unit(stem, "predictions.parquet"), place)?;
            if spec.task.intervene {
                let mut images = [prepared.rows.images(), prepared.rest.clone()].concat();
                images.sort_unstable();
                images.dedup();
                let of = (source.as_ref(), &spec.task, plan.input(label)?);
                let found = intervened::intervene(engine, of, &images, place, spec.batch_size)?;
                write_lines(&self.folder.unit(stem, INTERVENTIONS), &found)?;
            }
        }
        result.timings.files += started.elapsed().as_secs_f64();
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_large_maps_make_batches_small() {
        assert_eq!(rows_at_a_time(32, 65, [224, 224]), 32);
        assert_eq!(rows_at_a_time(32, 60, [1024, 1024]), 2);
        assert_eq!((rows_at_a_time(32, 0, [64, 64]), rows_at_a_time(8, 1000, [4096, 4096])), (32, 1));
    }
}
