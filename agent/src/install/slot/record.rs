//! What release each slot holds: a file for each slot, there only while that is known.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::boot::Slot;
use crate::files;
use crate::install::Reference;

/// What a slot holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Held {
    /// The release's reference, as it stood in the twin.
    pub(super) reference: Reference,
}

impl Held {
    /// Size and digest of the payload, unless it came with the device.
    pub(super) fn payload(&self) -> Option<(u64, [u8; 32])> {
        let size = self.reference.get("size")?.as_u64()?;
        let hex = self.reference.get("sha256")?.as_str()?;
        let byte = |at: usize| u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..32).map(byte).collect();
        Some((size, bytes?.try_into().ok()?))
    }
}

/// What is known of both slots together.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Known {
    /// The highest sequence that was ever committed: a slot whose release is unknown counts as this one, so that
    /// nobody gets around the ban on downgrades by removing a file.
    sequence: u64,
}

#[derive(Debug)]
pub(super) struct Records {
    dir: PathBuf,
    installed: Reference,
}

fn sequence(reference: &Reference) -> u64 {
    reference.get("seq").and_then(Value::as_u64).unwrap_or_default()
}

impl Records {
    pub(super) fn new(dir: PathBuf, installed: Reference) -> Self {
        Self { dir, installed }
    }

    fn path(&self, slot: Slot) -> PathBuf {
        self.dir.join(format!("slot-{slot}.json"))
    }

    fn known(&self) -> io::Result<Option<Known>> {
        read(&self.dir.join("slots.json"))
    }

    /// The first start of all: what runs is what the operator says. `slots.json` comes last; without it this is
    /// done again.
    pub(super) fn begin(&self, running: Slot) -> io::Result<()> {
        if self.known()?.is_some() {
            return Ok(());
        }
        fs::create_dir_all(&self.dir)?;
        for slot in Slot::BOTH {
            files::remove(&self.path(slot))?;
        }
        self.write(running, &Held { reference: self.installed.clone() })?;
        self.know(sequence(&self.installed))
    }

    fn know(&self, sequence: u64) -> io::Result<()> {
        files::replace(&self.dir.join("slots.json"), &serde_json::to_vec(&Known { sequence })?)
    }

    /// What a slot holds; `None` if that is not known.
    pub(super) fn read(&self, slot: Slot) -> io::Result<Option<Held>> {
        read(&self.path(slot))
    }

    /// The slot holds this, and all of it is on the medium.
    pub(super) fn write(&self, slot: Slot, held: &Held) -> io::Result<()> {
        files::replace(&self.path(slot), &serde_json::to_vec(held)?)
    }

    /// The slot is about to hold something else.
    pub(super) fn forget(&self, slot: Slot) -> io::Result<()> {
        files::remove(&self.path(slot))
    }

    /// The slot was committed.
    pub(super) fn committed(&self, slot: Slot) -> io::Result<()> {
        let held = self.read(slot)?.map_or(0, |held| sequence(&held.reference));
        let known = self.known()?.unwrap_or_default().sequence;
        if held > known { self.know(held) } else { Ok(()) }
    }

    /// What stands for the release of a slot of which nothing is known.
    pub(super) fn unknown(&self, slot: Slot) -> Reference {
        let known = self.known().ok().flatten().unwrap_or_default().sequence;
        let members = [("id", json!(format!("unknown-{slot}"))), ("seq", json!(known))];
        members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// A file that cannot be understood counts as missing: it says nothing that could be relied on.
fn read<T: for<'de> Deserialize<'de>>(path: &std::path::Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)
            .inspect_err(|error| tracing::error!(%error, path = %path.display(), "does not make sense"))
            .ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
