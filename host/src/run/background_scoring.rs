//! Metrics that ask the model nothing, on the cores that it leaves free: a thread scores a batch's maps while the model and the
//! explainers are at the next. Where no core is free the worker's own thread does. The numbers are the same.

use super::scorer::{Cell, Scene, score};
use super::spec::MetricChoice;
use crate::error::{Error, Exit, Result};
use crate::watch::Watch;
use lightbox_core::metrics::NoBench;
use lightbox_core::metrics::batch_cache::BatchCache;
use lightbox_core::summary::CHANCE;
use std::collections::{BTreeMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};
use tch::Tensor;

/// Batches that wait at most: their maps are in memory.
const WAITING: usize = 2;

/// A batch's maps [n, h, w]: of each explainer, by its number, and each of its outputs by name.
pub(super) struct Job {
    pub(super) scene: Scene,
    pub(super) maps: Vec<(usize, Vec<(String, Tensor)>)>,
}

/// An explainer that failed in a metric, by its number, and why.
pub(super) type Failure = (usize, Error);

/// The cells at work.
pub(super) struct Scoring {
    pub(super) choices: Vec<MetricChoice>,
    pub(super) seed: u64,
    /// Labels of the explainers, and whether their maps have a sign.
    pub(super) explainers: Vec<(String, bool)>,
    /// What chance scores, of which a map that is the same everywhere is.
    pub(super) chance: Option<Cell>,
    /// By explainer: a cell an output.
    pub(super) cells: BTreeMap<usize, Vec<Cell>>,
    failed: HashSet<usize>,
    /// Told of every map, since a worker that says nothing for long is ended.
    watch: Arc<dyn Watch>,
}

/// A metric's panic is an error: it ends neither the thread nor the worker.
fn contained(work: impl FnOnce() -> Result<()>) -> Result<()> {
    let panicked = |_| Err(Error::new(Exit::Other, "a metric panicked; what it said is above"));
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(panicked)
}

impl Scoring {
    pub(super) fn new(
        choices: Vec<MetricChoice>,
        chance: Option<&[&MetricChoice]>,
        explainers: Vec<(String, bool)>,
        seed: u64,
        watch: Arc<dyn Watch>,
    ) -> Result<Self> {
        let chance = chance.map(|choices| Cell::start(CHANCE, "", false, choices, seed)).transpose()?;
        Ok(Scoring { choices, seed, explainers, chance, cells: BTreeMap::new(), failed: HashSet::new(), watch })
    }

    /// Scores a batch; explainers that failed are not scored again. An error is that of chance.
    fn take(&mut self, job: &Job) -> Result<Vec<Failure>> {
        let (shared, mut failures) = (BatchCache::default(), Vec::new());
        if let Some(cell) = &mut self.chance {
            let flat = job.scene.flat()?;
            contained(|| score(cell, &flat, &job.scene, &shared, &mut NoBench))?;
        }
        for (index, outputs) in &job.maps {
            if self.failed.contains(index) {
                continue;
            }
            if let Err(e) = contained(|| self.explainer(*index, outputs, &job.scene, &shared)) {
                self.failed.insert(*index);
                failures.push((*index, e));
            }
        }
        Ok(failures)
    }

    fn explainer(
        &mut self,
        index: usize,
        outputs: &[(String, Tensor)],
        scene: &Scene,
        shared: &BatchCache,
    ) -> Result<()> {
        let choices: Vec<&MetricChoice> = self.choices.iter().collect();
        let ((label, signed), cells) = (&self.explainers[index], self.cells.entry(index).or_default());
        for (k, (output, map)) in outputs.iter().enumerate() {
            if cells.len() == k {
                cells.push(Cell::start(label, output, *signed, &choices, self.seed)?);
            }
            score(&mut cells[k], map, scene, shared, &mut NoBench)?;
            self.watch.alive();
        }
        Ok(())
    }
}

/// Where they are at work.
pub(super) enum BackgroundScoring {
    /// On the thread that asks.
    Here(Box<Scoring>),
    /// On another.
    There { jobs: SyncSender<Job>, failures: Receiver<Failure>, thread: Option<JoinHandle<Result<Scoring>>> },
}

/// What a thread that has ended, or is about to, leaves.
fn join(thread: &mut Option<JoinHandle<Result<Scoring>>>) -> Result<Scoring> {
    let ended = thread.take().and_then(|thread| thread.join().ok());
    ended.unwrap_or_else(|| Err(Error::new(Exit::Other, "the thread for metrics has ended")))
}

impl BackgroundScoring {
    /// With so many cores that nothing else is at work on.
    pub(super) fn start(mut scoring: Scoring, cores: usize) -> Result<Self> {
        if cores == 0 {
            return Ok(BackgroundScoring::Here(Box::new(scoring)));
        }
        let (jobs, given) = sync_channel::<Job>(WAITING);
        let (say, failures) = channel();
        let broken = |e: &dyn std::fmt::Display| Error::new(Exit::Other, format!("a thread for metrics: {e}"));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(cores).build().map_err(|e| broken(&e))?;
        let work = move || {
            // A thread begins with gradients.
            let _guard = tch::no_grad_guard();
            for job in given {
                // Nobody hears them when the unit has failed.
                scoring.take(&job)?.into_iter().for_each(|failure| drop(say.send(failure)));
            }
            Ok(scoring)
        };
        let thread = Builder::new().name("metrics".into()).spawn(move || pool.install(work)).map_err(|e| broken(&e))?;
        Ok(BackgroundScoring::There { jobs, failures, thread: Some(thread) })
    }

