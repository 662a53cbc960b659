//! How an explainer runs the model many times: in batches that fit the memory, with progress, and ended when the user wants
//! it.

#[cfg(feature = "tch")]
use crate::TensorView;
use crate::spec::{Layout, Site, SiteKind};
use crate::{Array, Context, Error, Objective, Request, Response, Result};
use ndarray::Array2;
#[cfg(feature = "tch")]
use tch::Tensor;

/// Image and variant of each row of a batch.
pub type Pairs<'a> = &'a [(usize, usize)];

/// Numbers that a site holds for one image.
fn numbers(site: &Site) -> usize {
    let grid = site.grid.map_or(1, |[h, w]| h * w);
    match (site.layout, site.kind) {
        // Queries times keys a head; a single query's row is small beside them.
        (Layout::BHQK, _) if site.query == "tokens" => site.channels * (grid + site.prefix.len()).pow(2),
        (_, SiteKind::Query | SiteKind::Key | SiteKind::Value) => 0,
        _ => site.channels * (grid + site.prefix.len()),
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

    /// The class to explain, a row.
    pub fn targets_of(&self, pairs: Pairs<'_>) -> Result<Vec<i64>> {
        let targets = self.targets.to_vec::<i64>()?;
        let of = |&(b, _): &(usize, usize)| targets.get(b).copied();
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
            found.extend(self.score_of(&response.logits, pairs, score)?);
            Ok(())
        })?;
        Ok(Array2::from_shape_vec((self.ids.len(), variants), found)?)
    }

    /// The scores of the batch itself.
    pub fn scores_now(&self, score: Score) -> Result<Vec<f64>> {
        let pairs: Vec<(usize, usize)> = (0..self.ids.len()).map(|b| (b, 0)).collect();
        self.score_of(&self.logits, &pairs, score)
    }

    /// The scores of the rows' targets, from logits [rows, classes].
    pub fn score_of(&self, logits: &Array, pairs: Pairs<'_>, score: Score) -> Result<Vec<f64>> {
        #[cfg(feature = "tch")]
        let logits = logits.to_cpu()?;
        let [rows, classes] = logits.dims("logits")?;
        let targets = self.targets_of(pairs)?;
        if rows != targets.len() {
            return Err(Error::invalid(format!("logits of {rows} rows for {} variants", targets.len())));
        }
        let values = logits.to_vec::<f32>()?;
        let mut scores = Vec::with_capacity(rows);
        for (row, target) in values.chunks(classes.max(1)).zip(targets) {
            let of = |i: i64| row.get(i as usize).map(|v| f64::from(*v));
            let logit = of(target).ok_or_else(|| Error::invalid(format!("target class {target} of {classes}")))?;
            let largest = row.iter().fold(f64::NEG_INFINITY, |m, v| m.max(f64::from(*v)));
            scores.push(match score {
                Score::Logit => logit,
                Score::Probability => {
                    (logit - largest).exp() / row.iter().map(|v| (f64::from(*v) - largest).exp()).sum::<f64>()
                }
            });
        }
        Ok(scores)
    }

    /// The target's logit of each row as an objective.
    pub fn objective_of(&self, pairs: Pairs<'_>) -> Result<Objective> {
        Ok(Objective::Class(Array::from_vec(&[pairs.len()], self.targets_of(pairs)?)?))
    }
}

/// What a variant's score is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Score {
    /// The target's logit.
    Logit,
    /// Its softmax.
    Probability,
}

impl Score {
    /// The parameter `score` of methods that offer both.
    pub fn parameter(default: &str) -> crate::spec::ParamSpec {
        crate::spec::ParamSpec::choice("score", default, &["logit", "probability"], "what of the target is read")
    }

    /// What that parameter says.
    pub fn of(params: &crate::spec::Params) -> Result<Self> {
        Ok(if params.text("score")? == "logit" { Score::Logit } else { Score::Probability })
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

    /// The images, [B, C, H, W]; an error for another shape.
    pub fn image_tensor(&self) -> Result<TensorView> {
        self.images.dims::<4>("images")?;
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
