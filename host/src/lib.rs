//! Lightbox, the host: finds plugins, runs them, reports. It holds no method's mathematics and no metric's formula.

// Help texts of the command line have words in brackets, which are no links.
#![allow(rustdoc::broken_intra_doc_links)]

mod binding;
pub mod check;
pub mod child;
pub mod choice;
pub mod cli;
mod compare;
pub mod data;
pub mod device;
pub mod engine;
pub mod error;
pub mod explain;
mod host_calls;
pub mod images;
pub mod list;
pub mod loader;
mod maps;
pub mod new;
mod process_state;
mod proxy;
mod reference;
pub mod registry;
pub mod remote;
pub mod report;
pub mod run;
pub mod signals;
mod transfer;
mod user_cache;
pub mod watch;
