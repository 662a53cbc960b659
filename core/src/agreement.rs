//! How alike the maps of several explainers are: Spearman's correlation of their pixels, and what the highest tenth of both have in
//! common, the mean over images. Maps are compared on a grid of 32 x 32: larger ones are averaged onto it, smaller ones brought to it
//! bilinearly. Krishna et al., "The Disagreement Problem in Explainable Machine Learning", TMLR 2024, arXiv:2202.01602 (rank
//! correlation and feature agreement).

use crate::Result;
use crate::maps::{self, Fault};
use crate::stats::correlation::ranks;
use rayon::prelude::*;
use tch::Tensor;

/// Pixels along each side.
pub const GRID: usize = 32;
/// The share of the pixels that are compared as a set.
pub const SHARE: f64 = 0.1;

/// What is compared of one map: ranks scaled to mean 0 and norm 1, and how much of each pixel is among the highest.
pub struct Print {
    ranks: Vec<f64>,
    highest: Vec<f64>,
}

/// The prints of maps [n, h, w]; none of one that is not finite or constant.
pub fn prints(all: &Tensor) -> Result<Vec<Option<Print>>> {
    let faults = maps::faults(all)?;
    let clean = all.f_nan_to_num(0.0, 0.0, 0.0)?;
    let (h, w) = (all.size()[1], all.size()[2]);
    let side = GRID as i64;
    let small = match h > side || w > side {
        true => clean.f_unsqueeze(1)?.f_adaptive_avg_pool2d([side, side])?.f_squeeze_dim(1)?,
        false => maps::upsample(&clean, (GRID, GRID))?,
    };
    let values = maps::values(&small)?;
    let pixels = GRID * GRID;
    let one = |i: usize| (faults[i] == Fault::None).then(|| print(&values[i * pixels..][..pixels])).flatten();
    Ok((0..faults.len()).into_par_iter().map(one).collect())
}

fn print(map: &[f32]) -> Option<Print> {
    let values: Vec<f64> = map.iter().map(|v| f64::from(*v)).collect();
    let mut scaled = ranks(&values);
    let mean = (values.len() + 1) as f64 / 2.0;
    let norm = scaled.iter().map(|r| (r - mean).powi(2)).sum::<f64>().sqrt();
    if norm == 0.0 {
        return None;
    }
    scaled.iter_mut().for_each(|r| *r = (*r - mean) / norm);
    // Equal pixels at the limit share what is left.
    let k = (SHARE * values.len() as f64).round().max(1.0);
    let mut sorted = values.clone();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    let limit = sorted[k as usize - 1];
    let above = values.iter().filter(|v| **v > limit).count() as f64;
    let equal = values.iter().filter(|v| **v == limit).count() as f64;
    let weight = |v: &f64| match v {
        v if *v > limit => 1.0,
        v if *v == limit => (k - above) / equal,
        _ => 0.0,
    };
    Some(Print { ranks: scaled, highest: values.iter().map(weight).collect() })
}

/// Sums over images of how alike each two of several maps are, and how many images that is.
#[derive(Debug, Clone, PartialEq)]
pub struct Sums {
    /// How many maps there are.
    pub maps: usize,
    /// `[maps * maps]`.
    pub correlation: Vec<f64>,
    /// Sums of the overlaps of pairs, [maps x maps], row by row.
    pub overlap: Vec<f64>,
    /// How many images each pair has in common, [maps x maps].
    pub counts: Vec<u64>,
}

impl Sums {
    /// Nothing yet, of so many maps.
    pub fn new(maps: usize) -> Self {
        let n = maps * maps;
        Sums { maps, correlation: vec![0.0; n], overlap: vec![0.0; n], counts: vec![0; n] }
    }

    /// Adds one image: a print a map, none where there is none.
    pub fn add(&mut self, prints: &[Option<&Print>]) {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        let n = self.maps;
        let k = (SHARE * (GRID * GRID) as f64).round();
        let pairs: Vec<(usize, usize)> = (0..n).flat_map(|a| (a..n).map(move |b| (a, b))).collect();
        let one = |&(a, b): &(usize, usize)| {
            let (x, y) = prints[a].zip(prints[b])?;
            Some((a, b, dot(&x.ranks, &y.ranks), dot(&x.highest, &y.highest) / k))
        };
        let found: Vec<(usize, usize, f64, f64)> = pairs.par_iter().filter_map(one).collect();
        for (a, b, correlation, overlap) in found {
            for at in if a == b { vec![a * n + b] } else { vec![a * n + b, b * n + a] } {
                self.correlation[at] += correlation;
                self.overlap[at] += overlap;
                self.counts[at] += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::correlation::spearman;

    #[test]
    fn is_spearmans_correlation_and_the_common_share() {
        let n = GRID * GRID;
        let a: Vec<f32> = (0..n).map(|i| ((i * 7919) % 1021) as f32).collect();
        let b: Vec<f32> = (0..n).map(|i| ((i * 104729) % 37) as f32 + a[i] / 50.0).collect();
        let nan = vec![f32::NAN; n];
        let flat = vec![1f32; n];
        let all = Tensor::from_slice(&[a.clone(), b.clone(), nan, flat].concat()).reshape([4, 32, 32]);
        let prints = prints(&all).unwrap();
        let mut sums = Sums::new(4);
        sums.add(&prints.iter().map(Option::as_ref).collect::<Vec<_>>());
        let double = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
        assert!((sums.correlation[1] - spearman(&double(&a), &double(&b)).unwrap()).abs() < 1e-9);
        assert!((sums.correlation[0] - 1.0).abs() < 1e-9 && sums.correlation[1] == sums.correlation[4]);
        let top = |v: &[f32]| {
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by(|x, y| v[*y].total_cmp(&v[*x]));
            order[..102].iter().copied().collect::<std::collections::HashSet<_>>()
        };
        let common = top(&a).intersection(&top(&b)).count() as f64 / 102.0;
        assert!((sums.overlap[1] - common).abs() < 0.02, "{} {common}", sums.overlap[1]);
        assert_eq!(sums.counts, [1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn equal_pixels_share_what_is_left() {
        // Half of the pixels are the highest, for 102 places: each has a fifth of one.
        let map: Vec<f32> = (0..GRID * GRID).map(|i| (i % 2) as f32).collect();
        let print = print(&map).unwrap();
        let mut sums = Sums::new(1);
        sums.add(&[Some(&print)]);
        assert!((print.highest.iter().sum::<f64>() - 102.0).abs() < 1e-9);
        assert!((sums.overlap[0] - 102.0 / 512.0).abs() < 1e-9);
    }

    #[test]
    fn size_does_not_matter() {
        let small = Tensor::from_slice(&[1f32, 2.0, 3.0, 5.0]).reshape([1, 2, 2]);
        let large = maps::upsample(&small, (64, 64)).unwrap();
        let (a, b) = (prints(&small).unwrap(), prints(&large).unwrap());
        let mut sums = Sums::new(2);
        sums.add(&[a[0].as_ref(), b[0].as_ref()]);
        assert!(sums.correlation[1] > 0.999 && sums.overlap[1] > 0.98);
    }
}
