//! The configuration: one TOML file, whose mistakes are told with their line.
//!
//! Each section has its own struct, beside what it configures or below [`config`](self); this only composes them.

mod limits;
mod mistakes;
mod target;
mod trust;
mod understood;
mod windows;

use std::path::{Path, PathBuf};

use fleetwave_agent_core::Policy;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Error, ValueDeserializer};

pub use limits::Limits;
pub(crate) use mistakes::nearest;
pub(crate) use target::Section;
pub use target::{Installed, TargetConfig};
pub use trust::Trust;
pub use understood::Understood;
pub(crate) use understood::{Rows, authorities, span};
pub use windows::{Clock, Days, Window, Windows};

pub(crate) use crate::link::is_loopback;

use crate::device::Reboot;
use crate::fetch::{Download, LedgerLimits};
use crate::identity::{Identity, exposure};
use crate::link::{Access, Hub, Provisioning, TlsPool};
use crate::locks::Locks;
use crate::logs::Log;
use crate::metrics::Metrics;
use crate::telemetry::Telemetry;
use crate::watchdog::WatchdogConfig;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Something in it is wrong.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// What is wrong, without quoting the line: it may hold the device's key.
        message: String,
    },
}

impl ConfigError {
    /// For programs.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        match self {
            Self::Read { .. } => json!({"error": {"message": self.to_string()}}),
            Self::Invalid { line, column, message, .. } => {
                json!({"error": {"line": line, "column": column, "message": message}})
            }
        }
    }
}

/// What the agent is told by its operator.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The directory of journals, slots and downloads.
    pub state: PathBuf,
    /// What kind of device this is: releases that name kinds are taken only if this one is among them.
    pub device_type: Option<String>,
    /// The hub.
    #[serde(default)]
    pub hub: Hub,
    /// What the device shows, if the connection string has no key.
    pub identity: Option<Identity>,
    /// The service that says which hub the device belongs to.
    pub provisioning: Option<Provisioning>,
    /// Who may sign releases.
    pub trust: Trust,
    /// What takes releases; never empty.
    #[serde(skip)]
    pub targets: Vec<TargetConfig>,
    /// Delays and limits.
    #[serde(default)]
    pub limits: Limits,
    /// How payloads are fetched.
    #[serde(default)]
    pub download: Download,
    /// What downloads may cost.
    #[serde(default)]
    pub ledger: LedgerLimits,
    /// What resets the machine if it hangs.
    #[serde(default)]
    pub(crate) watchdog: Option<WatchdogConfig>,
    /// When updates may be fetched and installed.
    #[serde(default)]
    pub windows: Windows,
    /// Who may hold an update up.
    #[serde(default)]
    pub locks: Locks,
    /// What is told beside the twin.
    #[serde(default)]
    pub telemetry: Telemetry,
    /// The page for Prometheus.
    #[serde(default)]
    pub metrics: Metrics,
    /// How the machine is rebooted.
    #[serde(default)]
    pub reboot: Reboot,
    /// What is logged.
    #[serde(default)]
    pub log: Log,
    // `targets`, which are read with the help of their installers; named here so that whoever mistypes a section is
    // told what there is.
    #[serde(default, rename = "firmware")]
    _firmware: IgnoredAny,
    #[serde(default, rename = "component")]
    _components: IgnoredAny,
    #[serde(default, rename = "workload")]
    _workloads: IgnoredAny,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`], with the place of the first mistake.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let config = Self::parse(&text, path)?;
        if config.holds_secrets()
            && let Some(warning) = exposure(path)
        {
            tracing::warn!("{warning}");
        }
        Ok(config)
    }

    /// Checks the text of a configuration; `path` is what mistakes are told to be in.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`], with the place of the first mistake.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        Self::read(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            ConfigError::Invalid {
                path: path.to_owned(),
                line: before.matches('\n').count() + 1,
                column: before.rsplit('\n').next().unwrap_or_default().chars().count() + 1,
                message: mistakes::explain(error.message(), &[]),
            }
        })
    }

    /// What the machines of all targets share.
    #[must_use]
    pub(crate) fn policy(&self) -> Policy {
        Policy {
            download_window: self.windows.download.as_ref().map(Window::hours),
            install_window: self.windows.install.as_ref().map(Window::hours),
            locks: self.locks.any().then(|| self.locks.policy()),
            caps: self.ledger.caps(),
            ..self.limits.policy()
        }
    }

    fn read(text: &str) -> Result<Self, Error> {
        let table = DeTable::parse(text)?;
        let span = table.span();
        let table = table.into_inner();
        let reach = ["hub", "provisioning"].iter().find_map(|name| Some(table.get(*name)?.span()));
        let whole = Spanned::new(span, DeValue::Table(table.clone()));
        let mut config = Self::deserialize(ValueDeserializer::from(whole))?;
        mistakes::of_values(&table)?;
        config.targets = target::read(table.clone())?;
        if config.targets.is_empty() {
            return Err(serde::de::Error::custom(
                "nothing takes releases: [firmware], [component.NAME] or [workload.NAME] is needed",
            ));
        }
        // It takes several sections together to say how the hub is reached.
        config.access(&TlsPool::default()).map_err(|why| target::at(reach.unwrap_or_default(), why))?;
        config.policy().check().map_err(|error| mistakes::of_policy(error, &table))?;
        Ok(config)
    }

    fn holds_secrets(&self) -> bool {
        let provisioning = self.provisioning.as_ref();
        self.hub.connection_string.as_ref().is_some_and(|string| string.key.is_some())
            || provisioning.is_some_and(|of| of.key.is_some() || of.group_key.is_some())
    }

    /// The way to the hub that it describes.
    ///
    /// # Errors
    /// What does not go together in it.
    pub(crate) fn access(&self, pool: &TlsPool) -> Result<Access, String> {
        Access::new(&self.hub, self.identity.as_ref(), self.provisioning.as_ref(), &self.state, pool)
    }
}
