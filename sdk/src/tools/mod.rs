//! Small functions that many methods share: steps of a path, random draws, superpixels, masks, maps.

pub mod draw;
#[cfg(feature = "tch")]
pub mod maps;
pub mod path;
pub mod segment;
