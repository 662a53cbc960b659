//! TIS: Englebert et al., "Explaining through Transformer Input Sampling", ICCV Workshops 2023.
//!
//! The channels of all blocks' tokens are vectors over the patches; k-means makes `masks` of them. Each centre keeps the share
//! `keep` of the patches at which it is largest; the others are dropped, the model is run, and a patch's value is the mean
//! probability of the target over the masks that kept it. Dropping a token is leaving it out as a key of every attention,
//! which is exact. k-means begins with `masks` of the vectors drawn at random and ends after `iterations` or when the centres
//! move no more; an empty cluster's centre becomes 0, as in the reference code. A patch that no mask kept gets the least value
//! of the others.

use crate::stack::{block, blocks, plan, planned};
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

impl Explainer for Tis {
    fn spec(&self) -> ExplainerSpec {
        let citation = "Englebert et al.: Explaining through Transformer Input Sampling, ICCV Workshops 2023";
        ExplainerSpec::new("tis", "Transformer input sampling", Family::Perturbation, citation, "")
            .version(env!("CARGO_PKG_VERSION"))
            .formula(
                "sum_k p(x with the patches of mask k) m_k / sum_k m_k, masks from k-means over all blocks' channels",
            )
            .cost("1 F, then masks P from the embedded tokens")
            .parameters([
                ParamSpec::integer("masks", 1024, (1, 100_000), "", "clusters, of which each makes a mask"),
                ParamSpec::number("keep", 0.5, (0.001, 1.0), "share", "of the patches that a mask keeps"),
                ParamSpec::integer("iterations", 100, (0, 10_000), "", "of k-means at most"),
            ])
    }

    fn plan(&self, model: &ModelSpec, params: &Params) -> Result<Plan> {
        let extra = Passes::partial(params.integer("masks")? as u64);
        plan(blocks(model, INSTEAD), |sites| {
            let mut values: Vec<String> = sites.iter().map(|s| block(s)).collect();
            values.push("embed".into());
            Ok(Needs { values, model: true, extra, ..Needs::default() })
        })
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        let sites = planned(blocks(&context.model, INSTEAD))?;
        let prefix = sites[0].prefix.len() as i64;
        let [h, w] = sites[0].grid.ok_or_else(|| Error::invalid("the tokens have no grid"))?;
        let patches = (h * w) as i64;
        let masks = context.params.integer("masks")? as usize;
        let kept = ((context.params.number("keep")? * patches as f64) as i64).clamp(1, patches);
        let iterations = context.params.integer("iterations")? as usize;
        // [B, masks, patches] of 0 and 1.
        let mut all = Vec::new();
        for b in 0..context.ids.len() {
            context.check_cancelled()?;
            let mut channels = Vec::new();
            for site in &sites {
                let tokens = context.value(&block(site))?.share_tensor()?.f_get(b as i64)?;
                channels.push(tokens.f_narrow(0, prefix, patches)?.f_transpose(0, 1)?);
            }
            let centres = k_means(&Tensor::f_cat(&channels, 0)?, masks, iterations, &mut context.rng(b))?;
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
        let scores = context.scores_from(masks, context.at_once_from("embed"), Score::Probability, |pairs| {
            let mask = of(pairs)?;
            let before = mask.f_new_ones([pairs.len() as i64, prefix], (mask.f_kind()?, mask.device()))?;
            let gone = Tensor::f_cat(&[before, mask], 1)?.f_neg()?.f_add_scalar(1.0)?.f_mul_scalar(GONE)?;
            let gone = Array::from_tensor(&gone.f_unsqueeze(1)?.f_unsqueeze(1)?.f_contiguous()?)?;
            let patch =
                |s: &&Site| Patch { site: format!("{}.logits", s.name), scale: None, shift: Some(gone.clone()) };
            let tokens = Array::from_tensor(&context.rows(context.value("embed")?, pairs)?)?;
            Ok(Request { patches: sites.iter().map(patch).collect(), ..Request::from_site("embed", tokens)? })
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
        Ok(Array::from_tensor(&map.f_reshape([b as i64, h as i64, w as i64])?)?.into())
    }
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
