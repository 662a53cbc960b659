//! How a batch's maps are scored: what a cell is scored with, the forms of its maps, the bench that a metric may ask, and the
//! rows that come of it.

use super::chunk::prepared::Rows;
use super::events::Event;
use super::spec::MetricChoice;
use super::unit::{Failure, FailureKind};
use crate::engine::{self, Engine};
use crate::error::Result;
use lightbox_core::checkpoint::State;
use lightbox_core::data::Sample;
use lightbox_core::data::store::Store;
use lightbox_core::maps::{self, Fault};
use lightbox_core::metrics::batch_cache::BatchCache;
use lightbox_core::metrics::{self, Answer, Bench, Edits, Evaluation, Form, Masks, Needs, Score, Size};
use lightbox_core::results::{Names, Row};
use lightbox_core::task::Task;
use lightbox_sdk::{Array, Target};
use tch::{Device, Kind, Tensor};

/// Whether a metric asks the model or the explainer.
pub(super) fn asks(choice: &MetricChoice) -> bool {
    metrics::find(&choice.name).is_ok_and(|m| m.needs().asks())
}

/// A cell at work: an explainer's map and its metrics.
pub(super) struct Cell {
    pub(super) explainer: String,
    pub(super) output: String,
    /// Whether its values' sign means something.
    pub(super) signed: bool,
    pub(super) evaluations: Vec<(MetricChoice, Needs, Box<dyn Evaluation>)>,
    /// The answers so far.
    pub(super) scored: Vec<Scored>,
}

/// A metric's answer for an image.
#[derive(Debug, PartialEq)]
pub(super) struct Scored {
    image: usize,
    target: i64,
    /// Its place in the cell's evaluations.
    metric: usize,
    score: Score,
}

impl Cell {
    pub(super) fn start(
        explainer: &str,
        output: &str,
        signed: bool,
        choices: &[&MetricChoice],
        seed: u64,
    ) -> Result<Self> {
        let mut evaluations = Vec::new();
        for choice in choices {
            let metric = metrics::find(&choice.name)?;
            let parameters = metric.spec().resolve(&choice.params)?;
            evaluations.push(((*choice).clone(), metric.needs(), metric.start(&parameters, seed)?));
        }
        Ok(Cell { explainer: explainer.into(), output: output.into(), signed, evaluations, scored: vec![] })
    }
}

impl Cell {
    /// The answers so far: image, the metric's place, score.
    pub(super) fn take(&mut self) -> Vec<(usize, usize, Score)> {
        std::mem::take(&mut self.scored).into_iter().map(|s| (s.image, s.metric, s.score)).collect()
    }
}

/// What all cells of a batch are scored with.
pub(super) struct Scene {
    images: Tensor,
    indices: Vec<usize>,
    targets: Vec<i64>,
    ids: Vec<u64>,
    /// [n, h, w] uint8 on the run's device.
    masks: Tensor,
    /// Of planted shortcuts; as the masks.
    shortcuts: Tensor,
    known: Vec<bool>,
}

impl Scene {
    /// Of rows with their images [n, C, h, w] and the classes that are explained.
    pub(super) fn new(
        store: &Store,
        samples: &[Sample],
        images: &Tensor,
        rows: &Rows,
        classes: &[i64],
    ) -> Result<Self> {
        let (size, device, indices) = (images.size()[2..].to_vec(), images.device(), rows.images());
        let pixels = size.iter().product::<i64>() as usize;
        let mut bytes = Vec::with_capacity(indices.len() * pixels);
        let (mut known, mut planted) = (Vec::new(), Vec::new());
        for (&i, &class) in indices.iter().zip(classes) {
            planted.extend(store.shortcut(i));
            let mask = store.mask(i, samples[i].mask_bit(class as usize));
            known.push(mask.is_some());
            bytes.extend(mask.unwrap_or_else(|| vec![0; pixels]));
        }
        let shape = [&[indices.len() as i64][..], &size].concat();
        let masks = Tensor::f_from_slice(&bytes)?.f_reshape(&shape)?.f_to_device(device)?;
        let shortcuts = Tensor::f_from_slice(&planted)?.f_reshape(&shape)?.f_to_device(device)?;
        let (ids, targets) = (rows.ids(samples), classes.to_vec());
        Ok(Scene { images: images.shallow_clone(), indices, targets, ids, masks, shortcuts, known })
    }

    /// The same, for another thread.
    pub(super) fn share(&self) -> Self {
        let (indices, targets, ids) = (self.indices.clone(), self.targets.clone(), self.ids.clone());
        let [images, masks, shortcuts] = [&self.images, &self.masks, &self.shortcuts].map(Tensor::shallow_clone);
        Scene { images, indices, targets, ids, masks, shortcuts, known: self.known.clone() }
    }

