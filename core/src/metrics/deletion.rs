//! Deletion: how fast the explained class's score falls when the pixels that a map ranks highest are taken away.
//! Petsiuk, Das and Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018,
//! arXiv:1806.07421, section 3.
//!
//! `sum_k (s_k + s_(k-1)) / 2 / steps` with `s_k` the target's score after the share `k / steps` of the pixels, in the
//! map's order, is replaced by the image's own mean a channel. Pixels of equal value come in an order drawn from the run's
//! seed and the image's id. The endpoints are those of the image itself and of the blank.

use super::{Batch, Bench, Better, Evaluation, Form, Level, Metric, MetricSpec, Needs, Parameter, Score, Size};
use crate::maps::{self, Fault};
use crate::{Error, Result, seed};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

pub struct Deletion;

impl Metric for Deletion {
    fn spec(&self) -> MetricSpec {
        MetricSpec {
            name: "deletion",
            short: "deletion",
            title: "Deletion: area under the target's score as the highest pixels are removed",
            family: "faithfulness",
            level: Level::Image,
            formula: "sum over k = 1..steps of (s_k + s_(k-1)) / (2 steps), s_k the target's score with the share k / steps \
                      of the pixels, highest first, replaced by the image's mean a channel",
            better: Better::Lower,
            range: [0.0, 1.0],
            chance: "that of the control `noise`",
            chance_is_constant: false,
            unit: "share",
            cost: "steps + 1 forward",
            edge_cases: "a map that is not finite is a failure and counts as 1; of a constant map the order is random, and \
                         it is counted",
            reference: "Petsiuk, Das, Saenko: RISE, BMVC 2018, arXiv:1806.07421",
            parameters: vec![Parameter {
                name: "steps",
                default: 16.0,
                least: 1.0,
                greatest: 10000.0,
                text: "in how many equal shares the pixels are removed",
            }],
        }
    }

    fn needs(&self) -> Needs {
        Needs { maps: Some((Size::Mask, Form::Raw)), model: true, ..Needs::PREDICTIONS }
    }

    fn start(&self, parameters: &BTreeMap<String, f64>, seed: u64) -> Result<Box<dyn Evaluation>> {
        Ok(Box::new(Curve { steps: parameters.get("steps").copied().unwrap_or(16.0) as usize, seed }))
    }
}

struct Curve {
    steps: usize,
    seed: u64,
}

/// For each pixel, how many come before it: highest first, equal ones by a draw.
fn ranks(map: &[f32], seed: u64) -> Vec<i64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<(f32, u64, usize)> = map.iter().enumerate().map(|(i, v)| (v + 0.0, rng.next_u64(), i)).collect();
    order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut ranks = vec![0; map.len()];
    order.iter().enumerate().for_each(|(rank, (.., i))| ranks[*i] = rank as i64);
    ranks
}

/// As [`ranks`], [h, w] on the map's device: a stable sort of what the draws have shuffled.
fn ranks_there(map: &Tensor, seed: u64) -> Result<Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // Signed numbers of the same order.
    let draws: Vec<i64> = (0..map.numel()).map(|_| (rng.next_u64() ^ (1 << 63)) as i64).collect();
    let shuffled = Tensor::f_from_slice(&draws)?.f_to_device(map.device())?.f_argsort(0, false)?;
    let values = map.f_flatten(0, -1)?.f_add_scalar(0.0)?.f_index_select(0, &shuffled)?;
    let order = shuffled.f_index_select(0, &values.f_argsort_stable(true, 0, true)?)?;
    let places = Tensor::f_arange(map.numel() as i64, (Kind::Int64, map.device()))?;
    Ok(order.f_zeros_like()?.f_scatter(0, &order, &places)?.f_reshape(map.size())?)
}