    /// Takes a batch; the failures that have come up since the last.
    pub(super) fn take(&mut self, job: Job) -> Result<Vec<Failure>> {
        match self {
            BackgroundScoring::Here(scoring) => scoring.take(&job),
            BackgroundScoring::There { jobs, failures, thread } => match jobs.send(job) {
                Ok(()) => Ok(failures.try_iter().collect()),
                // It has ended before its time: with an error.
                Err(_) => join(thread).map(|_| vec![]),
            },
        }
    }

    /// Waits for all of it.
    pub(super) fn finish(self) -> Result<(Scoring, Vec<Failure>)> {
        match self {
            BackgroundScoring::Here(scoring) => Ok((*scoring, vec![])),
            BackgroundScoring::There { jobs, failures, mut thread } => {
                drop(jobs);
                Ok((join(&mut thread)?, failures.try_iter().collect()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbox_core::metrics::{Batch, Bench, Evaluation, Score};
    use tch::{Device, Kind};

    /// Five batches of two explainers, of which the second fails in the third; its failures, and what is left of it all.
    fn scored(cores: usize) -> (Vec<String>, Scoring) {
        let choice = |name: &str| MetricChoice { name: name.into(), label: String::new(), params: BTreeMap::new() };
        let choices = vec![choice("pixel-auprc"), choice("froc"), choice("gini")];
        let chance = choice("pixel-auroc");
        let explainers = vec![("good".to_string(), false), ("bad".to_string(), true)];
        let scoring = Scoring::new(choices, Some(&[&chance]), explainers, 0, crate::watch::terminal()).unwrap();
        let (mut beside, mut said) = (BackgroundScoring::start(scoring, cores).unwrap(), Vec::new());
        let mut hear = |failures: Vec<Failure>| said.extend(failures.into_iter().map(|(i, e)| format!("{i}: {e}")));
        for batch in 0..5i64 {
            let masks = Tensor::zeros([4, 16, 16], (Kind::Uint8, Device::Cpu));
            let _ = masks.narrow(1, 2 * batch, 3).narrow(2, 4, 5).fill_(1);
            let places = Tensor::arange(4 * 256, (Kind::Float, Device::Cpu)).reshape([4, 16, 16]);
            let map = (places * (1.7 + batch as f64)).sin();
            let other = if batch == 2 { map.flatten(0, 1) } else { map.square() };
            let of = |map: Tensor| vec![(String::new(), map)];
            let job = Job { scene: Scene::of(&masks, 4 * batch as usize), maps: vec![(0, of(map)), (1, of(other))] };
            hear(beside.take(job).unwrap());
        }
        let (scoring, failures) = beside.finish().unwrap();
        hear(failures);
        (said, scoring)
    }

    #[test]
    fn another_thread_scores_the_same() {
        let ((said, here), (there_said, there)) = (scored(0), scored(2));
        assert_eq!(said.len(), 1);
        assert!(said[0].starts_with("1: maps of shape [64, 16]"), "{said:?}");
        assert_eq!(there_said, said);
        assert_eq!(here.chance.unwrap().scored.len(), 20);
        assert_eq!(there.chance.unwrap().scored.len(), 20);
        for (here, there) in here.cells.values().flatten().zip(there.cells.values().flatten()) {
            // What failed is not scored again; pixel-auprc and gini answer an image, froc in the end.
            let good = here.explainer == "good";
            assert!(!good || here.scored.len() == 2 * 20);
            assert!(good || here.scored.len() == 2 * 8);
            assert_eq!(here.scored, there.scored);
            let state = |cell: &Cell| cell.evaluations[1].2.state().unwrap();
            assert_eq!(state(here), state(there));
        }
    }

    struct Panics;

    impl Evaluation for Panics {
        fn update(&mut self, _: &Batch<'_>, _: &mut dyn Bench) -> lightbox_core::Result<Vec<Score>> {
            panic!("as the test wants it");
        }
    }

    #[test]
    fn a_panic_is_its_explainers_failure() {
        for cores in [0, 1] {
            let choice = MetricChoice { name: "gini".into(), label: String::new(), params: BTreeMap::new() };
            let explainers = vec![("bad".to_string(), false), ("good".to_string(), false)];
            let mut scoring =
                Scoring::new(vec![choice.clone()], None, explainers, 0, crate::watch::terminal()).unwrap();
            let mut cell = Cell::start("bad", "", false, &[&choice], 0).unwrap();
            cell.evaluations[0].2 = Box::new(Panics);
            scoring.cells.insert(0, vec![cell]);
            let mut beside = BackgroundScoring::start(scoring, cores).unwrap();
            let masks = Tensor::ones([2, 4, 4], (Kind::Uint8, Device::Cpu));
            let map = || vec![(String::new(), Tensor::rand([2, 4, 4], (Kind::Float, Device::Cpu)))];
            let job = Job { scene: Scene::of(&masks, 0), maps: vec![(0, map()), (1, map())] };
            let mut failures = beside.take(job).unwrap();
            let (scoring, late) = beside.finish().unwrap();
            failures.extend(late);
            let failures: Vec<String> = failures.iter().map(|(i, e)| format!("{i}: {}", e.message)).collect();
            assert_eq!(failures, ["0: a metric panicked; what it said is above"]);
            assert_eq!(scoring.cells[&1][0].scored.len(), 2);
        }
    }
}
