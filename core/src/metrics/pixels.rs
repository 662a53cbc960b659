//! The pixels of maps, counted between the scores of the positives: what rank metrics of pixels are functions of.
//!
//! Only the positives are sorted. Of every pixel it is found how many distinct positive scores are below it, and whether it
//! equals one: the range of the positives is cut into equal buckets, few of which hold a positive, so that a look at the
//! bucket and one comparison say it; in a bucket with several positives a binary search does. The bucket of a score is a
//! difference, a product and a truncation, each of which keeps the order of floats, so the answer is exact, ties included.
//! The buckets' arithmetic is vectorised for what the CPU has, seen at run time.

/// Counters side by side, so that equal pixels in a row do not wait for each other.
const LANES: usize = 4;
/// Pixels whose buckets are found at a time.
const CHUNK: usize = 64;
/// In `Bucket::place`: several positives, among which a search says where.
const CROWDED: u32 = 1 << 31;

#[derive(Clone, Copy)]
struct Bucket {
    /// Twice the number of distinct positives in lower buckets.
    place: u32,
    /// The [`key`] of the least positive of this bucket; the greatest number where there is none.
    knee: i32,
}

/// The pixels of one image or many. The positives come first, then every pixel is counted, image by image; memory is that
/// of the positives.
pub struct Pixels {
    /// Distinct scores of the positives, ascending.
    scores: Vec<f32>,
    /// How many positives have each.
    weights: Vec<u32>,
    positives: usize,
    low: f32,
    scale: f32,
    /// And one more, which says where the last ends.
    buckets: Vec<Bucket>,
    /// Pixels between the scores (even places) and equal to one (odd), ascending.
    counts: Vec<u64>,
}

impl Pixels {
    /// Of one map and its mask, counted. `None` when the mask is empty or a value is not finite.
    pub fn of(map: &[f32], mask: &[u8]) -> Option<Self> {
        let mut positives = Vec::new();
        // Masks are mostly empty: 64 pixels at a time are passed over.
        for (values, bits) in map.chunks(64).zip(mask.chunks(64)) {
            if bits.iter().fold(0, |any, m| any | m) != 0 {
                positives.extend(values.iter().zip(bits).filter(|(_, m)| **m != 0).map(|(v, _)| *v));
            }
        }
        let mut pixels = Pixels::new(positives)?;
        pixels.count(map).then_some(pixels)
    }

    /// `positives` are the scores under the masks. `None` when there are none or one is not finite.
    pub fn new(positives: impl IntoIterator<Item = f32>) -> Option<Self> {
        let mut all: Vec<f32> = positives.into_iter().collect();
        if all.is_empty() || all.iter().any(|s| !s.is_finite()) {
            return None;
        }
        all.sort_unstable_by(f32::total_cmp);
        let (mut scores, mut weights) = (Vec::<f32>::new(), Vec::new());
        for &score in &all {
            match (scores.last(), weights.last_mut()) {
                // Comparing takes -0 and 0 for one.
                (Some(last), Some(weight)) if *last == score => *weight += 1,
                _ => {
                    scores.push(score);
                    weights.push(1u32);
                }
            }
        }
        let number = (8 * scores.len()).next_power_of_two().clamp(1 << 10, 1 << 16);
        let (low, high) = (scores[0], scores[scores.len() - 1]);
        let scale = number as f32 / (high - low);
        // One score, or a range that floats cannot divide: all in one bucket.
        let scale = if scale.is_finite() { scale } else { 0.0 };
        let last = number as f32 - 1.0;
        let empty = |below: usize| Bucket { place: 2 * below as u32, knee: i32::MAX };
        let mut buckets = Vec::with_capacity(number + 1);
        for (i, &score) in scores.iter().enumerate() {
            let at = bucket_of(score, low, scale, last) as usize;
            match buckets.len() {
                made if made <= at => {
                    buckets.resize(at, empty(i));
                    buckets.push(Bucket { knee: key(score), ..empty(i) });
                }
                _ => buckets[at].place |= CROWDED,
            }
        }
        buckets.resize(number + 1, empty(scores.len()));
        let counts = vec![0; 2 * scores.len() + 1];
        Some(Pixels { scores, weights, positives: all.len(), low, scale, buckets, counts })
    }

