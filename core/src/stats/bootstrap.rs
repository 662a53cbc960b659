//! A percentile bootstrap over patients, stratified and paired. Efron, "Bootstrap methods: another look at the jackknife", 1979.
//!
//! Patients are drawn with replacement, each with all of its images, within strata (the classes), as many of each as there
//! are; the mean over the drawn images is taken; the interval holds the middle 95 % of [`RESAMPLES`] such means. The draws
//! depend on the seed and the patients alone, so that all cells over the same images are compared on the same draws. Means of
//! many cells are one matrix product, counts [resamples, images] times values [images, cells].

use crate::Result;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// How often the images are drawn anew.
pub const RESAMPLES: usize = 10_000;

/// Resamples that are drawn, and multiplied, at a time.
const PART: usize = 256;
/// Draws that take more bytes are not kept but made anew for each use: those of 25,000 images take 250 MB.
const KEPT: usize = 64 << 20;

/// Draws of one set of images.
pub struct Bootstrap {
    images: usize,
    /// Of each stratum, the images of each patient.
    strata: Vec<Vec<Vec<usize>>>,
    seed: u64,
    /// How often each image is drawn, a resample after the other; where that is not too much.
    kept: Option<Vec<u8>>,
}

impl Bootstrap {
    /// `patients`: a number of its patient for each image; `strata`: one of its stratum (a patient's is the greatest of its
    /// images'). None for fewer than two patients.
    pub fn new(patients: &[u32], strata: &[u32], seed: u64) -> Option<Self> {
        Self::keeping(KEPT, patients, strata, seed)
    }

    fn keeping(most: usize, patients: &[u32], strata: &[u32], seed: u64) -> Option<Self> {
        let mut groups: BTreeMap<u32, (u32, Vec<usize>)> = BTreeMap::new();
        for (i, patient) in patients.iter().enumerate() {
            let group = groups.entry(*patient).or_default();
            group.0 = group.0.max(strata.get(i).copied().unwrap_or(0));
            group.1.push(i);
        }
        if groups.len() < 2 {
            return None;
        }
        let mut by_stratum: BTreeMap<u32, Vec<Vec<usize>>> = BTreeMap::new();
        groups.into_values().for_each(|(stratum, images)| by_stratum.entry(stratum).or_default().push(images));
        let strata = by_stratum.into_values().collect();
        let mut bootstrap = Bootstrap { images: patients.len(), strata, seed, kept: None };
        if RESAMPLES * patients.len() <= most {
            let mut kept = vec![0u8; RESAMPLES * patients.len()];
            bootstrap.draw(&mut bootstrap.generator(), &mut kept);
            bootstrap.kept = Some(kept);
        }
        Some(bootstrap)
    }

    fn generator(&self) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(self.seed)
    }

    /// Fills in the next resamples; `counts` is zero.
    fn draw(&self, rng: &mut ChaCha8Rng, counts: &mut [u8]) {
        for mine in counts.chunks_exact_mut(self.images) {
            for groups in &self.strata {
                for _ in 0..groups.len() {
                    let drawn = &groups[rng.random_range(0..groups.len())];
                    drawn.iter().for_each(|&i| mine[i] = mine[i].saturating_add(1));
                }
            }
        }
    }

    /// Shows how often each image is drawn, some resamples at a time: one after the other, each as many counts as there are
    /// images.
    pub fn parts(&self, mut see: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        if let Some(kept) = &self.kept {
            return kept.chunks(PART * self.images).try_for_each(see);
        }
        let (mut rng, mut left) = (self.generator(), RESAMPLES);
        let mut counts = vec![0u8; PART * self.images];
        while left > 0 {
            let part = &mut counts[..PART.min(left) * self.images];
            part.fill(0);
            self.draw(&mut rng, part);
            see(part)?;
            left -= PART.min(left);
        }
        Ok(())
    }

    /// The number of images.
    pub fn images(&self) -> usize {
        self.images
    }

    /// The means of each resample: by column of `values` (one value an image), [`RESAMPLES`] of them.
    pub fn means(&self, values: &[&[f64]]) -> Result<Vec<Vec<f64>>> {
        let n = self.images as i64;
        let flat: Vec<f64> = values.iter().flat_map(|v| v.iter().copied()).collect();
        let columns = Tensor::f_from_slice(&flat)?.f_reshape([values.len() as i64, n])?;
        let mut all = vec![Vec::with_capacity(RESAMPLES); values.len()];
        self.parts(|counts| {
            let counts = Tensor::f_from_slice(counts)?.f_reshape([-1, n])?.f_to_kind(Kind::Double)?;
            let drawn = counts.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Double)?;
            let means = columns.f_matmul(&counts.f_transpose(0, 1)?)?.f_div(&drawn)?.f_to_device(Device::Cpu)?;
            let rows = means.size()[1] as usize;
            let means = Vec::<f64>::try_from(means.f_flatten(0, -1)?)?;
            all.iter_mut().zip(means.chunks_exact(rows)).for_each(|(column, part)| column.extend(part));
            Ok(())
        })?;
        Ok(all)
    }

    /// The intervals of the means of columns of values, in the order of the images given.
    pub fn intervals(&self, values: &[&[f64]]) -> Result<Vec<[f64; 2]>> {
        let mut all = Vec::with_capacity(values.len());
        // The values of a part of 25,000 images take 100 MB.
        for part in values.chunks(512) {
            all.extend(self.means(part)?.into_par_iter().map(middle).collect::<Vec<_>>());
        }
        Ok(all)
    }
}

