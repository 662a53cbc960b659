//! What plugins hand back, checked: maps, and what a fit has learned.

use crate::error::Result;
use lightbox_sdk::{Array, DType, Error, Maps, Named};
use tch::Tensor;

/// The maps of one explainer for a batch.
#[derive(Debug)]
pub struct Outputs {
    /// Names of several maps; one empty name for one map.
    pub names: Vec<String>,
    /// [n, K, size...] float32, on the device it was made on, memory of its own.
    pub maps: Tensor,
}

impl Outputs {
    /// One of the K maps, [n, size...].
    pub fn output(&self, k: usize) -> Result<Tensor> {
        Ok(self.maps.f_select(1, k as i64)?)
    }
}

/// How many maps an explainer may give of an image: each is a column of the table, and all are scored.
const MOST_MAPS: usize = 1024;

/// Maps must be [n, size...], or [n, K, size...] with K names, float32, with as many sizes as the image has spatial axes.
/// Whether values are finite is each image's own matter.
pub(super) fn check_maps(maps: Maps, n: usize, axes: usize, name: &str) -> lightbox_sdk::Result<Outputs> {
    let bad = |text: String| Error::output(format!("explainer {name} {text}"));
    let shape = maps.array.shape();
    let k = maps.names.len();
    let named = usize::from(k > 0);
    let fits = shape.len() == 1 + named + axes && shape[0] == n && (k == 0 || shape[1] == k) && !shape.contains(&0);
    if !fits {
        let sizes = ["w", "h, w", "d, h, w"].get(axes.saturating_sub(1)).copied().unwrap_or("size...");
        let wanted = if k == 0 { format!("[{n}, {sizes}]") } else { format!("[{n}, {k}, {sizes}]") };
        return Err(bad(format!("gave a map of shape {shape:?}, expected {wanted}")));
    }
    if k > MOST_MAPS {
        return Err(bad(format!("gave {k} maps an image; at most {MOST_MAPS} are taken")));
    }
    let mut sorted = maps.names.clone();
    sorted.sort();
    let unusable = |s: &String| s.is_empty() || s.chars().any(char::is_control);
    if sorted.windows(2).any(|w| w[0] == w[1]) || sorted.iter().any(unusable) {
        return Err(bad(format!("names its maps {:?}: each needs a printable name of its own", maps.names)));
    }
    if maps.array.dtype() != DType::F32 {
        return Err(bad(format!("gave a map of {:?}, expected F32", maps.array.dtype())));
    }
    let tensor = maps.array.share_tensor()?;
    let mut size = vec![n as i64, k.max(1) as i64];
    size.extend(shape[1 + named..].iter().map(|v| *v as i64));
    // The plugin may use its memory again.
    let copy = tensor.f_reshape(size)?.f_contiguous()?;
    let own = crate::transfer::own(&Array::from_tensor(&copy)?)?.share_tensor()?;
    Ok(Outputs { names: if k == 0 { vec![String::new()] } else { maps.names }, maps: own })
}

/// What a fit hands back is arrays with printable names of their own, at least one.
pub fn check_fitted(fitted: &Named, name: &str) -> lightbox_sdk::Result<()> {
    let bad = |text: String| Err(Error::output(format!("explainer {name}: its fit handed back {text}")));
    for (i, (key, _)) in fitted.iter().enumerate() {
        if key.is_empty() || key.chars().any(char::is_control) {
            return bad(format!("an array called {key:?}"));
        }
        if fitted[..i].iter().any(|(other, _)| other == key) {
            return bad(format!("two arrays called {key}"));
        }
    }
    if fitted.is_empty() { bad("nothing".into()) } else { Ok(()) }
}

/// The sentence about an explainer that wrote to its input.
pub fn tampered(name: &str) -> Error {
    Error::output(format!("explainer {name} wrote to what it was given; its neighbours' maps were made anew"))
}
