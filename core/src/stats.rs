//! Statistics of a cell: mean, spread over folds and over trainings, interval over images.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The sample standard deviation (divisor n - 1); none of fewer than two values.
pub fn deviation(values: &[f64]) -> Option<f64> {
    let m = mean(values);
    let square = values.iter().map(|v| (v - m).powi(2)).sum::<f64>();
    (values.len() > 1).then(|| (square / (values.len() - 1) as f64).sqrt())
}

/// How often the images are drawn anew.
pub const RESAMPLES: usize = 1000;

/// A percentile bootstrap over patients (Efron, "Bootstrap methods: another look at the jackknife", 1979): patients are drawn
/// with replacement, each with all of its images, and the mean over the drawn images is taken; the interval holds the
/// middle 95 % of [`RESAMPLES`] such means. The draws depend on the seed and the patients alone, so that two cells over the
/// same images are compared on the same draws.
pub struct Bootstrap {
    /// How often each image is drawn, a resample.
    counts: Vec<Vec<u16>>,
}

impl Bootstrap {
    /// `patients`: a number of its patient for each image. None for fewer than two patients.
    pub fn new(patients: &[u32], seed: u64) -> Option<Self> {
        let mut groups: std::collections::BTreeMap<u32, Vec<usize>> = Default::default();
        patients.iter().enumerate().for_each(|(i, p)| groups.entry(*p).or_default().push(i));
        let groups: Vec<Vec<usize>> = groups.into_values().collect();
        if groups.len() < 2 {
            return None;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let counts = (0..RESAMPLES)
            .map(|_| {
                let mut counts = vec![0u16; patients.len()];
                for _ in 0..groups.len() {
                    groups[rng.random_range(0..groups.len())].iter().for_each(|&i| counts[i] += 1);
                }
                counts
            })
            .collect();
        Some(Bootstrap { counts })
    }

    /// How often each image is drawn, a resample.
    pub fn counts(&self) -> &[Vec<u16>] {
        &self.counts
    }

    /// The interval of the mean of one value an image, in the order of the patients given.
    pub fn interval(&self, values: &[f64]) -> [f64; 2] {
        let mut means: Vec<f64> = self
            .counts
            .iter()
            .map(|counts| {
                let (mut sum, mut n) = (0.0, 0.0);
                for (value, &count) in values.iter().zip(counts) {
                    sum += value * f64::from(count);
                    n += f64::from(count);
                }
                sum / n
            })
            .collect();
        means.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| means[((means.len() - 1) as f64 * share).round() as usize];
        [at(0.025), at(0.975)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviation_is_the_samples() {
        assert_eq!((mean(&[0.9, 0.94]), deviation(&[2.0, 4.0])), (0.9199999999999999, Some(2f64.sqrt())));
        assert_eq!((mean(&[]), deviation(&[1.0])), (0.0, None));
    }

    #[test]
    fn an_interval_is_that_of_the_normal_law_for_many_images() {
        let values: Vec<f64> = (0..400).map(|i| ((i * 7919) % 400) as f64 / 400.0).collect();
        let patients: Vec<u32> = (0..400).collect();
        let [low, high] = Bootstrap::new(&patients, 1).unwrap().interval(&values);
        let half = 1.96 * deviation(&values).unwrap() / 20.0;
        let m = mean(&values);
        assert!((low - (m - half)).abs() < 0.004 && (high - (m + half)).abs() < 0.004, "{low} {high} {m} {half}");
        assert_eq!(Bootstrap::new(&patients, 1).unwrap().interval(&values), [low, high]);
    }

    #[test]
    fn images_of_one_patient_stay_together() {
        // Ten patients of forty equal images each know no more than ten images do.
        let values: Vec<f64> = (0..400).map(|i| f64::from(i / 40)).collect();
        let patients: Vec<u32> = (0..400).map(|i| i / 40).collect();
        let together = Bootstrap::new(&patients, 2).unwrap().interval(&values);
        let ten: Vec<f64> = (0..10).map(f64::from).collect();
        let alone = Bootstrap::new(&(0..10).collect::<Vec<_>>(), 2).unwrap().interval(&ten);
        assert!(together.iter().zip(alone).all(|(a, b)| (a - b).abs() < 1e-9), "{together:?} {alone:?}");
        assert!(Bootstrap::new(&[3, 3, 3], 0).is_none());
    }
}
