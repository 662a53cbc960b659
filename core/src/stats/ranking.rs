//! Several explainers over the same patients: is there any difference, and which of them cannot be told apart?
//!
//! Friedman's test, then the Wilcoxon signed-rank test of every pair with Holm's correction; cliques are runs of explainers,
//! in the order of their mean ranks, of which no pair differs. Benavoli, Corani and Mangili, "Should We Really Use Post-Hoc Tests Based on
//! Mean-Ranks?", JMLR 2016, says why not by the mean ranks themselves (Nemenyi): whether two differ would depend on the others.

use super::correlation::ranks;
use super::paired::{Test, holm, wilcoxon};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ChiSquared, ContinuousCDF, FisherSnedecor};

/// The level at which a difference counts.
pub const LEVEL: f64 = 0.05;

/// Friedman's test. Friedman, JASA 1937, corrected for ties as SciPy's `friedmanchisquare`; and Iman and Davenport's F
/// (Communications in Statistics 1980), which is less conservative.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Friedman {
    /// Friedman's statistic.
    pub chi_square: f64,
    /// Of the chi-square statistic.
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
    /// Iman and Davenport's statistic.
    pub f: f64,
    /// Of Iman and Davenport's F.
    #[schemars(range(min = 0, max = 1))]
    pub f_p: f64,
}

/// `values[explainer][patient]`, all of one length. None for fewer than three explainers or two patients, or where all
/// values of every patient are equal.
pub fn friedman(values: &[Vec<f64>]) -> Option<Friedman> {
    let (k, n) = (values.len(), values.first()?.len());
    if k < 3 || n < 2 {
        return None;
    }
    let (mut sums, mut ties) = (vec![0.0; k], 0.0);
    for patient in 0..n {
        let row: Vec<f64> = values.iter().map(|v| v[patient]).collect();
        ranks(&row).iter().zip(&mut sums).for_each(|(r, s)| *s += r);
        let mut sorted = row;
        sorted.sort_unstable_by(f64::total_cmp);
        let mut start = 0;
        while start < k {
            let t = sorted[start..].iter().take_while(|v| **v == sorted[start]).count();
            ties += (t * t * t - t) as f64;
            start += t;
        }
    }
    let (k, n) = (k as f64, n as f64);
    let correction = 1.0 - ties / (k * (k * k - 1.0) * n);
    if correction <= 0.0 {
        return None;
    }
    let square: f64 = sums.iter().map(|s| s * s).sum();
    let chi_square = ((12.0 / (k * n * (k + 1.0)) * square - 3.0 * n * (k + 1.0)) / correction).max(0.0);
    let p = ChiSquared::new(k - 1.0).map_or(1.0, |law| law.sf(chi_square));
    let rest = n * (k - 1.0) - chi_square;
    // Where every patient orders the explainers alike there is no end to it.
    let most = 1e9;
    let f = if rest > 0.0 { ((n - 1.0) * chi_square / rest).min(most) } else { most };
    let law = FisherSnedecor::new(k - 1.0, (k - 1.0) * (n - 1.0));
    let f_p = if f < most { law.map_or(1.0, |law| law.sf(f)) } else { 0.0 };
    Some(Friedman { chi_square, p, f, f_p })
}

/// How explainers compare by one metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ranking {
    /// Patients that all explainers have a value of.
    pub patients: usize,
    /// By explainer: the mean over patients of its rank, 1 the best.
    #[schemars(inner(range(min = 1)))]
    pub mean_ranks: Vec<f64>,
    /// None where there is nothing to test.
    pub friedman: Option<Friedman>,
    /// By pair (0, 1), (0, 2), ..., (1, 2), ...: the Holm-corrected p of the two explainers and the effect.
    pub pairs: Vec<Test>,
    /// Explainers, by number, in the order of their mean ranks, that cannot be told apart; only those of two and more that
    /// no other holds.
    pub cliques: Vec<Vec<usize>>,
}

/// The place of a pair `a < b` of `k` among all.
pub fn pair(a: usize, b: usize, k: usize) -> usize {
    a * (2 * k - a - 1) / 2 + (b - a - 1)
}

/// `values[explainer][patient]`, greater is better (the caller turns the sign); what failed is minus infinity.
pub fn ranking(values: &[Vec<f64>]) -> Ranking {
    let (k, n) = (values.len(), values.first().map_or(0, Vec::len));
    let mut mean_ranks = vec![0.0; k];
    for patient in 0..n {
        let row: Vec<f64> = values.iter().map(|v| -v[patient]).collect();
        ranks(&row).iter().zip(&mut mean_ranks).for_each(|(r, s)| *s += r);
    }
    mean_ranks.iter_mut().for_each(|s| *s /= n.max(1) as f64);
    let all: Vec<(usize, usize)> = (0..k).flat_map(|a| (a + 1..k).map(move |b| (a, b))).collect();
    use rayon::prelude::*;
    let raw: Vec<Test> = all.par_iter().map(|&(a, b)| wilcoxon(&values[a], &values[b])).collect();
    let corrected = holm(&raw.iter().map(|t| t.p).collect::<Vec<_>>());
    let pairs: Vec<Test> = raw.iter().zip(corrected).map(|(t, p)| Test { p, ..*t }).collect();
    let cliques = cliques(&mean_ranks, &pairs);
    Ranking { patients: n, mean_ranks, friedman: friedman(values), pairs, cliques }
}

