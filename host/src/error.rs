//! Errors and exit codes: one code a cause.

use std::fmt;

/// Documented in `docs/user-guide.md`; `lightbox --help` lists them too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Ok = 0,
    /// Something that has no code of its own.
    Other = 1,
    /// The command line is wrong (clap's own code).
    Usage = 2,
    /// A spec, image, table, checkpoint or other input is wrong.
    Input = 3,
    /// A plugin cannot be loaded, is missing or names are double.
    Plugin = 4,
    /// The run ended; some cells of its table failed.
    FailedCells = 5,
    /// The disk is full. What was finished is kept.
    DiskFull = 6,
    /// `lightbox check` found a failure.
    CheckFailed = 7,
    /// Training diverged. The last good checkpoint is kept.
    Diverged = 8,
    /// Stopped by Ctrl-C or SIGTERM. The same command continues.
    Interrupted = 130,
}

/// A failure with its exit code.
#[derive(Debug, Clone)]
pub struct Error {
    pub exit: Exit,
    /// What is wrong, and where.
    pub message: String,
    /// What to do about it; empty where nothing is known.
    pub hint: String,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Error { exit, message: message.into(), hint: String::new() }
    }

    /// The same with what to do about it.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Error { hint: hint.into(), ..self }
    }

    /// The same, said of a place: `place: message`.
    pub fn of(self, place: impl fmt::Display) -> Self {
        Error { message: format!("{place}: {}", self.message), ..self }
    }

    pub fn input(message: impl Into<String>) -> Self {
        Error::new(Exit::Input, message)
    }

    pub fn plugin(message: impl Into<String>) -> Self {
        Error::new(Exit::Plugin, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, " (hint: {})", self.hint) }
    }
}

impl std::error::Error for Error {}

impl From<lightbox_core::Error> for Error {
    fn from(e: lightbox_core::Error) -> Self {
        let exit = if e.disk_full { Exit::DiskFull } else { Exit::Input };
        let hint = e.hint.clone().unwrap_or_default();
        Error::new(exit, lightbox_core::Error { hint: None, ..e }.to_string()).hint(hint)
    }
}

impl From<lightbox_sdk::Error> for Error {
    fn from(e: lightbox_sdk::Error) -> Self {
        let exit = if e.kind == lightbox_sdk::ErrorKind::InvalidInput { Exit::Input } else { Exit::Plugin };
        Error::new(exit, e.to_string())
    }
}

impl From<tch::TchError> for Error {
    fn from(e: tch::TchError) -> Self {
        Error { exit: Exit::Other, ..Error::from(lightbox_core::Error::from(e)) }
    }
}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        let full = matches!(e.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
        Error::new(if full { Exit::DiskFull } else { Exit::Other }, e.to_string())
    }
}
