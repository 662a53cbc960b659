//! Data, metrics and results of Lightbox: the science. This crate never loads a plugin and never prints.

pub mod agreement;
pub mod checkpoint;
pub mod compare;
pub mod data;
mod error;
pub mod files;
pub mod gather;
pub mod maps;
pub mod metrics;
pub mod picture;
pub mod predictions;
pub mod results;
pub mod seed;
pub mod stats;
pub mod summary;
pub mod table;
pub mod task;
pub mod tensors;

pub use error::{Error, Result};

/// Whether the variable `LIGHTBOX_PLAIN` asks for the plain way wherever there is a faster one: no vectors chosen at run time,
/// no image resized from its bytes. It is for tests, which hold the two together; models look at it as well.
pub fn is_plain() -> bool {
    std::env::var_os("LIGHTBOX_PLAIN").is_some_and(|v| !v.is_empty() && v != "0")
}
