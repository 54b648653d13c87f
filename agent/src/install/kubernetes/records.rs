//! What the installer keeps on disk. The cluster says what it runs; this says what it should run, and what for.
//!
//! ```text
//! manifest.yaml     the payload
//! staged.json       its objects, tried out and ready to be applied
//! trial.json        what is being applied or is on trial, and which of its objects were not there before
//! committed.json    what runs if nothing else is said, and objects of former releases that are still to be deleted
//! ```
//!
//! Manifests may hold secrets: the directory is for the agent's user alone.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::manifest::Item;
use crate::files;
use crate::install::{InstallError, Reference};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Staged {
    pub(super) release: Reference,
    pub(super) items: Vec<Item>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Trial {
    pub(super) release: Reference,
    pub(super) items: Vec<Item>,
    /// For each item, whether the trial made it: what was there before belongs to somebody.
    pub(super) made: Vec<bool>,
    /// It has been given up: what was committed is to be applied again.
    pub(super) over: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Committed {
    pub(super) release: Reference,
    pub(super) items: Vec<Item>,
    pub(super) obsolete: Vec<Item>,
}

#[derive(Clone, Debug)]
pub(super) struct Records {
    dir: PathBuf,
    /// What the operator says that runs before the first update.
    installed: Reference,
}

impl Records {
    pub(super) fn new(dir: PathBuf, installed: Reference) -> Self {
        Self { dir, installed }
    }

    pub(super) fn payload(&self) -> PathBuf {
        self.dir.join("manifest.yaml")
    }

    /// Makes the directory, if there is none, and keeps others out.
    pub(super) fn prepare(&self) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        fs::set_permissions(&self.dir, Permissions::from_mode(0o700))
    }

    pub(super) fn staged(&self) -> Result<Option<Staged>, InstallError> {
        read(&self.dir.join("staged.json"))
    }

    pub(super) fn stage(&self, staged: &Staged) -> Result<(), InstallError> {
        write(&self.dir.join("staged.json"), staged)
    }

    /// Forgets payload and staged release.
    pub(super) fn unstage(&self) -> io::Result<()> {
        files::remove(&self.dir.join("staged.json"))?;
        files::remove(&self.payload())
    }

    pub(super) fn trial(&self) -> Result<Option<Trial>, InstallError> {
        read(&self.dir.join("trial.json"))
    }

    pub(super) fn try_out(&self, trial: &Trial) -> Result<(), InstallError> {
        write(&self.dir.join("trial.json"), trial)
    }

    pub(super) fn end_trial(&self) -> Result<(), InstallError> {
        let path = self.dir.join("trial.json");
        files::remove(&path).map_err(InstallError::io(path.display().to_string()))
    }

    pub(super) fn committed(&self) -> Result<Committed, InstallError> {
        let committed = read(&self.dir.join("committed.json"))?;
        let none = || Committed { release: self.installed.clone(), items: Vec::new(), obsolete: Vec::new() };
        Ok(committed.unwrap_or_else(none))
    }

    pub(super) fn commit(&self, committed: &Committed) -> Result<(), InstallError> {
        write(&self.dir.join("committed.json"), committed)
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, InstallError> {
    let content = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        content => content,
    };
    let read = content.and_then(|content| serde_json::from_slice(&content).map_err(io::Error::from));
    read.map(Some).map_err(InstallError::io(path.display().to_string()))
}

fn write(path: &Path, value: &impl Serialize) -> Result<(), InstallError> {
    let written = serde_json::to_vec(value).map_err(io::Error::from);
    let written = written.and_then(|content| files::replace(path, &content));
    written.map_err(InstallError::io(path.display().to_string()))
}
