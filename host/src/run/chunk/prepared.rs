//! Which rows of a chunk there are: an image is explained for each of its targets, or only classified.

use crate::engine::image_id;
use crate::error::Result;
use crate::run::spec::RunSpec;
use lightbox_core::data::split::Split;
use lightbox_core::data::store::{Batches, Store};
use lightbox_core::data::{Sample, Truth};
use lightbox_core::metrics;
use lightbox_core::task::{Explained, Task};
use lightbox_sdk::Target;
use tch::Tensor;

/// One explanation: an image, and the class that is explained of it; none for the class that the model ranks first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Its place in the data source.
    pub image: usize,
    /// The class; `None` for the predicted one.
    pub class: Option<usize>,
}

/// Rows of a batch or a chunk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows(pub Vec<Row>);

impl Rows {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Places of the images, a row.
    pub fn images(&self) -> Vec<usize> {
        self.0.iter().map(|r| r.image).collect()
    }

    /// What is to be explained, a row.
    pub fn targets(&self) -> Vec<Option<Target>> {
        self.0.iter().map(|r| r.class.map(Target::Class)).collect()
    }

    /// Stable numbers of the images, a row.
    pub fn ids(&self, samples: &[Sample]) -> Vec<u64> {
        self.0.iter().map(|r| image_id(&samples[r.image].id)).collect()
    }
}

/// What a task explains of an image: a class a row; none where it has nothing to explain.
pub fn rows_of(task: &Task, sample: &Sample, image: usize) -> Result<Vec<Row>> {
    let row = |class| Row { image, class };
    Ok(match task.explained()? {
        Explained::Class(class) => vec![row(Some(class))],
        Explained::Predicted => vec![row(None)],
        Explained::Label => sample.classes.last().map(|c| row(Some(*c))).into_iter().collect(),
        Explained::EachLabel => sample.classes.iter().map(|c| row(Some(*c))).collect(),
    })
}

/// The rows of an image that are explained: by default those where there is something to find.
pub fn explained_rows(task: &Task, sample: &Sample, store: &Store, image: usize) -> Result<Vec<Row>> {
    let mut rows = rows_of(task, sample, image)?;
    if task.select != "all" {
        let marked = |class: usize| {
            let bit = sample.mask_bit(class);
            bit.is_some() && store.mask(image, bit).is_some_and(|m| m.contains(&1))
        };
        rows.retain(|row| match row.class {
            None => sample.classes.iter().any(|&c| marked(c)),
            Some(class) => marked(class),
        });
    }
    Ok(rows)
}

/// The test images of a chunk; of the chunk after the last, the fold's validation images that metrics are tuned on.
pub fn images_of(
    split: &Split,
    samples: &[Sample],
    task: &Task,
    fold: usize,
    size: usize,
    chunk: usize,
) -> Result<Vec<usize>> {
    if chunk >= split.test.len().div_ceil(size) {
        return validation_images(split, samples, task, fold, size);
    }
    let start = chunk * size;
    Ok(split.test[start..(start + size).min(split.test.len())].to_vec())
}

/// The validation images of a fold that metrics are tuned on: those with something to find, spread evenly where there are
/// more than `most`.
pub fn validation_images(
    split: &Split,
    samples: &[Sample],
    task: &Task,
    fold: usize,
    most: usize,
) -> Result<Vec<usize>> {
    let explained = task.explained()?;
    let fits = |i: &usize| {
        let sample = &samples[*i];
        let found = match explained {
            Explained::Class(class) => sample.has(class),
            _ => !sample.classes.is_empty(),
        };
        found && sample.truth != Truth::Unknown
    };
    let all: Vec<usize> = split.folds[fold].validation.iter().copied().filter(fits).collect();
    let n = all.len().min(most);
    Ok((0..n).map(|k| all[k * all.len() / n]).collect())
}

/// Whether a run says anything of predictions: what classification alone is for.
pub fn has_metrics_of_predictions(spec: &RunSpec) -> Result<bool> {
    for choice in &spec.metrics {
        if metrics::find(&choice.name)?.needs().maps.is_none() {
            return Ok(true);
        }
    }
    Ok(spec.explainers.is_empty())
}

/// A chunk, sorted into what is explained and what is only classified.
pub struct Prepared {
    /// Explanations, images in their order.
    pub rows: Rows,
    /// Images that are only classified.
    pub rest: Vec<usize>,
}

impl Prepared {
    /// Of chunk `chunk` in a fold; without `predict` nothing is only classified.
    pub fn new(
        spec: &RunSpec,
        split: &Split,
        samples: &[Sample],
        store: &Store,
        (fold, chunk): (usize, usize),
        predict: bool,
    ) -> Result<Self> {
        let (mut rows, mut rest) = (Vec::new(), Vec::new());
        // An image that is not explained is run for what is said of predictions alone.
        let classifies = predict && (spec.task.intervene || has_metrics_of_predictions(spec)?);
        for i in images_of(split, samples, &spec.task, fold, spec.chunk, chunk)? {
            let mine = explained_rows(&spec.task, &samples[i], store, i)?;
            if mine.is_empty() && classifies {
                rest.push(i);
            }
            rows.extend(mine);
        }
        Ok(Prepared { rows: Rows(rows), rest })
    }

    /// How many images there are in all.
    pub fn images(&self) -> usize {
        let mut images = self.rows.images();
        images.dedup();
        images.len() + self.rest.len()
    }

    /// The rows in batches, with their images.
    pub fn explained_batches<'s>(&self, store: &'s Store, size: usize) -> ExplainedBatches<'s> {
        let rows: Vec<Rows> = self.rows.0.chunks(size).map(|part| Rows(part.to_vec())).collect();
        let images = store.batches(rows.iter().map(Rows::images).collect());
        ExplainedBatches { rows: rows.into_iter(), images }
    }
}

/// See [`Prepared::explained_batches`].
pub struct ExplainedBatches<'s> {
    rows: std::vec::IntoIter<Rows>,
    images: Batches<'s>,
}

impl Iterator for ExplainedBatches<'_> {
    /// Rows and their normalised images [B, C, H, W].
    type Item = Result<(Rows, Tensor)>;

    fn next(&mut self) -> Option<Self::Item> {
        let (rows, images) = (self.rows.next()?, self.images.next()?);
        Some(images.map(|(_, images)| (rows, images)).map_err(Into::into))
    }
}