    /// Counts all pixels of an image, positives too. False, and nothing is counted, when a score is not finite.
    pub fn count(&mut self, scores: &[f32]) -> bool {
        // The widest vectors come last.
        let widest = if crate::is_plain() { None } else { ways().last().copied() };
        let count = widest.unwrap_or(Pixels::count_into);
        self.count_by(count, scores)
    }

    fn count_by(&mut self, count: Count, scores: &[f32]) -> bool {
        let mut lanes = vec![[0u32; LANES]; self.counts.len()];
        // SAFETY: of `ways`, which has looked at what this CPU has.
        if !unsafe { count(self, scores, &mut lanes) } {
            return false;
        }
        for (count, lanes) in self.counts.iter_mut().zip(lanes) {
            *count += lanes.iter().map(|n| u64::from(*n)).sum::<u64>();
        }
        true
    }

    #[inline(always)]
    fn count_into(&self, scores: &[f32], lanes: &mut [[u32; LANES]]) -> bool {
        let last = self.buckets.len() as f32 - 2.0;
        let (mut at, mut keys) = ([0u32; CHUNK], [0i32; CHUNK]);
        // Any NaN or infinity makes the sum of `0 x` NaN; sixteen sums run side by side.
        let mut sums = [0f32; 16];
        let mut chunks = scores.chunks_exact(CHUNK);
        for chunk in &mut chunks {
            let sixteens = chunk.chunks_exact(16).zip(at.chunks_exact_mut(16)).zip(keys.chunks_exact_mut(16));
            for ((part, at), keys) in sixteens {
                for lane in 0..16 {
                    sums[lane] += part[lane] * 0.0;
                    at[lane] = bucket_of(part[lane], self.low, self.scale, last);
                    keys[lane] = key(part[lane]);
                }
            }
            let groups = chunk.chunks_exact(LANES).zip(at.chunks_exact(LANES)).zip(keys.chunks_exact(LANES));
            for ((group, at), keys) in groups {
                for lane in 0..LANES {
                    let place = self.place(group[lane], keys[lane], at[lane]);
                    // SAFETY: a place is at most twice the number of distinct scores, and there is one more counter.
                    unsafe { lanes.get_unchecked_mut(place as usize)[lane] += 1 };
                }
            }
        }
        let rest = chunks.remainder();
        for &score in rest {
            let at = bucket_of(score, self.low, self.scale, last);
            lanes[self.place(score, key(score), at) as usize][0] += 1;
        }
        sums.iter().all(|s| !s.is_nan()) && rest.iter().all(|s| s.is_finite())
    }

    /// Twice the distinct scores below this one, which is in bucket `at`; one more where it equals the next.
    #[inline(always)]
    fn place(&self, score: f32, key: i32, at: u32) -> u32 {
        // SAFETY: `bucket_of` is at most `last`, and one more bucket follows.
        let bucket = unsafe { *self.buckets.get_unchecked(at as usize) };
        if bucket.place & CROWDED == 0 {
            return bucket.place + u32::from(key >= bucket.knee) + u32::from(key > bucket.knee);
        }
        let start = (bucket.place & !CROWDED) as usize / 2;
        // SAFETY: as above.
        let end = (unsafe { self.buckets.get_unchecked(at as usize + 1) }.place & !CROWDED) as usize / 2;
        let within = &self.scores[start..end];
        let below = within.partition_point(|s| *s < score);
        2 * (start + below) as u32 + u32::from(within.get(below).is_some_and(|s| *s == score))
    }

    /// `sum over distinct positive scores s of (positives equal to s) / P * (positives >= s) / (pixels >= s)`: the average
    /// precision, where a group of equal scores is one step.
    pub fn average_precision(&self) -> f64 {
        let top = self.counts.last().copied().unwrap_or_default();
        let (mut sum, mut above, mut hits) = (0.0, top, 0u64);
        for (i, &weight) in self.weights.iter().enumerate().rev() {
            above += self.counts[2 * i + 1];
            hits += u64::from(weight);
            sum += f64::from(weight) * (hits as f64 / above as f64);
            above += self.counts[2 * i];
        }
        sum / self.positives as f64
    }

