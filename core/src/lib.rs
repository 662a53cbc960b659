//! Data, metrics and results of Lightbox: the science. This crate never loads a plugin and never prints.

pub mod checkpoint;
pub mod data;
mod error;
pub mod files;
pub mod metrics;
pub mod picture;
pub mod results;
pub mod table;
pub mod tensors;

pub use error::{Error, Result};