    /// Of masks [n, h, w] uint8 alone, the first of which is that of image `first`.
    pub(super) fn of_masks(masks: &Tensor, first: usize, known: bool) -> Result<Self> {
        let n = masks.size()[0] as usize;
        let indices: Vec<usize> = (first..first + n).collect();
        let ids = indices.iter().map(|i| *i as u64).collect();
        let (images, shortcuts) = (masks.f_unsqueeze(1)?, masks.f_zeros_like()?);
        let masks = masks.shallow_clone();
        Ok(Scene { images, indices, targets: vec![1; n], ids, masks, shortcuts, known: vec![known; n] })
    }

    #[cfg(test)]
    pub(super) fn of(masks: &Tensor, first: usize) -> Self {
        Scene::of_masks(masks, first, true).unwrap()
    }

    /// A map that says nothing of any place.
    pub(super) fn flat(&self) -> Result<Tensor> {
        Ok(Tensor::f_zeros(self.masks.size(), (Kind::Float, self.masks.device()))?)
    }
}

/// The bench of a cell: its model, and its explainer by number.
pub(super) struct CellBench<'a> {
    pub(super) engine: &'a Engine,
    /// Its number, and that of its map.
    pub(super) explainer: Option<(usize, usize)>,
    pub(super) task: &'a Task,
    pub(super) batch: usize,
}

impl CellBench<'_> {
    fn core(e: impl std::fmt::Display) -> lightbox_core::Error {
        lightbox_core::Error::new(e.to_string())
    }
}

/// Logits [n, classes] as metrics read them.
pub(super) fn answer(task: &Task, logits: &Tensor) -> lightbox_core::Result<Answer> {
    let cpu = |t: &Tensor| t.f_to_kind(Kind::Double)?.f_to_device(Device::Cpu);
    Ok(Answer { scores: cpu(&task.scores(logits)?)?, logits: cpu(logits)? })
}

impl Bench for CellBench<'_> {
    fn run(&mut self, images: &Tensor) -> lightbox_core::Result<Answer> {
        answer(self.task, &self.engine.classify(images).map_err(Self::core)?)
    }

    fn explain(&mut self, images: &Tensor, targets: &[i64], ids: &[u64]) -> lightbox_core::Result<Tensor> {
        let (index, output) = self.explainer.ok_or_else(|| Self::core("chance has no explainer"))?;
        let wanted: Vec<Option<Target>> = targets.iter().map(|t| Some(Target::Class(*t as usize))).collect();
        // Its own copy: one that writes to what it was given shall not change what others are scored on.
        let mut copy = images.f_empty_like()?;
        copy.f_copy_(images)?;
        let batch = self.engine.run(&copy, &wanted, ids, &[index], &mut |_| {}).map_err(Self::core)?;
        if batch.tampered.is_some() {
            return Err(Self::core(engine::tampered(&self.engine.explainers[index].label)));
        }
        let outcome = batch.maps.into_iter().next().ok_or_else(|| Self::core("the explainer does not apply"))?;
        outcome.1.map_err(Self::core)?.output(output).map_err(Self::core)
    }

    fn parameters(&mut self) -> lightbox_core::Result<Vec<(String, Tensor)>> {
        let named = self.engine.parameters().map_err(Self::core)?;
        named.into_iter().map(|(name, a)| Ok((name, a.share_tensor().map_err(Self::core)?))).collect()
    }

    fn fork(
        &mut self,
        key: &str,
        edits: Edits<'_>,
        f: &mut dyn FnMut(&mut dyn Bench) -> lightbox_core::Result<()>,
    ) -> lightbox_core::Result<()> {
        let named = || {
            let edits = edits()?;
            let share = |(name, tensor): &(String, Tensor)| Ok((name.clone(), Array::from_tensor(tensor)?));
            edits.iter().map(share).collect::<crate::error::Result<_>>()
        };
        let mut fork = self.engine.fork(key, named).map_err(Self::core)?;
        if let Some((index, _)) = self.explainer {
            let explainer = &self.engine.explainers[index];
            fork.copy_explainer(explainer).map_err(Self::core)?;
        }
        let explainer = self.explainer.map(|(_, output)| (0, output));
        f(&mut CellBench { engine: &fork, explainer, task: self.task, batch: self.batch })
    }

    fn batch_size(&self) -> usize {
        self.batch
    }

    fn check(&mut self) -> lightbox_core::Result<()> {
        self.engine.check().map_err(Self::core)
    }
}