/// The middle 95 % of values.
pub fn middle(mut values: Vec<f64>) -> [f64; 2] {
    let last = values.len().saturating_sub(1) as f64;
    let mut at = |share: f64| match values.is_empty() {
        true => f64::NAN,
        false => *values.select_nth_unstable_by((last * share).round() as usize, f64::total_cmp).1,
    };
    [at(0.025), at(0.975)]
}

#[cfg(test)]
mod tests {
    use super::super::{deviation, mean};
    use super::*;

    fn interval(values: &[f64], patients: &[u32], strata: &[u32], seed: u64) -> [f64; 2] {
        Bootstrap::new(patients, strata, seed).unwrap().intervals(&[values]).unwrap()[0]
    }

    #[test]
    fn an_interval_is_that_of_the_normal_law_for_many_images() {
        let values: Vec<f64> = (0..400).map(|i| ((i * 7919) % 400) as f64 / 400.0).collect();
        let patients: Vec<u32> = (0..400).collect();
        let [low, high] = interval(&values, &patients, &[], 1);
        let half = 1.96 * deviation(&values).unwrap() / 20.0;
        let m = mean(&values);
        assert!((low - (m - half)).abs() < 0.002 && (high - (m + half)).abs() < 0.002, "{low} {high} {m} {half}");
        assert_eq!(interval(&values, &patients, &[], 1), [low, high]);
        assert_ne!(interval(&values, &patients, &[], 2), [low, high]);
    }

    #[test]
    fn images_of_one_patient_stay_together() {
        // Ten patients of forty equal images each know no more than ten images do.
        let values: Vec<f64> = (0..400).map(|i| f64::from(i / 40)).collect();
        let patients: Vec<u32> = (0..400).map(|i| i / 40).collect();
        let together = interval(&values, &patients, &[], 2);
        let ten: Vec<f64> = (0..10).map(f64::from).collect();
        let alone = interval(&ten, &(0..10).collect::<Vec<_>>(), &[], 2);
        assert!(together.iter().zip(alone).all(|(a, b)| (a - b).abs() < 1e-9), "{together:?} {alone:?}");
        assert!(Bootstrap::new(&[3, 3, 3], &[], 0).is_none());
    }

    #[test]
    fn strata_keep_their_share() {
        // The value is the stratum: every draw has as many of each, so nothing varies.
        let strata: Vec<u32> = (0..50).map(|i| u32::from(i < 10)).collect();
        let values: Vec<f64> = strata.iter().map(|s| f64::from(*s)).collect();
        let patients: Vec<u32> = (0..50).collect();
        assert_eq!(interval(&values, &patients, &strata, 3), [0.2, 0.2]);
        let [low, high] = interval(&values, &patients, &[], 3);
        assert!(low < 0.15 && high > 0.25);
    }

    #[test]
    fn means_are_those_of_the_draws() {
        let values = [vec![1.0, 5.0, 2.0], vec![0.0, 1.0, 0.0]];
        let bootstrap = Bootstrap::new(&[0, 1, 1], &[], 4).unwrap();
        let found = bootstrap.means(&[&values[0], &values[1]]).unwrap();
        let mut drawn = Vec::new();
        let mut take = |part: &[u8]| {
            drawn.extend(part.chunks_exact(3).map(<[u8]>::to_vec));
            Ok(())
        };
        bootstrap.parts(&mut take).unwrap();
        assert_eq!(drawn.len(), RESAMPLES);
        for (r, counts) in drawn.iter().enumerate().take(PART + 50) {
            assert_eq!(counts[1], counts[2]);
            let drawn: f64 = counts.iter().map(|c| f64::from(*c)).sum();
            for (column, values) in found.iter().zip(&values) {
                let slow: f64 = values.iter().zip(counts).map(|(v, c)| v * f64::from(*c)).sum::<f64>() / drawn;
                assert!((column[r] - slow).abs() < 1e-12);
            }
        }
        assert_eq!(middle(vec![]).map(f64::is_nan), [true, true]);
        // Draws that are not kept are the same ones.
        let anew = Bootstrap::keeping(0, &[0, 1, 1], &[], 4).unwrap();
        assert!(anew.kept.is_none() && bootstrap.kept.is_some());
        assert_eq!(anew.means(&[&values[0], &values[1]]).unwrap(), found);
    }
}
