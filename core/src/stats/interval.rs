//! 95 % intervals over patients, without draws: of means by Hall's correction of Student's t for skewness, and by the score
//! test where values are hits and misses; of metrics of predictions by the score test with the jackknife's variance.
//!
//! A patient's images stay together, and patients are compared within their strata (the classes). Which interval is used where
//! was chosen by how often it holds the truth: `tests/oracle/coverage.py` is the study, docs/results.md has its figures.
//!
//! - Hall, "On the removal of skewness by transformation", Journal of the Royal Statistical Society B 1992: with t the mean's
//!   error over its standard error and k its skewness, `t + k t^2 / 3 + k^2 t^3 / 27 + k / 6` is Student's to the second order.
//! - Wilson, "Probable inference", JASA 1927, with the sample size that the variance is worth (Korn and Graubard, Survey
//!   Methodology 1998) and Student's quantile.
//! - Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic", part 2, method 5,
//!   Statistics in Medicine 2006, for AUROC: a score test with Hanley and McNeil's variance.

use statrs::distribution::{ContinuousCDF, StudentsT};
use std::collections::BTreeMap;

/// With fewer patients there is no interval: none that was tried holds the truth in 93 of 100 test sets there.
pub const LEAST: usize = 8;
/// The jackknife leaves out at most so many groups of patients, each patient its own group where there are fewer.
const GROUPS: usize = 2000;
/// Values vary nearly as much as hits and misses of their mean would.
const NEARLY_HITS: f64 = 0.8;

/// Images by patient, patients by stratum.
#[derive(Debug, Clone)]
pub struct Patients {
    images: usize,
    /// Of each stratum, the images of each patient.
    strata: Vec<Vec<Vec<usize>>>,
}

/// A mean's standard error, what it is worth in degrees of freedom, and its skewness.
struct Spread {
    error: f64,
    freedom: f64,
    skewness: f64,
}

impl Patients {
    /// `patients`: a number of its patient for each image; `strata`: one of its stratum (a patient's is the greatest of its
    /// images'; 0 where there is none). A stratum of one patient is no stratum: it joins the largest.
    pub fn new(patients: &[u32], strata: &[u32]) -> Self {
        let mut groups: BTreeMap<u32, (u32, Vec<usize>)> = BTreeMap::new();
        for (i, patient) in patients.iter().enumerate() {
            let group = groups.entry(*patient).or_default();
            group.0 = group.0.max(strata.get(i).copied().unwrap_or(0));
            group.1.push(i);
        }
        let mut by_stratum: BTreeMap<u32, Vec<Vec<usize>>> = BTreeMap::new();
        groups.into_values().for_each(|(stratum, images)| by_stratum.entry(stratum).or_default().push(images));
        let (alone, mut strata): (Vec<_>, Vec<_>) = by_stratum.into_values().partition(|s| s.len() == 1);
        let rest = alone.into_iter().flatten();
        match strata.iter_mut().max_by_key(|s| s.len()) {
            Some(largest) => largest.extend(rest),
            None => strata.extend(Some(rest.collect::<Vec<_>>()).filter(|r| !r.is_empty())),
        }
        Patients { images: patients.len(), strata }
    }

    /// How many patients there are.
    pub fn count(&self) -> usize {
        self.strata.iter().map(Vec::len).sum()
    }

    fn spread(&self, values: &[f64]) -> Spread {
        let (mut corrected, mut second, mut third) = (0.0, 0.0, 0.0);
        for stratum in &self.strata {
            let images: usize = stratum.iter().map(Vec::len).sum();
            let mean = stratum.iter().flatten().map(|&i| values[i]).sum::<f64>() / images.max(1) as f64;
            let n = stratum.len() as f64;
            for patient in stratum {
                let off: f64 = patient.iter().map(|&i| values[i] - mean).sum();
                corrected += off * off * n / (n - 1.0).max(1.0);
                second += off * off;
                third += off.powi(3);
            }
        }
        let error = f64::sqrt(corrected) / self.images.max(1) as f64;
        let skewness = if second > 0.0 { third / second.powf(1.5) } else { 0.0 };
        Spread { error, freedom: (self.count() - self.strata.len()).max(1) as f64, skewness }
    }

    /// The interval of the mean of `values`, one an image, within `range` (an end that is open is infinite). None for fewer
    /// than [`LEAST`] patients, and for values that are not finite.
    pub fn mean(&self, values: &[f64], range: [f64; 2]) -> Option<[f64; 2]> {
        if self.count() < LEAST || values.len() != self.images || values.iter().any(|v| !v.is_finite()) {
            return None;
        }
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let spread = self.spread(values);
        let quantile = quantile(spread.freedom);
        let [low, high] = range;
        let width = high - low;
        if width.is_finite() && width > 0.0 {
            let share = ((mean - low) / width).clamp(0.0, 1.0);
            let of_hits = share * (1.0 - share);
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n / (width * width);
            if spread.error == 0.0 || variance >= NEARLY_HITS * of_hits {
                let found = score(share, (spread.error / width).powi(2), self.count(), quantile);
                return Some(found.map(|v| low + v * width));
            }
        }
        // Hall's transformation, solved for t.
        let k = spread.skewness;
        let back = |t: f64| match k.abs() < 1e-9 {
            true => t,
            false => 3.0 / k * ((1.0 + k * (t - k / 6.0)).cbrt() - 1.0),
        };
        let end = |t: f64| (mean - back(t) * spread.error).clamp(low, high);
        Some([end(quantile), end(-quantile)])
    }

