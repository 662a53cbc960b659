//! A run: spec -> units -> worker processes -> tables -> summary.
//!
//! ```text
//! lightbox run SPEC.toml
//!   preflight     checks spec, models, plugins, data and files, and decides all that units depend on: `plan.json`
//!   supervisor    takes the folder, keeps workers busy, survives them
//!     identities  what each result's content depends on; a unit's go with its order
//!     index       which results are there
//!     state       what is wanted and what is there, and so which units are to be done
//!     scheduler   which unit is next
//!     executor    where workers come from
//!     worker      executes units, each kind in its file: unit_survey, unit_prepare, unit_train, unit_fit, unit_score,
//!                 unit_reduce, and chunk/, the way of a chunk of test images in stages
//!       scorer    how a batch's maps become rows; background_scoring: on another thread, where cores are free
//!   reporter      draws the events: terminal, plain lines, or JSON lines
//!   summary       gathers the units' tables into one summary and writes its forms
//! ```
//!
//! A unit's results are files beside a record, which is written last; its presence, with the identity that is wanted, means
//! done. Whoever is killed, the same command continues.

mod background_scoring;
mod cache;
mod chunk;
pub mod class_names;
pub mod events;
pub mod executor;
pub mod folder;
pub mod identities;
pub mod index;
pub mod manifest;
pub mod preflight;
mod reading;
pub mod reporter;
pub mod scheduler;
pub mod score_maps;
mod scorer;
pub mod spec;
pub mod state;
pub mod summary;
pub mod supervisor;
pub mod timings;
pub mod unit;
mod unit_fit;
mod unit_prepare;
mod unit_reduce;
mod unit_result;
mod unit_score;
mod unit_survey;
mod unit_train;
pub mod worker;
