//! Seeds of a run's parts, derived from its own by hashing, so that no two parts share one by their sum.

use sha2::{Digest, Sha256};

/// The seed of a part: the first eight bytes (little-endian) of SHA-256 over the run's seed, the purpose and the numbers.
///
/// ```
/// use lightbox_core::seed::derive;
/// assert_ne!(derive(0, "initial", &[0, 1]), derive(1, "initial", &[0, 0]));
/// ```
pub fn derive(seed: u64, purpose: &str, numbers: &[u64]) -> u64 {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update((purpose.len() as u64).to_le_bytes());
    hash.update(purpose);
    numbers.iter().for_each(|n| hash.update(n.to_le_bytes()));
    let digest = hash.finalize();
    u64::from_le_bytes(std::array::from_fn(|i| digest[i]))
}
