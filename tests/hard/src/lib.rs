//! Kinds of method that are hard to write against an ABI, on the public SDK alone: one learns from the training set first, two
//! change how gradients flow, one runs only what follows a layer, one hands back several maps. And models that are no
//! classifiers of flat images: a segmenter, a detector, a classifier of volumes.

mod ablation;
mod concept;
mod guided;
mod heads;
mod nets;
mod reader;
mod record;
mod relevance;

lightbox_sdk::export!();
