//! What a run says of differences between explainers: rankings with their tests, differences from the best with their
//! intervals, strata, and how far metrics and explainers agree. Written beside the summary as `comparisons.json`.
//!
//! Explainers are compared over the images that all of them have a value of, a patient's images together; a value is the mean
//! over folds and trainings. An image on which an explainer failed in any of them is its worst: in ranks the last, in means the
//! worst value of the metric's range; where that end is open, an explainer that failed anywhere has no mean to be best by.

use crate::metrics::Better;
use crate::stats::correlation::spearman;
use crate::stats::interval::Patients;
use crate::stats::paired::mcnemar;
use crate::stats::ranking::{self, LEVEL, Ranking, pair};
use crate::stats::reliability::krippendorff;
use crate::stats::{self, mean};
use schemars::JsonSchema;
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Comparison {
    /// Its label.
    pub model: String,
    /// Its label.
    pub metric: String,
    /// Places of the compared columns in the summary.
    pub columns: Vec<usize>,
    /// Images that all of them have a value of.
    pub images: usize,
    /// Of `columns`, in their order.
    #[serde(flatten)]
    pub ranking: Ranking,
    /// Pairs were compared as hits and misses: McNemar's test in place of Wilcoxon's.
    pub hits: bool,
    /// The place in `columns` of the best mean of those that are no controls (of all, where all are).
    pub best: usize,
    /// That of the best control.
    pub control: Option<usize>,
    /// By column: its mean less the best's.
    pub differences: Vec<Difference>,
    /// The smallest Holm-corrected p that a pair could have had with so many patients and explainers. From 0.05 on the test
    /// cannot find any difference, whatever the maps.
    #[schemars(range(min = 0, max = 1))]
    pub least_p: f64,
    /// Krippendorff's alpha of the patients' orders.
    #[schemars(range(max = 1))]
    pub alpha: Option<f64>,
}

/// A difference of means, in the metric's unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Difference {
    /// None where one of the two failed and the worst value has no end.
    pub mean: Option<f64>,
    /// 95 % over patients.
    pub interval: Option<[f64; 2]>,
    /// Holm-corrected over all pairs; 1 for the best itself.
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
    /// The test finds no difference from the best.
    pub tied: bool,
    /// Better than the best control, by mean and test; none of controls, and where there is none.
    pub beats_control: Option<bool>,
}

/// The mean of a cell over a part of its images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Stratum {
    /// Its label.
    pub model: String,
    /// Its label.
    pub metric: String,
    /// The column of maps, as its place in the summary's list.
    pub column: usize,
    /// `size` of the finding, or `class`.
    pub by: String,
    /// The stratum in words, as `small` or a class's name.
    pub name: String,
    /// Mean over the stratum's images.
    pub mean: f64,
    /// How many images it has.
    pub images: usize,
}

/// Spearman's correlation, over explainers, of their means by two metrics (turned so that more is better).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MetricAgreement {
    /// Its label.
    pub model: String,
    /// Their labels.
    pub metrics: Vec<String>,
    /// `[metric][metric]`; none where fewer than three explainers have both.
    pub correlation: Vec<Vec<Option<f64>>>,
}

/// How alike the maps of explainers are, on one model: means over images and folds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MapAgreement {
    /// Its label.
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
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Comparisons {
    /// Tests of differences between explainers.
    pub comparisons: Vec<Comparison>,
    /// Means by stratum.
    pub strata: Vec<Stratum>,
    /// Whether metrics rank explainers alike.
    pub metrics: Vec<MetricAgreement>,
    /// How alike explainers' maps are.
    pub maps: Vec<MapAgreement>,
}

