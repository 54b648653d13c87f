//! Files that survive a power cut: what every other module needs of the file system.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use fleetwave_agent_core::StorageError;

use crate::crash;

/// Makes the names in a directory durable: a file that was created, renamed or removed there.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Where a file is written that is to take the place of another one.
pub(crate) fn beside(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// Puts `content` in place of a file, all of it or nothing.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = beside(path);
    crash::point("replace: before");
    let written = File::create(&new).and_then(|mut file| {
        file.write_all(crash::torn("replace: torn", content))?;
        file.sync_all()?;
        crash::point("replace: written");
        fs::rename(&new, path)
    });
    if let Err(error) = written {
        // On a disk that is full, half a file is in the way of everybody.
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    crash::point("replace: renamed");
    sync_dir(path.parent().expect("a file of the state directory lies in it"))?;
    crash::point("replace: durable");
    Ok(())
}

/// Removes a file for good; that there is none is fine.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    crash::point("remove: before");
    match fs::remove_file(path) {
        // Not even the directory may be there.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        removed => removed?,
    }
    sync_dir(path.parent().expect("a file of the state directory lies in it"))?;
    crash::point("remove: durable");
    Ok(())
}

/// What somebody can do about a failure of the storage.
pub(crate) fn remedy(error: StorageError) -> &'static str {
    match error {
        StorageError::NoSpace => "make room there",
        StorageError::ReadOnly => {
            "find out why it is read-only (the kernel's log says it), and mount it read-write"
        }
        StorageError::Failed => {
            "see to it that the agent may write there, and what the kernel's log says of the medium"
        }
    }
}

/// What the machine is told of a failure.
pub(crate) fn storage_error(error: &io::Error) -> StorageError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StorageError::NoSpace,
        io::ErrorKind::ReadOnlyFilesystem => StorageError::ReadOnly,
        _ => StorageError::Failed,
    }
}
