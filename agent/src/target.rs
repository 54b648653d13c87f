//! Targets: what takes releases.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Something that takes releases. Its name is the path of its section in the twin's desired and reported
/// properties, and of its directory in the state directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    name: Arc<str>,
}

impl Target {
    /// The device's own image.
    #[must_use]
    pub fn firmware() -> Self {
        Self { name: "firmware".into() }
    }

    /// The component or workload of this name.
    ///
    /// # Errors
    /// If the name cannot be one.
    pub(crate) fn within(kind: Kind, name: &str) -> Result<Self, &'static str> {
        let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        if !(1..=64).contains(&name.len()) || !name.bytes().all(fine) {
            return Err("1 to 64 ASCII letters, digits, - and _");
        }
        Ok(Self { name: format!("{}.{name}", kind.section()).into() })
    }

    /// The name, as a path in the twin: `firmware`, `components.app`, `workloads.web`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// Where it keeps its journal and what its installer keeps.
    pub(crate) fn dir(&self, state: &Path) -> PathBuf {
        state.join(&*self.name)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// What there may be several of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A native program.
    Component,
    /// Containers.
    Workload,
}

impl Kind {
    const fn section(self) -> &'static str {
        match self {
            Self::Component => "components",
            Self::Workload => "workloads",
        }
    }
}
