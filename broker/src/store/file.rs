//! The file: how it is opened and locked, and the tables in it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};

use redb::{
    Builder, Database, DatabaseError, ReadableDatabase as _, StorageError, TableDefinition, TableHandle as _,
};

use super::OpenError;

/// What devices refer to, by number.
pub(super) const PARTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("parts");
/// Devices and modules, by number.
pub(super) const DEVICES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("devices");
/// Configurations, by id.
pub(super) const CONFIGURATIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("configurations");
/// What others keep, by the name of their table and their own key.
pub(super) const ROWS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("rows");
/// What the file is.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

const FORMAT_KEY: &str = "format";
/// The newest format that this version reads, and the one that it writes. To be raised when an older version would
/// misread what is written; a field that it may skip is no reason.
const FORMAT: u64 = 1;

const FILE: &str = "hub.redb";
/// A file that is being made. One that is found was never used.
const NEW_FILE: &str = "hub.redb.new";
const LOCK: &str = "lock";

/// Bytes of pages that are kept in memory. All that is read again and again are the upper pages of few tables.
const CACHE: usize = 64 << 20;

/// An open file. Nobody else has it.
#[derive(Debug)]
pub(super) struct DataFile {
    pub(super) database: Database,
    pub(super) path: PathBuf,
    /// Let go after the database is closed: fields are dropped in order.
    _lock: Option<File>,
}

impl DataFile {
    pub(super) fn open(dir: &Path) -> Result<Self, OpenError> {
        let failed = |path: &Path| {
            let path = path.into();
            |source| OpenError::Io { path, source }
        };
        fs::create_dir_all(dir).map_err(failed(dir))?;
        let lock = lock(dir)?;
        let path = dir.join(FILE);
        if !path.try_exists().map_err(failed(&path))? {
            make(dir, &path)?;
        }
        // A file that is damaged may bring the reader to panic: that is an answer, too.
        let opened = panic::catch_unwind(AssertUnwindSafe(|| open(dir, &path)));
        let database = opened.unwrap_or_else(|_| Err(damaged(&path, "its pages do not fit together")))?;
        Ok(Self { database, path, _lock: Some(lock) })
    }

    /// A file that is somewhere else than in a folder.
    #[cfg(test)]
    pub(super) fn on(backend: impl redb::StorageBackend) -> Self {
        let database = builder().create_with_backend(backend).unwrap();
        begin(&database).unwrap();
        Self { database, path: "in memory".into(), _lock: None }
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE);
    builder
}

pub(super) fn damaged(path: &Path, what: impl Into<String>) -> OpenError {
    OpenError::Damaged { file: path.into(), what: what.into() }
}

/// Takes the folder, for as long as the file that this answers is open.
fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK);
    let failed = |source| OpenError::Io { path: path.as_path().into(), source };
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let read = file.read_to_string(&mut pid);
            return Err(OpenError::InUse {
                dir: dir.into(),
                pid: read.ok().and_then(|_| pid.trim().parse().ok()),
            });
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write(&mut file).map_err(failed)?;
    Ok(file)
}

/// Makes a file with empty tables. It gets its name when it is whole.
fn make(dir: &Path, path: &Path) -> Result<(), OpenError> {
    let new = dir.join(NEW_FILE);
    let failed = |source| OpenError::Io { path: new.as_path().into(), source };
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let database = builder().create(&new).map_err(|error| unopened(dir, &new, error))?;
    begin(&database).map_err(|error| failed(io::Error::other(error)))?;
    drop(database);
    fs::rename(&new, path).and_then(|()| File::open(dir)?.sync_all()).map_err(failed)
}

/// Writes what an empty file says.
fn begin(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(META)?.insert(FORMAT_KEY, FORMAT)?;
    transaction.open_table(PARTS)?;
    transaction.open_table(DEVICES)?;
    transaction.open_table(CONFIGURATIONS)?;
    transaction.open_table(ROWS)?;
    transaction.commit()?;
    Ok(())
}

fn open(dir: &Path, path: &Path) -> Result<Database, OpenError> {
    let mut database =
        builder().set_check_integrity_on_open(true).open(path).map_err(|error| unopened(dir, path, error))?;
    let format = format(&database).map_err(|error| damaged(path, error.to_string()))?;
    match format {
        Some(FORMAT) => {}
        Some(format) if format > FORMAT => {
            return Err(OpenError::Newer { file: path.into(), format, ours: FORMAT });
        }
        _ => return Err(damaged(path, "it is no hub's store")),
    }
    match database.check_integrity() {
        Ok(true) => Ok(database),
        Ok(false) => Err(damaged(path, "its checksums do not fit")),
        Err(error) => Err(unopened(dir, path, error)),
    }
}

/// The format of a file; `None` if it says none.
fn format(database: &Database) -> Result<Option<u64>, redb::Error> {
    let transaction = database.begin_read()?;
    if !transaction.list_tables()?.any(|table| table.name() == META.name()) {
        return Ok(None);
    }
    Ok(transaction.open_table(META)?.get(FORMAT_KEY)?.map(|format| format.value()))
}

fn unopened(dir: &Path, path: &Path, error: DatabaseError) -> OpenError {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            OpenError::InUse { dir: dir.into(), pid: None }
        }
        DatabaseError::Storage(StorageError::Io(source)) if source.kind() != io::ErrorKind::InvalidData => {
            OpenError::Io { path: path.into(), source }
        }
        DatabaseError::Storage(StorageError::Corrupted(what)) => damaged(path, what),
        other => damaged(path, other.to_string()),
    }
}