    /// The jackknife's variance of a statistic (Tukey 1958), a patient left out at a time, within strata: `of` gives the statistic of the images that
    /// are kept (1) and not left out (0). None where it has no value without some patient.
    pub fn jackknife(&self, of: impl Fn(&[u8]) -> Option<f64> + Sync) -> Option<f64> {
        use rayon::prelude::*;
        let per_group = self.count().div_ceil(GROUPS).max(1);
        let mut variance = 0.0;
        for stratum in &self.strata {
            let groups: Vec<&[Vec<usize>]> = stratum.chunks(per_group).collect();
            let without = |group: &&[Vec<usize>]| {
                let mut kept = vec![1; self.images];
                group.iter().flatten().for_each(|&i| kept[i] = 0);
                of(&kept)
            };
            let values = groups.par_iter().map(without).collect::<Option<Vec<f64>>>()?;
            let (n, mean) = (values.len() as f64, super::mean(&values));
            variance += values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() * (n - 1.0) / n;
        }
        Some(variance)
    }
}

/// Student's 97.5 % quantile.
fn quantile(freedom: f64) -> f64 {
    StudentsT::new(0.0, 1.0, freedom).map_or(1.959_963_984_540_054, |law| law.inverse_cdf(0.975))
}

/// Wilson's interval of a share whose variance is known, or `patients` where it is 0.
fn score(share: f64, variance: f64, patients: usize, quantile: f64) -> [f64; 2] {
    let q = share * (1.0 - share);
    let worth = if variance > 0.0 && q > 0.0 { q / variance } else { patients as f64 };
    let z = quantile * quantile / worth;
    let (centre, half) = ((share + z / 2.0) / (1.0 + z), (z * (q + z / 4.0)).sqrt() / (1.0 + z));
    [(centre - half).clamp(0.0, 1.0), (centre + half).clamp(0.0, 1.0)]
}

/// The interval of a metric of predictions, a share of `patients` of the least class, with the jackknife's variance.
pub fn of_share(share: f64, variance: f64, patients: usize) -> [f64; 2] {
    score(share, variance, patients, quantile((patients as f64 - 1.0).max(1.0)))
}

/// Hanley and McNeil's variance of an AUROC (Radiology 1982) of so many positives and negatives, with Newcombe's one number for
/// both.
fn of_hanley_mcneil(auroc: f64, positives: f64, negatives: f64) -> f64 {
    let both = (positives + negatives) / 2.0 - 1.0;
    let a = auroc;
    a * (1.0 - a) / (positives * negatives) * (1.0 + both * (1.0 - a) / (2.0 - a) + both * a / (1.0 + a))
}

/// The interval of an AUROC of so many positive and negative patients: all values that a score test with Hanley and McNeil's
/// variance does not reject, wider where the jackknife's variance is the greater. Never a point, also where the AUROC is 1.
pub fn of_auroc(auroc: f64, variance: f64, positives: usize, negatives: usize) -> [f64; 2] {
    let (m, n) = (positives.max(1) as f64, negatives.max(1) as f64);
    let known = of_hanley_mcneil(auroc, m, n);
    let wider = if known > 0.0 { (variance / known).max(1.0) } else { 1.0 };
    let end = |mut outside: f64| {
        let mut inside = auroc;
        for _ in 0..60 {
            let middle = (inside + outside) / 2.0;
            match (auroc - middle).abs() <= 1.959_963_984_540_054 * (wider * of_hanley_mcneil(middle, m, n)).sqrt() {
                true => inside = middle,
                false => outside = middle,
            }
        }
        inside
    };
    [end(0.0), end(1.0)]
}

#[cfg(test)]
mod tests {
    use super::super::{deviation, mean};
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const OPEN: [f64; 2] = [f64::NEG_INFINITY, f64::INFINITY];

    fn interval(values: &[f64], patients: &[u32], strata: &[u32], range: [f64; 2]) -> [f64; 2] {
        Patients::new(patients, strata).mean(values, range).unwrap()
    }

    fn numbers(n: u32) -> Vec<u32> {
        (0..n).collect()
    }

    #[test]
    fn an_interval_is_that_of_the_normal_law_for_many_images() {
        let values: Vec<f64> = (0..400).map(|i| ((i * 7919) % 400) as f64 / 400.0).collect();
        let [low, high] = interval(&values, &numbers(400), &[], OPEN);
        let half = 1.966 * deviation(&values).unwrap() / 20.0;
        let m = mean(&values);
        assert!((low - (m - half)).abs() < 1e-4 && (high - (m + half)).abs() < 1e-4, "{low} {high} {m} {half}");
    }

