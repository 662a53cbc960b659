//! What a model says of the images of a chunk: each image once, whatever the number of its explanations.

use crate::error::{Error, Result};
use lightbox_core::data::Sample;
use lightbox_core::results::{self, Names, Prediction};
use lightbox_core::task::Task;
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Kind, Tensor};

/// Scores and logits by image.
pub struct Classified<'a> {
    model: &'a str,
    samples: &'a [Sample],
    task: &'a Task,
    found: BTreeMap<usize, (Vec<f64>, Vec<f64>)>,
}

impl<'a> Classified<'a> {
    /// Nothing yet.
    pub fn new(model: &'a str, samples: &'a [Sample], task: &'a Task) -> Self {
        Classified { model, samples, task, found: BTreeMap::new() }
    }

    /// Takes the logits [B, classes] of images; an image that was taken before is not taken again.
    pub fn add(&mut self, images: &[usize], logits: &Tensor) -> Result<()> {
        let scores = self.task.scores(logits)?;
        for (at, &i) in images.iter().enumerate() {
            if self.found.contains_key(&i) {
                continue;
            }
            let list = |t: &Tensor| -> Result<Vec<f64>> {
                Ok(Vec::<f64>::try_from(t.f_get(at as i64)?.f_to_kind(Kind::Double)?)?)
            };
            let (score, logit) = (list(&scores)?, list(logits)?);
            if logit.iter().any(|v| !v.is_finite()) {
                let (model, id) = (self.model, &self.samples[i].id);
                return Err(Error::plugin(format!("model {model}: its logits are not finite on {id}"))
                    .hint("are there NaN in the weights?"));
            }
            self.found.insert(i, (score, logit));
        }
        Ok(())
    }

    /// Writes the table of predictions.
    pub fn write(&self, path: &Path, (model, fold, training): (&str, usize, usize)) -> Result<()> {
        let (mut names, mut list) = (Names::default(), Vec::new());
        for (i, (scores, logits)) in &self.found {
            for (c, class) in self.task.classes.iter().enumerate() {
                list.push(Prediction {
                    image: names.number(&self.samples[*i].id),
                    model: names.number(model),
                    fold: fold as i32,
                    training: training as i32,
                    class: names.number(class),
                    label: self.samples[*i].has(c),
                    score: scores[c],
                    logit: logits[c],
                });
            }
        }
        Ok(results::write_predictions(path, &names, &list)?)
    }
}
