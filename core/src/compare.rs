//! What a run says of differences between explainers: rankings with their tests, differences from the best with their
//! intervals, strata, and how far metrics and explainers agree. Written beside the summary as `comparisons.json`.
//!
//! Explainers are compared over the images that all of them have a value of, a patient's images together; a value is the mean
//! over folds and trainings. An image on which an explainer failed in any of them is its worst.

use crate::Result;
use crate::metrics::Better;
use crate::stats::bootstrap::{Bootstrap, middle};
use crate::stats::correlation::spearman;
use crate::stats::paired::mcnemar;
use crate::stats::ranking::{self, LEVEL, Ranking, pair};
use crate::stats::reliability::krippendorff;
use crate::stats::{self, mean};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Fewer patients than this are not ranked.
pub const LEAST: usize = 5;

/// Values of one explainer's map by one metric, an image.
#[derive(Debug, Clone, Default)]
pub struct Values {
    /// The column's place in the summary.
    pub column: usize,
    /// Image, in one order for all, and its value; none where the explainer failed.
    pub images: BTreeMap<usize, Option<f64>>,
}

/// The explainers on one model, by one metric of images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    pub model: String,
    pub metric: String,
    /// Places of the compared columns in the summary.
    pub columns: Vec<usize>,
    pub images: usize,
    /// Of `columns`, in their order.
    #[serde(flatten)]
    pub ranking: Ranking,
    /// Pairs were compared as hits and misses: McNemar's test in place of Wilcoxon's.
    pub hits: bool,
    /// The place in `columns` of the greatest (least, where less is better) mean.
    pub best: usize,
    /// By column: its mean less the best's, over images on which neither failed.
    pub differences: Vec<Difference>,
    /// Krippendorff's alpha of the patients' orders.
    pub alpha: Option<f64>,
}

/// A difference of means, in the metric's unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    pub mean: f64,
    /// 95 % over patients.
    pub interval: Option<[f64; 2]>,
    /// Holm-corrected over all pairs; 1 for the best itself.
    pub p: f64,
    /// The test finds no difference from the best.
    pub tied: bool,
}

/// The mean of a cell over a part of its images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stratum {
    pub model: String,
    pub metric: String,
    pub column: usize,
    /// `size` of the finding, or `class`.
    pub by: String,
    pub name: String,
    pub mean: f64,
    pub images: usize,
}

/// Spearman's correlation, over explainers, of their means by two metrics (turned so that more is better).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricAgreement {
    pub model: String,
    pub metrics: Vec<String>,
    /// `[metric][metric]`; none where fewer than three explainers have both.
    pub correlation: Vec<Vec<Option<f64>>>,
}

/// How alike the maps of explainers are, on one model: means over images and folds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MapAgreement {
    pub model: String,
    /// Places in the summary.
    pub columns: Vec<usize>,
    /// Images that were compared, a fold.
    pub images: usize,
    /// Spearman's correlation of pixels; none where no image has both maps.
    pub correlation: Vec<Vec<Option<f64>>>,
    /// The share that the highest tenth of the pixels of both have in common; a tenth by chance.
    pub overlap: Vec<Vec<Option<f64>>>,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Comparisons {
    pub comparisons: Vec<Comparison>,
    pub strata: Vec<Stratum>,
    pub metrics: Vec<MetricAgreement>,
    pub maps: Vec<MapAgreement>,
}