    const HALL: [f64; 2] = [0.07165746211552479, 0.9732578414338653];
    const SCORE: [f64; 2] = [0.4270124149799194, 0.9554954973613842];
    const AUROC: [f64; 2] = [0.6234316264655714, 0.9965140607190651];

    /// By tests/oracle/coverage.py: `hall`, `score` and `newcombe` of these values.
    #[test]
    fn intervals_are_those_of_the_study() {
        let values = [0.0, 0.02, 0.05, 0.07, 0.1, 0.11, 0.2, 0.25, 0.4, 0.9];
        let found = interval(&values, &numbers(10), &[], [0.0, 1.0]);
        assert!(found.iter().zip(HALL).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?}");
        let hits = [1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0];
        let found = interval(&hits, &numbers(10), &[], [0.0, 1.0]);
        assert!(found.iter().zip(SCORE).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?}");
        let found = of_auroc(0.96, 0.004, 11, 11);
        assert!(found.iter().zip(AUROC).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?}");
        // All hits is no certainty, nor is an AUROC of 1.
        assert!(interval(&[1.0; 10], &numbers(10), &[], [0.0, 1.0])[0] < 0.75);
        assert!(of_auroc(1.0, 0.0, 11, 11)[0] < 0.9 && of_auroc(1.0, 0.0, 11, 11)[1] == 1.0);
        // A range of another width scales it.
        let wide: Vec<f64> = hits.iter().map(|v| 4.0 * v - 2.0).collect();
        let found = interval(&wide, &numbers(10), &[], [-2.0, 2.0]);
        assert!((found[0] - (4.0 * SCORE[0] - 2.0)).abs() < 1e-9);
    }

    #[test]
    fn images_of_one_patient_stay_together() {
        // Ten patients of forty equal images each know no more than ten images do.
        let values: Vec<f64> = (0..400).map(|i| f64::from(i / 40)).collect();
        let patients: Vec<u32> = (0..400).map(|i| i / 40).collect();
        let together = interval(&values, &patients, &[], OPEN);
        let alone = interval(&(0..10).map(f64::from).collect::<Vec<_>>(), &numbers(10), &[], OPEN);
        assert!(together.iter().zip(alone).all(|(a, b)| (a - b).abs() < 1e-9), "{together:?} {alone:?}");
        assert!(Patients::new(&numbers(7), &[]).mean(&[0.5; 7], OPEN).is_none());
        assert!(Patients::new(&[3, 3, 3], &[]).mean(&[0.5; 3], OPEN).is_none());
    }

    #[test]
    fn strata_keep_their_share() {
        // The value is nearly the stratum: with strata little varies.
        let strata: Vec<u32> = (0..50).map(|i| u32::from(i < 10)).collect();
        let values: Vec<f64> = (0..50).map(|i| f64::from(strata[i]) + 0.01 * (i % 7) as f64).collect();
        let [low, high] = interval(&values, &numbers(50), &strata, OPEN);
        assert!(high - low < 0.02, "{low} {high}");
        let [low, high] = interval(&values, &numbers(50), &[], OPEN);
        assert!(high - low > 0.2, "{low} {high}");
        // One patient is no stratum.
        let mut one = strata.clone();
        one[20] = 7;
        assert_eq!(Patients::new(&numbers(50), &one).strata.len(), 2);
        assert_eq!(Patients::new(&numbers(2), &[0, 1]).strata, vec![vec![vec![0], vec![1]]]);
    }

    #[test]
    fn the_jackknife_of_a_mean_is_its_variance() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let values: Vec<f64> = (0..60).map(|_| rng.random()).collect();
        let patients = Patients::new(&numbers(60), &[]);
        let of = |kept: &[u8]| {
            let (sum, n) =
                kept.iter().zip(&values).fold((0.0, 0.0), |(s, n), (k, v)| (s + f64::from(*k) * v, n + f64::from(*k)));
            Some(sum / n)
        };
        let found = patients.jackknife(of).unwrap();
        let wanted = deviation(&values).unwrap().powi(2) / 60.0;
        assert!((found - wanted).abs() < 1e-12, "{found} {wanted}");
        assert_eq!(patients.jackknife(|_| None), None);
    }

    /// How often a nominal 95 % holds the truth, in short; the whole study is in tests/oracle.
    #[test]
    fn they_hold_the_truth() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let (mut skewed, mut hits) = (0, 0);
        for _ in 0..1000 {
            // u^4 has the mean 1/5.
            let values: Vec<f64> = (0..11).map(|_| rng.random::<f64>().powi(4)).collect();
            let [low, high] = interval(&values, &numbers(11), &[], [0.0, 1.0]);
            skewed += u32::from(low <= 0.2 && 0.2 <= high);
            let values: Vec<f64> = (0..11).map(|_| f64::from(u8::from(rng.random::<f64>() < 0.9))).collect();
            let [low, high] = interval(&values, &numbers(11), &[], [0.0, 1.0]);
            hits += u32::from(low <= 0.9 && 0.9 <= high);
        }
        assert!(skewed > 915 && hits > 930, "{skewed} {hits}");
    }
}
