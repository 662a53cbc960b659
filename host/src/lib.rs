//! Lightbox, the host: finds plugins, runs them, reports. It holds no method's mathematics and no metric's formula.

pub mod check;
pub mod cli;
pub mod data;
pub mod device;
pub mod engine;
pub mod error;
pub mod explain;
pub mod list;
pub mod loader;
pub mod registry;
pub mod run;
pub mod signals;
