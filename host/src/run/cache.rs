//! Prepared images that other runs of the same data find: one file a set, named by a hash of all that it depends on, the
//! contents of the images' files among it, so that a changed image is another name.
//!
//! `user_cache.rs` says in which folder. A run's file and the one kept are the same file by a hard link where the file system has
//! them, and otherwise a copy: who empties the folder harms no run. A file has its name after its last byte was written, and
//! one that is not whole is made anew. A set that no run has asked for in [`UNUSED`] goes.

use lightbox_core::data::store;
use lightbox_core::files;
use lightbox_core::{Error, Result};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// After this time without use a set is removed: what an older build has made is asked for by nobody.
const UNUSED: Duration = Duration::from_secs(60 * 24 * 3600);

/// Where prepared images are kept.
#[derive(Debug, Clone)]
pub struct Cache(PathBuf);

impl Cache {
    /// That of the environment; none where the user wants none or has no home.
    pub fn of_user() -> Option<Self> {
        crate::user_cache::folder().map(Cache)
    }

    /// The file of this name.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.safetensors"))
    }

    /// The file of its SHA-256.
    fn checksum(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.sha256"))
    }

    /// Gives a run what is kept under this name. False where there is nothing, or nothing whole with so many images.
    pub fn take(&self, name: &str, images: usize, file: &Path) -> Result<bool> {
        let kept = self.file(name);
        if !kept.is_file() {
            return Ok(false);
        }
        // That it may be read, before whether it is whole.
        std::fs::File::open(&kept).map_err(|e| Error::io(&kept, &e))?;
        // The file is the run's that made it, too: whoever changed it there has changed it here.
        let checksum = std::fs::read_to_string(self.checksum(name)).unwrap_or_default();
        let whole = store::images(&kept).is_ok_and(|n| n == images) && files::sha256(&kept)? == checksum.trim();
        if whole {
            place(&kept, file)?;
            touch(&kept);
        }
        Ok(whole)
    }

    /// Keeps a run's file under this name.
    pub fn keep(&self, file: &Path, name: &str) -> Result<()> {
        let kept = self.file(name);
        place(file, &kept)?;
        // Nobody is to write to it, by whichever of its names.
        let read_only = std::fs::Permissions::from_mode(0o444);
        std::fs::set_permissions(&kept, read_only).map_err(|e| Error::io(&kept, &e))?;
        files::write_text(&self.checksum(name), &files::sha256(&kept)?)?;
        for entry in std::fs::read_dir(&self.0).map_err(|e| Error::io(&self.0, &e))?.flatten() {
            let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
            // What a process that was killed left half written goes after a day.
            let (name, day) = (entry.file_name(), Duration::from_secs(24 * 3600));
            let name = name.to_string_lossy();
            let most = match (name.starts_with(files::HALF), name.ends_with(".safetensors")) {
                (true, _) => day,
                (false, true) => UNUSED,
                // The checksum of what has gone.
                (false, false)
                    if name.ends_with(".sha256") && !self.file(name.trim_end_matches(".sha256")).exists() =>
                {
                    day
                }
                (false, false) => continue,
            };
            if age.is_some_and(|age| age > most) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(())
    }
}

/// Says that a file was used. Another user's cannot be told so.
fn touch(file: &Path) {
    if let Ok(file) = std::fs::File::open(file) {
        let _ = file.set_modified(SystemTime::now());
    }
}

/// Makes `to` the file `from`: a link, or a copy where there can be none. What was there is replaced.
fn place(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, &e))?;
    // A name that is free; the link takes it.
    let link = tempfile::Builder::new().prefix(files::HALF).make_in(folder, |path| std::fs::hard_link(from, path));
    match link {
        // Renaming a link to the file itself does nothing, and the temporary name goes when it is dropped.
        Ok(link) => std::fs::rename(link.path(), to).map_err(|e| Error::io(to, &e)),
        Err(_) => {
            let mut source = std::fs::File::open(from).map_err(|e| Error::io(from, &e))?;
            files::write_atomic(to, |w| std::io::copy(&mut source, w).map(drop))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbox_core::data::{DataSpec, open, phantom::Phantom};
    use lightbox_core::task::Task;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn what_is_kept_is_taken_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache(folder.path().join("cache"));
        let data = DataSpec::Phantom(Phantom { count: 3, pixels: 32, ..Phantom::default() });
        let source = open(&data, &Task::default()).unwrap();
        let (made, taken) = (folder.path().join("a/images"), folder.path().join("b/images"));
        store::prepare(source.as_ref(), [32, 32], &made, &mut |_, _| {}, &|_| {}).unwrap();
        assert!(!cache.take("x", 3, &taken).unwrap() && !taken.exists());
        cache.keep(&made, "x").unwrap();
        cache.keep(&made, "x").unwrap();
        assert!(!cache.take("x", 4, &taken).unwrap(), "of another number of images");
        assert!(cache.take("x", 3, &taken).unwrap());
        let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
        assert_eq!(inode(&made), inode(&taken));
        assert_eq!(std::fs::read_dir(&cache.0).unwrap().count(), 2, "nothing half written");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&cache.file("x")), mode(&made)), (0o444, 0o444));
        // What nobody has used for long goes, and what is used stays.
        let old = SystemTime::now() - UNUSED - Duration::from_secs(9);
        for name in ["x", "y"] {
            // Not through a link to the file itself.
            let bytes = std::fs::read(&made).unwrap();
            let _ = std::fs::remove_file(cache.file(name));
            std::fs::write(cache.file(name), bytes).unwrap();
            std::fs::File::options().append(true).open(cache.file(name)).unwrap().set_modified(old).unwrap();
        }
        assert!(cache.take("x", 3, &taken).unwrap());
        cache.keep(&made, "z").unwrap();
        assert!(cache.file("x").is_file() && !cache.file("y").exists());
        // Changed in place, through whichever name, it is not taken: a store of the same size says nothing.
        let bytes = std::fs::read(&made).unwrap();
        let mut other = bytes.clone();
        *other.last_mut().unwrap() ^= 1;
        std::fs::remove_file(cache.file("x")).unwrap();
        std::fs::write(cache.file("x"), &other).unwrap();
        assert!(!cache.take("x", 3, &taken).unwrap());
        // Cut short, it is not taken, and what is made anew takes its place.
        std::fs::remove_file(cache.file("x")).unwrap();
        std::fs::write(cache.file("x"), &bytes[..bytes.len() - 1]).unwrap();
        assert!(!cache.take("x", 3, &taken).unwrap());
        cache.keep(&made, "x").unwrap();
        assert!(cache.take("x", 3, &taken).unwrap());
        assert_eq!(std::fs::read(&taken).unwrap(), bytes);
    }
}
