//! Random draws. The generator comes from [`Context::rng`](crate::Context::rng), one an image, so that an image gets the
//! same numbers in any batch.

use rand::Rng;

/// Independent normal numbers with mean 0 and deviation 1 (Box and Muller, 1958).
pub fn normals(rng: &mut impl Rng, n: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(n + 1);
    while values.len() < n {
        // In (0, 1], so that the logarithm is finite.
        let (u, v) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
        let (radius, angle) = ((-2.0 * u.ln()).sqrt(), std::f64::consts::TAU * v);
        values.extend([(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]);
    }
    values.truncate(n);
    values
}

/// Each true with probability `p`.
pub fn coins(rng: &mut impl Rng, n: usize, p: f64) -> Vec<bool> {
    (0..n).map(|_| rng.random::<f64>() < p).collect()
}

/// The first `k` of a random order of 0..n (Fisher and Yates).
pub fn choose(rng: &mut impl Rng, n: usize, k: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..n).collect();
    for i in 0..k.min(n) {
        let j = rng.random_range(i..n);
        all.swap(i, j);
    }
    all.truncate(k);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn draws_have_their_moments_and_are_the_same_again() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let values = normals(&mut rng, 40_001);
        let mean = |f: &dyn Fn(f64) -> f64| values.iter().map(|v| f(f64::from(*v))).sum::<f64>() / values.len() as f64;
        assert!(mean(&|v| v).abs() < 0.02 && (mean(&|v| v * v) - 1.0).abs() < 0.03);
        assert!((mean(&|v| v.powi(4)) - 3.0).abs() < 0.15);
        assert_eq!(values[..5], normals(&mut ChaCha8Rng::seed_from_u64(1), 40_001)[..5]);
        let heads = coins(&mut rng, 10_000, 0.3).iter().filter(|c| **c).count();
        assert!((2800..3200).contains(&heads));
    }

    #[test]
    fn a_choice_is_without_repetition_and_even() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut counts = [0; 5];
        for _ in 0..5000 {
            let mut some = choose(&mut rng, 5, 2);
            some.iter().for_each(|i| counts[*i] += 1);
            some.sort_unstable();
            assert!(some[0] < some[1] && some[1] < 5);
        }
        assert!(counts.iter().all(|c| (1850..2150).contains(c)), "{counts:?}");
        assert_eq!(choose(&mut rng, 3, 9).len(), 3);
    }
}
