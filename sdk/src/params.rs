//! Parameters: how plugins describe them, and their checked values.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The type of a parameter's value, with its bounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ParamType {
    Integer {
        min: i64,
        max: i64,
    },
    Number {
        min: f64,
        max: f64,
    },
    Text,
    /// A file or folder. In a run's spec it is relative to the spec, and its content belongs to the run's identity.
    Path,
    Choice {
        choices: Vec<String>,
    },
    Flag,
    /// Of a newer SDK: the value is passed on as it is.
    #[serde(other)]
    Other,
}

/// One parameter of a model or explainer. Its name is permanent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ParamSpec {
    pub name: String,
    #[serde(flatten)]
    pub kind: ParamType,
    pub default: Value,
    /// `px`, `fraction of the image`, ... ; empty for none.
    #[serde(default)]
    pub unit: String,
    pub text: String,
}

impl ParamSpec {
    pub fn integer(name: &str, default: i64, (min, max): (i64, i64), unit: &str, text: &str) -> Self {
        ParamSpec::new(name, ParamType::Integer { min, max }, default.into(), unit, text)
    }

    pub fn number(name: &str, default: f64, (min, max): (f64, f64), unit: &str, text: &str) -> Self {
        // JSON has no infinity; the largest float is no bound either.
        let (min, max) = (min.max(f64::MIN), max.min(f64::MAX));
        ParamSpec::new(name, ParamType::Number { min, max }, default.into(), unit, text)
    }

    pub fn text(name: &str, default: &str, text: &str) -> Self {
        ParamSpec::new(name, ParamType::Text, default.into(), "", text)
    }

    /// A file or folder; `default` may be empty for none.
    pub fn path(name: &str, default: &str, text: &str) -> Self {
        ParamSpec::new(name, ParamType::Path, default.into(), "", text)
    }

    pub fn choice(name: &str, default: &str, choices: &[&str], text: &str) -> Self {
        let choices = choices.iter().map(|c| c.to_string()).collect();
        ParamSpec::new(name, ParamType::Choice { choices }, default.into(), "", text)
    }

    pub fn flag(name: &str, default: bool, text: &str) -> Self {
        ParamSpec::new(name, ParamType::Flag, default.into(), "", text)
    }

    fn new(name: &str, kind: ParamType, default: Value, unit: &str, text: &str) -> Self {
        ParamSpec { name: name.into(), kind, default, unit: unit.into(), text: text.into() }
    }

    /// `value` as this parameter's type. Text is parsed, so `sigma=2` of a command line works.
    fn read(&self, value: &Value) -> Result<Value> {
        let bad = |wanted: String| Error::invalid(format!("parameter {}: {value} is not {wanted}", self.name));
        let text = value.as_str();
        Ok(match &self.kind {
            ParamType::Integer { min, max } => {
                let n = value.as_i64().or_else(|| text.and_then(|t| t.parse().ok()));
                let n = n.filter(|n| (min..=max).contains(&n));
                n.ok_or_else(|| bad(format!("an integer from {min} to {max}")))?.into()
            }
            ParamType::Number { min, max } => {
                let n = value.as_f64().or_else(|| text.and_then(|t| t.parse().ok()));
                let n = n.filter(|n| (min..=max).contains(&n));
                n.ok_or_else(|| bad(format!("a number from {min} to {max}")))?.into()
            }
            ParamType::Text | ParamType::Path => text.ok_or_else(|| bad("text".into()))?.into(),
            ParamType::Choice { choices } => {
                let known = text.filter(|t| choices.iter().any(|c| c == t));
                known.ok_or_else(|| bad(format!("one of {}", choices.join(", "))))?.into()
            }
            ParamType::Flag => {
                let flag = value.as_bool().or_else(|| text.and_then(|t| t.parse().ok()));
                flag.ok_or_else(|| bad("true or false".into()))?.into()
            }
            ParamType::Other => value.clone(),
        })
    }
}

/// Checked parameter values: every parameter of the specification is there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Params(BTreeMap<String, Value>);

impl Params {
    /// Checks `given` against `specs` and fills in the defaults. An unknown name is an error that lists the known.
    pub fn resolve(specs: &[ParamSpec], given: &BTreeMap<String, Value>) -> Result<Self> {
        if let Some(name) = given.keys().find(|name| specs.iter().all(|s| s.name != **name)) {
            let known: Vec<_> = specs.iter().map(|s| s.name.as_str()).collect();
            let known = if known.is_empty() { "it has none".into() } else { format!("known: {}", known.join(", ")) };
            return Err(Error::invalid(format!("unknown parameter {name} ({known})")));
        }
        let read = |s: &ParamSpec| Ok((s.name.clone(), s.read(given.get(&s.name).unwrap_or(&s.default))?));
        Ok(Params(specs.iter().map(read).collect::<Result<_>>()?))
    }

    fn get(&self, name: &str) -> Result<&Value> {
        self.0.get(name).ok_or_else(|| Error::invalid(format!("parameter {name} is not in the specification")))
    }

    pub fn integer(&self, name: &str) -> Result<i64> {
        let value = self.get(name)?;
        value.as_i64().ok_or_else(|| Error::invalid(format!("parameter {name} is not an integer")))
    }

    pub fn number(&self, name: &str) -> Result<f64> {
        let value = self.get(name)?;
        value.as_f64().ok_or_else(|| Error::invalid(format!("parameter {name} is not a number")))
    }

    pub fn text(&self, name: &str) -> Result<&str> {
        let value = self.get(name)?;
        value.as_str().ok_or_else(|| Error::invalid(format!("parameter {name} is not text")))
    }

    pub fn flag(&self, name: &str) -> Result<bool> {
        let value = self.get(name)?;
        value.as_bool().ok_or_else(|| Error::invalid(format!("parameter {name} is not a flag")))
    }

    /// All names and values, in the names' order.
    pub fn values(&self) -> &BTreeMap<String, Value> {
        &self.0
    }
}
