//! Pixel-wise AUROC of all maps' pixels together, each map scaled to [0, 1] by its own range and rounded to 65,536 levels, as
//! `pixel-auprc-pooled`. Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters 2006. Oracle: scikit-learn
//! `roc_auc_score` on the rounded values.

use super::map_metric::share;
use super::pooled::{Histograms, Pooled, thinned};
use super::{Curve, Evaluation, Form, Level, Metric, MetricSpec, Needs, Reference, Size};
use crate::Result;
use lightbox_sdk::params::ParamValues;

/// See the file's head.
pub struct PixelAurocPooled;

impl Metric for PixelAurocPooled {
    fn spec(&self) -> MetricSpec {
        MetricSpec {
            short: "pixel AUROC, pooled",
            title: "Pixel-wise AUROC of all maps' pixels together",
            level: Level::Set,
            formula: "P(pixel of a mask > pixel outside) + P(equal) / 2 over the pixels of all images with a mask, each map scaled to [0, 1] by its own range and rounded to 65,536 levels",
            chance: "0.5",
            chance_is_constant: true,
            edge_cases: "as pixel-auroc; a constant map becomes 0; one that is not finite is the worst, 0 in the mask and 1 elsewhere",
            reference: Reference::new(
                "Fawcett",
                "An introduction to ROC analysis",
                "Pattern Recognition Letters",
                2006,
                "",
            ),
            version: 2,
            ..share("pixel-auroc-pooled", "localisation")
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
    let (positives, all) = h.totals();
    let (mut above, mut sum) = (0.0, 0.0);
    // Each level's pixels outside are below the positives of the levels above, and equal to its own.
    for (here, pixels) in h.levels() {
        let outside = pixels - here;
        sum += outside * (above + here / 2.0);
        above += here;
    }
    (positives > 0.0 && all > positives).then(|| sum / (positives * (all - positives)))
}

/// Sensitivity against the share of false alarms.
fn curve(h: &Histograms) -> Option<Curve> {
    let (positives, all) = h.totals();
    let (mut hits, mut alarms, mut points) = (0.0, 0.0, vec![[0.0, 0.0]]);
    for (here, pixels) in h.levels() {
        hits += here;
        alarms += pixels - here;
        points.push([alarms / (all - positives), hits / positives]);
    }
    let (x, y) = ("share of other pixels above".into(), "share of mask pixels above".into());
    (positives > 0.0 && all > positives).then(|| Curve { x, y, points: thinned(points, 200) })
}

#[cfg(test)]
mod tests {
    use super::super::pixel_auprc::tests::score;
    use super::super::{Score, Status};
    use super::*;
    use crate::metrics::auroc::auroc;
    use rand::{Rng, SeedableRng};

    #[test]
    fn equals_all_pairs_of_one_list() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
        let maps: Vec<Vec<f32>> =
            (0..3).map(|_| (0..300).map(|_| (rng.random::<f32>() * 9.0).round()).collect()).collect();
        let masks: Vec<Vec<u8>> =
            (0..3).map(|_| (0..300).map(|_| u8::from(rng.random::<f64>() < 0.1)).collect()).collect();
        let (m, g): (Vec<&[f32]>, Vec<&[u8]>) =
            (maps.iter().map(Vec::as_slice).collect(), masks.iter().map(Vec::as_slice).collect());
        let found = score(&PixelAurocPooled, &m, &g).1.unwrap().value.unwrap();
        let scaled: Vec<f64> = maps.iter().flat_map(|map| map.iter().map(|v| f64::from(*v) / 9.0)).collect();
        assert!((found - auroc(&scaled, &masks.concat()).unwrap()).abs() < 1e-12);
        // What two units have counted adds up.
        let mut parts = [0..2, 2..3].map(|part| {
            let mut one = PixelAurocPooled.start(&ParamValues::default(), 0).unwrap();
            crate::metrics::pixel_auprc::tests::see(&PixelAurocPooled, one.as_mut(), &m[part.clone()], &g[part]);
            one
        });
        let state = parts[0].state().unwrap();
        parts[1].merge(&state).unwrap();
        assert!((parts[1].finish().unwrap().unwrap().value.unwrap() - found).abs() < 1e-15);
        assert_eq!(score(&PixelAurocPooled, &[&[0.5; 4]], &[&[0, 0, 0, 1]]).1, Some(Score::ok(0.5)));
        let all = score(&PixelAurocPooled, &[&[0.5, 1.0]], &[&[1, 1]]).1.unwrap();
        assert_eq!(all.status, Status::NotApplicable);
    }
}
