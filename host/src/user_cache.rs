//! Where this program keeps what it can make again: `LIGHTBOX_CACHE`, else `lightbox` in the user's folder of caches
//! (`XDG_CACHE_HOME`, `~/.cache`); where the variable is empty nothing is kept.

use std::path::PathBuf;

/// The folder; none where the user wants none or has no home.
pub fn folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    match std::env::var_os("LIGHTBOX_CACHE") {
        Some(folder) => (!folder.is_empty()).then(|| folder.into()),
        None => {
            let caches = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
            caches.filter(|c| c.is_absolute()).map(|c| c.join("lightbox"))
        }
    }
}
