//! Training one model on one fold. The state after every epoch is one file, so killed training continues from its last
//! epoch to the same result.

use super::events::Event;
use super::spec::TrainSpec;
use super::unit::Unit;
use super::worker::Worker;
use crate::engine;
use crate::error::{Error, Exit, Result};
use lightbox_core::checkpoint;
use lightbox_core::data::Sample;
use lightbox_core::data::split::Fold;
use lightbox_core::data::store::Store;
use lightbox_core::metrics::auroc::auroc;
use lightbox_core::seed::derive;
use lightbox_core::task::{Kind as Labels, Task};
use lightbox_sdk::{Array, ModelHandle, Named};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// One epoch, as `history.json` keeps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Epoch {
    /// From 0.
    pub epoch: usize,
    /// Mean cross-entropy over the images, class weights included, each batch's before its step.
    pub train_loss: f64,
    /// The same over the validation set after the epoch: what is least at the checkpoint that is kept.
    pub validation_loss: f64,
    /// In [0, 1]; none when one class is absent.
    pub validation_auroc: Option<f64>,
    pub learning_rate: f64,
    pub best: bool,
}

/// What a training unit is given.
pub struct Training<'a> {
    pub unit: String,
    pub spec: &'a TrainSpec,
    pub store: &'a Store,
    pub task: &'a Task,
    pub samples: &'a [Sample],
    pub fold: &'a Fold,
    pub seed: u64,
    pub classes: usize,
    /// Where best.safetensors, last.safetensors and history.json go.
    pub folder: &'a Path,
}

fn to_state(named: &Named, prefix: &str) -> Result<Vec<(String, Tensor)>> {
    named.iter().map(|(name, a)| Ok((format!("{prefix}{name}"), a.share_tensor()?))).collect()
}

fn from_state(state: &[(String, Tensor)], prefix: &str) -> Result<Named> {
    let mine = state.iter().filter_map(|(name, t)| name.strip_prefix(prefix).map(|n| (n, t)));
    mine.map(|(name, t)| Ok((name.to_string(), Array::from_tensor(t)?))).collect()
}

/// The mean loss with class weights, as training defines it: cross-entropy of classes [B], or binary cross-entropy of
/// labels [B, classes].
fn loss(logits: &Tensor, targets: &Tensor, weights: &[f64]) -> Result<f64> {
    let logits = logits.f_to_kind(Kind::Double)?;
    let weights = match weights.is_empty() {
        true => None,
        false => Some(Tensor::f_from_slice(weights)?),
    };
    if targets.dim() == 2 {
        let (targets, mean) = (targets.f_to_kind(Kind::Double)?, tch::Reduction::Mean);
        let none = None::<&Tensor>;
        let loss = logits.f_binary_cross_entropy_with_logits(&targets, weights.as_ref(), none, mean)?;
        return Ok(loss.f_double_value(&[])?);
    }
    let log = logits.f_log_softmax(1, Kind::Double)?;
    Ok(log.f_nll_loss(targets, weights.as_ref(), tch::Reduction::Mean, -100)?.f_double_value(&[])?)
}

