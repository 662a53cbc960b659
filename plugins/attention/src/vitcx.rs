//! ViT-CX: Xie et al., "ViT-CX: Causal Explanation of Vision Transformers", IJCAI 2023, arXiv:2211.03064.
//!
//! The channels of the last block's tokens (of a DeiT those that its attention reads, `norm1`), scaled to the image and to [0, 1], are masks; those whose cosine distance is under
//! 0.1 (complete linkage) are one mask, their sum to [0, 1]. With noise n outside it, mask k counts for
//! `p_k = p(x M_k + n (1 - M_k)) - p(x + n (1 - M_k)) + p(x)`, p the target's probability, and the map is
//! `mean_k p_k M_k / sum_k M_k`. Which channels are alike decides how many runs it takes: at most two a channel.

use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};
use lightbox_sdk::tools::draw::normals;
use lightbox_sdk::tools::maps::{min_max, resize_channels, sum};

register_explainer!(VitCx);

struct VitCx;

/// The tokens whose channels are masks.
fn layer(model: &ModelSpec) -> Option<&Site> {
    let site = model.site(model.cam_site.as_deref()?).ok()?;
    (site.is_tokens() && model.attention_site.is_some()).then_some(site)
}

/// Clusters of points from their distances [n, n], row by row: complete linkage, joined while the distance is under `limit`.
/// Each point's cluster, numbered from 0.
fn cluster(distances: &[f64], n: usize, limit: f64) -> Vec<usize> {
    let mut d = distances.to_vec();
    let mut open: Vec<bool> = vec![true; n];
    let mut of: Vec<usize> = (0..n).collect();
    // The nearest other of each, kept up to date: n^2 steps in all but the worst case.
    let nearest = |d: &[f64], open: &[bool], i: usize| {
        let mut best = (f64::INFINITY, usize::MAX);
        for j in (0..n).filter(|j| *j != i && open[*j]) {
            if d[i * n + j] < best.0 {
                best = (d[i * n + j], j);
            }
        }
        best
    };
    let mut near: Vec<(f64, usize)> = (0..n).map(|i| nearest(&d, &open, i)).collect();
    loop {
        let best = (0..n).filter(|i| open[*i]).min_by(|a, b| near[*a].0.total_cmp(&near[*b].0));
        let Some(i) = best.filter(|i| near[*i].0 < limit) else { break };
        let j = near[i].1;
        let (keep, drop) = (i.min(j), i.max(j));
        open[drop] = false;
        of.iter_mut().filter(|c| **c == drop).for_each(|c| *c = keep);
        for k in (0..n).filter(|k| open[*k] && *k != keep) {
            let far = d[keep * n + k].max(d[drop * n + k]);
            (d[keep * n + k], d[k * n + keep]) = (far, far);
        }
        for k in (0..n).filter(|k| open[*k]) {
            if k == keep || near[k].1 == keep || near[k].1 == drop {
                near[k] = nearest(&d, &open, k);
            }
        }
    }
    let mut numbers: Vec<usize> = of.clone();
    numbers.sort_unstable();
    numbers.dedup();
    of.into_iter().map(|c| numbers.partition_point(|m| *m < c)).collect()
}

#[derive(Params)]
struct Settings {
    /// under which masks are one
    #[param(default = 0.1, range = (0.0, 2.0), unit = "1 - cosine")]
    distance: f64,
    /// the noise's deviation
    #[param(default = 0.1, range = (0.0, 100.0), unit = "normalised values")]
    sigma: f64,
    /// clusters to run, the largest first; 0 for all
    #[param(default = 0, range = (0, 100_000))]
    most: usize,
}

impl Explainer for VitCx {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Xie, Li, Cao, Zhang",
            "ViT-CX: Causal Explanation of Vision Transformers",
            "IJCAI",
            2023,
            "arXiv:2211.03064",
        );
        ExplainerSpec::new("vitcx", "ViT-CX", Family::Perturbation, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .formula(
                "mean_k p_k M_k / sum_k M_k, p_k = p(x M_k + n (1 - M_k)) - p(x + n (1 - M_k)) + p(x), M_k clusters of the last \
                 tokens' channels",
            )
            .cost("1 F, then 2 F a cluster, at most 2 a channel")
            .signed()
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        let Some(site) = layer(model) else {
            return Ok(Bound::not_applicable(format!("{} has no transformer's tokens", model.name)));
        };
        let most = if params.most == 0 { site.channels } else { params.most.min(site.channels) };
        let (extra, site) = (Passes::forward(2 * most as u64), site.name.clone());
        let needs = Needs { values: vec![site.clone()], model: true, extra, ..Needs::default() };
        Ok(Bound::new(needs, move |context| explain(context, &site, &params)))
    }
}

