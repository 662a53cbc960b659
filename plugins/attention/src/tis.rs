//! TIS: Englebert et al., "Explaining through Transformer Input Sampling", ICCV Workshops 2023.
//!
//! The channels of all blocks' tokens are vectors over the patches; k-means makes `masks` of them. Each centre keeps the share
//! `keep` of the patches at which it is largest; the others are dropped, the model is run, and a patch's value is the mean
//! probability of the target over the masks that kept it. Dropping a token is leaving it out as a key of every attention,
//! which is exact. k-means begins with `masks` of the vectors drawn at random and ends after `iterations` or when the centres
//! move no more; an empty cluster's centre becomes 0, as in the reference code. A patch that no mask kept gets the least value
//! of the others.

use crate::stack::{blocks, bound, parts};
use lightbox_sdk::prelude::*;
use lightbox_sdk::rand::Rng;
use lightbox_sdk::tch::{Kind, Tensor};
use lightbox_sdk::tools::maps::sum;

register_explainer!(Tis);

struct Tis;

const INSTEAD: &str = "RISE: its trunk mixes patches by convolution, so that none can be left out";
/// What is added to the logits of a key that is left out.
const GONE: f64 = -1e9;

/// Centres [k, d] of points [n, d].
fn k_means(points: &Tensor, k: usize, iterations: usize, rng: &mut impl Rng) -> Result<Tensor> {
    let n = points.size()[0];
    let first: Vec<i64> = (0..k).map(|_| rng.random_range(0..n)).collect();
    let mut centres = points.f_index_select(0, &Tensor::f_from_slice(&first)?.f_to_device(points.device())?)?;
    let squares = sum(&points.f_mul(points)?, &[1], true)?;
    for _ in 0..iterations {
        let far = sum(&centres.f_mul(&centres)?, &[1], false)?.f_unsqueeze(0)?.f_add(&squares)?;
        let far = far.f_sub(&points.f_matmul(&centres.f_transpose(0, 1)?)?.f_mul_scalar(2.0)?)?;
        let one = far.f_argmin(1, false)?.f_one_hot(k as i64)?.f_to_kind(points.f_kind()?)?;
        let counts = sum(&one, &[0], false)?.f_unsqueeze(1)?;
        let new = one.f_transpose(0, 1)?.f_matmul(points)?.f_div(&counts.f_clamp_min(1.0)?)?;
        let moved = new.f_sub(&centres)?.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
        centres = new;
        if moved <= 1e-4 {
            break;
        }
    }
    Ok(centres)
}

#[derive(Params)]
struct Settings {
    /// clusters, of which each makes a mask
    #[param(default = 1024, range = (1, 100_000))]
    masks: usize,
    /// of the patches that a mask keeps
    #[param(default = 0.5, range = (0.001, 1.0), unit = "share")]
    keep: f64,
    /// of k-means at most
    #[param(default = 100, range = (0, 10_000))]
    iterations: usize,
}

impl Explainer for Tis {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Englebert et al.",
            "Explaining through Transformer Input Sampling",
            "ICCV Workshops",
            2023,
            "",
        );
        ExplainerSpec::new("tis", "Transformer input sampling", Family::Perturbation, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .any_dimensions()
            .formula(
                "sum_k p(x with the patches of mask k) m_k / sum_k m_k, masks from k-means over all blocks' channels",
            )
            .cost("1 F, then masks P from the embedded tokens")
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        let extra = Passes::partial(params.masks as u64);
        bound(blocks(model, INSTEAD), |blocks| {
            let Some(embedded) = model.site_of(Role::Embedding).filter(|s| s.start) else {
                return Ok(Bound::not_applicable(format!("no run of {} can begin at its embedded tokens", model.name)));
            };
            let parts = Parts {
                first: blocks[0].weights.clone(),
                embedded: embedded.name.clone(),
                ends: parts(&blocks, "end", |b| &b.end)?,
                logits: parts(&blocks, "logits", |b| &b.logits)?,
            };
            let values = [parts.ends.clone(), vec![parts.embedded.clone()]].concat();
            let needs = Needs { values, model: true, extra, ..Needs::default() };
            Ok(Bound::new(needs, move |context| explain(context, &parts, &params)))
        })
    }
}

/// What the method reads of a model.
struct Parts {
    first: Site,
    /// The embedded tokens, with which runs begin.
    embedded: String,
    /// The tokens behind each block.
    ends: Vec<String>,
    /// The attentions' logits.
    logits: Vec<String>,
}

