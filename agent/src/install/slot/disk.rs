//! Partitions and image files: how large they are, who uses them, and what really lies on the medium.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise, major, minor};
use sha2::{Digest as _, Sha256};
use tokio::task::spawn_blocking;

use crate::boot::{Pair, Slot, same};
use crate::install::InstallError;

/// How much is read at once.
const PIECE: usize = 256 * 1024;

/// Both slots are there, and not the same under two names.
pub(super) fn distinct(slots: &Pair<PathBuf>) -> Result<(), String> {
    let [a, b] = Slot::BOTH.map(|slot| slots.of(slot));
    for path in [a, b] {
        let kind = fs::metadata(path).map_err(|error| format!("the slot {}: {error}", path.display()))?;
        if !kind.is_file() && !kind.file_type().is_block_device() {
            return Err(format!("the slot {} is neither a block device nor a file", path.display()));
        }
    }
    if same(a, b) {
        return Err(format!(
            "{} and {} are the same: there would be nothing to go back to",
            a.display(),
            b.display()
        ));
    }
    Ok(())
}

/// Nobody uses it: it is mounted nowhere, and no part of something that is.
pub(super) fn unused(path: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("the slot {}: {error}", path.display());
    let kind = fs::metadata(path).map_err(failed)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(failed)?;
    if let Some(place) = devices(path, &kind).iter().find_map(|device| mounted(&mounts, device)) {
        return Err(format!("the slot {} is mounted at {place}: it is not written to", path.display()));
    }
    if kind.file_type().is_block_device() {
        // The kernel refuses this for a device that anything at all has claimed: a mount that cannot be seen from
        // here, a mapping, a swap area.
        File::options()
            .write(true)
            .custom_flags(rustix::fs::OFlags::EXCL.bits().cast_signed())
            .open(path)
            .map_err(|error| match error.kind() {
                io::ErrorKind::ResourceBusy => {
                    format!(
                        "the slot {} is in use (mounted elsewhere, mapped, swap): it is not written to",
                        path.display()
                    )
                }
                _ => failed(error),
            })?;
    }
    Ok(())
}

/// The devices that a slot may be mounted as.
fn devices(path: &Path, kind: &fs::Metadata) -> Vec<String> {
    if kind.file_type().is_block_device() {
        return vec![format!("{}:{}", major(kind.rdev()), minor(kind.rdev()))];
    }
    let Ok(path) = fs::canonicalize(path) else { return Vec::new() };
    let Ok(blocks) = fs::read_dir("/sys/block") else { return Vec::new() };
    let number = |block: PathBuf| {
        let backing = fs::read_to_string(block.join("loop/backing_file")).ok()?;
        let number = fs::read_to_string(block.join("dev")).ok()?;
        (Path::new(backing.trim_end()) == path).then(|| number.trim().to_owned())
    };
    blocks.flatten().filter_map(|block| number(block.path())).collect()
}

/// Where a device is mounted, by `/proc/self/mountinfo`: number, parent, device, root, place, …
fn mounted<'a>(mounts: &'a str, device: &str) -> Option<&'a str> {
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(2);
        (words.next() == Some(device)).then(|| words.nth(1)).flatten()
    })
}

/// How much fits, where that is fixed.
pub(super) fn capacity(path: &Path) -> io::Result<Option<u64>> {
    if fs::metadata(path)?.file_type().is_block_device() {
        File::open(path)?.seek(SeekFrom::End(0)).map(Some)
    } else {
        Ok(None)
    }
}

/// Makes a file empty, so that nothing in it passes for the next payload. A partition stays as it is: what counts of it
/// is remembered elsewhere.
pub(super) fn empty(path: &Path) -> io::Result<()> {
    if fs::metadata(path)?.is_file() {
        let file = File::options().write(true).open(path)?;
        file.set_len(0)?;
        file.sync_all()?;
    }
    Ok(())
}

/// Has all that was written to it reach the medium.
pub(super) async fn sync(path: PathBuf) -> Result<(), InstallError> {
    let what = format!("syncing the slot {}", path.display());
    aside(what, move || File::options().write(true).open(&path)?.sync_all()).await
}

/// The SHA-256 of the first `size` bytes, read from the medium and not from memory.
pub(super) async fn digest(path: PathBuf, size: u64) -> Result<[u8; 32], InstallError> {
    let what = format!("reading the slot {}", path.display());
    aside(what, move || {
        let mut file = File::open(&path)?;
        // Only what is clean is dropped from memory, and the slot has been synced.
        fadvise(&file, 0, None, Advice::DontNeed)?;
        fadvise(&file, 0, None, Advice::Sequential)?;
        let mut hash = Sha256::new();
        let mut piece = vec![0; PIECE];
        let mut left = size;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            match file.read(&mut piece[..wanted])? {
                0 => break,
                length => {
                    hash.update(&piece[..length]);
                    left -= length as u64;
                }
            }
        }
        // Nobody needs it again soon, and others need the memory.
        fadvise(&file, 0, None, Advice::DontNeed)?;
        Ok(hash.finalize().into())
    })
    .await
}

/// Does what would hold up everybody else on a thread of its own.
async fn aside<T: Send + 'static>(
    what: String,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, InstallError> {
    let done = spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    done.map_err(InstallError::io(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_devices_number() {
        let mounts =
            "22 27 0:21 / /proc rw - proc proc rw\n30 27 179:3 / /mnt/b rw shared:1 - ext4 /dev/x rw\n";
        assert_eq!(mounted(mounts, "179:3"), Some("/mnt/b"));
        assert_eq!(mounted(mounts, "179:33"), None);
        assert_eq!(mounted(mounts, "22"), None);
    }
}
