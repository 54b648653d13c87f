//! What is known of RAUC's slots beside what RAUC itself tells.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::bus::{Slot, SlotName};
use crate::files;
use crate::install::Reference;

const NAME: &str = "rauc.json";

/// The release in a slot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Held {
    pub(super) reference: Reference,
    /// When RAUC wrote the slot, by RAUC's own account: another time means another content.
    written: Option<String>,
}

impl Held {
    pub(super) fn of(reference: &Reference, slot: &Slot) -> Self {
        Self { reference: reference.clone(), written: slot.written.clone() }
    }
}

/// The content of `rauc.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    /// The slot that was committed.
    pub(super) committed: SlotName,
    /// The slot that was made to boot, without being committed.
    pub(super) trial: Option<SlotName>,
    /// What the slots hold, where that is known.
    pub(super) slots: BTreeMap<SlotName, Held>,
    /// The highest sequence that was ever committed: an unknown release counts as that one.
    sequence: u64,
}

fn sequence(reference: &Reference) -> u64 {
    reference.get("seq").and_then(Value::as_u64).unwrap_or_default()
}

impl State {
    /// At the first start of all.
    pub(super) fn new(running: &SlotName, installed: Held) -> Self {
        let sequence = sequence(&installed.reference);
        let slots = BTreeMap::from([(running.clone(), installed)]);
        Self { committed: running.clone(), trial: None, slots, sequence }
    }

    /// When the file does not make sense any more.
    pub(super) fn lost(running: &SlotName, installed: &Reference) -> Self {
        let sequence = sequence(installed);
        Self { committed: running.clone(), trial: None, slots: BTreeMap::new(), sequence }
    }

    /// `None` if there is none.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if it does not make sense.
    pub(super) fn read(dir: &Path) -> io::Result<Option<Self>> {
        match fs::read(dir.join(NAME)) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        if Self::read(dir).is_ok_and(|now| now.as_ref() == Some(self)) {
            return Ok(());
        }
        fs::create_dir_all(dir)?;
        files::replace(&dir.join(NAME), &serde_json::to_vec(self)?)
    }

    /// Forgets what a slot held if RAUC has written it since.
    pub(super) fn compare(&mut self, slot: &Slot) {
        if self.slots.get(&slot.boot_name).is_some_and(|held| held.written != slot.written) {
            tracing::error!(slot = %slot.boot_name, "RAUC has written the slot without the agent: its release is unknown");
            self.slots.remove(&slot.boot_name);
        }
    }

    /// The release of a slot.
    pub(super) fn reference(&self, slot: &SlotName) -> Reference {
        self.slots.get(slot).map_or_else(
            || {
                let members = [("id", json!(format!("unknown-{slot}"))), ("seq", json!(self.sequence))];
                members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
            },
            |held| held.reference.clone(),
        )
    }

    pub(super) fn commit(&mut self, slot: &SlotName) {
        self.committed.clone_from(slot);
        self.trial = None;
        let committed = self.slots.get(slot).map_or(0, |held| sequence(&held.reference));
        self.sequence = self.sequence.max(committed);
    }
}