/// Compares columns by a metric of this direction, whose failures count as `worst`. `controls`: places of columns that know
/// nothing of the model; `patients`: by image. None where there is nothing to compare.
pub fn compare(
    model: &str,
    metric: &str,
    (better, worst): (Better, Option<f64>),
    all: &[Values],
    controls: &[usize],
    patients: &dyn Fn(usize) -> u32,
    grouped: &dyn Fn(&[usize]) -> Patients,
) -> Option<Comparison> {
    let all: Vec<&Values> = all.iter().filter(|v| !v.images.is_empty()).collect();
    if all.len() < 2 {
        return None;
    }
    let common: Vec<usize> =
        all[0].images.keys().copied().filter(|i| all.iter().all(|v| v.images.contains_key(i))).collect();
    let mut groups: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    common.iter().for_each(|&i| groups.entry(patients(i)).or_default().push(i));
    if groups.len() < LEAST {
        return None;
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
    // By column: a value an image, where the column can have a mean.
    let full: Vec<Option<Vec<f64>>> =
        all.iter().map(|v| common.iter().map(|i| v.images[i].or(worst)).collect::<Option<Vec<f64>>>()).collect();
    let means: Vec<Option<f64>> = full.iter().map(|v| v.as_deref().map(mean)).collect();
    let leader = |is_control: bool| {
        let of = |at: &usize| controls.contains(&all[*at].column) == is_control && means[*at].is_some();
        let key = |at: usize| means[at].map_or(f64::NEG_INFINITY, |m| m * sign);
        (0..all.len()).filter(of).max_by(|a, b| key(*a).total_cmp(&key(*b)))
    };
    let control = leader(true);
    let best = leader(false).or(control)?;
    let grouped = grouped(&common);
    let k = all.len();
    let test = |a: usize, b: usize| if a == b { 1.0 } else { ranking.pairs[pair(a.min(b), a.max(b), k)].p };
    let difference = |at: usize| {
        let pair = full[at].as_ref().zip(full[best].as_ref()).filter(|_| at != best);
        let gaps = pair.map(|(a, b)| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<f64>>());
        let interval = gaps.and_then(|g| grouped.mean(&g, [f64::NEG_INFINITY, f64::INFINITY]));
        let p = test(at, best);
        let beats =
            |c: usize| means[at].zip(means[c]).is_some_and(|(a, b)| (a - b) * sign > 0.0) && test(at, c) < LEVEL;
        Difference {
            mean: means[at].zip(means[best]).map(|(a, b)| a - b),
            interval,
            p,
            tied: p >= LEVEL,
            beats_control: control.filter(|_| !controls.contains(&all[at].column)).map(beats),
        }
    };
    use rayon::prelude::*;
    let differences = (0..k).into_par_iter().map(difference).collect();
    let pairs = ranking.pairs.len() as f64;
    Some(Comparison {
        model: model.into(),
        metric: metric.into(),
        columns: all.iter().map(|v| v.column).collect(),
        images: common.len(),
        hits,
        best,
        control,
        differences,
        alpha: krippendorff(&lists),
        // Of n patients who all agree the exact test's p is 2 / 2^n.
        least_p: (pairs * 2f64.powi(1 - groups.len().min(1000) as i32)).min(1.0),
        ranking,
    })
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

/// The limits of terciles of the findings' sizes (shares of the image): where the second and the third begin, and the least
/// and greatest. None for fewer than six.
pub fn terciles(sizes: impl Iterator<Item = f64>) -> Option<[f64; 4]> {
    let mut sizes: Vec<f64> = sizes.collect();
    sizes.sort_unstable_by(f64::total_cmp);
    let n = sizes.len();
    (n >= 6).then(|| [sizes[0], sizes[n / 3], sizes[2 * n / 3], sizes[n - 1]])
}

/// The means of a cell over strata: the terciles of size, and classes where there are several. A failure counts as `worst`.
pub fn strata(
    model: &str,
    metric: &str,
    values: &Values,
    worst: Option<f64>,
    limits: Option<[f64; 4]>,
    size: &dyn Fn(usize) -> Option<f64>,
    class: &dyn Fn(usize) -> String,
) -> Vec<Stratum> {
    let mut found = Vec::new();
    let mut add = |by: &str, name: String, of: &[f64]| {
        let (model, metric) = (model.to_string(), metric.to_string());
        let (column, by) = (values.column, by.to_string());
        found.push(Stratum { model, metric, column, by, name, mean: mean(of), images: of.len() });
    };
    let valued = || values.images.iter().filter_map(|(i, v)| v.or(worst).map(|v| (*i, v)));
    if let Some([least, second, third, most]) = limits {
        let parts = [("small", least, second), ("medium", second, third), ("large", third, most)];
        for (at, (word, low, high)) in parts.into_iter().enumerate() {
            let inside = |s: f64| (at == 0 || s >= low) && (at == 2 || s < high);
            let list: Vec<f64> = valued().filter(|(i, _)| size(*i).is_some_and(inside)).map(|(_, v)| v).collect();
            if !list.is_empty() {
                add("size", format!("{word}, {:.2} to {:.2} % of the image", 100.0 * low, 100.0 * high), &list);
            }
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

    fn values(column: usize, of: &[Option<f64>]) -> Values {
        Values { column, images: of.iter().copied().enumerate().collect() }
    }

    fn check_with(all: &[Values], better: Better, worst: Option<f64>, controls: &[usize]) -> Option<Comparison> {
        let grouped = |images: &[usize]| Patients::new(&images.iter().map(|i| *i as u32).collect::<Vec<u32>>(), &[]);
        compare("m", "k", (better, worst), all, controls, &|i| i as u32, &grouped)
    }

    fn check(all: &[Values], better: Better) -> Option<Comparison> {
        check_with(all, better, None, &[])
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
        assert!((d[0].mean.unwrap() - 1.0).abs() < 0.1 && d[0].interval.unwrap()[0] > 0.8 && !d[0].tied);
        assert!(d[1].tied && d[1].interval.is_none() && d[3].mean.is_none() && d[3].interval.is_none());
        // Where more is better, the broken one would lead; without an end to the worst it has no mean, and is last where
        // it failed.
        let found = check(&all, Better::Higher).unwrap();
        assert!(found.best == 0 || found.best == 2);
        assert!(found.ranking.mean_ranks[3] > 1.0 && found.ranking.mean_ranks[3] < 1.1);
        // With an end, the failure counts as it: 59 of about 3.5, and one of -1000.
        let ended = check_with(&all, Better::Higher, Some(-1000.0), &[]).unwrap();
        assert!(ended.best != 3 && ended.differences[3].mean.unwrap() < -10.0);
        assert!(ended.differences[3].interval.unwrap()[0] < -30.0);
        assert_eq!(check_with(&all, Better::Higher, Some(0.0), &[]).unwrap().best, 3);
        // A control is not the best, and who does not beat it is told.
        let found = check_with(&all, Better::Higher, Some(0.0), &[5]).unwrap();
        assert!(found.control == Some(3) && found.best != 3 && found.differences[3].beats_control.is_none());
        assert_eq!(found.differences[0].beats_control, Some(false));
        let found = check_with(&all[..3], Better::Higher, None, &[1]).unwrap();
        assert_eq!((found.differences[0].beats_control, found.differences[2].beats_control), (Some(true), Some(true)));
        let found = check(&all, Better::Higher).unwrap();
        assert!(found.alpha.unwrap() > 0.5 && !found.hits);
        // A failure is the last, however good the rest is.
        let mut good = list(-5.0, 7);
        good[3] = None;
        let found = check(&[values(0, &list(1.0, 1)), values(1, &good)], Better::Lower).unwrap();
        assert!((found.ranking.mean_ranks[1] - 61.0 / 60.0).abs() < 1e-9);
        assert_eq!(check(&all[..1], Better::Higher), None);
        let few = [values(0, &list(1.0, 1)[..4]), values(1, &list(1.0, 2))];
        assert_eq!(check(&few, Better::Higher), None);
        // Five patients who all agree: 2 / 32 for one pair, which is never below 5 %; six of one pair may be.
        let some = |n: usize| [values(0, &list(1.0, 1)[..n]), values(1, &list(9.0, 2)[..n])];
        let least = |n: usize| check(&some(n), Better::Higher).map(|c| (c.least_p, c.ranking.pairs[0].p));
        assert_eq!((least(5), least(6)), (Some((0.0625, 0.0625)), Some((0.03125, 0.03125))));
        assert!((found.least_p - 2f64.powi(1 - 60)).abs() < 1e-25);
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
        let limits = terciles((0..9).filter_map(size));
        let class = |i: usize| if i < 3 { "a" } else { "b" }.into();
        let found = strata("m", "k", &v, None, limits, &size, &class);
        let named: Vec<(&str, f64, usize)> = found.iter().map(|s| (s.name.as_str(), s.mean, s.images)).collect();
        assert_eq!(named[0], ("small, 1.00 to 3.00 % of the image", 6.5, 2));
        assert_eq!((named[1].2, named[2].2), (3, 3));
        // A failure is in its part, as the worst; the parts are those of all images.
        let mut broken = v.clone();
        broken.images.insert(7, None);
        let other = strata("m", "k", &broken, Some(0.0), limits, &size, &class);
        assert_eq!((other[0].name.as_str(), other[0].mean, other[0].images), (named[0].0, 3.0, 2));
        assert_eq!(strata("m", "k", &broken, None, limits, &size, &class)[0].images, 1);
        assert_eq!(named[3..], [("a", 1.0, 3), ("b", 5.5, 6)]);
        let means = [vec![Some(1.0), Some(2.0), Some(3.0)], vec![Some(3.0), Some(2.0), Some(1.0)], vec![None; 3]];
        let found = metric_agreement("m", &["a".into(), "b".into(), "c".into()], &means);
        assert_eq!(found.correlation[0], [Some(1.0), Some(-1.0), None]);
    }
}
