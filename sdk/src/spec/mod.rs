//! What plugins say of themselves. All of it crosses as JSON: a new field needs a default, nothing else.

mod explainer;
mod model;
mod output;
mod site;

pub use crate::params::{ParamSpec, ParamType, ParamValues};
pub use explainer::{
    Contrast, ExplainerSpec, Family, FitNeeds, ImageRecord, KNOWN_NEEDS, Needs, Passes, Plan, TargetKind,
};
pub use model::{InputSpec, LoadReport, ModelOptions, ModelSpec, PAIR_RULES, RULES_WITHOUT_NUMBER, TrainerOptions};
pub use output::{Activation, Meaning, Output};
pub use site::{AttentionBlock, AttentionPart, Axis, Role, Site, axes_text};

use serde::{Deserialize, Serialize};

/// What a plugin library holds, as `lightbox list plugins` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    /// The crate's name.
    pub plugin: String,
    /// The crate's version.
    pub version: String,
    /// Models, each as its default options make it.
    #[serde(default)]
    pub models: Vec<ModelSpec>,
    /// Explainers.
    #[serde(default)]
    pub explainers: Vec<ExplainerSpec>,
}

/// Where a method or model comes from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Reference {
    /// Last names, separated by commas, or the first one's and `et al.`; empty where the title says it all.
    #[serde(default)]
    pub authors: String,
    /// Of the paper or the program.
    pub title: String,
    /// Journal or conference, without the year; empty for a preprint.
    #[serde(default)]
    pub venue: String,
    /// When it appeared; 0 where there is none.
    #[serde(default)]
    pub year: u16,
    /// `10.1109/...` or `arXiv:...`; empty where there is none.
    #[serde(default)]
    pub id: String,
}

impl Reference {
    /// All that is known of a source: see the fields.
    pub fn new(authors: &str, title: &str, venue: &str, year: u16, id: &str) -> Self {
        Reference { authors: authors.into(), title: title.into(), venue: venue.into(), year, id: id.into() }
    }

    /// Something that was not published: what it is, in words.
    pub fn own(title: &str) -> Self {
        Reference { title: title.into(), ..Self::default() }
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.title.is_empty()
    }

    /// `Authors: Title, Venue Year`, without the number of [`Reference::id`].
    pub fn citation(&self) -> String {
        let authors = if self.authors.is_empty() { String::new() } else { format!("{}: ", self.authors) };
        let year = if self.year == 0 { String::new() } else { self.year.to_string() };
        let when = format!("{} {year}", self.venue);
        let when = when.trim();
        let comma = if when.is_empty() { "" } else { ", " };
        format!("{authors}{}{comma}{when}", self.title)
    }

    /// [`Reference::citation`] with the number: `Authors: Title, Venue Year, arXiv:...`.
    pub fn full(&self) -> String {
        if self.id.is_empty() { self.citation() } else { format!("{}, {}", self.citation(), self.id) }
    }
}
