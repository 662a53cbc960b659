//! Parameters of explainers, models and metrics: a struct that derives [`Params`] describes them, and is their checked values.
//!
//! ```
//! use lightbox_sdk::prelude::*;
//!
//! lightbox_sdk::choice! {
//!     /// how channels become one number
//!     pub enum Fusion { Mean = "mean", Largest = "max" }
//! }
//!
//! #[derive(Params)]
//! struct Settings {
//!     /// points on the path
//!     #[param(default = 50, range = (1, 1000))]
//!     steps: usize,
//!     /// the noise's deviation
//!     #[param(default = 0.15, range = (0.0, 1.0), unit = "of the image's range")]
//!     sigma: f64,
//!     #[param(default = Fusion::Mean)]
//!     fusion: Fusion,
//! }
//!
//! let given = [("fusion".to_string(), "max".into())].into();
//! let settings = Settings::resolve(&given)?;
//! assert_eq!((settings.steps, settings.fusion), (50, Fusion::Largest));
//! # assert_eq!(settings.sigma, 0.15);
//! # Ok::<(), Error>(())
//! ```
//!
//! Values are resolved once, when a run begins; every default is written to its spec and is part of its identities, so
//! that writing a default down changes nothing.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

pub use lightbox_sdk_derive::Params;

/// The type of a parameter's value, with its bounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ParamType {
    /// A whole number from `min` to `max`.
    Integer {
        /// The least value.
        min: i64,
        /// The greatest value.
        max: i64,
    },
    /// A number from `min` to `max`.
    Number {
        /// The least value.
        min: f64,
        /// The greatest value.
        max: f64,
    },
    /// Any text.
    Text,
    /// A file or folder. In a run's spec it is relative to the spec, and its content belongs to the run's identity.
    Path,
    /// One of several words.
    Choice {
        /// The words.
        choices: Vec<String>,
    },
    /// True or false.
    Flag,
    /// Of a newer SDK: the value is passed on as it is.
    #[serde(other)]
    Other,
}

/// One parameter of an explainer, a model or a metric, as `lightbox info` shows it. Its name is permanent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ParamSpec {
    /// Lower case: `steps`.
    pub name: String,
    /// Type and bounds.
    #[serde(flatten)]
    pub kind: ParamType,
    /// The value where none is given.
    pub default: Value,
    /// `px`, `fraction of the image`, ... ; empty for none.
    #[serde(default)]
    pub unit: String,
    /// What it does, for users.
    pub text: String,
}

/// A type that a field of parameters may have: a number, a flag, a text, a path, or an enum made by [`choice!`](crate::choice!).
pub trait ParamField: Sized {
    /// What a default is written as.
    type Default;
    /// What the ends of a range are written as.
    type Limit;
    /// The text of a field without a doc comment.
    const TEXT: &'static str = "";

    /// Type and bounds.
    fn kind(range: Option<(Self::Limit, Self::Limit)>) -> ParamType;

    /// A default as a value.
    fn default_value(default: Self::Default) -> Value;

    /// A checked value; `None` where it is of another type.
    fn read(value: &Value) -> Option<Self>;
}

macro_rules! integers {
    ($($t:ty),*) => { $(
        impl ParamField for $t {
            type Default = $t;
            type Limit = i64;

            fn kind(range: Option<(i64, i64)>) -> ParamType {
                let (min, max) = range.unwrap_or((<$t>::MIN as i64, i64::MAX));
                ParamType::Integer { min, max }
            }

            fn default_value(default: $t) -> Value {
                (default as i64).into()
            }

            fn read(value: &Value) -> Option<Self> {
                <$t>::try_from(value.as_i64()?).ok()
            }
        }
    )* };
}
integers!(i64, u64, usize);

impl ParamField for f64 {
    type Default = f64;
    type Limit = f64;

    fn kind(range: Option<(f64, f64)>) -> ParamType {
        // JSON has no infinity; the largest float is no bound either.
        let (min, max) = range.unwrap_or((f64::MIN, f64::MAX));
        ParamType::Number { min: min.max(f64::MIN), max: max.min(f64::MAX) }
    }

    fn default_value(default: f64) -> Value {
        default.into()
    }

    fn read(value: &Value) -> Option<Self> {
        value.as_f64()
    }
}

