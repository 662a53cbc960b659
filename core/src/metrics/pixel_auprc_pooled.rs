//! Pixel-wise AUPRC of all maps' pixels together, each map scaled to [0, 1] by its own range.
//!
//! The scaled values are rounded to 65,536 levels, which are one step each, so that the pixels of any number of images are
//! two histograms: they are added exactly, in any order, over units and workers. Rounding moves the value by less than 1e-4
//! on maps of 224 x 224 pixels. Oracle: scikit-learn `average_precision_score` on the rounded values.

use super::pixel_auprc::reference;
use super::pooled::{Histograms, Pooled, thinned};
use super::{Better, Curve, Evaluation, Form, Level, Metric, MetricSpec, Needs, Size};
use crate::Result;
use lightbox_sdk::params::ParamValues;

/// See the file's head.
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
            edge_cases: "as pixel-auprc; a constant map becomes 0; one that is not finite is the worst, 0 in the mask and 1 elsewhere",
            reference: reference(),
            version: 2,
            parameters: vec![],
        }
    }

    fn needs(&self) -> Needs {
        Needs::masked(Size::Mask, Form::MinMax)
    }

    fn start(&self, _: &ParamValues, _: u64) -> Result<Box<dyn Evaluation>> {
        Ok(Box::new(Pooled::new(value, curve)))
    }
}

fn value(h: &Histograms) -> Option<f64> {
    let (total, _) = h.totals();
    let (mut sum, mut hits, mut seen) = (0.0, 0.0, 0.0);
    for (positives, all) in h.levels() {
        hits += positives;
        seen += all;
        sum += positives / total * (hits / seen);
    }
    (total > 0.0).then_some(sum)
}

/// Precision against recall.
fn curve(h: &Histograms) -> Option<Curve> {
    let (total, _) = h.totals();
    let (mut hits, mut seen, mut points) = (0.0, 0.0, vec![]);
    for (positives, all) in h.levels() {
        hits += positives;
        seen += all;
        if positives > 0.0 {
            points.push([hits / total, hits / seen]);
        }
    }
    let (x, y) = ("recall".into(), "precision".into());
    (total > 0.0).then(|| Curve { x, y, points: thinned(points, 200) })
}

#[cfg(test)]
mod tests {
    use super::super::pixel_auprc::tests::score;
    use super::super::{Batch, Score, batch_cache::BatchCache};
    use super::*;
    use crate::maps::Fault;
    use crate::metrics::average_precision::average_precision;
    use rand::{Rng, SeedableRng};
    use tch::Tensor;

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
            signed: false,
            scene: &BatchCache::default(),
            cell: &BatchCache::default(),
        };
        here.update(&batch).unwrap();
        assert!(here.all == there.all && here.positives == there.positives && there.all.iter().sum::<i64>() == 600);
    }

    #[test]
    fn edge_cases_are_as_documented() {
        let value = |maps: &[&[f32]], masks: &[&[u8]]| score(&PixelAuprcPooled, maps, masks).1.unwrap();
        assert_eq!(value(&[&[0.5; 4]], &[&[0, 0, 0, 1]]), Score::ok(0.25));
        // The finding's pixel comes last: below chance, and so is the device's way of counting.
        let worst = value(&[&[0.0, f32::NAN, 1.0, 0.0], &[1.0, 0.0, 0.0, 0.0]], &[&[0, 0, 0, 1], &[1, 0, 0, 0]]);
        let alone = value(&[&[1.0, 0.0, 0.0, 0.0]], &[&[1, 0, 0, 0]]);
        // By falling value: the one finding and the broken map's three pixels at 1, then four at 0 with the other.
        assert_eq!(alone, Score::ok(1.0));
        assert!((worst.value.unwrap() - (0.5 * 0.25 + 0.5 * 0.25)).abs() < 1e-12, "{worst:?}");
        assert_eq!(value(&[&[0.5, 1.0]], &[&[0, 0]]).status, super::super::Status::NotApplicable);
    }
}
