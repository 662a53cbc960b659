//! Whether a metric can be relied on: do its images order the explainers alike, and do metrics order them alike? Tomsett et
//! al., "Sanity Checks for Saliency Metrics", AAAI 2020, arXiv:1912.01451.

use super::correlation::ranks;

/// Krippendorff's alpha of the order of explainers, patients as raters: 1 where all patients order them alike, about 0 where the
/// order is chance. Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011, with the interval metric on each
/// patient's ranks, none missing. `values[explainer][patient]`; none for fewer than two of either, or where every patient
/// holds all for equal.
pub fn krippendorff(values: &[Vec<f64>]) -> Option<f64> {
    let (k, n) = (values.len(), values.first()?.len());
    if k < 2 || n < 2 {
        return None;
    }
    // By explainer, the sums of its ranks and of their squares.
    let (mut sums, mut squares) = (vec![0.0; k], vec![0.0; k]);
    for patient in 0..n {
        let row: Vec<f64> = values.iter().map(|v| v[patient]).collect();
        for (e, rank) in ranks(&row).into_iter().enumerate() {
            sums[e] += rank;
            squares[e] += rank * rank;
        }
    }
    let (k, n) = (k as f64, n as f64);
    // Mean squared differences of pairs of ratings: of the same explainer, and of all.
    let within: f64 = squares.iter().zip(&sums).map(|(q, s)| 2.0 * (n * q - s * s) / (n - 1.0)).sum::<f64>() / (k * n);
    let (all, all_squares) = (sums.iter().sum::<f64>(), squares.iter().sum::<f64>());
    let total = k * n;
    let between = 2.0 * (total * all_squares - all * all) / (total * (total - 1.0));
    (between > 0.0).then(|| 1.0 - within / between)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the definition: all pairs.
    fn slow(values: &[Vec<f64>]) -> f64 {
        let (k, n) = (values.len(), values[0].len());
        let rated: Vec<Vec<f64>> = (0..n).map(|p| ranks(&values.iter().map(|v| v[p]).collect::<Vec<_>>())).collect();
        let (mut within, mut all) = (0.0, 0.0);
        for a in 0..n * k {
            for b in 0..n * k {
                let (p, e, q, f) = (a / k, a % k, b / k, b % k);
                let d = (rated[p][e] - rated[q][f]).powi(2);
                if e == f && p != q {
                    within += d / (n - 1) as f64;
                }
                all += d;
            }
        }
        let total = (n * k) as f64;
        1.0 - (within / total) / (all / (total * (total - 1.0)))
    }

    #[test]
    fn is_that_of_all_pairs() {
        let agreed = vec![vec![3.0; 5], vec![1.0; 5], vec![2.0; 5]];
        assert!((krippendorff(&agreed).unwrap() - 1.0).abs() < 1e-12);
        let mixed: Vec<Vec<f64>> =
            (0..4).map(|e| (0..6).map(|p| ((e * 5 + p * 3 + e * p) % 7) as f64).collect()).collect();
        let found = krippendorff(&mixed).unwrap();
        assert!((found - slow(&mixed)).abs() < 1e-12 && found < 0.5, "{found}");
        assert_eq!(krippendorff(&[vec![1.0, 1.0], vec![1.0, 1.0]]), None);
        assert_eq!(krippendorff(&[vec![1.0, 1.0]]), None);
    }
}