impl ParamField for bool {
    type Default = bool;
    type Limit = bool;

    fn kind(_: Option<(bool, bool)>) -> ParamType {
        ParamType::Flag
    }

    fn default_value(default: bool) -> Value {
        default.into()
    }

    fn read(value: &Value) -> Option<Self> {
        value.as_bool()
    }
}

impl ParamField for String {
    type Default = &'static str;
    type Limit = &'static str;

    fn kind(_: Option<(&'static str, &'static str)>) -> ParamType {
        ParamType::Text
    }

    fn default_value(default: &'static str) -> Value {
        default.into()
    }

    fn read(value: &Value) -> Option<Self> {
        value.as_str().map(str::to_string)
    }
}

/// A file or folder; the default is relative to the plugin's folder, and empty for none.
impl ParamField for PathBuf {
    type Default = &'static str;
    type Limit = &'static str;

    fn kind(_: Option<(&'static str, &'static str)>) -> ParamType {
        ParamType::Path
    }

    fn default_value(default: &'static str) -> Value {
        default.into()
    }

    fn read(value: &Value) -> Option<Self> {
        value.as_str().map(PathBuf::from)
    }
}

/// An enum whose values are words of a parameter: `choice! { /// what it chooses  pub enum Name { Variant = "word", .. } }`.
/// The doc comment is the parameter's text where the field has none.
#[macro_export]
macro_rules! choice {
    ($(#[doc = $text:literal])* $vis:vis enum $name:ident { $($(#[doc = $about:literal])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[doc = $text])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis enum $name { $($(#[doc = $about])* #[doc = concat!("`", $word, "`")] $variant),+ }

        impl $name {
            /// The words, in the order of the variants.
            pub const WORDS: &'static [&'static str] = &[$($word),+];
            /// The variants.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The word of this variant.
            #[allow(dead_code)]
            pub fn word(self) -> &'static str {
                match self { $($name::$variant => $word),+ }
            }
        }

        impl $crate::params::ParamField for $name {
            type Default = $name;
            type Limit = $name;
            const TEXT: &'static str = concat!($($text),*);

            fn kind(_: ::core::option::Option<($name, $name)>) -> $crate::params::ParamType {
                let choices = $name::WORDS.iter().map(|w| w.to_string()).collect();
                $crate::params::ParamType::Choice { choices }
            }

            fn default_value(default: $name) -> $crate::serde_json::Value {
                default.word().into()
            }

            fn read(value: &$crate::serde_json::Value) -> ::core::option::Option<Self> {
                let place = $name::WORDS.iter().position(|w| value.as_str() == ::core::option::Option::Some(*w))?;
                $name::ALL.get(place).copied()
            }
        }
    };
}

impl ParamSpec {
    /// A parameter of a field's type; the derive macro calls it.
    #[doc(hidden)]
    pub fn of<T: ParamField>(
        name: &str,
        default: T::Default,
        range: Option<(T::Limit, T::Limit)>,
        unit: &str,
        text: &str,
    ) -> Self {
        let text = if text.is_empty() { T::TEXT.trim() } else { text };
        let (name, unit, text) = (name.to_string(), unit.to_string(), text.to_string());
        ParamSpec { name, kind: T::kind(range), default: T::default_value(default), unit, text }
    }

