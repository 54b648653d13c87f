//! Two slots, the pointer that says which of them boots, and the download: directories and files that stand in for a
//! device's partitions and its boot loader's variables.
//!
//! ```text
//! boot.json            which slot boots by default, and which one boots next, once
//! slot-a/ slot-b/      image, and release.json: the reference of the release that the image is
//! download.partial     the payload on its way
//! ```
//!
//! A slot counts as filled only if it has both files. The image is moved in last, by one rename: at every moment the
//! payload is either the download or in the slot.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use fleetwave_agent_core::Release;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::config::Installed;
use crate::files;

/// One of the two slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Slot {
    A,
    B,
}

impl Slot {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::A => "slot-a",
            Self::B => "slot-b",
        }
    }

    const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// A boot loader's variables.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Pointer {
    default: Slot,
    once: Option<Slot>,
}

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Reading or writing failed.
    #[error("the state directory {}: {source}", path.display())]
    Io {
        /// What was read or written.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another agent runs in it.
    #[error("the state directory {} is in use by another agent", .0.display())]
    InUse(PathBuf),
    /// The slot that boots by default holds no release.
    #[error("{} holds no release, but boots by default: restore it, or remove the state directory", .0.display())]
    Empty(PathBuf),
}

impl StateError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| Self::Io { path: path.to_owned(), source }
    }
}

/// The slots, read only.
#[derive(Debug)]
pub(crate) struct Slots {
    dir: PathBuf,
    pointer: Pointer,
}

impl Slots {
    /// The slots in `dir`; `None` if no agent has ever run there.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>, StateError> {
        let path = dir.join("boot.json");
        match read_json(&path) {
            Ok(pointer) => Ok(Some(Self { dir: dir.to_owned(), pointer })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StateError::io(&path)(error)),
        }
    }

    fn path(&self, slot: Slot, file: &str) -> PathBuf {
        self.dir.join(slot.name()).join(file)
    }

    /// Where a download goes.
    pub(crate) fn download(&self) -> PathBuf {
        self.dir.join("download.partial")
    }

    /// The slot that boots by default.
    pub(crate) fn default(&self) -> Slot {
        self.pointer.default
    }

    /// The slot that updates go into.
    pub(crate) fn candidate(&self) -> Slot {
        self.pointer.default.other()
    }

    /// The reference of the release in a slot, if it is filled.
    pub(crate) fn reference(&self, slot: Slot) -> Option<Map<String, Value>> {
        self.path(slot, "image").is_file().then(|| read_json(&self.path(slot, "release.json")).ok())?
    }

    /// The reference of the release that boots by default.
    pub(crate) fn committed(&self) -> Result<Map<String, Value>, StateError> {
        let slot = self.default();
        self.reference(slot).ok_or_else(|| StateError::Empty(self.dir.join(slot.name())))
    }

    /// Where the payload of `release` is: the download, unless it has been moved into the slot already.
    pub(crate) fn payload(&self, release: &Release) -> PathBuf {
        let (download, image) = (self.download(), self.path(self.candidate(), "image"));
        let moved = || {
            self.reference(self.candidate()).is_some_and(|staged| staged == *release.reference())
                && length(&image) == release.size
        };
        if !download.exists() && moved() { image } else { download }
    }

    /// How many bytes of the payload of `release` there are.
    pub(crate) fn stored(&self, release: &Release) -> u64 {
        length(&self.payload(release))
    }
}

/// The slots, to change.
#[derive(Debug)]
pub(crate) struct Store {
    slots: Slots,
    running: Slot,
    /// Held for as long as the agent lives.
    _lock: File,
}

impl std::ops::Deref for Store {
    type Target = Slots;

    fn deref(&self) -> &Slots {
        &self.slots
    }
}

impl Store {
    /// Opens the state directory; one that is new gets `installed` in slot A.
    pub(crate) fn open(dir: &Path, installed: &Installed) -> Result<Self, StateError> {
        let slots = [Slot::A, Slot::B].map(|slot| dir.join(slot.name()));
        for path in &slots {
            fs::create_dir_all(path).map_err(StateError::io(path))?;
        }
        let lock = File::create(dir.join("lock")).map_err(StateError::io(dir))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StateError::InUse(dir.to_owned())),
            Err(TryLockError::Error(error)) => return Err(StateError::io(dir)(error)),
        }
        let slots = match Slots::read(dir)? {
            Some(slots) => slots,
            None => furnish(dir, installed).map_err(StateError::io(dir))?,
        };
        let running = slots.default();
        Ok(Self { slots, running, _lock: lock })
    }

    /// What a boot loader does: boots the slot that was asked for once, and never again for that; otherwise the
    /// default one.
    pub(crate) fn power_on(&mut self) -> Result<(), StateError> {
        let once = self.slots.pointer.once;
        if once.is_some() {
            let dir = self.slots.dir.clone();
            self.point(Pointer { once: None, ..self.slots.pointer }).map_err(StateError::io(&dir))?;
        }
        self.running = once.filter(|slot| self.reference(*slot).is_some()).unwrap_or(self.default());
        Ok(())
    }

    /// The slot that runs.
    pub(crate) fn running(&self) -> Slot {
        self.running
    }

    /// Lets the candidate boot next, once.
    pub(crate) fn arm(&mut self) -> io::Result<()> {
        self.point(Pointer { once: Some(self.candidate()), ..self.slots.pointer })
    }

    /// Makes the running slot the default one.
    pub(crate) fn commit(&mut self) -> io::Result<()> {
        self.point(Pointer { default: self.running, once: None })
    }

    fn point(&mut self, pointer: Pointer) -> io::Result<()> {
        write_json(&self.slots.dir.join("boot.json"), &pointer)?;
        self.slots.pointer = pointer;
        Ok(())
    }

    /// Forgets the download, for good: before another one begins nothing of it is left.
    pub(crate) fn discard(&self) -> io::Result<()> {
        files::remove(&self.download())
    }

    /// Puts the payload of `release` into the candidate slot. Doing it twice does nothing.
    pub(crate) fn stage(&self, release: &Release) -> io::Result<()> {
        let slot = self.candidate();
        let image = self.path(slot, "image");
        let payload = self.payload(release);
        if payload == image {
            return Ok(());
        }
        if slot == self.running {
            return Err(io::Error::other("the slot to be overwritten is the one that runs"));
        }
        files::remove(&image)?;
        write_json(&self.path(slot, "release.json"), release.reference())?;
        fs::rename(&payload, &image)?;
        files::sync_dir(&self.slots.dir.join(slot.name()))?;
        files::sync_dir(&self.slots.dir)
    }
}

/// The state of a device that was never updated. The pointer comes last: without it this begins again.
fn furnish(dir: &Path, installed: &Installed) -> io::Result<Slots> {
    let pointer = Pointer { default: Slot::A, once: None };
    let slots = Slots { dir: dir.to_owned(), pointer };
    let reference = json!({"id": installed.id, "seq": installed.seq});
    write_json(&slots.path(Slot::A, "release.json"), &reference)?;
    // Nothing boots from here, so there is nothing to put into it.
    files::replace(&slots.path(Slot::A, "image"), b"")?;
    write_json(&dir.join("boot.json"), &pointer)?;
    Ok(slots)
}

/// The length of a file, zero if there is none.
fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> io::Result<T> {
    serde_json::from_slice(&fs::read(path)?).map_err(io::Error::from)
}

fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    files::replace(path, &serde_json::to_vec(value)?)
}
