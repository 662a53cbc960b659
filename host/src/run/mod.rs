//! A run: spec -> units -> worker process -> events -> results.
//!
//! ```text
//! lightbox run SPEC.toml
//!   supervisor    resolves the spec, lists the units that are not done, starts a worker, reads its events
//!     worker      executes units: prepare images, train, explain a block of test images
//!   reporter      draws the events: terminal, plain lines, or JSON lines
//!   summary       reads the units' files and writes the table and the pictures
//! ```
//!
//! A unit's results are one file, written whole; its presence means done. Whoever is killed, the same command continues.

pub mod events;
pub mod folder;
pub mod reporter;
pub mod spec;
pub mod summary;
pub mod supervisor;
mod train;
pub mod worker;