    /// `value` as this parameter's type. Text is parsed, so `sigma=2` of a command line works.
    fn read(&self, value: &Value) -> Result<Value> {
        let bad = |wanted: String| Error::invalid(format!("parameter {}: {value} is not {wanted}", self.name));
        let text = value.as_str();
        Ok(match &self.kind {
            ParamType::Integer { min, max } => {
                // A whole number of a TOML file may be written 8.0.
                let whole = value.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9e15).map(|f| f as i64);
                let n = value.as_i64().or(whole).or_else(|| text.and_then(|t| t.parse().ok()));
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
#[serde(transparent)]
pub struct ParamValues(BTreeMap<String, Value>);

impl ParamValues {
    /// Checks `given` against `specs` and fills in the defaults. An unknown name is an error that lists the known.
    pub fn resolve(specs: &[ParamSpec], given: &BTreeMap<String, Value>) -> Result<Self> {
        if let Some(name) = given.keys().find(|name| specs.iter().all(|s| s.name != **name)) {
            let known: Vec<_> = specs.iter().map(|s| s.name.as_str()).collect();
            let known = if known.is_empty() { "it has none".into() } else { format!("known: {}", known.join(", ")) };
            return Err(Error::invalid(format!("unknown parameter {name} ({known})")));
        }
        let read = |s: &ParamSpec| Ok((s.name.clone(), s.read(given.get(&s.name).unwrap_or(&s.default))?));
        Ok(ParamValues(specs.iter().map(read).collect::<Result<_>>()?))
    }

    /// The value of a field; an error where there is none of this name, or one of another type.
    pub fn field<T: ParamField>(&self, name: &str) -> Result<T> {
        let value = self.0.get(name);
        let value = value.ok_or_else(|| Error::invalid(format!("parameter {name} is not in the specification")))?;
        T::read(value).ok_or_else(|| Error::invalid(format!("parameter {name}: {value} is of another type")))
    }

    /// All names and values, in the names' order.
    pub fn values(&self) -> &BTreeMap<String, Value> {
        &self.0
    }
}

/// A set of parameters: their description, and their checked values as fields. Made by `#[derive(Params)]`; `()` has none.
pub trait Params: Sized + Send + 'static {
    /// The parameters, in the fields' order.
    fn specs() -> Vec<ParamSpec>;

    /// The fields from checked values.
    fn read(values: &ParamValues) -> Result<Self>;

    /// Checks given values, fills in the defaults and reads the fields.
    fn resolve(given: &BTreeMap<String, Value>) -> Result<Self> {
        Self::read(&ParamValues::resolve(&Self::specs(), given)?)
    }
}

impl Params for () {
    fn specs() -> Vec<ParamSpec> {
        Vec::new()
    }

    fn read(_: &ParamValues) -> Result<Self> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    choice! {
        /// how they are joined
        enum Mode { Max = "max", Mean = "mean" }
    }

    #[derive(Params)]
    struct Inner {
        #[param(default = Mode::Max)]
        mode: Mode,
    }

    #[derive(Params)]
    struct Settings {
        /// how
        /// wide
        #[param(default = 0.25, range = (0.0, 2.0), unit = "fraction of the image")]
        sigma: f64,
        #[param(default = 8, range = (1, 64))]
        steps: usize,
        #[param(flatten)]
        inner: Inner,
        #[param(default = true)]
        relu: bool,
        #[param(default = "")]
        layer: String,
    }

    fn check(given: &[(&str, Value)]) -> Result<Settings> {
        Settings::resolve(&given.iter().map(|(k, v)| (k.to_string(), v.clone())).collect())
    }

    #[test]
    fn parameters_are_checked_and_filled() {
        let p = check(&[("sigma", "1.5".into()), ("relu", "false".into()), ("mode", "mean".into())]).unwrap();
        assert_eq!((p.sigma, p.steps, p.inner.mode), (1.5, 8, Mode::Mean));
        assert!(!p.relu && p.layer.is_empty());
        let error = |given: &[(&str, Value)]| check(given).err().unwrap().to_string();
        assert_eq!(error(&[("sigma", 3.into())]), "parameter sigma: 3 is not a number from 0 to 2");
        assert_eq!(error(&[("mode", "min".into())]), "parameter mode: \"min\" is not one of max, mean");
        assert_eq!(error(&[("depth", 1.into())]), "unknown parameter depth (known: sigma, steps, mode, relu, layer)");
        assert_eq!(error(&[("steps", 2.5.into())]), "parameter steps: 2.5 is not an integer from 1 to 64");
        assert_eq!(check(&[("steps", 2.0.into())]).unwrap().steps, 2);
    }

    #[test]
    fn what_is_said_of_a_field_is_its_doc_comment_or_its_types() {
        let specs = Settings::specs();
        assert_eq!((specs[0].text.as_str(), specs[0].unit.as_str()), ("how wide", "fraction of the image"));
        assert_eq!((specs[2].text.as_str(), &specs[2].default), ("how they are joined", &Value::from("max")));
    }

    #[test]
    fn an_unbounded_parameter_crosses() {
        let spec = ParamSpec::of::<f64>("x", 1.0, Some((0.0, f64::INFINITY)), "", "");
        let back: ParamSpec = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
        assert_eq!(back, spec);
    }
}
