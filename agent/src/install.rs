//! What an installer is: the part of the agent that puts a release where it belongs and makes it run. There is one
//! for each *target*: the device's firmware, a component, a workload.
//!
//! An installer keeps nothing in memory. What it knows it reads from where it installs (partitions, boot loader
//! variables, links, a cluster), so that a start after a power cut needs nothing else. Each step may be done twice.

#[cfg(test)]
mod bench;
mod component;
mod directory;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod owner;
mod podman;
#[cfg(feature = "rauc")]
mod rauc;
mod slot;
mod switch;
mod unpack;

use std::fmt;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use fleetwave_agent_core::{Release, StorageError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{Rows, Section, nearest};
use crate::files::{self, storage_error};
use crate::target::Target;

/// A step that takes its time. It may be dropped at any point, as a power cut would.
pub(crate) type Later<T> = Pin<Box<dyn Future<Output = T>>>;

/// The reference of a release, as it stood in the twin.
pub(crate) type Reference = Map<String, Value>;

/// Where an installer works.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// For what.
    pub(crate) target: Target,
    /// Where it may keep what it needs; there may be nothing yet, not even the directory.
    pub(crate) dir: PathBuf,
    /// What the operator says that runs before the first update.
    pub(crate) installed: Reference,
}

/// The section of a target in the configuration, as its installer reads it.
pub(crate) trait Options: fmt::Debug + Send + Sync {
    /// The installer for `site`. Nothing is touched yet.
    fn installer(&self, site: Site) -> Rc<dyn Installer>;

    /// What a release on trial has to do beside reaching the hub, and within how many seconds; `None` if nothing.
    fn trial(&self) -> Option<(String, u64)> {
        None
    }

    /// What there is to know of it, for people.
    fn describe(&self) -> Rows {
        Rows::new()
    }
}

/// The installers, by the name that the configuration has for them.
///
/// # Errors
/// If there is none of this name, or its options are wrong.
pub(crate) fn options(name: &str, section: Section<'_>) -> Result<Arc<dyn Options>, toml::de::Error> {
    Ok(match name {
        "component" => Arc::new(section.read::<component::Options>()?),
        "directory" => Arc::new(section.read::<directory::Options>()?),
        "podman" => Arc::new(section.read::<podman::Options>()?),
        "slot" => Arc::new(section.read::<slot::Options>()?),
        #[cfg(feature = "rauc")]
        "rauc" => Arc::new(section.read::<rauc::Options>()?),
        #[cfg(feature = "kubernetes")]
        "kubernetes" => Arc::new(section.read::<kubernetes::Options>()?),
        _ => {
            let meant = nearest(name, NAMES).map(|meant| format!("did you mean {meant:?}? "));
            let (meant, names) = (meant.unwrap_or_default(), NAMES.join(", "));
            return Err(section.mistake(format!("there is no installer {name:?}: {meant}There are {names}")));
        }
    })
}

/// All that this agent was built with.
pub(crate) const NAMES: &[&str] = &[
    "component",
    "directory",
    "podman",
    "slot",
    #[cfg(feature = "rauc")]
    "rauc",
    #[cfg(feature = "kubernetes")]
    "kubernetes",
];

/// Those that boot what they install, which only the firmware may do.
pub(crate) const FIRMWARE_ONLY: [&str; 2] = ["slot", "rauc"];

/// What a target runs, by its own account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Standing {
    /// What runs now; another one than `committed` while that is on trial.
    pub(crate) running: Reference,
    /// What runs after the next power cut if nothing else is said.
    pub(crate) committed: Reference,
}

impl Standing {
    const FILE: &str = "standing.json";

    /// Keeps it for `fleetwave-agent status`, which asks no installer.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        if Self::read(dir)?.as_ref() == Some(self) {
            return Ok(());
        }
        std::fs::create_dir_all(dir)?;
        files::replace(&dir.join(Self::FILE), &serde_json::to_vec(self)?)
    }

    /// What was kept last; `None` if no agent has run there.
    pub(crate) fn read(dir: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(dir.join(Self::FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => Ok(serde_json::from_slice(&read?).ok()),
        }
    }
}

