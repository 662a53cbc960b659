//! Metrics. Each is one file; [`METRICS`] is where they are registered.

pub mod auroc;
pub mod average_precision;

use serde::Serialize;

/// What `lightbox list metrics` and `lightbox info` say of a metric.
#[derive(Debug, Clone, Serialize)]
pub struct MetricInfo {
    pub name: &'static str,
    pub title: &'static str,
    pub family: &'static str,
    pub formula: &'static str,
    /// `higher` or `lower` is better.
    pub better: &'static str,
    pub range: &'static str,
    pub chance: &'static str,
    pub edge_cases: &'static str,
    pub reference: &'static str,
}

/// All metrics, in the names' order.
pub const METRICS: [MetricInfo; 4] =
    [average_precision::IMAGE, auroc::IMAGE, average_precision::PIXEL, average_precision::PIXEL_POOLED];
