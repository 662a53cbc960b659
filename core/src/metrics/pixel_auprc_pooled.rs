//! Pixel-wise AUPRC of all maps' pixels together, each map scaled to [0, 1] by its own range.
//!
//! The scaled values are rounded to 65,536 levels, which are one step each, so that the pixels of any number of images are
//! two histograms: they are added exactly, in any order, over units and workers. Rounding moves the value by less than 1e-4
//! on maps of 224 x 224 pixels. Oracle: scikit-learn `average_precision_score` on the rounded values.

use super::pixel_auprc::{REFERENCE, both, no_mask};
use super::{Batch, Bench, Better, Evaluation, Form, Level, Metric, MetricSpec, Needs, Score, Size, State};
use crate::maps::Fault;
use crate::{Error, Result};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

const LEVELS: usize = 1 << 16;

pub struct PixelAuprcPooled;

impl Metric for PixelAuprcPooled {
    fn spec(&self) -> MetricSpec {
        MetricSpec {
            name: "pixel-auprc-pooled",
            short: "pixel AUPRC, pooled",
            title: "Pixel-wise AUPRC of all maps' pixels together",
            family: "localisation",
            level: Level::Set,
            formula: "average precision over the pixels of all images with a mask, each map scaled to [0, 1] by its own \
                      range and rounded to 65,536 levels",
            better: Better::Higher,
            range: [0.0, 1.0],
            chance: "share of mask pixels",
            chance_is_constant: true,
            unit: "share",
            cost: "0",
            edge_cases: "as pixel-auprc; a constant map becomes 0, and so does one that is not finite",
            reference: REFERENCE,
            parameters: vec![],
        }
    }

    fn needs(&self) -> Needs {
        Needs::masked(Size::Mask, Form::MinMax)
    }

    fn start(&self, _: &BTreeMap<String, f64>, _: u64) -> Result<Box<dyn Evaluation>> {
        Ok(Box::new(Histograms::new()))
    }
}

/// Pixels a level.
struct Histograms {
    positives: Vec<i64>,
    all: Vec<i64>,
}

impl Histograms {
    fn new() -> Self {
        Histograms { positives: vec![0; LEVELS], all: vec![0; LEVELS] }
    }

    /// Counts flat maps and masks of a device, all in one step.
    fn count_there(&mut self, there: &[(Tensor, Tensor)]) -> Result<()> {
        if there.is_empty() {
            return Ok(());
        }
        let maps: Vec<&Tensor> = there.iter().map(|(map, _)| map).collect();
        let masks: Vec<&Tensor> = there.iter().map(|(_, mask)| mask).collect();
        let level = Tensor::f_cat(&maps, 0)?.f_mul_scalar(65535.0)?.f_round()?.f_to_kind(Kind::Int64)?;
        let count = |levels: &Tensor| -> Result<Vec<i64>> {
            let counts = levels.f_bincount(None::<&Tensor>, LEVELS as i64)?;
            Ok(Vec::<i64>::try_from(counts.f_to_device(Device::Cpu)?)?)
        };
        let marked = level.f_masked_select(&Tensor::f_cat(&masks, 0)?.f_to_kind(Kind::Bool)?)?;
        self.all.iter_mut().zip(count(&level)?).for_each(|(a, n)| *a += n);
        self.positives.iter_mut().zip(count(&marked)?).for_each(|(a, n)| *a += n);
        Ok(())
    }
}

impl Evaluation for Histograms {
    fn update(&mut self, batch: &Batch<'_>, _: &mut dyn Bench) -> Result<Vec<Score>> {
        let (maps, masks) = both(batch)?;
        let (mut scores, mut there) = (Vec::new(), Vec::new());
        for i in 0..batch.known.len() as i64 {
            let mask = masks.f_get(i)?.f_flatten(0, -1)?;
            let marked = batch.known[i as usize] && mask.f_any()?.f_int64_value(&[])? != 0;
            if let Some(score) = no_mask(batch.known[i as usize], marked) {
                scores.push(score);
                continue;
            }
            let map = maps.f_get(i)?.f_flatten(0, -1)?;
            let broken = batch.faults[i as usize] == Fault::NotFinite;
            scores.push(Score::counted(batch.faults[i as usize]));
            if map.device() != Device::Cpu {
                there.push((if broken { map.f_zeros_like()? } else { map }, mask));
            } else {
                let (values, marks) = (Vec::<f32>::try_from(&map)?, Vec::<u8>::try_from(&mask)?);
                for (value, mark) in values.into_iter().zip(marks) {
                    let level = if broken { 0 } else { (value * 65535.0).round_ties_even() as u16 };
                    self.all[usize::from(level)] += 1;
                    self.positives[usize::from(level)] += i64::from(mark);
                }
            }
        }
        self.count_there(&there)?;
        Ok(scores)
    }

    /// The levels that occur, and how often among the positives and among all.
    fn state(&self) -> Result<State> {
        let levels: Vec<i32> = (0..LEVELS).filter(|&l| self.all[l] > 0).map(|l| l as i32).collect();
        let pick = |from: &[i64]| levels.iter().map(|&l| from[l as usize]).collect::<Vec<i64>>();
        Ok(vec![
            ("levels".into(), Tensor::f_from_slice(&levels)?),
            ("positives".into(), Tensor::f_from_slice(&pick(&self.positives))?),
            ("all".into(), Tensor::f_from_slice(&pick(&self.all))?),
        ])
    }

