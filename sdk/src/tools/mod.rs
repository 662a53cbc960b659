//! Small functions that many methods share: steps of a path, random draws, superpixels, masks, maps.

pub mod draw;
#[cfg(feature = "tch")]
pub mod fill;
#[cfg(feature = "tch")]
pub mod maps;
#[cfg(feature = "tch")]
pub mod masks;
pub mod path;
pub mod segment;
