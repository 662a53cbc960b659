//! Pixel-wise AUPRC of a map: average precision of the map's pixels against the mask, an image; the table shows the mean.
//! Behrendt, Sonawane et al., "Quantitative evaluation of activation maps for weakly-supervised lung nodule segmentation",
//! SPIE Medical Imaging 2024. Oracle: scikit-learn `average_precision_score`. The kernel is in `average_precision.rs`.

use super::average_precision::average_precision_by_libtorch;
use super::facts::no_mask;
use super::map_metric::each_image;
use super::{Batch, Bench, Better, Evaluation, Form, Level, Masks, Metric, MetricSpec, Needs, Reference, Score, Size};
use crate::maps::Fault;
use crate::{Error, Result};
use lightbox_sdk::params::ParamValues;
use tch::{Device, Kind, Tensor};

/// Of this metric and of its pooled form.
pub(super) fn reference() -> Reference {
    Reference::new(
        "Behrendt, Sonawane et al.",
        "Quantitative evaluation of activation maps for weakly-supervised lung nodule segmentation",
        "SPIE Medical Imaging",
        2024,
        "",
    )
}

/// See the file's head.
pub struct PixelAuprc;

impl Metric for PixelAuprc {
    fn spec(&self) -> MetricSpec {
        MetricSpec {
            name: "pixel-auprc",
            short: "pixel AUPRC",
            title: "Pixel-wise AUPRC of a map, mean over images",
            family: "localisation",
            level: Level::Image,
            formula: "average precision of the map's pixels against the mask, an image; then the mean",
            better: Better::Higher,
            range: [0.0, 1.0],
            chance: "share of mask pixels",
            chance_is_constant: true,
            unit: "share",
            cost: "0",
            edge_cases: "an empty or unknown mask is N/A; a map that is not finite is a failure and counts as 0; a \
                         constant map gives the share of mask pixels and is counted",
            reference: reference(),
            version: 1,
            parameters: vec![],
        }
    }

    fn needs(&self) -> Needs {
        Needs::masked(Size::Mask, Form::Raw)
    }

    fn start(&self, _: &ParamValues, _: u64) -> Result<Box<dyn Evaluation>> {
        Ok(Box::new(At))
    }
}

struct At;

/// Maps and masks of a batch.
pub(super) fn both<'a>(batch: &Batch<'a>) -> Result<(&'a Tensor, &'a Tensor)> {
    batch.maps.zip(batch.masks).ok_or_else(|| Error::new("this metric was given no maps or no masks"))
}

impl Evaluation for At {
    fn update(&mut self, batch: &Batch<'_>, _: &mut dyn Bench) -> Result<Vec<Score>> {
        let (maps, masks) = both(batch)?;
        if maps.device() != Device::Cpu {
            let n = batch.known.len();
            let flat = masks.f_reshape([n as i64, -1])?;
            let marked =
                Vec::<i64>::try_from(flat.f_any_dim(1, false)?.f_to_kind(Kind::Int64)?.f_to_device(Device::Cpu)?)?;
            let ap = average_precision_by_libtorch(&maps.f_nan_to_num(0.0, 0.0, 0.0)?, masks)?;
            // An image without a mask says nothing of the map, whatever the map is.
            let one = |i: usize| match (no_mask(Masks::Finding, batch.known[i], marked[i] != 0), batch.faults[i]) {
                (Some(score), _) => score,
                (None, Fault::NotFinite) => Score::failed("the map is not finite"),
                (None, fault) => Score::of(ap[i], fault),
            };
            return Ok((0..n).map(one).collect());
        }
        each_image(batch, Masks::Finding, |image| {
            let ranks = image.ranks();
            ranks.map_or(Score::not_applicable("empty mask"), |ranks| Score::ok(ranks.average_precision))
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::maps;
    use crate::metrics::NoBench;
    use crate::metrics::batch_cache::BatchCache;

    /// Shows [n, 1, w] maps and masks that are all known to an evaluation.
    pub fn see(metric: &dyn Metric, to: &mut dyn Evaluation, maps: &[&[f32]], masks: &[&[u8]]) -> Vec<Score> {
        let shape = [maps.len() as i64, 1, maps[0].len() as i64];
        let raw = Tensor::from_slice(&maps.concat()).reshape(shape);
        let faults = maps::faults(&raw).unwrap();
        let form = metric.needs().maps.unwrap().1;
        let formed = if form == Form::MinMax { maps::min_max(&raw).unwrap() } else { raw };
        let batch = Batch {
            images: &Tensor::zeros([maps.len() as i64, 3, 1, 1], (Kind::Float, Device::Cpu)),
            targets: &vec![1; maps.len()],
            ids: &(0..maps.len() as u64).collect::<Vec<_>>(),
            maps: Some(&formed),
            faults: &faults,
            masks: Some(&Tensor::from_slice(&masks.concat()).reshape(shape)),
            known: &vec![true; maps.len()],
            signed: false,
            scene: &BatchCache::default(),
            cell: &BatchCache::default(),
        };
        to.update(&batch, &mut NoBench).unwrap()
    }

    /// Scores [n, 1, w] maps against masks that are all known.
    pub fn score(metric: &dyn Metric, maps: &[&[f32]], masks: &[&[u8]]) -> (Vec<Score>, Option<Score>) {
        let mut evaluation = metric.start(&metric.spec().resolve(&Default::default()).unwrap(), 0).unwrap();
        let scores = see(metric, evaluation.as_mut(), maps, masks);
        // What was saved and merged into a new evaluation is what was seen.
        let mut other = metric.start(&metric.spec().resolve(&Default::default()).unwrap(), 0).unwrap();
        other.merge(&evaluation.state().unwrap()).unwrap();
        let (set, merged) = (evaluation.finish().unwrap(), other.finish().unwrap());
        assert_eq!(set, merged);
        (scores, set)
    }

    #[test]
    fn edge_cases_are_as_documented() {
        let nan: &[f32] = &[0.0, f32::NAN, 0.0, 0.0];
        let maps: [&[f32]; 5] = [&[0.1, 0.4, 0.35, 0.8], &[0.5; 4], nan, &[0.0, 1.0, 0.0, 0.0], nan];
        let masks: [&[u8]; 5] = [&[0, 0, 1, 1], &[0, 0, 0, 1], &[1, 0, 0, 0], &[0; 4], &[0; 4]];
        let (scores, set) = score(&PixelAuprc, &maps, &masks);
        assert!((scores[0].value.unwrap() - 0.8333333333333333).abs() < 1e-12 && scores[0].reason.is_empty());
        assert_eq!((scores[1].value, scores[1].reason), (Some(0.25), Score::CONSTANT));
        assert_eq!(scores[2], Score::failed("the map is not finite"));
        assert_eq!(scores[3], Score::not_applicable("empty mask"));
        assert_eq!(scores[4], Score::not_applicable("empty mask"));
        assert_eq!(set, None);
    }
}
