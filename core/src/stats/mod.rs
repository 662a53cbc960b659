//! Statistics: means and spreads, intervals over images, tests of differences between explainers.
//!
//! Spread over folds and over trainings is one thing, uncertainty over images another: nothing here pools the two.

pub mod correlation;
pub mod interval;
pub mod paired;
pub mod ranking;
pub mod reliability;

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

/// The chance that a standard normal value is above `z`.
pub(crate) fn above(z: f64) -> f64 {
    statrs::function::erf::erfc(z / std::f64::consts::SQRT_2) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviation_is_the_samples() {
        assert_eq!((mean(&[0.9, 0.94]), deviation(&[2.0, 4.0])), (0.9199999999999999, Some(2f64.sqrt())));
        assert_eq!((mean(&[]), deviation(&[1.0])), (0.0, None));
        assert!((above(1.959963984540054) - 0.025).abs() < 1e-10);
    }
}