impl Evaluation for Curve {
    fn update(&mut self, batch: &Batch<'_>, bench: &mut dyn Bench) -> Result<Vec<Score>> {
        let maps = batch.maps.ok_or_else(|| Error::new("this metric was given no maps"))?;
        let (steps, device) = (self.steps, batch.images.device());
        let mut scores = Vec::new();
        for i in 0..batch.targets.len() {
            if batch.faults[i] == Fault::NotFinite {
                scores.push(Score::failed("the map is not finite"));
                continue;
            }
            let map = maps.f_get(i as i64)?;
            let size = map.size();
            let pixels = map.numel();
            let seed = seed::derive(self.seed, "deletion", &[batch.ids[i]]);
            let ranks = match map.device() {
                Device::Cpu => Tensor::f_from_slice(&ranks(&maps::values(&map)?, seed))?,
                _ => ranks_there(&map, seed)?,
            };
            let ranks = ranks.f_reshape([1, 1, size[0], size[1]])?.f_to_device(device)?;
            let image = batch.images.f_narrow(0, i as i64, 1)?;
            let blank = image.f_mean_dim([2i64, 3].as_slice(), true, Kind::Float)?;
            let target = batch.targets[i];
            let mut curve = Vec::with_capacity(steps + 1);
            let all: Vec<usize> = (0..=steps).collect();
            for part in all.chunks(bench.batch_size().max(1)) {
                bench.check()?;
                let gone: Vec<i64> = part.iter().map(|k| (k * pixels / steps) as i64).collect();
                let gone = Tensor::f_from_slice(&gone)?.f_reshape([-1, 1, 1, 1])?.f_to_device(device)?;
                let images = blank.f_where_self(&ranks.f_lt_tensor(&gone)?, &image)?;
                curve.extend(Vec::<f64>::try_from(bench.run(&images)?.f_select(1, target)?)?);
            }
            let area = curve.windows(2).map(|s| (s[0] + s[1]) / 2.0).sum::<f64>() / steps as f64;
            scores.push(Score::of(area, batch.faults[i]));
        }
        Ok(scores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model whose score of class 1 is the share of the first channel's sum that is left.
    struct Sum(f64, usize);

    impl Bench for Sum {
        fn run(&mut self, images: &Tensor) -> Result<Tensor> {
            self.1 += images.size()[0] as usize;
            let one = images.select(1, 0).sum_dim_intlist([1i64, 2].as_slice(), false, Kind::Double) / self.0;
            Ok(Tensor::stack(&[1.0 - &one, one], 1))
        }
        fn explain(&mut self, _: &Tensor, _: &[i64], _: &[u64]) -> Result<Tensor> {
            Err(Error::new("not asked for"))
        }
        fn parameters(&mut self) -> Result<Vec<(String, Tensor)>> {
            Ok(vec![])
        }
        fn fork(&mut self, _: Vec<(String, Tensor)>, _: &mut dyn FnMut(&mut dyn Bench) -> Result<()>) -> Result<()> {
            Err(Error::new("not asked for"))
        }
        fn batch_size(&self) -> usize {
            2
        }
    }

    fn check(map: &[f32], wanted: f64, fault: Fault) {
        // Mean 0, so that a removed pixel counts nothing.
        let image = Tensor::from_slice(&[3f32, 1.0, -1.0, -3.0]).reshape([1, 1, 2, 2]);
        let mut bench = Sum(4.0, 0);
        let mut curve = Curve { steps: 4, seed: 0 };
        let batch = Batch {
            images: &image,
            targets: &[1],
            ids: &[7],
            maps: Some(&Tensor::from_slice(map).reshape([1, 2, 2])),
            faults: &[fault],
            masks: None,
            known: &[false],
        };
        let score = curve.update(&batch, &mut bench).unwrap()[0];
        assert!((score.value.unwrap() - wanted).abs() < 1e-9, "{score:?} {wanted}");
        assert_eq!(bench.1, 5);
    }

    #[test]
    fn a_curve_by_hand() {
        // What is left after 0..4 pixels: 0, -3, -4, -3, 0 of 4; then backwards.
        check(&[4.0, 3.0, 2.0, 1.0], -2.5 / 4.0, Fault::None);
        check(&[1.0, 2.0, 3.0, 4.0], 2.5 / 4.0, Fault::None);
    }

    #[test]
    fn the_devices_ranks_are_the_cpus() {
        let maps =
            [vec![0.5f32; 120], (0..120).map(|i| ((i * 7) % 11) as f32 - 5.0).collect(), vec![0.0, -0.0, 1.0, -0.0]];
        for (seed, map) in maps.iter().enumerate() {
            let there = ranks_there(&Tensor::from_slice(map).reshape([2, -1]), seed as u64).unwrap();
            assert_eq!(Vec::<i64>::try_from(there.flatten(0, -1)).unwrap(), ranks(map, seed as u64));
        }
    }

    #[test]
    fn ties_are_drawn_from_the_seed() {
        let flat = [0.5; 100];
        assert_eq!(ranks(&flat, 1), ranks(&flat, 1));
        assert_ne!(ranks(&flat, 1), ranks(&flat, 2));
        assert_eq!(ranks(&[0.0, -0.0, 1.0], 3)[2], 0);
        let first = (0..400).filter(|s| ranks(&[0.0, -0.0], *s)[0] == 0).count();
        assert!((150..250).contains(&first), "-0 and 0 are equal: {first}");
    }
}
