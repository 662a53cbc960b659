//! Tests of the difference between two lists of paired values, one pair a patient.

use super::correlation::ranks;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use statrs::distribution::{Binomial, DiscreteCDF};

/// A test's p-value and the size of the effect.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Test {
    /// Two-sided, [0, 1].
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
    /// Wilcoxon: the matched-pairs rank-biserial correlation, [-1, 1]; positive where the first list is greater. McNemar: the
    /// difference of the shares.
    #[schemars(range(min = -1, max = 1))]
    pub effect: f64,
}

/// The Wilcoxon signed-rank test of `a - b`. Wilcoxon, Biometrics 1945; zeros ranked and then dropped (Pratt, JASA 1959), the
/// normal approximation with its correction for ties; the exact distribution up to 50 pairs without ties and zeros, and up to 25
/// with them, where the approximation is below what any signs could give. As SciPy's `wilcoxon(zero_method="pratt",
/// correction=False)`, with `PermutationMethod` for up to 25 pairs with ties. Values may be infinite: what failed is the last; two infinite ones are
/// equal. The effect: Kerby, "The simple difference formula", 2014. No pair that differs: p = 1.
pub fn wilcoxon(a: &[f64], b: &[f64]) -> Test {
    let difference = |(a, b): (&f64, &f64)| if a == b { 0.0 } else { a - b };
    let d: Vec<f64> = a.iter().zip(b).map(difference).collect();
    let magnitudes: Vec<f64> = d.iter().map(|v| v.abs()).collect();
    let rank = ranks(&magnitudes);
    let sum = |f: &dyn Fn(f64) -> bool| d.iter().zip(&rank).filter(|(v, _)| f(**v)).map(|(_, r)| r).sum::<f64>();
    let (plus, minus) = (sum(&|v| v > 0.0), sum(&|v| v < 0.0));
    if plus + minus == 0.0 {
        return Test { p: 1.0, effect: 0.0 };
    }
    let effect = (plus - minus) / (plus + minus);
    let zeros = d.iter().filter(|v| **v == 0.0).count();
    let mut sorted = magnitudes;
    sorted.sort_unstable_by(f64::total_cmp);
    let tied = sorted.windows(2).any(|w| w[0] == w[1]);
    let n = d.len();
    if n <= if zeros == 0 && !tied { 50 } else { 25 } {
        let moved: Vec<f64> = rank.iter().zip(&d).filter(|(_, d)| **d != 0.0).map(|(r, _)| *r).collect();
        return Test { p: exact(&moved, plus.min(minus)), effect };
    }
    let (n, z0) = (n as f64, zeros as f64);
    let mean = (n * (n + 1.0) - z0 * (z0 + 1.0)) / 4.0;
    let mut variance = (n * (n + 1.0) * (2.0 * n + 1.0) - z0 * (z0 + 1.0) * (2.0 * z0 + 1.0)) / 24.0;
    // Groups of equal magnitudes, zeros not among them.
    let mut start = zeros;
    while start < sorted.len() {
        let end = start + sorted[start..].iter().take_while(|v| **v == sorted[start]).count();
        let t = (end - start) as f64;
        variance -= (t * t * t - t) / 48.0;
        start = end;
    }
    let z = (plus - mean).abs() / variance.sqrt();
    Test { p: (2.0 * super::above(z)).min(1.0), effect }
}

/// Twice the chance that those of these ranks whose sign is positive sum to `sum` or less: subsets are counted by their sums.
/// Ranks are whole or, of ties, half numbers.
fn exact(ranks: &[f64], sum: f64) -> f64 {
    let double = |r: f64| (2.0 * r).round() as usize;
    let most: usize = ranks.iter().map(|r| double(*r)).sum();
    let mut ways = vec![0f64; most + 1];
    ways[0] = 1.0;
    for rank in ranks.iter().map(|r| double(*r)) {
        for s in (rank..=most).rev() {
            ways[s] += ways[s - rank];
        }
    }
    let below: f64 = ways[..=double(sum).min(most)].iter().sum();
    (2.0 * below / 2f64.powi(ranks.len() as i32)).min(1.0)
}

