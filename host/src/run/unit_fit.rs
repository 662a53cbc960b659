//! An explainer sees the training set; what it hands back is stored under its identity.

use super::events::{Event, now};
use super::folder::{FitRecord, Machine, write_json};
use super::scorer::failed;
use super::unit::FailureKind;
use super::unit::Unit;
use super::worker::Worker;
use crate::device;
use crate::engine;
use crate::error::{Error, Exit, Result};
use lightbox_core::checkpoint::{self, State};
use lightbox_core::files;
use lightbox_core::task::Explained;
use lightbox_sdk::{Array, FitBatch, Request};
use std::cell::RefCell;
use std::time::Instant;

impl Worker {
    /// Lets an explainer see the training set, and stores what it hands back.
    pub fn fit(&mut self, unit: &Unit) -> Result<usize> {
        let Unit::Fit { model: label, fold, training, explainer, .. } = unit else {
            return Err(Error::new(Exit::Other, "no unit of a fit"));
        };
        let (fold, training, started) = (*fold, *training, Instant::now());
        let (source, plan) = (self.source()?, self.plan.clone());
        let (spec, split) = (&plan.spec, &plan.split);
        let samples = source.samples();
        let id = self.identities.fit(explainer)?.to_string();
        let file = self.folder.fit(label, fold, training, explainer, &id);
        if file.is_file() {
            // It has no record, or is not what the record says: otherwise nobody would ask.
            std::fs::remove_file(&file)?;
        }
        self.open_engine(label, fold, training, std::slice::from_ref(explainer))?;
        let (store, sink) = (self.store_of(label)?, self.sink.clone());
        let engine = self.opened()?;
        let Some(needs) = engine.explainers.first().and_then(|e| e.fit().cloned()) else {
            let text = format!("it asks for no fit in fold {fold}");
            sink.say(failed(label, explainer, FailureKind::Error, text));
            return Ok(0);
        };
        let explained = spec.task.explained()?;
        let target = if let Explained::Class(class) = explained { Some(class) } else { None };
        let train = &split.folds[fold].train;
        let train = &train[..if needs.images == 0 { train.len() } else { needs.images.min(train.len()) }];
        let (classes, [h, w], at) = (engine.spec.classes(), engine.spec.input.flat()?, RefCell::new(0));
        let key = unit.key();
        let next = |rewind: bool| -> std::result::Result<Option<FitBatch>, lightbox_sdk::Error> {
            let other = |e: &dyn std::fmt::Display| lightbox_sdk::Error::invalid(e.to_string());
            let mut at = at.borrow_mut();
            if rewind {
                *at = 0;
            }
            let indices = &train[*at..(*at + spec.batch_size).min(train.len())];
            if indices.is_empty() {
                return Ok(None);
            }
            *at += indices.len();
            sink.say(Event::Progress { unit: key.clone(), done: *at, of: train.len() });
            let images = Array::from_tensor(&store.batch(indices).map_err(|e| other(&e))?)?;
            let response =
                engine.request(&Request { values: needs.values.clone(), ..Request::forward(images.clone()) });
            let response = response.map_err(|e| other(&e))?;
            let n = indices.len();
            let label = |i: &usize, c: usize| f32::from(u8::from(samples[*i].has(c)));
            let labels = indices.iter().flat_map(|i| (0..classes).map(move |c| label(i, c))).collect();
            let mut masks = Vec::with_capacity(n * h * w);
            for &i in indices {
                let class = target.unwrap_or_else(|| samples[i].stratum());
                masks.extend(store.mask(i, samples[i].mask_bit(class)).unwrap_or_else(|| vec![0; h * w]));
            }
            let place = |a: &Array| engine.lend(0, a);
            let values = response.values.iter().map(|(name, a)| Ok((name.clone(), place(a)?)));
            let ids: Vec<u64> = indices.iter().map(|&i| engine::image_id(&samples[i].id)).collect();
            Ok(Some(FitBatch {
                images: place(&images)?,
                labels: Array::from_vec(&[n, classes], labels)?,
                masks: Array::from_vec(&[n, h, w], masks)?,
                known: Array::from_vec(&[n], indices.iter().map(|&i| store.known(i)).collect::<Vec<bool>>())?,
                records: engine.records(&ids),
                ids,
                values: values.collect::<std::result::Result<_, lightbox_sdk::Error>>()?,
                logits: place(&response.logits)?,
            }))
        };
        let (model, name) = (label.clone(), explainer.clone());
        sink.say(Event::CellStarted { unit: key.clone(), model, explainer: name });
        let fitted = engine.fit(0, target, fold as u64, training as u64, &next);
        sink.say(Event::CellLeft { unit: key.clone() });
        let checked = fitted.and_then(|fitted| {
            engine::check_fitted(&fitted, explainer)?;
            Ok(fitted)
        });
        let fitted = match checked {
            Ok(fitted) => fitted,
            Err(e) if crate::signals::interrupted() => return Err(Error::new(Exit::Interrupted, e.message)),
            Err(e) => {
                sink.say(failed(label, explainer, FailureKind::Error, e.to_string()));
                return Ok(0);
            }
        };
        let mut state: State = Vec::new();
        for (name, array) in &fitted {
            state.push((name.clone(), array.share_tensor()?));
        }
        checkpoint::write(&file, &state)?;
        let choice = spec.explainers.iter().find(|e| e.label() == explainer).map_or(explainer.as_str(), |e| &e.name);
        let record = FitRecord {
            unit: unit.clone(),
            id,
            sha256: files::sha256(&file)?,
            plugin: self.plan.environment.plugin("explainer", choice)?.clone(),
            images: train.len(),
            time: now(),
            seconds: started.elapsed().as_secs_f64(),
            worker: self.number,
            machine: Machine::here(&device::name(self.device), tch::get_num_threads() as usize),
        };
        write_json(&file.with_extension("json"), &record)?;
        Ok(train.len())
    }
}