impl Ranking {
    /// The same with another test of each pair of explainers.
    pub fn with_tests(self, test: impl Fn(usize, usize) -> Test) -> Ranking {
        let k = self.mean_ranks.len();
        let raw: Vec<Test> = (0..k).flat_map(|a| (a + 1..k).map(move |b| (a, b))).map(|(a, b)| test(a, b)).collect();
        let corrected = holm(&raw.iter().map(|t| t.p).collect::<Vec<_>>());
        let pairs: Vec<Test> = raw.iter().zip(corrected).map(|(t, p)| Test { p, ..*t }).collect();
        let cliques = cliques(&self.mean_ranks, &pairs);
        Ranking { pairs, cliques, ..self }
    }
}

/// See [`Ranking::cliques`].
fn cliques(mean_ranks: &[f64], pairs: &[Test]) -> Vec<Vec<usize>> {
    let k = mean_ranks.len();
    let mut order: Vec<usize> = (0..k).collect();
    order.sort_by(|a, b| mean_ranks[*a].total_cmp(&mean_ranks[*b]));
    let alike = |a: usize, b: usize| pairs[pair(a.min(b), a.max(b), k)].p >= LEVEL;
    let (mut found, mut reached) = (Vec::new(), 0);
    for start in 0..k {
        let mut end = start + 1;
        while end < k && (start..end).all(|i| alike(order[i], order[end])) {
            end += 1;
        }
        // Not one that lies in the last.
        if end - start > 1 && end > reached {
            found.push(order[start..end].to_vec());
            reached = end;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn friedman_is_scipys() {
        // SciPy 1.17: friedmanchisquare([72, 96, 88, 92, 74, 76, 82], [120, 120, 132, 120, 101, 96, 112],
        // [76, 95, 104, 96, 84, 72, 76]): statistic 10.571428571428569, p 0.005063414171757498.
        let values = [
            vec![72.0, 96.0, 88.0, 92.0, 74.0, 76.0, 82.0],
            vec![120.0, 120.0, 132.0, 120.0, 101.0, 96.0, 112.0],
            vec![76.0, 95.0, 104.0, 96.0, 84.0, 72.0, 76.0],
        ];
        let found = friedman(&values).unwrap();
        assert!((found.chi_square - 74.0 / 7.0).abs() < 1e-9 && (found.p - 0.005063414171757498).abs() < 1e-9);
        // F = 6 chi / (14 - chi).
        assert!((found.f - 6.0 * 74.0 / (98.0 - 74.0)).abs() < 1e-9 && found.f_p < found.p);
        assert!(friedman(&[vec![1.0, 1.0], vec![1.0, 1.0], vec![1.0, 1.0]]).is_none());
        assert_eq!(friedman(&[vec![1.0; 9], vec![2.0; 9], vec![3.0; 9]]).unwrap().f_p, 0.0);
    }

    #[test]
    fn what_differs_and_what_does_not() {
        // Two that are alike but for noise, one that is worse everywhere, one that failed everywhere.
        let noise =
            |i: usize, salt: usize| crate::seed::derive(salt as u64, "noise", &[i as u64]) as f64 / u64::MAX as f64;
        let values = vec![
            (0..60).map(|i| 1.0 + noise(i, 1)).collect::<Vec<_>>(),
            (0..60).map(|i| noise(i, 2)).collect(),
            vec![f64::NEG_INFINITY; 60],
            (0..60).map(|i| 1.0 + noise(i, 5)).collect(),
        ];
        let found = ranking(&values);
        assert_eq!(found.pairs.len(), 6);
        let p = |a: usize, b: usize| found.pairs[pair(a, b, 4)];
        assert!(p(0, 1).p < 0.001 && p(0, 1).effect > 0.9 && p(1, 2).p < 0.001 && p(2, 3).effect == -1.0);
        assert!(p(0, 3).p > 0.05, "{:?}", p(0, 3));
        assert!((found.mean_ranks[2] - 4.0).abs() < 1e-9);
        assert_eq!(found.cliques.len(), 1);
        assert_eq!(found.cliques[0].iter().copied().collect::<std::collections::BTreeSet<_>>(), [0, 3].into());
        assert!((found.mean_ranks.iter().sum::<f64>() - 10.0).abs() < 1e-9);
    }

    #[test]
    fn pairs_have_their_places() {
        let mut at = 0;
        for a in 0..5 {
            for b in a + 1..5 {
                assert_eq!(pair(a, b, 5), at);
                at += 1;
            }
        }
        // Ranks 1, 2, 3, 4: 0-1 and 1-2-3 alike; 0-2 and 0-3 not.
        let p = |p: f64| Test { p, effect: 0.0 };
        let pairs = [p(0.5), p(0.01), p(0.01), p(0.5), p(0.5), p(0.5)];
        assert_eq!(cliques(&[1.0, 2.0, 3.0, 4.0], &pairs), [vec![0, 1], vec![1, 2, 3]]);
    }
}