fn explain(context: &Context<'_>, site: &str, params: &Settings) -> Result<Maps> {
    let (grids, images) = (context.grid(site)?, context.image_tensor()?);
    let size = images.size()[2..].to_vec();
    let (limit, sigma, most) = (params.distance, params.sigma, params.most);
    let whole = context.scores_now(Score::Probability)?;
    let model = context.run_model()?;
    let mut maps = Vec::new();
    for (b, whole) in whole.into_iter().enumerate() {
        let masks = resize_channels(&grids.f_narrow(0, b as i64, 1)?, &size)?.f_squeeze_dim(0)?;
        let masks = min_max(&masks)?;
        let flat = masks.f_flatten(1, -1)?;
        let unit = flat.f_div(&sum(&flat.f_mul(&flat)?, &[1], true)?.f_sqrt()?.f_clamp_min(1e-12)?)?;
        let distances = unit.f_matmul(&unit.f_transpose(0, 1)?)?.f_neg()?.f_add_scalar(1.0)?;
        let n = distances.size()[0] as usize;
        let distances = Vec::<f64>::try_from(distances.f_to_kind(Kind::Double)?.f_flatten(0, -1)?)?;
        let clusters = cluster(&distances, n, limit);
        let count = clusters.iter().max().map_or(0, |m| m + 1);
        let mut members = vec![Vec::new(); count];
        clusters.iter().enumerate().for_each(|(i, c)| members[*c].push(i as i64));
        members.sort_by_key(|m| std::cmp::Reverse(m.len()));
        if most > 0 {
            members.truncate(most);
        }
        let mut joined = Vec::new();
        for group in &members {
            let index = Tensor::f_from_slice(group)?.f_to_device(masks.device())?;
            joined.push(sum(&masks.f_index_select(0, &index)?, &[0], false)?);
        }
        let joined = min_max(&Tensor::f_stack(&joined, 0)?)?;
        let image = images.f_get(b as i64)?;
        let mut rng = context.rng(b);
        let (mut weighted, mut done) = (joined.f_get(0)?.f_zeros_like()?, 0);
        // Two rows a mask.
        let at_once = (context.at_once() / 2).max(1);
        while done < members.len() {
            context.check_cancelled()?;
            context.progress((b * members.len() + done) as u64, (context.ids.len() * members.len()) as u64);
            let some = at_once.min(members.len() - done);
            let mask = joined.f_narrow(0, done as i64, some as i64)?.f_unsqueeze(1)?;
            let pixels = image.numel();
            let noise: Vec<f32> = (0..some).flat_map(|_| normals(&mut rng, pixels)).collect();
            let noise = Tensor::f_from_slice(&noise)?.f_to_device(image.device())?;
            let mut shape = vec![some as i64];
            shape.extend(image.size());
            let noise = noise.f_reshape(shape)?.f_mul_scalar(sigma)?;
            let outside = noise.f_mul(&mask.f_neg()?.f_add_scalar(1.0)?)?;
            let inside = mask.f_mul(&image)?.f_add(&outside)?;
            let rows = Tensor::f_cat(&[inside, outside.f_add(&image)?], 0)?;
            let response = model.run(&Request::forward(Array::from_tensor(&rows.f_contiguous()?)?))?;
            let pairs: Vec<(usize, usize)> = (0..2 * some).map(|k| (b, k)).collect();
            let p = context.score_of(&response, &pairs, Score::Probability)?;
            let gains: Vec<f32> = (0..some).map(|k| (p[k] - p[some + k] + whole) as f32).collect();
            let p = Tensor::f_from_slice(&gains)?.f_to_device(mask.device())?.f_reshape([-1, 1, 1])?;
            weighted = weighted.f_add(&sum(&mask.f_squeeze_dim(1)?.f_mul(&p)?, &[0], false)?)?;
            done += some;
        }
        let cover = sum(&joined, &[0], false)?.f_clamp_min(1e-12)?;
        maps.push(weighted.f_div(&cover)?.f_div_scalar(members.len() as f64)?);
    }
    Ok(Array::from_tensor(&Tensor::f_stack(&maps, 0)?)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Joins the closest pair of all, looking at every pair of points each time.
    fn slow(d: &[f64], n: usize, limit: f64) -> Vec<usize> {
        let mut groups: Vec<Vec<usize>> = (0..n).map(|i| vec![i]).collect();
        loop {
            let far = |a: &[usize], b: &[usize]| {
                a.iter().flat_map(|i| b.iter().map(move |j| d[i * n + j])).fold(0f64, f64::max)
            };
            let mut best = (limit, None);
            for i in 0..groups.len() {
                for j in i + 1..groups.len() {
                    let distance = far(&groups[i], &groups[j]);
                    if distance < best.0 {
                        best = (distance, Some((i, j)));
                    }
                }
            }
            let Some((i, j)) = best.1 else { break };
            let other = groups.remove(j);
            groups[i].extend(other);
        }
        groups.sort_by_key(|g| g.iter().copied().min());
        (0..n).map(|i| groups.iter().position(|g| g.contains(&i)).unwrap()).collect()
    }

    #[test]
    fn clusters_are_those_of_complete_linkage() {
        for (n, salt) in [(12, 1.0), (25, 2.0)] {
            let point = |i: usize, c: f64| ((i as f64 * 12.9898 + c + salt).sin() * 43758.5453).fract();
            let distance = |i: usize, j: usize| {
                ((point(i, 0.0) - point(j, 0.0)).powi(2) + (point(i, 7.0) - point(j, 7.0)).powi(2)).sqrt()
            };
            let d: Vec<f64> = (0..n * n).map(|k| distance(k / n, k % n)).collect();
            for limit in [0.0, 0.3, 0.8, 5.0] {
                assert_eq!(cluster(&d, n, limit), slow(&d, n, limit), "{n} {limit}");
            }
            assert_eq!(cluster(&d, n, 5.0).iter().max(), Some(&0));
        }
    }
}
