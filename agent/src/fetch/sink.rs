//! The file or device that a payload goes into, and the record of what of it is durable.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, MutexGuard};

use sha2::Sha256;
use tokio::sync::OwnedMutexGuard;

use super::progress::{Hashed, Origin, Progress, Subject};
use crate::install::Place;
use crate::{crash, files};

/// The file or device that a payload goes into, for one try. All of its methods block.
#[derive(Debug)]
pub(crate) struct Sink {
    file: File,
    regular: bool,
    subject: Subject,
    attempt: u64,
    progress: Arc<Mutex<Progress>>,
    /// Nobody else works on this target's payload as long as this exists.
    _gate: OwnedMutexGuard<()>,
}

impl Sink {
    /// Opens `place` to go on behind `offset`.
    pub(crate) fn open(
        place: &Place,
        subject: Subject,
        offset: u64,
        size: u64,
        (attempt, progress): (u64, Arc<Mutex<Progress>>),
        gate: OwnedMutexGuard<()>,
    ) -> io::Result<Self> {
        if place.capacity.is_some_and(|capacity| capacity < size) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let new = !place.path.exists();
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&place.path)?;
        let regular = file.metadata()?.is_file();
        if new {
            files::sync_dir(place.path.parent().expect("a place lies in a directory"))?;
        }
        if regular {
            // What lies behind was never said to be durable.
            file.set_len(offset)?;
            // Bytes that find no room would be paid for in vain.
            let system = rustix::fs::fstatvfs(&file)?;
            if u128::from(system.f_bavail) * u128::from(system.f_frsize) < u128::from(size - offset) {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        let sink = Self { file, regular, subject, attempt, progress, _gate: gate };
        if offset == 0 {
            // Before the first byte is overwritten nothing may claim any more that something is there.
            sink.forget()?;
        }
        Ok(sink)
    }

    pub(super) fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    /// Makes what was written durable, and then the record that says so of the first `bytes`.
    pub(super) fn sync(&self, bytes: u64, origin: Option<&Origin>) -> io::Result<()> {
        crash::point("payload: before");
        self.file.sync_data()?;
        self.reached(bytes, origin)
    }

    /// Nothing of what is there counts any more.
    pub(super) fn forget(&self) -> io::Result<()> {
        self.reached(0, None)
    }

    /// Removes what does not count.
    pub(super) fn empty(&self) -> io::Result<()> {
        if self.regular { self.file.set_len(0) } else { Ok(()) }
    }

    /// Keeps the hash of the first `length` bytes in memory, for who goes on or compares.
    pub(super) fn keep(&self, hash: Sha256, length: u64) {
        self.progress().keep(self.attempt, Hashed { subject: self.subject.clone(), hash, length });
    }

    fn reached(&self, bytes: u64, origin: Option<&Origin>) -> io::Result<()> {
        self.progress().reached(self.attempt, &self.subject, bytes, origin)
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().expect("nobody panics while holding it")
    }
}