/// Scores maps [n, h, w] of a cell. Each form of them is made once, whatever the number of metrics. `shared` is the scene's.
pub(super) fn score(
    cell: &mut Cell,
    raw: &Tensor,
    scene: &Scene,
    shared: &BatchCache,
    bench: &mut dyn Bench,
) -> Result<()> {
    if cell.evaluations.is_empty() {
        return Ok(());
    }
    let faults = maps::faults(raw)?;
    // What is not finite is scored by nobody; zeros keep the others' arithmetic whole.
    let clean = if faults.contains(&Fault::NotFinite) { raw.f_nan_to_num(0.0, 0.0, 0.0)? } else { raw.shallow_clone() };
    // A copy only for the maps of an explainer that is on the CPU in a run that is not.
    let masks = scene.masks.f_to_device(raw.device())?;
    let shortcuts = scene.shortcuts.f_to_device(raw.device())?;
    let cache = BatchCache::default();
    let mut forms: Vec<((Size, Form), Tensor)> = Vec::new();
    for (metric, (_, needs, evaluation)) in cell.evaluations.iter_mut().enumerate() {
        let Some((size, form)) = needs.maps else { continue };
        if !forms.iter().any(|(k, _)| *k == (size, form)) {
            let sized = match size {
                Size::Native => clean.shallow_clone(),
                Size::Mask => {
                    let raw = forms.iter().find(|(k, _)| *k == (size, Form::Raw)).map(|(_, t)| t.shallow_clone());
                    match raw {
                        Some(made) => made,
                        None => {
                            let to = scene.masks.size();
                            let made = maps::upsample(&clean, (to[1] as usize, to[2] as usize))?;
                            forms.push(((size, Form::Raw), made.shallow_clone()));
                            made
                        }
                    }
                }
            };
            if form == Form::MinMax {
                forms.push(((size, form), maps::min_max(&sized)?));
            } else if size == Size::Native {
                forms.push(((size, form), sized));
            }
        }
        let made = forms.iter().find(|(k, _)| *k == (size, form)).map(|(_, t)| t);
        let batch = metrics::Batch {
            images: &scene.images,
            targets: &scene.targets,
            ids: &scene.ids,
            maps: made,
            faults: &faults,
            masks: match needs.masks {
                Masks::None => None,
                Masks::Finding => Some(&masks),
                Masks::Shortcut => Some(&shortcuts),
            },
            known: &scene.known,
            signed: cell.signed,
            scene: shared,
            cell: &cache,
        };
        let scores = evaluation.update(&batch, bench)?;
        for ((&image, &target), score) in scene.indices.iter().zip(&scene.targets).zip(scores) {
            cell.scored.push(Scored { image, target, metric, score });
        }
    }
    Ok(())
}

/// The rows of a unit.
pub(super) struct TableRows<'a> {
    pub(super) names: Names,
    pub(super) rows: Vec<Row>,
    pub(super) samples: &'a [Sample],
    pub(super) place: (&'a str, usize, usize),
}

impl TableRows<'_> {
    /// Takes a cell's answers.
    pub(super) fn take(&mut self, cell: &mut Cell) {
        let samples = self.samples;
        for Scored { image, target, metric, score } in std::mem::take(&mut cell.scored) {
            let metric = cell.evaluations[metric].0.label();
            self.push(&samples[image].id, target as i32, &cell.explainer, &cell.output, metric, score);
        }
    }

    pub(super) fn push(&mut self, image: &str, target: i32, explainer: &str, output: &str, metric: &str, score: Score) {
        let names = &mut self.names;
        let (model, fold, training) = self.place;
        let row = Row {
            image: names.number(image),
            model: names.number(model),
            fold: fold as i32,
            training: training as i32,
            explainer: names.number(explainer),
            output: names.number(output),
            metric: names.number(metric),
            target,
            value: None,
            status: metrics::Status::Ok,
            reason: 0,
        };
        self.rows.push(row.with(score, names));
    }
}

pub(super) fn failed(model: &str, explainer: &str, kind: FailureKind, reason: String) -> Event {
    let (model, explainer, id) = (model.to_string(), Some(explainer.to_string()), String::new());
    Event::CellFailed(Failure { model, explainer, kind, reason, id, transient: false })
}

/// The unit's name of a state: explainer, output, metric and what is kept, separated by a character that no label has.
pub(super) fn state_name(parts: [&str; 4]) -> String {
    parts.join("\u{1f}")
}

pub(super) fn keep_states(cell: &Cell, into: &mut State) -> Result<()> {
    for (choice, _, evaluation) in &cell.evaluations {
        for (field, tensor) in evaluation.state()? {
            into.push((state_name([&cell.explainer, &cell.output, choice.label(), &field]), tensor));
        }
    }
    Ok(())
}