/// Compares columns. `patients` and `strata`: by image. None where there is nothing to compare.
pub fn compare(
    model: &str,
    metric: &str,
    better: Better,
    all: &[Values],
    patients: &dyn Fn(usize) -> u32,
    bootstrap: &dyn Fn(&[usize]) -> Option<std::sync::Arc<Bootstrap>>,
) -> Result<Option<Comparison>> {
    let all: Vec<&Values> = all.iter().filter(|v| !v.images.is_empty()).collect();
    if all.len() < 2 {
        return Ok(None);
    }
    let common: Vec<usize> =
        all[0].images.keys().copied().filter(|i| all.iter().all(|v| v.images.contains_key(i))).collect();
    let mut groups: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    common.iter().for_each(|&i| groups.entry(patients(i)).or_default().push(i));
    if groups.len() < LEAST {
        return Ok(None);
    }
    let sign = if better == Better::Higher { 1.0 } else { -1.0 };
    let turned = |v: Option<f64>| v.map_or(f64::NEG_INFINITY, |v| v * sign);
    let by_patient = |v: &&Values| -> Vec<f64> {
        let one = |images: &Vec<usize>| mean(&images.iter().map(|i| turned(v.images[i])).collect::<Vec<_>>());
        groups.values().map(one).collect()
    };
    let lists: Vec<Vec<f64>> = all.iter().map(by_patient).collect();
    let mut ranking = ranking::ranking(&lists);
    let is_hit = |v: &f64| *v == 0.0 || *v == sign;
    let hits = lists.iter().flatten().all(is_hit) && groups.values().all(|g| g.len() == 1);
    if hits {
        let unsigned: Vec<Vec<f64>> = lists.iter().map(|l| l.iter().map(|v| v.abs()).collect()).collect();
        ranking = ranking.with_tests(|a, b| {
            let test = mcnemar(&unsigned[a], &unsigned[b]);
            stats::paired::Test { effect: test.effect * sign, ..test }
        });
    }
    // What failed is in no mean, as in the summary where the worst value has no end.
    let means: Vec<f64> =
        all.iter().map(|v| mean(&common.iter().filter_map(|i| v.images[i]).collect::<Vec<_>>())).collect();
    let has_any = |at: &usize| common.iter().any(|i| all[*at].images[i].is_some());
    let best = (0..all.len()).filter(has_any).max_by(|a, b| (means[*a] * sign).total_cmp(&(means[*b] * sign)));
    let Some(best) = best else { return Ok(None) };
    let whole = |at: usize| common.iter().all(|i| all[at].images[i].is_some());
    let full: Vec<usize> = (0..all.len()).filter(|at| whole(*at) && whole(best)).collect();
    let columns: Vec<Vec<f64>> =
        full.iter().map(|at| common.iter().filter_map(|i| all[*at].images[i]).collect()).collect();
    let drawn = match bootstrap(&common).filter(|_| !full.is_empty()) {
        Some(b) => b.means(&columns.iter().map(Vec::as_slice).collect::<Vec<_>>())?,
        None => vec![],
    };
    let k = all.len();
    let difference = |at: usize| {
        let both = common.iter().filter_map(|i| all[at].images[i].zip(all[best].images[i]));
        let gaps: Vec<f64> = both.map(|(a, b)| a - b).collect();
        let place = |at: usize| full.iter().position(|f| *f == at).and_then(|p| drawn.get(p));
        let interval = place(at).zip(place(best)).filter(|_| at != best);
        let interval = interval.map(|(a, b)| middle(a.iter().zip(b).map(|(a, b)| a - b).collect()));
        let p = if at == best { 1.0 } else { ranking.pairs[pair(at.min(best), at.max(best), k)].p };
        Difference { mean: mean(&gaps), interval, p, tied: p >= LEVEL }
    };
    use rayon::prelude::*;
    let differences = (0..k).into_par_iter().map(difference).collect();
    Ok(Some(Comparison {
        model: model.into(),
        metric: metric.into(),
        columns: all.iter().map(|v| v.column).collect(),
        images: common.len(),
        hits,
        best,
        differences,
        alpha: krippendorff(&lists),
        ranking,
    }))
}

/// How metrics agree on a model: `means[metric][column]`, more is better.
pub fn metric_agreement(model: &str, metrics: &[String], means: &[Vec<Option<f64>>]) -> MetricAgreement {
    let one = |a: &[Option<f64>], b: &[Option<f64>]| {
        let (x, y): (Vec<f64>, Vec<f64>) = a.iter().zip(b).filter_map(|(a, b)| a.zip(*b)).unzip();
        if x.len() < 3 { None } else { spearman(&x, &y) }
    };
    let correlation = means.iter().map(|a| means.iter().map(|b| one(a, b)).collect()).collect();
    MetricAgreement { model: model.into(), metrics: metrics.to_vec(), correlation }
}

