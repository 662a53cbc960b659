//! Which images a worker is reading, in a small file of the run's folder: where a file ends the process (a library's fault, the
//! system for want of memory), the supervisor can say which it was. A slot a thread, written before an image is read and emptied
//! after it; a write of 256 bytes costs nothing beside an image.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of a slot: longer names are cut.
const SLOT: usize = 256;

/// A worker's side.
pub struct Reading(Option<File>);

impl Reading {
    /// Begins anew. A file that cannot be written only costs the names.
    pub fn new(path: &Path) -> Self {
        Reading(File::create(path).ok())
    }

    /// This thread begins with an image, or has ended with the one before.
    pub fn set(&self, image: Option<&str>) {
        let mut slot = [0u8; SLOT];
        let name = image.unwrap_or_default().as_bytes();
        let length = name.len().min(SLOT);
        slot[..length].copy_from_slice(&name[..length]);
        let thread = rayon::current_thread_index().unwrap_or(0);
        let _ = self.0.as_ref().map(|file| file.write_all_at(&slot, (thread * SLOT) as u64));
    }
}

/// The images that were being read when a worker was lost.
pub fn last(path: &Path) -> Vec<String> {
    let bytes = std::fs::read(path).unwrap_or_default();
    let name = |slot: &[u8]| String::from_utf8_lossy(slot).trim_end_matches('\0').to_string();
    bytes.chunks(SLOT).map(name).filter(|name| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_being_read_is_known_to_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reading");
        assert!(last(&path).is_empty());
        let reading = Reading::new(&path);
        reading.set(Some("a.png"));
        assert_eq!(last(&path), ["a.png"]);
        reading.set(Some(&"x".repeat(400)));
        assert_eq!(last(&path), ["x".repeat(SLOT)]);
        reading.set(None);
        assert!(last(&path).is_empty());
        // Each thread has its own.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        pool.broadcast(|thread| reading.set(Some(&format!("{}.png", thread.index()))));
        assert_eq!(last(&path), ["0.png", "1.png", "2.png"]);
    }
}