impl Training<'_> {
    fn diverged(&self, what: String, rate: f64) -> Error {
        let kept = match self.folder.join("best.safetensors").is_file() {
            true => "the best checkpoint so far is kept",
            false => "no epoch had ended",
        };
        let text = format!("training diverged: {what} ({kept}; hint: lower learning_rate, now {rate})");
        Error::new(Exit::Diverged, text)
    }

    /// Trains to the last epoch; the images that were trained on since this start. Errors: a loss that is not finite, a
    /// plugin's, a file's.
    pub fn run(&self, model: &ModelHandle, say: &mut dyn FnMut(Event)) -> Result<usize> {
        let spec = self.spec;
        let weights = match spec.balance_loss {
            false => vec![],
            true => {
                let count = |c: usize| self.fold.train.iter().filter(|&&i| self.samples[i].has(c)).count();
                let (n, k) = (self.fold.train.len() as f64, self.classes as f64);
                (0..self.classes).map(|c| n / (k * count(c).max(1) as f64)).collect()
            }
        };
        let mut trainer = model.trainer(&spec.options(self.task, weights.clone()))?;
        let last = self.folder.join("last.safetensors");
        let mut history: Vec<Epoch> = Vec::new();
        if last.is_file() {
            let state = checkpoint::read(&last)?;
            trainer.restore(&from_state(&state, "parameters.")?, &from_state(&state, "optimizer.")?)?;
            let text = state.iter().find(|(n, _)| n == "history").map(|(_, t)| Vec::<u8>::try_from(t));
            let text = text.transpose()?.unwrap_or_default();
            history = serde_json::from_slice(&text)
                .map_err(|e| Error::input(format!("{}: its history: {e}", last.display())).hint("delete the file"))?;
        }
        let target = |indices: &[usize]| -> Result<Array, lightbox_sdk::Error> {
            let (n, k) = (indices.len(), self.classes);
            let holds = |i: &usize, c: usize| f32::from(u8::from(self.samples[*i].has(c)));
            match self.task.kind {
                Labels::MultiLabel => {
                    Array::from_vec(&[n, k], indices.iter().flat_map(|i| (0..k).map(move |c| holds(i, c))).collect())
                }
                _ => Array::from_vec(&[n], indices.iter().map(|&i| self.samples[i].stratum() as i64).collect()),
            }
        };
        let started = Instant::now();
        let (first, mut images_done, mut told) = (history.len(), 0, Instant::now());
        for epoch in first..spec.epochs {
            let rate = spec.learning_rate * spec.decay.powi(epoch as i32);
            trainer.set_learning_rate(rate)?;
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(epoch as u64);
            let mut order = self.fold.train.clone();
            order.shuffle(&mut rng);
            let mut batches: Vec<Vec<usize>> = order.chunks(spec.batch_size).map(<[usize]>::to_vec).collect();
            // A single image has no batch statistics where nothing but a vector is left of it.
            if let Some([last]) = batches.last().map(Vec::as_slice).filter(|_| batches.len() > 1) {
                let last = *last;
                batches.pop();
                batches.last_mut().into_iter().for_each(|batch| batch.push(last));
            }
            let steps = batches.len();
            let (mut sum, mut seen) = (0.0, 0);
            for (step, batch) in self.store.batches(batches).enumerate() {
                let (indices, mut images) = batch?;
                if spec.flip {
                    let flips: Vec<f32> =
                        indices.iter().map(|_| f32::from(u8::from(rand::Rng::random::<bool>(&mut rng)))).collect();
                    let flips = Tensor::f_from_slice(&flips)?.f_to_device(images.device())?;
                    let flips = flips.f_reshape([-1, 1, 1, 1])?.f_gt(0.5)?;
                    images = images.f_flip([3])?.f_where_self(&flips, &images)?;
                }
                let loss = trainer.step(&Array::from_tensor(&images)?, &target(&indices)?)?;
                if !loss.is_finite() {
                    let (epoch, step) = (epoch + 1, step + 1);
                    return Err(self.diverged(format!("the loss is {loss} in epoch {epoch} at step {step}"), rate));
                }
                sum += loss * indices.len() as f64;
                seen += indices.len();
                if told.elapsed().as_millis() > 200 || step + 1 == steps {
                    told = Instant::now();
                    let (done, of) = (epoch * steps + step + 1, spec.epochs * steps);
                    say(Event::Progress { unit: self.unit.clone(), done, of });
                }
            }
            images_done += seen;

            let (mut logits, mut validation) = (Vec::new(), Vec::new());
            for batch in
                self.store.batches(self.fold.validation.chunks(spec.batch_size).map(<[usize]>::to_vec).collect())
            {
                let (indices, images) = batch?;
                let out = trainer.evaluate(&Array::from_tensor(&images)?)?.share_tensor()?;
                logits.push(out.f_to_device(Device::Cpu)?);
                validation.extend(indices);
                if told.elapsed().as_millis() > 200 {
                    told = Instant::now();
                    let (done, of) = ((epoch + 1) * steps, spec.epochs * steps);
                    say(Event::Progress { unit: self.unit.clone(), done, of });
                }
            }
            let logits = Tensor::f_cat(&logits, 0)?;
            let loss = loss(&logits, &target(&validation)?.share_tensor()?, &weights)?;
            let scores = self.task.scores(&logits)?;
            let mut rocs = Vec::new();
            for class in self.task.scored() {
                let scores = Vec::<f64>::try_from(scores.f_select(1, class as i64)?)?;
                let labels: Vec<u8> = validation.iter().map(|&i| u8::from(self.samples[i].has(class))).collect();
                rocs.push(auroc(&scores, &labels));
            }
            let n = rocs.len() as f64;
            let validation_auroc = rocs.into_iter().sum::<Option<f64>>().map(|sum| sum / n);
            if !loss.is_finite() {
                return Err(self.diverged(format!("the validation loss is {loss} after epoch {}", epoch + 1), rate));
            }
            let best = history.iter().all(|e| loss < e.validation_loss);
            let train_loss = sum / seen.max(1) as f64;
            history.push(Epoch {
                epoch,
                train_loss,
                validation_loss: loss,
                validation_auroc,
                learning_rate: rate,
                best,
            });
            let parameters = trainer.parameters()?;
            if best {
                checkpoint::write(&self.folder.join("best.safetensors"), &to_state(&parameters, "")?)?;
            }
            let mut state = to_state(&parameters, "parameters.")?;
            state.extend(to_state(&trainer.state()?, "optimizer.")?);
            let text = serde_json::to_vec(&history).map_err(|e| Error::new(Exit::Other, e.to_string()))?;
            state.push(("history".into(), Tensor::f_from_slice(&text)?));
            checkpoint::write(&last, &state)?;

            let per_epoch = started.elapsed().as_secs_f64() / (epoch + 1 - first) as f64;
            say(Event::Epoch {
                unit: self.unit.clone(),
                epoch: epoch + 1,
                of: spec.epochs,
                train_loss,
                validation_loss: loss,
                validation_auroc,
                learning_rate: rate,
                images_per_second: images_done as f64 / started.elapsed().as_secs_f64(),
                seconds_left: per_epoch * (spec.epochs - epoch - 1) as f64,
                best,
            });
        }
        super::folder::write_json(&self.folder.join("history.json"), &history)?;
        // What only a continued training needs.
        let _ = std::fs::remove_file(&last);
        Ok(images_done)
    }
}

