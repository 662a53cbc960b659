//! Otsu's threshold of a map: the level that parts its values into two classes of the greatest variance between them. Otsu, "A
//! Threshold Selection Method from Gray-Level Histograms", IEEE Transactions on Systems, Man, and Cybernetics 1979; 256
//! levels of the map's own range, as scikit-image `threshold_otsu`. A pixel above the middle of the level is predicted.

use super::pixels::Overlap;

const LEVELS: usize = 256;

/// The prediction's overlap with the mask, of a map between these extremes; none for a constant map.
pub fn overlap(map: &[f32], mask: &[u8], (low, high): (f32, f32)) -> Option<Overlap> {
    if low >= high {
        return None;
    }
    let scale = LEVELS as f64 / (f64::from(high) - f64::from(low));
    let level = |v: f32| (((f64::from(v) - f64::from(low)) * scale) as usize).min(LEVELS - 1);
    let mut counts = [0u64; LEVELS];
    map.iter().for_each(|v| counts[level(*v)] += 1);
    let limit = threshold(&counts);
    let centre = f64::from(low) + (limit as f64 + 0.5) / scale;
    Some(Overlap::of(map, mask, |v| f64::from(v) > centre))
}

/// The level up to which values are of the lower class; the first of equal ones.
fn threshold(counts: &[u64; LEVELS]) -> usize {
    let total: f64 = counts.iter().map(|c| *c as f64).sum();
    let all: f64 = counts.iter().enumerate().map(|(l, c)| l as f64 * *c as f64).sum();
    let (mut below, mut sum, mut best) = (0.0, 0.0, (f64::NEG_INFINITY, 0));
    for (level, count) in counts.iter().enumerate().take(LEVELS - 1) {
        below += *count as f64;
        sum += level as f64 * *count as f64;
        let above = total - below;
        if below == 0.0 || above == 0.0 {
            continue;
        }
        let between = below * above * (sum / below - (all - sum) / above).powi(2);
        if between > best.0 {
            best = (between, level);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_heaps_are_parted_between_them() {
        let mut counts = [0; LEVELS];
        counts[10..20].fill(50);
        counts[200..210].fill(5);
        assert_eq!(threshold(&counts), 19);
        let map = [0.0, 0.1, 0.1, 5.0, 6.0, 0.15];
        let found = overlap(&map, &[0, 0, 0, 1, 0, 0], (0.0, 6.0)).unwrap();
        assert_eq!((found.predicted, found.marked, found.both), (2, 1, 1));
        assert!(overlap(&[0.5; 4], &[1, 0, 0, 0], (0.5, 0.5)).is_none());
    }
}
