//! What the provisioning service said, kept for the next start.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::settings::Provisioning;
use crate::files;

/// Where a device was put.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Assignment {
    /// The enrollment that it is of: another one in the configuration is asked for anew.
    endpoint: String,
    id_scope: String,
    registration_id: String,
    /// The hub's name.
    pub(super) hub: String,
    /// The device's id there.
    pub(super) device_id: String,
}

fn path(state: &Path) -> PathBuf {
    state.join("assignment.json")
}

impl Assignment {
    pub(super) fn new(of: &Provisioning, hub: String, device_id: String) -> Self {
        Self {
            endpoint: of.endpoint.clone(),
            id_scope: of.id_scope.clone(),
            registration_id: of.registration_id.clone(),
            hub,
            device_id,
        }
    }

    /// The one that is kept, if it is of this enrollment.
    pub(super) fn load(state: &Path, of: &Provisioning) -> Option<Self> {
        let bytes = std::fs::read(path(state)).ok()?;
        let kept = serde_json::from_slice::<Self>(&bytes);
        let kept =
            kept.inspect_err(|error| tracing::warn!(%error, "the kept assignment cannot be read")).ok()?;
        let same = kept.endpoint == of.endpoint
            && kept.id_scope == of.id_scope
            && kept.registration_id == of.registration_id;
        same.then_some(kept)
    }

    pub(super) fn save(&self, state: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        files::replace(&path(state), &text)
    }
}