/// McNemar's exact test of two lists of hits (1) and misses (0). McNemar, Psychometrika 1947; the binomial distribution of the
/// pairs that differ. As SciPy's `binomtest(k, n, 0.5)`.
pub fn mcnemar(a: &[f64], b: &[f64]) -> Test {
    let count = |x: f64, y: f64| a.iter().zip(b).filter(|(a, b)| **a == x && **b == y).count() as u64;
    let (only_a, only_b) = (count(1.0, 0.0), count(0.0, 1.0));
    let effect = (only_a as f64 - only_b as f64) / a.len().max(1) as f64;
    let n = only_a + only_b;
    let p = match Binomial::new(0.5, n) {
        Ok(law) if n > 0 => (2.0 * law.cdf(only_a.min(only_b))).min(1.0),
        _ => 1.0,
    };
    Test { p, effect }
}

/// Holm's correction: each p-value as it counts among all. Holm, Scandinavian Journal of Statistics 1979.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let (mut corrected, mut most) = (vec![0.0; p.len()], 0f64);
    for (k, i) in order.iter().enumerate() {
        most = most.max(((p.len() - k) as f64 * p[*i]).min(1.0));
        corrected[*i] = most;
    }
    corrected
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(a: &[f64], b: &[f64], p: f64, effect: f64) {
        let found = wilcoxon(a, b);
        assert!((found.p - p).abs() < 1e-9 && (found.effect - effect).abs() < 1e-12, "{found:?} {p} {effect}");
    }

    #[test]
    fn wilcoxon_is_scipys() {
        // As SciPy 1.17: wilcoxon(a, b, zero_method="pratt", correction=False).
        let a = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30];
        let b = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.15, 1.29];
        check(&a, &b, 0.0390625, 7.0 / 9.0);
        // Ranks 1.5 for the two zeros; d = 1, -1, 2, 3, 4 have 3.5, 3.5, 5, 6, 7: of 32 signs the positive sum is at most 3.5 for
        // three, none, one or the other of the first.
        let (a, b) = ([1.0, 0.0, 2.0, 3.0, 4.0, 5.0, 5.0], [0.0, 1.0, 0.0, 0.0, 0.0, 5.0, 5.0]);
        check(&a, &b, 2.0 * 3.0 / 32.0, (21.5 - 3.5) / 25.0);
        check(&[1.0, 2.0], &[1.0, 2.0], 1.0, 0.0);
        // What failed is the last, however many; two that failed are equal.
        let inf = f64::INFINITY;
        check(
            &[1.0, 2.0, inf, inf],
            &[inf, 1.5, inf, 3.0],
            wilcoxon(&[0.0, 1.0, 0.0, 9.0], &[9.0, 0.0, 0.0, 0.0]).p,
            2.0 / 9.0,
        );
    }

    #[test]
    fn the_exact_law_is_all_signs() {
        // Of 2^5 signs, sums of 1..5 up to 3: {}, 1, 2, 3, 1+2.
        assert_eq!(exact(&[1.0, 2.0, 3.0, 4.0, 5.0], 3.0), 2.0 * 5.0 / 32.0);
        assert_eq!(exact(&[1.0, 2.0, 3.0, 4.0], 10.0), 1.0);
        // With ties: {}, and each of the two.
        assert_eq!(exact(&[1.5, 1.5, 3.0], 1.5), 2.0 * 3.0 / 8.0);
        // Ties of few pairs: no p is below that of all signs alike.
        let hits = [1.0, 1.0, 1.0, 1.0, 1.0];
        assert_eq!(wilcoxon(&hits, &[0.0; 5]).p, 0.0625);
    }

    #[test]
    fn hits_and_holm() {
        let a = [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0];
        let b = [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0];
        // Five to one: 2 (1 + 6) / 64.
        let found = mcnemar(&a, &b);
        assert!((found.p - 2.0 * 7.0 / 64.0).abs() < 1e-12 && found.effect == 0.5);
        assert_eq!(mcnemar(&a, &a).p, 1.0);
        let found = holm(&[0.01, 0.04, 0.03, 0.005]);
        assert!(found.iter().zip([0.03, 0.06, 0.06, 0.02]).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}");
    }
}
