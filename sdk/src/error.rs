//! The one error type of the boundary. It crosses as JSON, so that kinds can be added.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What kind of failure it was. Unknown kinds of a newer plugin read as [`ErrorKind::Other`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// An argument has a wrong shape, type, value or name.
    InvalidInput,
    /// The model or explainer does not offer what was asked for.
    Unsupported,
    /// The plugin panicked; its code was unwound and the process lives on.
    Panic,
    /// libtorch threw an exception.
    Torch,
    /// A result is not finite, or a buffer does not hold what it says.
    InvalidOutput,
    /// The host asked to stop.
    Cancelled,
    /// Of a newer SDK, or none of these.
    #[serde(other)]
    Other,
}

/// A failure with the chain of places it passed, outermost first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Error {
    /// What kind of failure it was.
    pub kind: ErrorKind,
    /// What is wrong, and what to do.
    pub message: String,
    /// For example `["explainer gradcam", "model densenet121"]`.
    #[serde(default)]
    pub at: Vec<String>,
}

/// A result with the boundary's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), at: Vec::new() }
    }

    /// An argument is wrong: [`ErrorKind::InvalidInput`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::InvalidInput, message)
    }

    /// Something is not offered: [`ErrorKind::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Unsupported, message)
    }

    /// A result is wrong: [`ErrorKind::InvalidOutput`].
    pub fn output(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::InvalidOutput, message)
    }

    /// Adds an outer place.
    pub fn context(mut self, place: impl Into<String>) -> Self {
        self.at.insert(0, place.into());
        self
    }

    pub(crate) fn to_wire(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| self.message.clone())
    }

    pub(crate) fn from_wire(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_else(|_| Error::new(ErrorKind::Other, text))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for place in &self.at {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<serde_json::Error> for Error {
    fn from(e: serde_json::Error) -> Self {
        Error::invalid(format!("malformed message: {e}"))
    }
}

impl From<ndarray::ShapeError> for Error {
    fn from(e: ndarray::ShapeError) -> Self {
        Error::invalid(e.to_string())
    }
}

#[cfg(feature = "tch")]
impl From<tch::TchError> for Error {
    /// Keeps libtorch's sentence and drops the C++ backtrace below it.
    fn from(e: tch::TchError) -> Self {
        let text = e.to_string();
        let end = text.find("Exception raised from").unwrap_or(text.len());
        Error::new(ErrorKind::Torch, text[..end].trim_end())
    }
}
