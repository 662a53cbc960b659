//! Data, metrics and results of Lightbox: the science. This crate never loads a plugin and never prints.

#![warn(missing_docs)]

pub mod aggregate;
pub mod agreement;
pub mod checkpoint;
pub mod compare;
pub mod data;
mod error;
pub mod files;
pub mod intervention;
pub mod maps;
pub mod maps_file;
pub mod metrics;
pub mod pickle;
pub mod picture;
pub mod predictions;
pub mod results;
pub mod seed;
pub mod stats;
pub mod summary;
pub mod table;
pub mod tables;
pub mod task;
pub mod tensors;
pub mod text;
mod thrift_walk;

pub use error::{Error, Result};

/// Whether the variable `LIGHTBOX_PLAIN` asks for the plain way where a faster one rounds otherwise or is chosen at run time: no
/// vectors beyond the compiler's own, no image resized from its bytes. Tests hold the two together. Plugins have
/// `lightbox_sdk::is_plain`, since neither crate knows the other.
pub fn is_plain() -> bool {
    std::env::var_os("LIGHTBOX_PLAIN").is_some_and(|v| !v.is_empty() && v != "0")
}
