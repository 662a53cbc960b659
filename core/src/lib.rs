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