fn explain(context: &Context<'_>, parts: &Parts, params: &Settings) -> Result<Maps> {
    let first = &parts.first;
    let prefix = first.prefix.len() as i64;
    let patches = first.places() as i64;
    let masks = params.masks;
    let kept = ((params.keep * patches as f64) as i64).clamp(1, patches);
    // [B, masks, patches] of 0 and 1.
    let mut all = Vec::new();
    for b in 0..context.ids.len() {
        context.check_cancelled()?;
        let mut channels = Vec::new();
        for end in &parts.ends {
            let tokens = context.value(end)?.share_tensor()?.f_get(b as i64)?;
            channels.push(tokens.f_narrow(0, prefix, patches)?.f_transpose(0, 1)?);
        }
        let centres = k_means(&Tensor::f_cat(&channels, 0)?, masks, params.iterations, &mut context.rng(b))?;
        let (_, best) = centres.f_topk(kept, 1, true, true)?;
        let mut mask = centres.f_zeros_like()?;
        let _ = mask.f_scatter_value_(1, &best, 1.0)?;
        all.push(mask);
    }
    let all = Tensor::f_stack(&all, 0)?;
    let of = |pairs: Pairs<'_>| -> Result<Tensor> {
        let row = |&(b, k): &(usize, usize)| Ok(all.f_get(b as i64)?.f_get(k as i64)?);
        Ok(Tensor::f_stack(&pairs.iter().map(row).collect::<Result<Vec<_>>>()?, 0)?)
    };
    let scores = context.scores_from(masks, context.at_once_from(&parts.embedded), Score::Probability, |pairs| {
        let mask = of(pairs)?;
        let before = mask.f_new_ones([pairs.len() as i64, prefix], (mask.f_kind()?, mask.device()))?;
        let gone = Tensor::f_cat(&[before, mask], 1)?.f_neg()?.f_add_scalar(1.0)?.f_mul_scalar(GONE)?;
        let gone = Array::from_tensor(&gone.f_unsqueeze(1)?.f_unsqueeze(1)?.f_contiguous()?)?;
        let patch = |site: &String| Patch { site: site.clone(), scale: None, shift: Some(gone.clone()) };
        let tokens = Array::from_tensor(&context.rows(context.value(&parts.embedded)?, pairs)?)?;
        let patches = parts.logits.iter().map(patch).collect();
        Ok(Request { patches, ..Request::from_site(&parts.embedded, tokens)? })
    })?;
    let (b, _) = scores.dim();
    let scores = Tensor::f_from_slice(&scores.iter().map(|s| *s as f32).collect::<Vec<_>>())?;
    let scores = scores.f_to_device(all.device())?.f_reshape([b as i64, 1, masks as i64])?;
    let counts = sum(&all, &[1], false)?;
    let map = scores.f_matmul(&all)?.f_squeeze_dim(1)?.f_div(&counts.f_clamp_min(1.0)?)?;
    // What was never kept.
    let seen = counts.f_gt(0.0)?;
    let least = map.f_where_self(&seen, &map.f_full_like(f64::INFINITY)?)?.f_amin([1i64].as_slice(), true)?;
    let map = map.f_where_self(&seen, &least)?;
    let shape = [vec![b as i64], first.grid.iter().map(|n| *n as i64).collect()].concat();
    Ok(Array::from_tensor(&map.f_reshape(shape)?)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbox_sdk::rand::SeedableRng;
    use lightbox_sdk::tch::Device;

    #[test]
    fn centres_are_the_means_of_what_is_nearest() {
        let points = (Tensor::arange(120, (Kind::Double, Device::Cpu)) * 12.9898).sin().reshape([40, 3]);
        let mut rng = lightbox_sdk::rand::rngs::StdRng::seed_from_u64(4);
        let centres = k_means(&points, 4, 100, &mut rng).unwrap();
        let far = (points.unsqueeze(1) - centres.unsqueeze(0)).square().sum_dim_intlist(
            [2i64].as_slice(),
            false,
            Kind::Double,
        );
        let nearest = Vec::<i64>::try_from(far.argmin(1, false)).unwrap();
        for k in 0..4 {
            let mine: Vec<i64> = (0..40).filter(|i| nearest[*i as usize] == k).collect();
            assert!(!mine.is_empty());
            let mean =
                points.index_select(0, &Tensor::from_slice(&mine)).mean_dim([0i64].as_slice(), false, Kind::Double);
            assert!((mean - centres.get(k)).abs().max().double_value(&[]) < 1e-2);
        }
    }
}