/// Where the bytes of a payload go, so that staging needs no second copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// A file, or a block device.
    pub(crate) path: PathBuf,
    /// How much fits, where that is fixed: a block device is not as long as what was written to it.
    pub(crate) capacity: Option<u64>,
}

/// A file or device of which much is likely to stand in the next release, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seed {
    pub(crate) path: PathBuf,
    /// So much of it is of interest.
    pub(crate) length: u64,
}

/// What is under way after something was made to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activated {
    /// It runs: the target's next life begins at once.
    Running,
    /// Nothing went down, but what stands for a boot has happened: the whole agent begins its life anew.
    Anew,
    /// The machine goes down, and this process with it.
    GoingDown,
}

/// Puts releases where they belong and makes them run.
pub(crate) trait Installer: fmt::Debug {
    /// What runs, after settling what a power cut left half done. The first call at each start.
    fn standing(self: Rc<Self>) -> Later<Result<Standing, InstallError>>;

    /// Where the payload of `release` goes.
    ///
    /// # Errors
    /// If there is no such place, or it is the one that runs.
    fn place(&self, release: &Release) -> io::Result<Place>;

    /// Makes the verified payload, which lies in its place, ready to run. What runs is not touched.
    fn stage(self: Rc<Self>, release: Release) -> Later<Result<(), InstallError>>;

    /// Runs what was staged, on trial: after a power cut what was committed runs again.
    fn activate(self: Rc<Self>) -> Later<Result<Activated, InstallError>>;

    /// Runs what was committed again.
    fn go_back(self: Rc<Self>) -> Later<Result<Activated, InstallError>>;

    /// Whether what is on trial works, as far as the installer itself can tell. It may wait until that is known.
    fn healthy(self: Rc<Self>) -> Later<Result<(), InstallError>> {
        Box::pin(async { Ok(()) })
    }

    /// Commits what is on trial.
    fn commit(self: Rc<Self>) -> Later<Result<(), InstallError>>;

    /// Forgets payload and staged release, for good.
    ///
    /// # Errors
    /// If they cannot be removed.
    fn discard(&self) -> io::Result<()>;

    /// What is likely to stand in the next release, too.
    fn seeds(&self) -> Vec<Seed> {
        Vec::new()
    }
}

/// Why a step of an installer failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    /// Reading or writing.
    #[error("{what}: {source}")]
    Io {
        /// What was done to which file.
        what: String,
        /// What the system says.
        source: io::Error,
    },
    /// The payload is not what this installer takes.
    #[error("the payload is unfit: {0}")]
    Payload(String),
    /// A program of the system or the operator failed, or took too long.
    #[error("{0}")]
    Command(String),
    /// Whoever runs it (a cluster, RAUC, systemd) refused.
    #[error("{0}")]
    Refused(String),
    /// A hook of the operator stopped the update.
    #[error("{0}")]
    Hook(String),
    /// What is on trial does not work.
    #[error("{0}")]
    Unhealthy(String),
}

impl InstallError {
    /// What the machine is told of it.
    pub(crate) fn told(&self) -> fleetwave_agent_core::InstallError {
        use fleetwave_agent_core::InstallError as Told;
        match self {
            Self::Io { source, .. } => Told::Storage(storage_error(source)),
            Self::Payload(_) => Told::Payload,
            Self::Command(_) | Self::Unhealthy(_) => Told::Failed,
            Self::Refused(_) => Told::Refused,
            Self::Hook(_) => Told::Hook,
        }
    }

    /// The same, where only storage is thought of.
    pub(crate) fn storage(&self) -> StorageError {
        match self {
            Self::Io { source, .. } => storage_error(source),
            _ => StorageError::Failed,
        }
    }

    /// Where only an [`io::Error`] may come out: the kind of the one inside, and all of the message.
    pub(crate) fn into_io(self) -> io::Error {
        let kind = match &self {
            Self::Io { source, .. } => source.kind(),
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, self.to_string())
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        |source| Self::Io { what: what.into(), source }
    }
}