    /// The share of pairs of a positive and another pixel in which the positive is above, equal ones half. `None` where all
    /// pixels are positives.
    pub fn auroc(&self) -> Option<f64> {
        let others = self.counts.iter().sum::<u64>().checked_sub(self.positives as u64).filter(|n| *n > 0)?;
        let (mut sum, mut below) = (0.0, 0u64);
        for (i, &weight) in self.weights.iter().enumerate() {
            below += self.counts[2 * i];
            let equal = self.counts[2 * i + 1] - u64::from(weight);
            sum += f64::from(weight) * (below as f64 + equal as f64 / 2.0);
            below += equal;
        }
        Some(sum / (self.positives as f64 * others as f64))
    }
}

/// An integer that is above another score's where the score is, and equal where they are equal: -0 counts as 0. Integers are
/// compared in half the instructions.
#[inline(always)]
fn key(score: f32) -> i32 {
    let bits = (score + 0.0).to_bits().cast_signed();
    bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed()
}

/// Not below another score's where the score is not. What is not a number is in the first.
#[inline(always)]
fn bucket_of(score: f32, low: f32, scale: f32, last: f32) -> u32 {
    let at = (score - low) * scale;
    let at = if at > 0.0 { at } else { 0.0 };
    let at = if at < last { at } else { last };
    // SAFETY: 0 <= at <= last < 2^31, and not NaN: the first comparison is false for it.
    unsafe { at.to_int_unchecked::<i32>() as u32 }
}

type Count = unsafe fn(&Pixels, &[f32], &mut [[u32; LANES]]) -> bool;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl")]
fn count_avx512(pixels: &Pixels, scores: &[f32], lanes: &mut [[u32; LANES]]) -> bool {
    pixels.count_into(scores, lanes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn count_avx2(pixels: &Pixels, scores: &[f32], lanes: &mut [[u32; LANES]]) -> bool {
    pixels.count_into(scores, lanes)
}

/// What this CPU can run: the compiler's own vectors (SSE2, NEON), and wider ones.
fn ways() -> Vec<Count> {
    let mut ways: Vec<Count> = vec![Pixels::count_into];
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") {
            ways.push(count_avx2);
        }
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
            ways.push(count_avx512);
        }
    }
    ways
}

/// How a prediction and a mask overlap, in pixels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overlap {
    /// Pixels of the map's set.
    pub predicted: usize,
    /// Pixels of the mask.
    pub marked: usize,
    /// Pixels of both.
    pub both: usize,
}

impl Overlap {
    /// Of a map's predicted pixels and a mask of 0 and 1.
    pub fn of(map: &[f32], mask: &[u8], predicted: impl Fn(f32) -> bool) -> Self {
        let mut found = Overlap::default();
        // Masks are mostly empty: where they are, only the predicted are counted.
        for (values, marks) in map.chunks(64).zip(mask.chunks(64)) {
            found.predicted += values.iter().map(|v| u32::from(predicted(*v))).sum::<u32>() as usize;
            let marked = marks.iter().map(|m| u32::from(*m)).sum::<u32>() as usize;
            if marked > 0 {
                found.marked += marked;
                found.both += values.iter().zip(marks).filter(|(v, m)| **m == 1 && predicted(**v)).count();
            }
        }
        found
    }

    /// 0 where the prediction is empty.
    pub fn iou(&self) -> f64 {
        self.both as f64 / (self.predicted + self.marked - self.both).max(1) as f64
    }

