//! What a unit made.

use super::folder::CellRecord;
use super::timings::Timings;
use std::collections::BTreeMap;

/// What a unit made, for its record.
#[derive(Default)]
pub struct UnitResult {
    /// Images that it went through.
    pub images: usize,
    /// The identity of the predictions, where it made them.
    pub predictions: Option<String>,
    /// The identity of what it reduced.
    pub reduced: Option<String>,
    /// By explainer.
    pub cells: BTreeMap<String, CellRecord>,
    /// Where its time went.
    pub timings: Timings,
}
