//! One error for all of core: what was wrong, where, and what to do.

use std::fmt;
use std::path::{Path, PathBuf};

/// A failure that a user can act on.
#[derive(Debug, Clone, PartialEq)]
pub struct Error {
    /// What was wrong.
    pub what: String,
    /// The file or folder, where there is one.
    pub path: Option<PathBuf>,
    /// What to do, where it is not plain.
    pub hint: Option<String>,
    /// True when the disk was full: nothing was lost and the same command continues.
    pub disk_full: bool,
}

/// What fallible functions of this crate return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error that says what is wrong.
    pub fn new(what: impl Into<String>) -> Self {
        Error { what: what.into(), path: None, hint: None, disk_full: false }
    }

    /// An error about a file.
    pub fn at(path: &Path, what: impl Into<String>) -> Self {
        Error { path: Some(path.to_path_buf()), ..Error::new(what) }
    }

    /// An input or output error about a file.
    pub fn io(path: &Path, e: &std::io::Error) -> Self {
        if matches!(e.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) {
            let hint = "free some space and run the same command again; what was finished is kept";
            return Error { disk_full: true, ..Error::at(path, "no space left on the disk").hint(hint) };
        }
        let what = match e.kind() {
            std::io::ErrorKind::NotFound => "no such file or folder".into(),
            std::io::ErrorKind::PermissionDenied => "permission denied".into(),
            _ => e.to_string(),
        };
        Error::at(path, what)
    }

    /// The same error with what to do.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Names the file of an error that has none.
    pub fn with_path(mut self, path: &Path) -> Self {
        self.path.get_or_insert_with(|| path.to_path_buf());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{}: ", path.display())?;
        }
        f.write_str(&self.what)?;
        match &self.hint {
            Some(hint) => write!(f, " (hint: {hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

impl From<tch::TchError> for Error {
    /// Keeps libtorch's sentence and drops the C++ backtrace below it.
    fn from(e: tch::TchError) -> Self {
        let text = e.to_string();
        let end = text.find("Exception raised from").unwrap_or(text.len());
        Error::new(text[..end].trim_end())
    }
}
