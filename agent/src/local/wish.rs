//! What somebody at the device asked for, until it has ended.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::files;
use crate::install::Reference;

/// The file, in the directory of the target.
const FILE: &str = "local.json";
/// Beside what is signed: tells apart two times that the same release was asked for, so that one which was given up is
/// tried again when somebody asks again, and is not when the power went.
const ASKED: &str = "asked";

/// A release that was asked for at the device itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Wish {
    pub(crate) reference: Reference,
    /// The payload's file.
    pub(crate) source: PathBuf,
    /// At any time, whatever the windows are.
    pub(crate) now: bool,
    /// The hub was reached when it was asked for, and has to be reached by the release, too.
    pub(crate) needs_hub: bool,
}

impl Wish {
    /// A wish of its own, for a reference as it was signed.
    pub(crate) fn new(mut reference: Reference, source: PathBuf, now: bool, needs_hub: bool) -> Self {
        let asked = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        reference.insert(ASKED.to_owned(), asked.to_string().into());
        Self { reference, source, now, needs_hub }
    }

    /// Whether it is for the release of this reference, as that was signed.
    pub(crate) fn is_for(&self, reference: &Reference) -> bool {
        let signed = |reference: &Reference| {
            let mut reference = reference.clone();
            reference.remove(ASKED);
            reference
        };
        signed(&self.reference) == signed(reference)
    }

    /// The one that stands in the directory of a target.
    pub(crate) fn read(dir: &Path) -> Option<Self> {
        let path = dir.join(FILE);
        match std::fs::read(&path) {
            Err(error) => {
                if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
                    tracing::error!(%error, path = %path.display(), "what was asked for here cannot be read");
                }
                None
            }
            Ok(text) => serde_json::from_slice(&text).ok(),
        }
    }

    /// Makes it durable: from now on the machine may hear of it.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(dir)?;
        files::replace(&dir.join(FILE), &serde_json::to_vec(self)?)
    }

    /// It has ended.
    pub(crate) fn remove(dir: &Path) -> io::Result<()> {
        files::remove(&dir.join(FILE))
    }
}
