//! The Lightbox SDK: all that a plugin crate depends on.
//!
//! A plugin is a `cdylib` crate that holds models, explainers or both. The author implements [`Explainer`] or
//! [`Model`], registers it ([`register_explainer!`], [`register_model!`]) and calls [`export!`] once.
//! `plugins/example` is a complete one.
//!
//! # Life of a plugin
//!
//! 1. The host reads the preflight record from the file. No code of the plugin has run.
//! 2. It opens the library, checks the layout of every type that crosses and asks for the manifest
//!    ([`Explainer::spec`], the models' specifications).
//! 3. For every model and setting it calls [`Explainer::bind`] once, and merges what all explainers need into one
//!    [`Request`] a batch.
//! 4. It calls the fits of those that asked for one ([`Bound::with_fit`]), once a model and fold.
//! 5. A batch at a time it calls [`Model::run`] once and what each explainer handed back ([`Bound::new`]).
//! 6. The library is never unloaded.
//!
//! All of 3 to 5 happens on one thread, the one that owns the device. Every entry point catches panics and restores
//! libtorch's grad mode, so an author may use `?` freely and need not fear an index out of range; what cannot be
//! caught (a segmentation fault, `exit`) ends the worker process, and the host names the explainer.
//!
//! # Features
//!
//! Without features the SDK works on `ndarray` and does not need libtorch. With `tch`, arrays become `tch::Tensor`s
//! and back without a copy, on CPU and CUDA, and [`tape`] serves requests. With `nn`, [`nn`] has named parameters, what all
//! models share, and a trainer.

#![warn(missing_docs)]

extern crate self as lightbox_sdk;

pub mod abi;
mod array;
#[cfg(feature = "nn")]
pub mod dispatch;
mod error;
pub mod explainer;
mod explainer_abi;
#[doc(hidden)]
pub mod export;
mod guard;
pub mod hash;
pub mod host;
mod message;
pub mod model;
mod model_abi;
#[cfg(feature = "nn")]
pub mod nn;
pub mod params;
pub mod remote;
#[cfg(feature = "tch")]
pub mod rules;
pub mod runs;
pub mod spec;
#[cfg(feature = "tch")]
pub mod tape;
mod target;
pub mod tools;
pub mod wire;

#[cfg(feature = "tch")]
pub use array::torch::TensorView;
pub use array::{Array, DType, Element, Place};
pub use error::{Error, ErrorKind, Result};
pub use explainer::{Bound, Context, Explainer, FitContext, Maps};
pub use explainer_abi::{BoundHandle, ContextBuilder, ExplainInput, ExplainerHandle, FitInput};
pub use guard::guard;
pub use host::{FitBatch, Host};
pub use model::{HessianProduct, Model, Named, Objective, Patch, Request, Response, Start, Trainer};
pub use model_abi::{ModelHandle, ModelRef, TrainerHandle};
pub use target::{Score, Target, objective, resolve, score_objective, scores};

#[doc(hidden)]
pub use inventory;
pub use ndarray;
pub use rand;
pub use serde_json;
#[cfg(feature = "tch")]
pub use tch;

/// The libtorch that this SDK was compiled against; `none` without feature `tch`.
pub const BUILT_WITH_TORCH: &str = env!("LIGHTBOX_TORCH");
/// The compiler.
pub const BUILT_WITH_RUSTC: &str = env!("LIGHTBOX_RUSTC");

/// Whether the variable `LIGHTBOX_PLAIN` asks for the plain way wherever there is a faster one that changes rounding only, so
/// that a suite can be run with both: norms stay layers, the last block is computed whole.
pub fn is_plain() -> bool {
    std::env::var_os("LIGHTBOX_PLAIN").is_some_and(|v| !v.is_empty() && v != "0")
}

/// `use lightbox_sdk::prelude::*;` is all that a plugin needs.
pub mod prelude {
    pub use crate::params::Params;
    pub use crate::runs::Pairs;
    #[cfg(feature = "tch")]
    pub use crate::runs::add_rows;
    pub use crate::spec::{
        Activation, AttentionBlock, AttentionPart, Axis, Contrast, ExplainerSpec, Family, FitNeeds, ImageRecord,
        InputSpec, LoadReport, Meaning, ModelOptions, ModelSpec, Needs, Output, ParamSpec, Passes, Reference, Role,
        Site, TargetKind, TrainerOptions,
    };
    pub use crate::{
        Array, Bound, Context, ContextBuilder, DType, Error, ErrorKind, Explainer, FitBatch, FitContext,
        HessianProduct, Maps, Model, ModelHandle, Named, Objective, Patch, Request, Response, Result, Score, Start,
        Target, Trainer, choice, export, register_explainer, register_model,
    };
}
