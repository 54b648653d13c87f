//! How much of a payload in flight is durable. The length of its file does not say it: a block device has always the
//! same, and a file system may have made a file longer before its bytes were on disk.
//!
//! The file holds two records in places of their own, written by turns: one that was torn by a power cut leaves the one
//! before it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use fleetwave_agent_core::Release;
use sha2::{Digest as _, Sha256};

use crate::{crash, files};

const NAME: &str = "partial";
/// Sectors are written as a whole, or not at all.
const SECTOR: u64 = 512;
/// A count of bytes, and a checksum of it and of the release.
const RECORD: usize = 8 + 16;

/// What is known of the payload of one release.
#[derive(Debug)]
pub(crate) struct Progress {
    path: PathBuf,
    key: [u8; 32],
    file: Option<File>,
    turn: u64,
}

impl Progress {
    /// Of the payload of `release`, kept in `dir`.
    pub(crate) fn new(dir: &Path, release: &Release) -> Self {
        let mut hash = Sha256::new();
        hash.update(release.sequence.to_le_bytes());
        hash.update(release.size.to_le_bytes());
        hash.update(release.digest);
        hash.update(&*release.id);
        Self { path: dir.join(NAME), key: hash.finalize().into(), file: None, turn: 0 }
    }

    /// How many bytes from the start are durable: none if nothing sound says so of this release.
    pub(crate) fn read(&self) -> u64 {
        let Ok(file) = File::open(&self.path) else { return 0 };
        let mut record = [0; RECORD];
        let sound = (0..2).filter_map(|turn| {
            file.read_exact_at(&mut record, turn * SECTOR).ok()?;
            let bytes = u64::from_le_bytes(record[..8].try_into().ok()?);
            (record == self.record(bytes)).then_some(bytes)
        });
        sound.max().unwrap_or(0)
    }

    /// Records that so many bytes are durable. Called after they are.
    ///
    /// # Errors
    /// If that cannot be made durable itself; what was recorded before still holds.
    pub(crate) fn write(&mut self, bytes: u64) -> io::Result<()> {
        let record = self.record(bytes);
        let file = match &self.file {
            Some(file) => file,
            None => {
                let open = OpenOptions::new().write(true).create(true).truncate(false).open(&self.path)?;
                files::sync_dir(self.path.parent().expect("it lies in a directory"))?;
                self.file.insert(open)
            }
        };
        crash::point("partial: before");
        file.write_all_at(&record, self.turn * SECTOR)?;
        file.sync_data()?;
        crash::point("partial: after");
        self.turn = 1 - self.turn;
        Ok(())
    }

    /// Forgets all that was recorded in `dir`. Called before the bytes are touched.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub(crate) fn forget(dir: &Path) -> io::Result<()> {
        files::remove(&dir.join(NAME))
    }

    fn record(&self, bytes: u64) -> [u8; RECORD] {
        let mut record = [0; RECORD];
        let (count, checksum) = record.split_at_mut(8);
        count.copy_from_slice(&bytes.to_le_bytes());
        let mut hash = Sha256::new();
        hash.update(self.key);
        hash.update(bytes.to_le_bytes());
        checksum.copy_from_slice(&hash.finalize()[..16]);
        record
    }
}

#[cfg(test)]
mod tests {
    use fleetwave_agent_core::{Releases, TrustRoot};

    use super::*;

    fn release(id: &str) -> Release {
        let mut releases = Releases::new(TrustRoot::default());
        let id = releases.preinstalled(id, 2);
        releases[id].clone()
    }

    #[test]
    fn the_last_record_counts_and_only_for_its_release() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut progress = Progress::new(dir.path(), &release("fw-2"));
        assert_eq!(progress.read(), 0);
        for bytes in [1, 70_000, 1 << 40] {
            progress.write(bytes).expect("written");
            assert_eq!(Progress::new(dir.path(), &release("fw-2")).read(), bytes);
        }
        assert_eq!(Progress::new(dir.path(), &release("fw-3")).read(), 0);
        Progress::forget(dir.path()).expect("removed");
        assert_eq!(progress.read(), 0);
    }

    #[test]
    fn a_torn_record_leaves_the_one_before() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut progress = Progress::new(dir.path(), &release("fw-2"));
        progress.write(10).expect("written");
        progress.write(20).expect("written");
        let whole = std::fs::read(dir.path().join(NAME)).expect("reads");
        for at in 512..whole.len() {
            let mut torn = whole.clone();
            torn[at] ^= 1;
            std::fs::write(dir.path().join(NAME), &torn).expect("writes");
            assert_eq!(progress.read(), 10, "byte {at}");
            std::fs::write(dir.path().join(NAME), &whole[..at]).expect("writes");
            assert_eq!(progress.read(), 10, "cut at {at}");
        }
    }
}