impl Worker {
    /// Trains a model in a fold; images that it went through.
    pub(super) fn train(&mut self, label: &str, fold: usize, training: usize, unit: &Unit) -> Result<usize> {
        let choice = self.choice(label)?;
        let Some(spec) = &choice.train else {
            return Err(Error::input(format!("model {label} has no [models.train]")));
        };
        let weights = choice.weights_file(fold);
        let file = self.plan.environment.plugin("model", &choice.name)?.file.clone();
        let options = self.options(&choice, fold, training);
        let (model, notes) = engine::load_model(&file, &choice.name, &options, weights.as_deref(), choice.missing())?;
        let note = |text: String| self.sink.say(Event::Note { text: format!("{label}, fold {fold}: {text}") });
        notes.into_iter().for_each(note);
        if weights.is_none() {
            note("no weights: training begins with seeded random values".into());
        }
        let (store, source) = (self.store_of(label)?, self.source()?);
        let id = self.identities.model()?.to_string();
        self.folder.start_training(label, fold, training, &id)?;
        let training = Training {
            unit: unit.key(),
            spec,
            task: &self.plan.spec.task,
            store: &store,
            samples: source.samples(),
            fold: &self.plan.split.folds[fold],
            seed: derive(self.plan.spec.seed, "order", &[fold as u64, training as u64]),
            classes: options.classes,
            folder: &self.folder.checkpoint(label, fold, training),
        };
        let sink = self.sink.clone();
        training.run(&model, &mut |event| sink.say(event))
    }
}
