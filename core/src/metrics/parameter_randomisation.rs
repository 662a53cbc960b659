//! Model parameter randomisation test (MPRT): how alike the maps of the model and of copies with randomised parameters are, from
//! the output down. Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, arXiv:1810.03292, section 3 (cascading).
//! Rank correlation of magnitudes; the model itself is not in the mean (in Quantus 0.6 it is, as 1). A parameter is randomised by
//! permuting its own values, which keeps its scale and the sign of variances. It is a gate, not a ranking: noise passes it
//! (Binder et al., CVPR 2023, arXiv:2211.12486).

use super::map_metric::{Ask, Asking, Found, of_two_maps, share};
use super::{Bench, Better, Form, MetricSpec, Needs, Reference, Score, Size};
use crate::stats::correlation::{pearson, ranks};
use crate::{Error, Result, maps, seed};
use lightbox_sdk::params::Params;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use tch::Tensor;

/// See the file's head.
pub static PARAMETER_RANDOMISATION: Asking = Asking {
    spec,
    needs: Needs { explainer: true, fork: true, ..Needs::of_maps(Size::Native, Form::Raw) },
    axes: None,
    score,
};

#[derive(Params)]
struct Settings {
    /// steps from the output to the input; at most the number of layers
    #[param(default = 3, range = (1, 1000))]
    stages: usize,
    /// randomisations
    #[param(default = 5, range = (1, 1000))]
    seeds: u64,
}

fn spec() -> MetricSpec {
    MetricSpec {
        short: "MPRT",
        title: "Parameter randomisation: rank correlation of the map with those of randomised models",
        formula: "mean over seeds and stages k of Spearman(|a|, |a of the model whose last k / stages of the layers are randomised|)",
        better: Better::Lower,
        range: [-1.0, 1.0],
        unit: "",
        chance: "1, of a map that does not look at the model; 0 of one that is drawn anew",
        cost: "seeds x stages explanations, each of a copy of the model",
        edge_cases: "a map that is not finite is a failure and counts as 1; a constant map correlates by 0 with another and by 1 with a constant one, and is counted; a randomised model's map that is not finite is left out",
        reference: Reference::new(
            "Adebayo, Gilmer, Muelly, Goodfellow, Hardt, Kim",
            "Sanity Checks for Saliency Maps",
            "NeurIPS",
            2018,
            "arXiv:1810.03292",
        ),
        parameters: Settings::specs(),
        version: 2,
        ..share("parameter-randomisation", "randomisation")
    }
}

/// What a parameter belongs to: its name without the last part.
fn layer(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(layer, _)| layer)
}

/// The values in another order.
fn permuted(tensor: &Tensor, seed: u64) -> Result<Tensor> {
    let mut order: Vec<i64> = (0..tensor.numel() as i64).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let order = Tensor::f_from_slice(&order)?.f_to_device(tensor.device())?;
    Ok(tensor.f_contiguous()?.f_flatten(0, -1)?.f_index_select(0, &order)?.f_reshape(tensor.size())?)
}

fn score(ask: &Ask<'_>, bench: &mut dyn Bench) -> Result<Found> {
    let batch = ask.batch;
    let Settings { stages, seeds } = ask.settings()?;
    let parameters = bench.parameters()?;
    let mut layers: Vec<&str> = Vec::new();
    for (name, _) in &parameters {
        if !layers.contains(&layer(name)) {
            layers.push(layer(name));
        }
    }
    if layers.is_empty() {
        return Ok(ask.each(|_| Score::not_applicable("the model has no parameters")));
    }
    let stages = stages.min(layers.len());
    // Spearman is Pearson of the ranks; those of the model's own maps are found once.
    let magnitudes = |map: &[f32]| ranks(&map.iter().map(|v| f64::from(v.abs())).collect::<Vec<f64>>());
    let own = maps::values(ask.maps()?)?;
    let n = batch.targets.len();
    let size = (own.len() / n.max(1)).max(1);
    let of_own: Vec<Vec<f64>> = own.par_chunks(size).map(magnitudes).collect();
    let mut values: Vec<Vec<f64>> = vec![vec![]; n];
    for seed in 0..seeds {
        for stage in 1..=stages {
            bench.check()?;
            let from = layers.len() - stage * layers.len() / stages;
            let mut edits = || {
                let mut edits = Vec::new();
                for (name, tensor) in &parameters {
                    if layers[from..].contains(&layer(name)) {
                        let seed = seed::derive(ask.seed, &format!("randomised {name}"), &[seed]);
                        edits.push((name.clone(), permuted(tensor, seed)?));
                    }
                }
                Ok(edits)
            };
            let mut found = None;
            // The same copy for all explainers and batches.
            let key = format!("randomised {} {seed} from {from} of {}", ask.seed, layers.len());
            bench.fork(&key, &mut edits, &mut |other| {
                let maps = other.explain(batch.images, batch.targets, batch.ids)?;
                found = Some(maps::values(&maps)?);
                Ok(())
            })?;
            let found = found.ok_or_else(|| Error::new("a copy of the model was not asked"))?;
            if found.len() != own.len() {
                return Ok(ask.each(|_| Score::failed("a randomised model's map has another size")));
            }
            let correlate = |(own, b): (&Vec<f64>, &[f32])| {
                b.iter().all(|v| v.is_finite()).then(|| of_two_maps(own, &magnitudes(b), pearson))
            };
            let now: Vec<Option<f64>> = of_own.par_iter().zip(found.par_chunks(size)).map(correlate).collect();
            values.iter_mut().zip(now).for_each(|(values, now)| values.extend(now));
        }
    }
    Ok(ask.each(|i| match values[i].is_empty() {
        true => Score::failed("no randomised model's map is finite"),
        false => Score::ok(crate::stats::mean(&values[i])),
    }))
}

#[cfg(test)]
mod tests {
    use super::super::removal::tests::{Linear, check};
    use super::*;
    use serde_json::Value;

    #[test]
    fn a_map_of_the_weights_is_lost_with_them() {
        let image = [1f32; 400];
        let weights: Vec<f32> = (0..400).map(|i| ((i * 29) % 401) as f32).collect();
        let mut bench = Linear::new(&weights);
        let given = [("seeds", Value::from(4.0))];
        let found = check(&PARAMETER_RANDOMISATION, &given, &[&image], &[&weights], 20, &mut bench);
        let value = found[0].value.unwrap();
        assert!(value.abs() < 0.1, "{value}");
        // One layer: one stage of four seeds.
        assert_eq!(bench.explained, 4);
        // A map of the image alone stays: equal weights are the same in any order.
        let image: Vec<f32> = (0..16).map(|i| i as f32 - 8.0).collect();
        let found = check(&PARAMETER_RANDOMISATION, &given, &[&image], &[&image], 4, &mut Linear::new(&[1.0; 16]));
        assert!((found[0].value.unwrap() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn permuting_keeps_the_values() {
        let tensor = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0, 5.0, 6.0]).reshape([2, 3]);
        let (a, b) = (permuted(&tensor, 1).unwrap(), permuted(&tensor, 2).unwrap());
        assert_eq!(a.size(), [2, 3]);
        assert_ne!(a, b);
        assert_eq!(a.flatten(0, -1).sort(0, false).0, tensor.flatten(0, -1));
        assert_eq!((layer("a.b.weight"), layer("cls_token")), ("a.b", "cls_token"));
    }
}
