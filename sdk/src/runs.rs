//! How an explainer runs the model many times: in batches that fit the memory, with progress, and ended when the user wants
//! it.

use crate::spec::{AttentionPart, Role, Site};
use crate::target;
#[cfg(feature = "tch")]
use crate::{Array, TensorView};
use crate::{Context, Error, Objective, Request, Response, Result, Score, Target};
use ndarray::Array2;
use std::collections::BTreeMap;
#[cfg(feature = "tch")]
use tch::Tensor;

/// Image and variant of each row of a batch.
pub type Pairs<'a> = &'a [(usize, usize)];

/// Numbers that a site holds for one image.
fn numbers(site: &Site) -> usize {
    let tokens = site.prefix.len() + site.places().max(1);
    match site.role {
        // Queries times keys a head; a single query's row is small beside them.
        Role::Attention(AttentionPart::Weights | AttentionPart::Logits) if site.query == "tokens" => {
            site.channels * tokens.pow(2)
        }
        Role::Attention(AttentionPart::Query | AttentionPart::Key | AttentionPart::Value) => 0,
        _ => site.channels * tokens,
    }
}

impl Context<'_> {
    /// How many images the model may be run on at a time: the batch size of the run, which its user has fitted to the memory
    /// there is. The batch of this call may be smaller.
    pub fn at_once(&self) -> usize {
        if self.at_once > 0 { self.at_once } else { self.ids.len().max(1) }
    }

    /// How many runs that begin at `site` take about the memory of [`Context::at_once`] whole ones, by the sizes of the sites
    /// after it; at most 1024, or that.
    pub fn at_once_from(&self, site: &str) -> usize {
        let sites = &self.model.sites;
        let at = sites.iter().position(|s| s.name == site).unwrap_or(0);
        let all: usize = sites.iter().map(numbers).sum();
        let rest: usize = sites[at..].iter().map(numbers).sum();
        (self.at_once() * all / rest.max(1)).clamp(self.at_once(), self.at_once().max(1024))
    }

    /// Goes through `variants` of each image, at most `at_once` runs at a time, an image's variants one after the other:
    /// `make` gives the request for some pairs of image and variant, `take` its response. Tells the host how far it is and
    /// ends when the user wants it.
    pub fn sweep(
        &self,
        variants: usize,
        at_once: usize,
        mut make: impl FnMut(Pairs<'_>) -> Result<Request>,
        mut take: impl FnMut(Pairs<'_>, Response) -> Result<()>,
    ) -> Result<()> {
        let model = self.run_model()?;
        let total = self.ids.len() * variants;
        let mut done = 0;
        while done < total {
            self.check_cancelled()?;
            self.progress(done as u64, total as u64);
            let n = at_once.max(1).min(total - done);
            let pairs: Vec<(usize, usize)> = (done..done + n).map(|i| (i / variants, i % variants)).collect();
            let request = make(&pairs)?;
            if request.batch() != n {
                return Err(Error::invalid(format!("a request of {} rows for {n} variants", request.batch())));
            }
            take(&pairs, model.run(&request)?)?;
            done += n;
        }
        self.progress(total as u64, total as u64);
        Ok(())
    }

    /// The targets of some rows.
    fn targets_of(&self, pairs: Pairs<'_>) -> Result<Vec<&Target>> {
        let of = |&(b, _): &(usize, usize)| self.targets.get(b);
        pairs.iter().map(|p| of(p).ok_or_else(|| Error::invalid("there are fewer targets than images"))).collect()
    }

    /// Scores of `variants` of each image, [B, variants], at most `at_once` runs at a time: `make` gives the request for some
    /// pairs of image and variant.
    pub fn scores_from(
        &self,
        variants: usize,
        at_once: usize,
        score: Score,
        make: impl FnMut(Pairs<'_>) -> Result<Request>,
    ) -> Result<Array2<f64>> {
        let mut found = Vec::new();
        self.sweep(variants, at_once, make, |pairs, response| {
            found.extend(self.score_of(&response, pairs, score)?);
            Ok(())
        })?;
        Ok(Array2::from_shape_vec((self.ids.len(), variants), found)?)
    }

    /// The targets' scores of the batch itself.
    pub fn scores_now(&self, score: Score) -> Result<Vec<f64>> {
        let (outputs, values) = (self.outputs.clone(), BTreeMap::new());
        let response = Response { logits: self.logits.clone(), outputs, values, grads: vec![], products: vec![] };
        self.score_of(&response, &self.each(), score)
    }

    /// One variant of each row: the batch itself.
    pub fn each(&self) -> Vec<(usize, usize)> {
        (0..self.targets.len()).map(|b| (b, 0)).collect()
    }

    /// The logits or scores of the rows' targets in a response.
    pub fn score_of(&self, response: &Response, pairs: Pairs<'_>, score: Score) -> Result<Vec<f64>> {
        target::scores(&self.model, &self.targets_of(pairs)?, response, score)
    }

    /// The sum of the rows' targets' logits as an objective.
    pub fn objective_of(&self, pairs: Pairs<'_>) -> Result<Objective> {
        target::objective(&self.model, &self.targets_of(pairs)?)
    }

    /// The objective whose gradient is that of the rows' scores, at what the model answered to them.
    pub fn score_objective(&self, response: &Response, pairs: Pairs<'_>) -> Result<Objective> {
        target::score_objective(&self.model, &self.targets_of(pairs)?, response)
    }

    /// The sum of the batch's targets' logits as an objective.
    pub fn objective(&self) -> Result<Objective> {
        self.objective_of(&self.each())
    }
}

#[cfg(feature = "tch")]
impl Context<'_> {
    /// Rows of an array of this batch, [B, ...], for the images of `pairs`.
    pub fn rows(&self, array: &Array, pairs: Pairs<'_>) -> Result<Tensor> {
        let tensor = array.share_tensor()?;
        let index: Vec<i64> = pairs.iter().map(|(b, _)| *b as i64).collect();
        let index = Tensor::f_from_slice(&index)?.f_to_device(tensor.device())?;
        Ok(tensor.f_index_select(0, &index)?)
    }

    /// Scores of `variants` of each image, [B, variants]; `make` gives the images [rows, C, H, W] of some.
    pub fn scores(
        &self,
        variants: usize,
        score: Score,
        mut make: impl FnMut(Pairs<'_>) -> Result<Tensor>,
    ) -> Result<Array2<f64>> {
        self.scores_from(variants, self.at_once(), score, |pairs| {
            Ok(Request::forward(Array::from_tensor(&make(pairs)?.f_contiguous()?)?))
        })
    }

    /// Gradients of the target's logit at `sites`, for `variants` of each image: `make` gives images, `take` the gradients,
    /// in the order of the sites.
    pub fn gradients(
        &self,
        variants: usize,
        sites: &[String],
        mut make: impl FnMut(Pairs<'_>) -> Result<Tensor>,
        mut take: impl FnMut(Pairs<'_>, Vec<Tensor>) -> Result<()>,
    ) -> Result<()> {
        let request = |pairs: Pairs<'_>| {
            let images = Array::from_tensor(&make(pairs)?.f_contiguous()?)?;
            let objectives = vec![vec![self.objective_of(pairs)?]];
            Ok(Request { grads: sites.to_vec(), objectives, ..Request::forward(images) })
        };
        self.sweep(variants, self.at_once(), request, |pairs, mut response| {
            let mut set = response.grads.pop().ok_or_else(|| Error::output("the model handed back no gradients"))?;
            let of = |site: &String| set.remove(site).ok_or_else(|| Error::output(format!("no gradient at {site}")));
            let found: Vec<Array> = sites.iter().map(of).collect::<Result<_>>()?;
            take(pairs, found.iter().map(Array::share_tensor).collect::<Result<_>>()?)
        })
    }

    /// The images, [B, C, size...].
    pub fn image_tensor(&self) -> Result<TensorView> {
        self.images.to_tensor()
    }
}

/// Adds `weight` times each row to the row of its image in `sum` [B, ...], in the rows' order.
#[cfg(feature = "tch")]
pub fn add_rows(sum: &mut Tensor, rows: &Tensor, pairs: Pairs<'_>, weight: impl Fn(usize) -> f64) -> Result<()> {
    for (row, &(b, variant)) in pairs.iter().enumerate() {
        let part = rows.f_get(row as i64)?.f_to_kind(sum.f_kind()?)?.f_mul_scalar(weight(variant))?;
        let _ = sum.f_get(b as i64)?.f_add_(&part)?;
    }
    Ok(())
}
