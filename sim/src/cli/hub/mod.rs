//! `fleetwave hub`: a local IoT Hub as a process.

mod announce;
mod args;
mod device;
mod home;
mod local;
mod offers;
mod serve;
mod usage;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use fleetwave_hub::admin::AdminError;
use fleetwave_hub::blob::BlobError;
use fleetwave_hub::pki::PkiError;
use fleetwave_hub::{StartError, StorageError};

use args::{DeviceCommand, HubCommand};
pub(super) use args::{Hub, TierName};

use super::{CliError, output};
use crate::live::script::ScriptError;
use crate::release::ShelfError;

/// Why a hub cannot run, or be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum HubError {
    #[error(
        "there is no place for the hub's keys and certificates\n  = help: give one by --data or --cert-dir; without \
         them it is in $XDG_DATA_HOME or $HOME, and neither is set"
    )]
    NoHome,
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} holds no keys of a hub: {why}\n  = help: remove it, and new keys are made", path.display())]
    Keys { path: PathBuf, why: String },
    #[error(transparent)]
    Certificates(#[from] PkiError),
    #[error("{problem}\n  = help: {fix}")]
    Usage { problem: String, fix: String },
    #[error("{problem}\n  = help: {fix}")]
    Port { problem: String, fix: String },
    #[error(
        "no hub runs here: there is no {}\n  = help: start `fleetwave hub`, and give both commands the same --data and \
         --cert-dir", path.display()
    )]
    NotRunning { path: PathBuf },
    #[error(
        "the hub at {address} cannot be reached: {why}\n  = help: one that was killed leaves word that it runs: start \
         `fleetwave hub` again"
    )]
    Unreachable { address: SocketAddr, why: String },
    #[error("{0}")]
    Answer(String),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("the hub has ended because something broke: {0}")]
    Broken(String),
    #[error("the hub cannot start")]
    Start(#[from] StartError),
    #[error(transparent)]
    Script(#[from] ScriptError),
    #[error("the hub's admin port cannot be opened")]
    Admin(#[from] AdminError),
    #[error("the releases cannot be offered")]
    Offers(#[from] BlobError),
    #[error(transparent)]
    Release(#[from] ShelfError),
}

impl HubError {
    /// Whether what was typed is wrong.
    pub(super) const fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Usage { .. }
                | Self::Storage(_)
                | Self::Certificates(PkiError::Name(_))
                | Self::Release(ShelfError::Form { .. })
        )
    }
}

/// Does what the arguments say, and returns the exit code.
pub(super) fn run(arguments: &Hub) -> Result<u8, CliError> {
    match &arguments.command {
        None => serve::serve(&arguments.serve),
        Some(HubCommand::Device(DeviceCommand::Add { id, tags, place })) => {
            output::print(&format!("{}\n", device::add(id, tags.as_deref(), place)?))?;
            Ok(0)
        }
        Some(HubCommand::Twin { id, place }) => {
            output::print(&format!("{:#}\n", device::twin(id, place)?))?;
            Ok(0)
        }
        Some(HubCommand::Configure(arguments)) => {
            let put = device::configure(arguments)?;
            output::print(&format!("{:#}\n", put["metrics"]))?;
            Ok(0)
        }
        Some(HubCommand::Unconfigure { id, place }) => {
            device::unconfigure(id, place)?;
            Ok(0)
        }
    }
}
