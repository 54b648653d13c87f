//! `installer = "directory"`: two directories for the slots and a file for the boot loader's variables, for tests, for
//! the harness, and to try the agent out. Nothing boots what it installs.
//!
//! ```text
//! boot.json            which slot boots by default, and which one boots next, once
//! slot-a/ slot-b/      image, and release.json: the reference of the release that the image is
//! ```
//!
//! A payload goes straight into the image of the slot that does not boot. A slot counts as filled only if it has both
//! files: the reference is removed before the first byte comes, and written when the payload was verified.
//!
//! A boot is what [`Installer::standing`] does: it boots the slot that was asked for once, and never again for that,
//! otherwise the default one. For firmware the whole agent begins anew in place of a reboot.

use std::cell::Cell;
use std::fs;
use std::future::ready;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use fleetwave_agent_core::Release;
use serde::{Deserialize, Serialize};

use super::{Activated, InstallError, Installer, Later, Place, Reference, Seed, Site, Standing};
use crate::command::{About, Command};
use crate::files;
use crate::target::Target;

/// The installer's part of a target's section.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Options {
    /// Its exit code says whether a release on trial is healthy. Without one it is as soon as it reaches the hub.
    pub(crate) health: Option<Command>,
}

impl super::Options for Options {
    fn installer(&self, site: Site) -> Rc<dyn Installer> {
        Rc::new(Directory { site, health: self.health.clone(), running: Cell::new(Slot::A) })
    }

    fn trial(&self) -> Option<(String, u64)> {
        let health = self.health.as_ref()?;
        Some((format!("{} is content", health.name()), health.limit().as_secs()))
    }
}

/// One of the two slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Slot {
    A,
    B,
}

impl Slot {
    const fn name(self) -> &'static str {
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

/// As it is before the first update.
const NEW: Pointer = Pointer { default: Slot::A, once: None };

#[derive(Debug)]
struct Directory {
    site: Site,
    health: Option<Command>,
    /// What a kernel would say: the slot that was booted.
    running: Cell<Slot>,
}

impl Directory {
    fn path(&self, slot: Slot, file: &str) -> PathBuf {
        self.site.dir.join(slot.name()).join(file)
    }

    /// A device that was never updated has no variables yet.
    fn pointer(&self) -> io::Result<Pointer> {
        match read_json(&self.site.dir.join("boot.json")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(NEW),
            read => read,
        }
    }

    fn point(&self, pointer: Pointer) -> io::Result<()> {
        write_json(&self.site.dir.join("boot.json"), &pointer)
    }

    fn candidate(&self) -> io::Result<Slot> {
        self.pointer().map(|pointer| pointer.default.other())
    }

    /// The reference of the release in a slot, if it is filled.
    fn reference(&self, slot: Slot) -> Option<Reference> {
        self.path(slot, "image").is_file().then(|| read_json(&self.path(slot, "release.json")).ok())?
    }

    fn boot(&self) -> io::Result<Standing> {
        for slot in [Slot::A, Slot::B] {
            let dir = self.site.dir.join(slot.name());
            if let Err(error) = fs::create_dir_all(&dir) {
                // What was installed runs all the same.
                tracing::error!(%error, dir = %dir.display(), "no slot can be made");
            }
        }
        let pointer = self.pointer()?;
        let mut once = pointer.once;
        if once.is_some()
            && let Err(error) = self.point(Pointer { once: None, ..pointer })
        {
            // Booted again and again it would be no trial.
            tracing::error!(%error, "the slot to be tried is not booted: that could not be taken back");
            once = None;
        }
        let committed = match self.reference(pointer.default) {
            Some(reference) => reference,
            // Nothing was ever put there by an update.
            None if pointer.default == Slot::A => self.site.installed.clone(),
            None => {
                let slot = self.site.dir.join(pointer.default.name());
                return Err(io::Error::other(format!(
                    "{} holds no release, but boots by default: restore it, or remove {}",
                    slot.display(),
                    self.site.dir.display()
                )));
            }
        };
        let tried = once.and_then(|slot| Some((slot, self.reference(slot)?)));
        let (slot, running) = tried.unwrap_or_else(|| (pointer.default, committed.clone()));
        self.running.set(slot);
        tracing::info!(target = %self.site.target, slot = slot.name(), "booted");
        Ok(Standing { running, committed })
    }

    /// Makes it sure that the other slot passes for nothing.
    fn clear(&self) -> io::Result<PathBuf> {
        let slot = self.candidate()?;
        if slot == self.running.get() {
            return Err(io::Error::other("the slot to be overwritten is the one that runs"));
        }
        files::remove(&self.path(slot, "release.json"))?;
        let image = self.path(slot, "image");
        // The disk may have been full when the agent started.
        fs::create_dir_all(self.site.dir.join(slot.name()))?;
        Ok(image)
    }

    fn put(&self, release: &Release) -> io::Result<()> {
        write_json(&self.path(self.candidate()?, "release.json"), release.reference())
    }

    fn booted(&self) -> Activated {
        if self.site.target == Target::firmware() {
            tracing::warn!("nothing boots from directories: in place of a reboot the agent begins anew");
            Activated::Anew
        } else {
            Activated::Running
        }
    }

    fn failed(&self, what: &str) -> impl FnOnce(io::Error) -> InstallError + use<> {
        InstallError::io(format!("{what} in {}", self.site.dir.display()))
    }
}

impl Installer for Directory {
    fn standing(self: Rc<Self>) -> Later<Result<Standing, InstallError>> {
        Box::pin(ready(self.boot().map_err(self.failed("booting"))))
    }

    fn place(&self, _release: &Release) -> io::Result<Place> {
        Ok(Place { path: self.clear()?, capacity: None })
    }

    fn stage(self: Rc<Self>, release: Release) -> Later<Result<(), InstallError>> {
        Box::pin(ready(self.put(&release).map_err(self.failed("filling the slot"))))
    }

    fn activate(self: Rc<Self>) -> Later<Result<Activated, InstallError>> {
        let armed = self
            .pointer()
            .and_then(|pointer| self.point(Pointer { once: Some(pointer.default.other()), ..pointer }));
        Box::pin(ready(armed.map(|()| self.booted()).map_err(self.failed("choosing the other slot"))))
    }

    fn go_back(self: Rc<Self>) -> Later<Result<Activated, InstallError>> {
        // A trial is for one boot.
        Box::pin(ready(Ok(self.booted())))
    }

    fn healthy(self: Rc<Self>) -> Later<Result<(), InstallError>> {
        Box::pin(async move {
            let Some(command) = &self.health else { return Ok(()) };
            let slot = self.running.get();
            let release = self.reference(slot).unwrap_or_default();
            let about = About::reference(self.site.target.as_str(), &release);
            let program = command.program().about(&about, "health");
            program.env("FLEETWAVE_SLOT", self.site.dir.join(slot.name())).succeed().await?;
            Ok(())
        })
    }

    fn commit(self: Rc<Self>) -> Later<Result<(), InstallError>> {
        let committed = self.point(Pointer { default: self.running.get(), once: None });
        Box::pin(ready(committed.map_err(self.failed("committing the slot"))))
    }

    fn seeds(&self) -> Vec<Seed> {
        vec![Seed { path: self.path(self.running.get(), "image"), length: u64::MAX }]
    }

    fn discard(&self) -> io::Result<()> {
        files::remove(&self.clear()?)
    }
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> io::Result<T> {
    serde_json::from_slice(&fs::read(path)?).map_err(io::Error::from)
}

fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    files::replace(path, &serde_json::to_vec(value)?)
}
