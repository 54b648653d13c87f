//! The configuration: one TOML file, whose mistakes are told with their line.
//!
//! Each section has its own struct, beside what it configures or below [`config`](self); this only composes them.

mod hub;
mod limits;
mod target;
mod trust;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Error, ValueDeserializer};

pub(crate) use hub::is_loopback;
pub use hub::{ConnectionString, Hub};
pub use limits::Limits;
pub(crate) use target::Section;
pub use target::{Installed, TargetConfig};
pub use trust::Trust;

use crate::logs::Log;

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

/// What the agent is told by its operator.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The directory of journals, slots and downloads.
    pub state: PathBuf,
    /// The hub.
    pub hub: Hub,
    /// Who may sign releases.
    pub trust: Trust,
    /// What takes releases; never empty.
    #[serde(skip)]
    pub targets: Vec<TargetConfig>,
    /// Delays and limits.
    #[serde(default)]
    pub limits: Limits,
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
        Self::parse(&text, path)
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
                message: error.message().to_owned(),
            }
        })
    }

    fn read(text: &str) -> Result<Self, Error> {
        let table = DeTable::parse(text)?;
        let span = table.span();
        let table = table.into_inner();
        let whole = Spanned::new(span, DeValue::Table(table.clone()));
        let mut config = Self::deserialize(ValueDeserializer::from(whole))?;
        config.targets = target::read(table)?;
        if config.targets.is_empty() {
            return Err(serde::de::Error::custom(
                "nothing takes releases: [firmware], [component.NAME] or [workload.NAME] is needed",
            ));
        }
        Ok(config)
    }
}