    fn merge(&mut self, state: &State) -> Result<()> {
        let find = |name: &str| -> Result<Vec<i64>> {
            let tensor = state.iter().find(|(n, _)| n == name).map(|(_, t)| t);
            let tensor = tensor.ok_or_else(|| Error::new(format!("a saved state has no {name}")))?;
            Ok(Vec::<i64>::try_from(tensor.f_to_kind(Kind::Int64)?)?)
        };
        let (levels, positives, all) = (find("levels")?, find("positives")?, find("all")?);
        if levels.len() != positives.len() || levels.len() != all.len() || levels.iter().any(|l| *l >= LEVELS as i64) {
            return Err(Error::new("a saved state of pixel-auprc-pooled is broken"));
        }
        for ((level, p), a) in levels.into_iter().zip(positives).zip(all) {
            self.positives[level as usize] += p;
            self.all[level as usize] += a;
        }
        Ok(())
    }

    fn finish(&self) -> Result<Option<Score>> {
        let total = self.positives.iter().sum::<i64>() as f64;
        if total == 0.0 {
            return Ok(Some(Score::not_applicable("no image has a mask")));
        }
        let (mut sum, mut hits, mut seen) = (0.0, 0.0, 0.0);
        for level in (0..LEVELS).rev().filter(|&l| self.all[l] > 0) {
            let new = self.positives[level] as f64;
            hits += new;
            seen += self.all[level] as f64;
            sum += new / total * (hits / seen);
        }
        Ok(Some(Score::ok(sum)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::pixel_auprc::tests::score;
    use super::*;
    use crate::metrics::average_precision::average_precision;
    use rand::{Rng, SeedableRng};

    #[test]
    fn equals_one_sorted_list_and_scaling_a_map_changes_nothing() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
        let maps: Vec<Vec<f32>> = (0..3).map(|_| (0..900).map(|_| rng.random::<f32>()).collect()).collect();
        let masks: Vec<Vec<u8>> =
            (0..3).map(|_| (0..900).map(|_| u8::from(rng.random::<f64>() < 0.1)).collect()).collect();
        let masks: Vec<&[u8]> = masks.iter().map(Vec::as_slice).collect();
        let value = |maps: &[Vec<f32>]| {
            let maps: Vec<&[f32]> = maps.iter().map(Vec::as_slice).collect();
            score(&PixelAuprcPooled, &maps, &masks).1.unwrap().value.unwrap()
        };
        let found = value(&maps);
        let scaled: Vec<f64> = maps
            .iter()
            .flat_map(|map| {
                let mut map = map.clone();
                crate::maps::min_max_of(&mut map);
                map.into_iter().map(|v| (f64::from(v * 65535.0)).round_ties_even())
            })
            .collect();
        assert!((found - average_precision(&scaled, &masks.concat()).unwrap()).abs() < 1e-12);
        // Without the scaling, the second map's pixels would all come before the others'.
        let mut louder = maps.clone();
        louder[1].iter_mut().for_each(|v| *v = *v * 4.0 + 8.0);
        assert!((value(&louder) - found).abs() < 1e-3);
    }

    #[test]
    fn a_device_counts_as_the_cpu_does() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(9);
        let maps: Vec<f32> = (0..600).map(|_| (rng.random::<f32>() * 50.0).round() / 50.0).collect();
        let masks: Vec<u8> = (0..600).map(|_| u8::from(rng.random::<f64>() < 0.2)).collect();
        let (mut here, mut there) = (Histograms::new(), Histograms::new());
        let (maps, masks) = (Tensor::from_slice(&maps).reshape([3, 200]), Tensor::from_slice(&masks).reshape([3, 200]));
        there.count_there(&(0..3).map(|i| (maps.get(i), masks.get(i))).collect::<Vec<_>>()).unwrap();
        let batch = Batch {
            images: &maps,
            targets: &[1; 3],
            ids: &[0; 3],
            maps: Some(&maps.reshape([3, 10, 20])),
            faults: &[Fault::None; 3],
            masks: Some(&masks.reshape([3, 10, 20])),
            known: &[true; 3],
        };
        here.update(&batch, &mut crate::metrics::NoBench).unwrap();
        assert!(here.all == there.all && here.positives == there.positives && there.all.iter().sum::<i64>() == 600);
    }

    #[test]
    fn edge_cases_are_as_documented() {
        let value = |maps: &[&[f32]], masks: &[&[u8]]| score(&PixelAuprcPooled, maps, masks).1.unwrap();
        assert_eq!(value(&[&[0.5; 4]], &[&[0, 0, 0, 1]]), Score::ok(0.25));
        assert_eq!(value(&[&[0.0, f32::NAN, 1.0, 0.0]], &[&[0, 0, 0, 1]]), Score::ok(0.25));
        assert_eq!(value(&[&[0.5, 1.0]], &[&[0, 0]]).status, super::super::Status::NotApplicable);
    }
}
