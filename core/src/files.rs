//! Files that are either whole or not there.

use crate::{Error, Result};
use std::io::{BufWriter, Read, Write};
use std::path::Path;

/// What the names of files begin with that are being written.
pub const HALF: &str = ".writing-";

/// Writes a file through a temporary one beside it, synced before it takes the name: after a crash or on a full disk
/// the old content, or nothing, is there.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let at = |e: std::io::Error| Error::io(path, &e);
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, &e))?;
    let mut temporary = tempfile::Builder::new().prefix(HALF).tempfile_in(folder).map_err(at)?;
    {
        let mut buffer = BufWriter::new(temporary.as_file_mut());
        write(&mut buffer).map_err(at)?;
        buffer.flush().map_err(at)?;
    }
    persist(temporary, path)
}

/// Gives a temporary file that is whole its name.
pub(crate) fn persist(temporary: tempfile::NamedTempFile, path: &Path) -> Result<()> {
    temporary.as_file().sync_all().map_err(|e| Error::io(path, &e))?;
    // tempfile makes private files; results are for everyone who may read the folder.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let _ = temporary.as_file().set_permissions(std::fs::Permissions::from_mode(0o644));
    }
    temporary.persist(path).map_err(|e| Error::io(path, &e.error))?;
    Ok(())
}

/// [`write_atomic`] of text.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    write_atomic(path, |w| w.write_all(text.as_bytes()))
}

/// The whole file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let mut file = open_regular(path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|e| Error::io(path, &e))?;
    Ok(bytes)
}

/// Opens a file for reading. A pipe or a device, which may give bytes for ever or none, is an error.
///
/// # Errors
/// There is no such file, it cannot be read, or it is no regular file.
pub fn open_regular(path: &Path) -> Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    // A pipe that nobody writes to does not hold us up.
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.map_err(|e| Error::io(path, &e))?;
    match file.metadata().map_err(|e| Error::io(path, &e))? {
        meta if meta.is_file() => Ok(file),
        meta if meta.is_dir() => Err(Error::at(path, "it is a folder, not a file")),
        _ => Err(Error::at(path, "it is a pipe or a device, not a file")),
    }
}

/// The SHA-256 of a file, in hexadecimal.
pub fn sha256(path: &Path) -> Result<String> {
    use sha2::{Digest, Sha256};
    let mut file = open_regular(path)?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut hash).map_err(|e| Error::io(path, &e))?;
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_leaves_the_old_file_and_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("unit.parquet");
        write_text(&path, "old").unwrap();
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = write_atomic(&path, |w| w.write_all(b"half").and(Err(full()))).unwrap_err();
        assert!(error.disk_full);
        assert!(error.to_string().ends_with(
            "unit.parquet: no space left on the disk (hint: free some space and run the same command again; what was \
             finished is kept)"
        ));
        assert_eq!(read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "the temporary file is gone");
    }
}
