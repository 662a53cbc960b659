//! Binds every explainer to a model, to learn which apply and which ask for a fit.

use super::events::Event;
use super::unit::Unit;
use super::unit::{Failure, FailureKind};
use super::worker::Worker;
use crate::engine::{self, Engine};
use crate::error::{Error, Result};
use lightbox_core::data;
use lightbox_core::task::Explained;
use lightbox_sdk::spec::Plan;

impl Worker {
    /// Asks explainers for their plans. The model is not built with its weights for it.
    pub(super) fn survey(&mut self, unit: &Unit, label: &str, explainers: &[String]) -> Result<usize> {
        self.close();
        let choice = self.choice(label)?;
        let file = self.plan.environment.plugin("model", &choice.name)?.file.clone();
        let options = self.options(&choice, 0, 0);
        // Whether a checkpoint fits is said before anything is computed.
        let weights = choice.weights_file(0).filter(|_| choice.train.is_none());
        let loaded = engine::load_model(&file, &choice.name, &options, weights.as_deref(), choice.missing());
        let (model, _) = loaded.map_err(|e| Error { message: format!("model {label}: {}", e.message), ..e })?;
        let mut engine = Engine::new(model, self.engine_settings(), self.sink.clone())?;
        // Whether there are masks to take a mean of: the answer is the images', not yet prepared.
        let task = self.plan.spec.task.clone();
        let pixels = engine.spec.input.size.iter().product();
        let (source, plan) = (self.source()?, self.plan.clone());
        let is_marked = |i: &usize| match &source.samples()[*i].truth {
            data::Truth::Unknown => false,
            data::Truth::Boxes(boxes) => {
                boxes.iter().any(|b| !matches!(task.explained(), Ok(Explained::Class(c)) if c != b.class))
            }
            data::Truth::MaskFile(_) => true,
        };
        // In every fold, since a method that has no value in some has none.
        if plan.split.folds.iter().all(|fold| fold.train.iter().any(is_marked)) {
            engine.set_mean_mask(vec![0.0; pixels])?;
        }
        for name in explainers {
            let Some(explainer) = self.plan.spec.explainers.iter().find(|e| e.label() == name).cloned() else {
                continue;
            };
            let key = unit.key();
            let (model, cell) = (label.to_string(), name.clone());
            self.sink.say(Event::CellStarted { unit: key.clone(), model: model.clone(), explainer: cell.clone() });
            let file = self.plan.environment.plugin("explainer", &explainer.name)?.file.clone();
            let planned = engine.add(&file, &explainer);
            self.sink.say(Event::CellLeft { unit: key });
            match planned {
                Ok(()) => {
                    let last = engine.explainers.last();
                    let fit = last.is_some_and(|e| e.fit().is_some());
                    let nobody = plan.split.folds.iter().any(|fold| fold.train.is_empty());
                    let not_applicable = match last.map(|e| &e.plan) {
                        Some(Plan::NotApplicable { reason }) => Some(reason.clone()),
                        _ if fit && nobody => Some("it learns from training images, and the split has none".into()),
                        _ => None,
                    };
                    self.sink.say(Event::Surveyed { model, explainer: cell, fit, not_applicable });
                }
                Err(e) => {
                    let (kind, id) = (FailureKind::Error, String::new());
                    let failure =
                        Failure { model, explainer: Some(cell), kind, reason: e.to_string(), id, transient: false };
                    self.sink.say(Event::CellFailed(failure));
                }
            }
        }
        Ok(0)
    }
}
