//! A run: spec -> units -> worker processes -> tables -> summary.
//!
//! ```text
//! lightbox run SPEC.toml
//!   supervisor    resolves the spec, plans the units that are not done, keeps workers busy, survives them
//!     settle      checks models, plugins and files, takes the folder or finds it to be of the same run
//!     plan        what is wanted, what is there: units
//!     scheduler   which unit is next
//!     executor    where workers come from
//!     worker      executes units: survey, prepare; train, fit, explain, score (and reduce) each in its file
//!       scoring   how a batch's maps become rows; beside: on another thread, where cores are free
//!   reporter      draws the events: terminal, plain lines, or JSON lines
//!   summary       gathers the units' tables into one summary and writes its forms
//! ```
//!
//! A unit's results are files beside a record, which is written last; its presence, with the identity that is wanted, means
//! done. Whoever is killed, the same command continues.

pub mod about;
mod beside;
mod cache;
pub mod events;
pub mod executor;
mod explain;
mod fit;
pub mod folder;
pub mod plan;
pub mod reporter;
pub mod scheduler;
mod score;
mod scoring;
pub mod settle;
pub mod spec;
pub mod spent;
pub mod summary;
pub mod supervisor;
mod train;
pub mod unit;
pub mod worker;
