//! All sources of plugins, and the plugins that this process has opened.

use super::dylib::Dylibs;
use super::peers::Peers;
use super::programs::Programs;
use super::python::Python;
use super::source::{OpenPlugin, PluginSource};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// All sources.
pub const SOURCES: &[&dyn PluginSource] = &[&Dylibs, &Programs, &Python, &Peers];

/// The source of a file.
///
/// # Errors
/// No source takes such files.
pub fn source_of(file: &Path) -> Result<&'static dyn PluginSource> {
    SOURCES.iter().find(|source| source.takes(file)).copied().ok_or_else(|| {
        let known: Vec<&str> = SOURCES.iter().map(|source| source.name()).collect();
        Error::plugin(format!("{}: no plugin by its name; {} expected", file.display(), known.join(" or ")))
    })
}

/// The plugins that this process has opened. Code is never unloaded, so each is opened once and kept.
static OPEN: Mutex<BTreeMap<PathBuf, &'static dyn OpenPlugin>> = Mutex::new(BTreeMap::new());

/// A plugin, opened in this process unless it was before.
///
/// # Errors
/// As [`PluginSource::open`].
pub fn open(file: &Path) -> Result<&'static dyn OpenPlugin> {
    let all = || OPEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(plugin) = all().get(file) {
        return Ok(*plugin);
    }
    // Not under the lock: a program opens the library that runs it.
    let opened: &'static dyn OpenPlugin = Box::leak(source_of(file)?.open(file)?);
    Ok(*all().entry(file.to_path_buf()).or_insert(opened))
}
