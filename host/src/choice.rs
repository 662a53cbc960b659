//! An explainer as a spec or a command line names it.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// An explainer with its label and parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainerChoice {
    /// The plugin's name of it.
    pub name: String,
    /// The column's title; the name where it is empty.
    #[serde(default)]
    pub label: String,
    /// Values of its parameters. In a run's own spec every parameter is there.
    #[serde(default)]
    pub params: BTreeMap<String, Value>,
    /// The labels of the models that it explains; all where it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// Of an explainer with several maps: the names of those that the table shows; all where it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub maps: Vec<String>,
}

impl ExplainerChoice {
    /// Parses `name` or `name:param=value,...`.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        let mut params = BTreeMap::new();
        for pair in rest.split(',').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| {
                Error::input(format!(
                    "explainer `{text}`: `{pair}` is not param=value (example: gradcam:layer=features.norm5)"
                ))
            })?;
            params.insert(key.to_string(), Value::from(value));
        }
        if name.is_empty() {
            return Err(Error::input(format!("explainer `{text}` has no name")));
        }
        let label = if params.is_empty() { String::new() } else { text.to_string() };
        Ok(ExplainerChoice { name: name.into(), label, params, models: vec![], maps: vec![] })
    }

    /// What names this choice in tables, files and events.
    pub fn label(&self) -> &str {
        if self.label.is_empty() { &self.name } else { &self.label }
    }
}
