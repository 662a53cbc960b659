//! The metrics' answers to a chunk: those that ask the model on this thread, the others beside it.

use super::explained::ExplainedBatch;
use crate::engine::{Engine, Outputs};
use crate::error::{Error, Exit, Result};
use crate::run::background_scoring::{BackgroundScoring, Failure, Job, Scoring};
use crate::run::scorer::{Cell, CellBench, Scene, TableRows, answer, asks, score};
use crate::run::spec::{MetricChoice, RunSpec};
use crate::run::state;
use crate::run::worker::Worker;
use lightbox_core::data::Sample;
use lightbox_core::data::store::Store;
use lightbox_core::metrics::{self, batch_cache::BatchCache};
use lightbox_core::results::Names;
use std::collections::BTreeMap;

/// A batch at work: what its cells share.
struct Current {
    scene: Scene,
    shared: BatchCache,
    job: Job,
}

/// Scores of a chunk.
pub struct Scored<'a> {
    engine: &'a Engine,
    spec: &'a RunSpec,
    samples: &'a [Sample],
    /// The metrics of maps of this unit.
    pub choices: Vec<&'a MetricChoice>,
    /// Those that chance has a score of.
    pub chance: Vec<&'a MetricChoice>,
    asking: Vec<&'a MetricChoice>,
    /// By explainer: a cell an output, of the metrics that ask.
    cells: BTreeMap<usize, Vec<Cell>>,
    background: Option<BackgroundScoring>,
    finished: Option<Scoring>,
    current: Option<Current>,
    place: (&'a str, usize, usize),
}

fn nothing() -> Error {
    Error::new(Exit::Other, "no batch is being scored")
}

impl<'a> Scored<'a> {
    pub fn new(
        worker: &Worker,
        engine: &'a Engine,
        spec: &'a RunSpec,
        choices: &[&'a MetricChoice],
        with_chance: bool,
        samples: &'a [Sample],
        place: (&'a str, usize, usize),
    ) -> Result<Self> {
        let chance = state::chance_metrics(spec)?;
        let (asking, plain): (Vec<&MetricChoice>, Vec<&MetricChoice>) = choices.iter().partition(|c| asks(c));
        let explainers = engine.explainers.iter().map(|e| (e.label.clone(), e.spec.signed)).collect();
        let plain = plain.into_iter().cloned().collect();
        let own = with_chance.then_some(&chance[..]);
        let scoring = Scoring::new(plain, own, explainers, spec.seed, worker.sink.clone())?;
        let background = Some(BackgroundScoring::start(scoring, worker.spare)?);
        let (cells, choices) = (BTreeMap::new(), choices.to_vec());
        Ok(Scored {
            engine,
            spec,
            samples,
            choices,
            chance,
            asking,
            cells,
            background,
            finished: None,
            current: None,
            place,
        })
    }

    /// Begins a batch; its maps are handed back, an explainer at a time.
    pub fn begin(
        &mut self,
        batch: &ExplainedBatch,
        store: &Store,
    ) -> Result<Vec<(usize, lightbox_sdk::Result<Outputs>)>> {
        let scene = Scene::new(store, self.samples, &batch.images, &batch.rows, &batch.classes)?;
        let job = Job { scene: scene.share(), maps: vec![] };
        let shared = BatchCache::default();
        metrics::remember(&shared, || answer(&self.spec.task, &batch.logits))?;
        self.current = Some(Current { scene, shared, job });
        let copy = |o: &Outputs| Outputs { names: o.names.clone(), maps: o.maps.shallow_clone() };
        Ok(batch.maps.iter().map(|(i, o)| (*i, o.as_ref().map(copy).map_err(Clone::clone))).collect())
    }

    /// Scores an explainer's maps by the metrics that ask the model or the explainer.
    pub fn ask(&mut self, index: usize, outputs: &Outputs) -> Result<()> {
        let current = self.current.as_ref().ok_or_else(nothing)?;
        let explainer = &self.engine.explainers[index];
        let cells = self.cells.entry(index).or_default();
        for (k, output) in outputs.names.iter().enumerate() {
            if cells.len() == k {
                let signed = explainer.spec.signed;
                cells.push(Cell::start(&explainer.label, output, signed, &self.asking, self.spec.seed)?);
            }
            let (task, batch) = (&self.spec.task, self.spec.batch_size);
            let mut bench = CellBench { engine: self.engine, explainer: Some((index, k)), task, batch };
            score(&mut cells[k], &outputs.output(k)?, &current.scene, &current.shared, &mut bench)?;
        }
        Ok(())
    }

    /// Hands an explainer's maps to the metrics that ask nothing.
    pub fn hand_over(&mut self, index: usize, outputs: &Outputs) -> Result<()> {
        let current = self.current.as_mut().ok_or_else(nothing)?;
        let map = |(k, name): (usize, &String)| Ok((name.clone(), outputs.output(k)?));
        current.job.maps.push((index, outputs.names.iter().enumerate().map(map).collect::<Result<_>>()?));
        Ok(())
    }

    /// Scores what was handed over; explainers that have failed in it so far.
    pub fn score_rest(&mut self) -> Result<Vec<Failure>> {
        let current = self.current.take().ok_or_else(nothing)?;
        self.background.as_mut().ok_or_else(nothing)?.take(current.job)
    }

    /// Waits for all scores; explainers that have failed since.
    pub fn finish(&mut self) -> Result<Vec<Failure>> {
        let (scoring, failures) = self.background.take().ok_or_else(nothing)?.finish()?;
        self.finished = Some(scoring);
        Ok(failures)
    }

    /// An empty table for the rows of this unit.
    pub fn table(&self) -> TableRows<'a> {
        TableRows { names: Names::default(), rows: vec![], samples: self.samples, place: self.place }
    }

    /// The finished cells of an explainer.
    pub fn cells_of(&mut self, index: usize) -> Vec<Cell> {
        let finished = self.finished.as_mut().and_then(|f| f.cells.remove(&index));
        [finished, self.cells.remove(&index)].into_iter().flatten().flatten().collect()
    }

    /// The finished cell of chance.
    pub fn chance_cell(&mut self) -> Option<Cell> {
        self.finished.as_mut().and_then(|f| f.chance.take())
    }
}
