//! Keeps a hub on disk, so that what it has acknowledged outlives it.
//!
//! One file holds everything: the records of each shard (see [`fleetwave_hub_core::Change`]) and rows of
//! whoever else has something to keep ([`Table`]). One thread writes. What shards and others give it while it writes
//! waits and becomes the next transaction, so that a hundred writers cost no more syncs than one. A write is
//! acknowledged when its transaction is on disk.
//!
//! When the disk fails, the store is at its end: no later write can be trusted, because what the system still had
//! in memory may be lost without a word. All writes are refused from then on, the shards close their connections without
//! another byte, and the hub is to be started again. What it had acknowledged is there.

mod batch;
mod file;
mod journal;
mod load;
mod table;
mod writer;

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use crate::exposition::Instruments;
use file::DataFile;
pub(crate) use load::Restored;
pub use table::{Table, TableError};
pub(crate) use writer::Pending;
use writer::Writer;

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another hub has it.
    #[error(
        "{dir} is in use by another hub{}: stop that one, or give this one a folder of its own",
        process(*.pid)
    )]
    InUse {
        /// The folder.
        dir: Shown,
        /// The other hub's process, if it could be told.
        pid: Option<u32>,
    },
    /// A newer hub wrote it.
    #[error(
        "{file} was written by a newer version of this hub (format {format}; this one reads up to {ours}): use that version"
    )]
    Newer {
        /// The file.
        file: Shown,
        /// The file's format.
        format: u64,
        /// The newest that this hub reads.
        ours: u64,
    },
    /// It cannot be read.
    #[error(
        "{file} is damaged: {what}. Put a copy of it back, or move it away to begin with an empty hub; \
         the file is as it was found"
    )]
    Damaged {
        /// The file.
        file: Shown,
        /// What is wrong with it.
        what: String,
    },
    /// The system refuses.
    #[error("{path} cannot be opened as the hub's store: {source}")]
    Io {
        /// The folder or file.
        path: Shown,
        /// Why.
        source: io::Error,
    },
}

fn process(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

/// A path as messages show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown(PathBuf);

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.display().fmt(f)
    }
}

impl From<&Path> for Shown {
    fn from(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

/// The store has failed: nothing that was not acknowledged is certain, and nothing more is taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the store {dir} has failed: {why}. The hub takes nothing more; what it has acknowledged is safe. \
     Make room or repair the disk, and start it again"
)]
pub struct StoreError {
    dir: Shown,
    why: Arc<str>,
}

/// What is to be told once of a failure.
type OnFailure = Box<dyn FnOnce(&StoreError) + Send>;

/// A hub's store. Clones are the same store; the last one closes it.
#[derive(Clone)]
pub struct Store(Option<Arc<Open>>);

struct Open {
    /// Written before the file is let go.
    writer: Writer,
    file: Arc<DataFile>,
    failure: Arc<Failure>,
    /// Who wants to know how long it takes.
    measures: Arc<OnceLock<Instruments>>,
}

/// Whether a store has failed, and who wants to know.
struct Failure {
    dir: Shown,
    error: OnceLock<StoreError>,
    tell: Mutex<Option<OnFailure>>,
}

impl Failure {
    fn new(dir: &Path) -> Arc<Self> {
        Arc::new(Self { dir: dir.into(), error: OnceLock::new(), tell: Mutex::default() })
    }

    fn check(&self) -> Result<(), StoreError> {
        self.error.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    fn fail(&self, why: &str) -> StoreError {
        let error = self.error.get_or_init(|| StoreError { dir: self.dir.clone(), why: why.into() }).clone();
        tracing::error!(%error, "the store has failed");
        if let Some(tell) = self.tell.lock().expect("nothing panics under this lock").take() {
            tell(&error);
        }
        error
    }
}

impl Store {
    /// A store that keeps nothing.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    /// Opens the store in a folder, and makes both if they are not there.
    ///
    /// # Errors
    /// If another hub has it, a newer version wrote it, it is damaged, or the system refuses.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        Self::with_file(dir, DataFile::open(dir)?)
    }

    fn with_file(dir: &Path, file: DataFile) -> Result<Self, OpenError> {
        let file = Arc::new(file);
        let failure = Failure::new(dir);
        let measures = Arc::new(OnceLock::new());
        let writer = Writer::start(file.clone(), failure.clone(), measures.clone())
            .map_err(|source| OpenError::Io { path: dir.into(), source })?;
        Ok(Self(Some(Arc::new(Open { writer, file, failure, measures }))))
    }

    /// Whether it keeps anything.
    #[must_use]
    pub const fn is_durable(&self) -> bool {
        self.0.is_some()
    }

    /// Why it takes nothing more, if it has failed.
    #[must_use]
    pub fn failure(&self) -> Option<StoreError> {
        self.0.as_ref().and_then(|open| open.failure.check().err())
    }

    /// Tells how long it takes to `instruments`; only the first ones hear of it.
    pub(crate) fn measure(&self, instruments: &Instruments) {
        if let Some(open) = &self.0 {
            let _ = open.measures.set(instruments.clone());
        }
    }

    /// Calls `tell` on the writing thread when the store fails; only the last one that was given.
    pub(crate) fn on_failure(&self, tell: impl FnOnce(&StoreError) + Send + 'static) {
        if let Some(open) = &self.0 {
            *open.failure.tell.lock().expect("nothing panics under this lock") = Some(Box::new(tell));
        }
    }
}