/// The means of a cell over strata: terciles of `size` (a share of the image), and classes where there are several.
pub fn strata(
    model: &str,
    metric: &str,
    values: &Values,
    size: &dyn Fn(usize) -> Option<f64>,
    class: &dyn Fn(usize) -> String,
) -> Vec<Stratum> {
    let mut found = Vec::new();
    let mut add = |by: &str, name: String, of: &[f64]| {
        let (model, metric) = (model.to_string(), metric.to_string());
        let (column, by) = (values.column, by.to_string());
        found.push(Stratum { model, metric, column, by, name, mean: mean(of), images: of.len() });
    };
    let valued = || values.images.iter().filter_map(|(i, v)| v.map(|v| (*i, v)));
    let mut sized: Vec<(f64, f64)> = valued().filter_map(|(i, v)| size(i).map(|s| (s, v))).collect();
    sized.sort_by(|a, b| a.0.total_cmp(&b.0));
    if sized.len() >= 6 {
        let n = sized.len();
        for (k, word) in ["small", "medium", "large"].into_iter().enumerate() {
            let part = &sized[k * n / 3..(k + 1) * n / 3];
            let (low, high) = (100.0 * part[0].0, 100.0 * part[part.len() - 1].0);
            let list: Vec<f64> = part.iter().map(|(_, v)| *v).collect();
            add("size", format!("{word}, {low:.2} to {high:.2} % of the image"), &list);
        }
    }
    let mut classes: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    valued().for_each(|(i, v)| classes.entry(class(i)).or_default().push(v));
    if classes.len() > 1 {
        classes.into_iter().for_each(|(name, list)| add("class", name, &list));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn values(column: usize, of: &[Option<f64>]) -> Values {
        Values { column, images: of.iter().copied().enumerate().collect() }
    }

    fn check(all: &[Values], better: Better) -> Option<Comparison> {
        let bootstrap = |images: &[usize]| {
            let patients: Vec<u32> = images.iter().map(|i| *i as u32).collect();
            Bootstrap::new(&patients, &[], 1).map(Arc::new)
        };
        compare("m", "k", better, all, &|i| i as u32, &bootstrap).unwrap()
    }

    #[test]
    fn the_best_and_what_is_tied_with_it() {
        let noise = |i: usize, salt: usize| ((i * 7919 + salt * 104729) % 1000) as f64 / 1000.0;
        let list = |base: f64, salt: usize| (0..60).map(|i| Some(base + noise(i, salt))).collect::<Vec<_>>();
        let mut broken = list(3.0, 4);
        broken[7] = None;
        let all = [values(0, &list(1.0, 1)), values(1, &list(0.0, 2)), values(2, &list(1.0, 5)), values(5, &broken)];
        let found = check(&all, Better::Lower).unwrap();
        assert_eq!((found.best, found.columns.clone(), found.images), (1, vec![0, 1, 2, 5], 60));
        let d = &found.differences;
        assert!((d[0].mean - 1.0).abs() < 0.1 && d[0].interval.unwrap()[0] > 0.8 && !d[0].tied);
        assert!(d[1].tied && d[1].interval.is_none() && d[3].mean > 2.5 && d[3].interval.is_none());
        // Where more is better, the broken one leads in its mean and is last where it failed.
        let found = check(&all, Better::Higher).unwrap();
        assert_eq!(found.best, 3);
        assert!(found.ranking.mean_ranks[3] > 1.0 && found.ranking.mean_ranks[3] < 1.1);
        assert!(found.alpha.unwrap() > 0.5 && !found.hits);
        assert_eq!(check(&all[..1], Better::Higher), None);
        let few = [values(0, &list(1.0, 1)[..4]), values(1, &list(1.0, 2))];
        assert_eq!(check(&few, Better::Higher), None);
    }

    #[test]
    fn hits_are_compared_as_hits() {
        let list = |of: &dyn Fn(usize) -> bool| (0..40).map(|i| Some(f64::from(u8::from(of(i))))).collect::<Vec<_>>();
        let all = [values(0, &list(&|i| i < 30)), values(1, &list(&|i| i < 20)), values(2, &list(&|i| i % 2 == 0))];
        let found = check(&all, Better::Higher).unwrap();
        assert!(found.hits && found.best == 0);
        // Ten to none: 2 / 2^10, three times, as the least of three.
        assert!((found.ranking.pairs[0].p - 3.0 * 2.0 / 1024.0).abs() < 1e-12, "{:?}", found.ranking.pairs);
        assert_eq!(found.ranking.pairs[0].effect, 0.25);
    }

    #[test]
    fn parts_and_agreement() {
        let v = values(3, &(0..9).map(|i| Some(i as f64)).collect::<Vec<_>>());
        let size = |i: usize| (i != 8).then(|| 0.01 * (8 - i) as f64);
        let found = strata("m", "k", &v, &size, &|i| if i < 3 { "a" } else { "b" }.into());
        let named: Vec<(&str, f64, usize)> = found.iter().map(|s| (s.name.as_str(), s.mean, s.images)).collect();
        assert_eq!(named[0], ("small, 1.00 to 2.00 % of the image", 6.5, 2));
        assert_eq!(named[2].2, 3);
        assert_eq!(named[3..], [("a", 1.0, 3), ("b", 5.5, 6)]);
        let means = [vec![Some(1.0), Some(2.0), Some(3.0)], vec![Some(3.0), Some(2.0), Some(1.0)], vec![None; 3]];
        let found = metric_agreement("m", &["a".into(), "b".into(), "c".into()], &means);
        assert_eq!(found.correlation[0], [Some(1.0), Some(-1.0), None]);
    }
}