    /// 2 both / (predicted + marked), 0 to 1; 0 where both sets are empty.
    pub fn dice(&self) -> f64 {
        2.0 * self.both as f64 / (self.predicted + self.marked).max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::super::auroc::auroc;
    use super::super::average_precision::average_precision;
    use super::*;
    use rand::{Rng, SeedableRng};

    fn check(map: &[f32], mask: &[u8]) {
        let pixels = Pixels::of(map, mask).unwrap();
        for way in ways() {
            let mut other = Pixels::new(pixels.scores.clone()).unwrap();
            assert!(other.count_by(way, map) && other.counts == pixels.counts);
        }
        let scores: Vec<f64> = map.iter().map(|&v| f64::from(v)).collect();
        let (slow, fast) = (average_precision(&scores, mask).unwrap(), pixels.average_precision());
        assert!((fast - slow).abs() < 1e-12, "{fast} {slow}");
        let (slow, fast) = (auroc(&scores, mask), pixels.auroc());
        assert!(slow.is_some() == fast.is_some(), "{slow:?} {fast:?}");
        assert!(slow.zip(fast).is_none_or(|(s, f)| (s - f).abs() < 1e-12), "{slow:?} {fast:?}");
    }

    #[test]
    fn counting_equals_sorting() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        for n in [1, 2, 63, 64, 65, 257, 1000, 224 * 224] {
            for share in [0.001, 0.3, 1.0] {
                let mut mask: Vec<u8> = (0..n).map(|_| u8::from(rng.random::<f64>() < share)).collect();
                mask[n / 2] = 1;
                let smooth: Vec<f32> = (0..n).map(|_| rng.random::<f32>() - 0.5).collect();
                let of = |f: &dyn Fn(f32) -> f32| smooth.iter().map(|v| f(*v)).collect::<Vec<f32>>();
                check(&smooth, &mask);
                check(&of(&|v| (v * 5.0).round()), &mask);
                check(&vec![0.25; n], &mask);
                check(&of(&|v| v.max(0.0)), &mask);
                // Crowded: one positive far above the others; the whole range of floats; numbers below the normal ones.
                let mut outlier = smooth.clone();
                outlier[n / 2] = 1e30;
                check(&outlier, &mask);
                check(&of(&|v| v * 3.4e38 * 1.99), &mask);
                check(&of(&|v| v * 1e-44), &mask);
                check(&of(&|v| 1.0 + v * 1e-6), &mask);
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_found_anywhere_and_counts_nothing() {
        let good: Vec<f32> = (0..200).map(|i| (i % 17) as f32).collect();
        let mut pixels = Pixels::new([3.0, 5.0]).unwrap();
        for at in [0, 10, 63, 64, 130, 199] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut map = good.clone();
                map[at] = bad;
                assert!(!pixels.count(&map), "{bad} at {at}");
            }
        }
        assert!(pixels.count(&good) && pixels.counts.iter().sum::<u64>() == 200);
        assert!(Pixels::new([1.0, f32::NAN]).is_none() && Pixels::new([]).is_none());
    }

    #[test]
    fn a_bucket_keeps_the_order() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let mut all: Vec<f32> = (0..20000).map(|_| f32::from_bits(rng.random())).filter(|v| v.is_finite()).collect();
        all.sort_unstable_by(f32::total_cmp);
        for (low, scale) in [(-1.0, 2048.0), (0.0, 1e30), (-3e38, 0.0), (1e-40, 1e-30), (2.0, 3e38)] {
            let places: Vec<u32> = all.iter().map(|v| bucket_of(*v, low, scale, 2047.0)).collect();
            assert!(places.is_sorted() && places.iter().all(|p| *p < 2048), "{low} {scale}");
        }
    }

    #[test]
    fn pooling_equals_one_large_image() {
        let a = [0.1, 0.9, 0.4, 0.4, -1.0];
        let b = [0.4, 0.3, 0.9, 0.2, 0.1];
        let (ma, mb) = ([0, 1, 1, 0, 0], [0, 1, 0, 0, 1]);
        let under = |v: [f32; 5], m: [u8; 5]| v.into_iter().zip(m).filter(|p| p.1 == 1).map(|p| p.0);
        let mut pooled = Pixels::new(under(a, ma).chain(under(b, mb))).unwrap();
        assert!(pooled.count(&a) && pooled.count(&b) && !pooled.count(&[f32::NAN; 20]));
        let all: Vec<f64> = a.iter().chain(&b).map(|&v| f64::from(v)).collect();
        let masks: Vec<u8> = ma.iter().chain(&mb).copied().collect();
        assert!((pooled.average_precision() - average_precision(&all, &masks).unwrap()).abs() < 1e-12);
        assert!((pooled.auroc().unwrap() - auroc(&all, &masks).unwrap()).abs() < 1e-12);
    }
}
