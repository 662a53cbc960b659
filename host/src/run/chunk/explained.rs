//! The shared run of a batch and its explainers; once more without one that wrote to what it was given.

use super::Failures;
use super::prepared::Rows;
use crate::engine::{self, Engine, Outputs};
use crate::error::{Error, Result};
use crate::run::events::Event;
use crate::run::timings::Timings;
use crate::run::unit::FailureKind;
use crate::run::unit::Unit;
use crate::run::worker::Worker;
use lightbox_core::data::Sample;
use lightbox_core::data::store::Store;
use std::collections::BTreeMap;
use tch::Tensor;

/// What a batch came to.
pub struct ExplainedBatch {
    /// Images and what was asked for.
    pub rows: Rows,
    /// [B, C, H, W], normalised.
    pub images: Tensor,
    /// [B, classes] float32, CPU.
    pub logits: Tensor,
    /// The class that was explained, a row.
    pub classes: Vec<i64>,
    /// By explainer: its maps, or why there are none.
    pub maps: Vec<(usize, lightbox_sdk::Result<Outputs>)>,
}

/// Runs batches, and counts what explainers take.
pub struct Explaining<'a> {
    worker: &'a Worker,
    engine: &'a Engine,
    unit: &'a Unit,
    samples: &'a [Sample],
    /// Seconds in explainers' own code.
    pub seconds: BTreeMap<usize, f64>,
    /// Images that explainers ran the model on for the maps themselves; metrics may ask them again.
    pub ran: Vec<u64>,
}

impl<'a> Explaining<'a> {
    pub fn new(worker: &'a Worker, engine: &'a Engine, unit: &'a Unit, samples: &'a [Sample]) -> Self {
        let ran = vec![0; engine.explainers.len()];
        Explaining { worker, engine, unit, samples, seconds: BTreeMap::new(), ran }
    }

    /// Explains a batch.
    pub fn run(
        &mut self,
        (rows, mut images): (Rows, Tensor),
        store: &Store,
        failures: &mut Failures<'_>,
        timings: &mut Timings,
    ) -> Result<ExplainedBatch> {
        let (engine, sink) = (self.engine, &self.worker.sink);
        let (ids, wanted, key) = (rows.ids(self.samples), rows.targets(), self.unit.key());
        let model = self.unit.model().unwrap_or_default();
        loop {
            let before: Vec<u64> = (0..self.ran.len()).map(|i| engine.runs(i)).collect();
            let result = engine.run(&images, &wanted, &ids, &failures.active(), &mut |explainer| {
                let (unit, model, explainer) = (key.clone(), model.to_string(), explainer.label.clone());
                sink.say(Event::CellStarted { unit, model, explainer });
            })?;
            sink.say(Event::CellLeft { unit: key.clone() });
            timings.model += result.model_seconds;
            timings.explainers += result.seconds.iter().map(|(_, s)| s).sum::<f64>();
            self.ran.iter_mut().enumerate().for_each(|(i, n)| *n += engine.runs(i) - before[i]);
            if let Some(culprit) = result.tampered {
                let reason = engine::tampered(&engine.explainers[culprit].label).to_string();
                failures.add(culprit, FailureKind::Tampered, reason);
                images = store.batch(&rows.images())?;
                continue;
            }
            for (index, seconds) in &result.seconds {
                *self.seconds.entry(*index).or_default() += seconds;
            }
            let class = |t: &lightbox_sdk::Target| t.class().map(|c| c as i64);
            let classes: Option<Vec<i64>> = result.targets.iter().map(class).collect();
            let classes = classes.ok_or_else(|| Error::input("a run explains classes"))?;
            return Ok(ExplainedBatch { rows, images, logits: result.logits, classes, maps: result.maps });
        }
    }

    /// Does work that belongs to an explainer: what hangs or crashes in it is the explainer's.
    pub fn in_cell(&self, index: usize, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let (unit, model) = (self.unit.key(), self.unit.model().unwrap_or_default().to_string());
        let explainer = self.engine.explainers[index].label.clone();
        self.worker.sink.say(Event::CellStarted { unit: unit.clone(), model, explainer });
        let outcome = work();
        self.worker.sink.say(Event::CellLeft { unit });
        outcome
    }
}
