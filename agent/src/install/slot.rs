//! `installer = "slot"`: two partitions or image files, of which one runs. A payload goes straight into the other one;
//! the boot loader tries it once and boots it for good when it is committed.
//!
//! Which slot runs is what the kernel was started with, and which one is committed is what the boot loader's variables
//! say. What release a slot holds stands in a small file in the state directory, which goes before the first byte of
//! the slot is overwritten and comes back when all of them are known to lie there. A slot without it is *unknown*.

mod disk;
mod record;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use fleetwave_agent_core::Release;
use serde::Deserialize;

use self::record::{Held, Records};
use super::{Activated, InstallError, Installer, Later, Place, Seed, Site, Standing};
use crate::boot::{Boot, BootConfig, Pair, Running, Slot, running};
use crate::command::{About, Command};
use crate::config::Rows;
use crate::crash;
use crate::probation::Probation;

/// The installer's part of `[firmware]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Table")]
pub(crate) struct Options(Table);

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    /// The partitions or image files.
    slots: Pair<PathBuf>,
    /// The boot loader.
    boot: BootConfig,
    /// Who says which slot runs; the boot loader or the kernel's command line if this is not set.
    running: Option<Running>,
    /// Whether a slot is read back from the medium before it is made to boot.
    #[serde(default = "yes")]
    read_back: bool,
    /// Whether each start compares what lies in a slot with what was signed: for images that are mounted read-only.
    #[serde(default)]
    check_slots: bool,
    /// What is run when a slot was filled: to grow a file system, to check it, to copy a kernel out of it.
    after_write: Option<Command>,
    /// What makes the machine go down.
    #[serde(default = "reboot")]
    reboot: Command,
    /// When a new release counts as working.
    #[serde(default)]
    probation: Probation,
}

const fn yes() -> bool {
    true
}

pub(super) fn reboot() -> Command {
    Command::new(["systemctl", "reboot"])
}

impl TryFrom<Table> for Options {
    type Error = &'static str;

    fn try_from(table: Table) -> Result<Self, Self::Error> {
        table.boot.check()?;
        if !table.slots.differ() {
            return Err("slots: a and b are the same");
        }
        if table.check_slots && table.after_write.is_some() {
            return Err(
                "check_slots and after_write: what is changed after it was written is never what was signed",
            );
        }
        Ok(Self(table))
    }
}

impl super::Options for Options {
    fn trial(&self) -> Option<(String, u64)> {
        self.0.probation.describe()
    }

    fn describe(&self) -> Rows {
        let slots = Slot::BOTH.map(|slot| self.0.slots.of(slot).display().to_string());
        vec![("slots", slots.join(", ")), ("boot loader", self.0.boot.name().to_owned())]
    }

    fn installer(&self, site: Site) -> Rc<dyn Installer> {
        let boot = self.0.boot.adapter();
        let records = Records::new(site.dir.clone(), site.installed.clone());
        Rc::new(Slots { site, options: self.0.clone(), boot, records, now: Cell::new(None) })
    }
}

/// What was found at the start of this life.
#[derive(Clone, Copy, Debug)]
struct Found {
    running: Slot,
    committed: Slot,
}

#[derive(Debug)]
struct Slots {
    site: Site,
    options: Table,
    boot: Box<dyn Boot>,
    records: Records,
    now: Cell<Option<Found>>,
}

impl Slots {
    fn path(&self, slot: Slot) -> &PathBuf {
        self.options.slots.of(slot)
    }

    async fn running(&self) -> Result<Slot, InstallError> {
        if self.options.running.is_none()
            && let Some(slot) = self.boot.running()?
        {
            return Ok(slot);
        }
        running(&self.options.running.clone().unwrap_or_default(), &self.options.slots).await
    }

    async fn find(&self) -> Result<Standing, InstallError> {
        disk::distinct(&self.options.slots).map_err(InstallError::Refused)?;
        let running = self.running().await?;
        let committed = self.boot.committed(running).await?;
        if running == committed {
            crash::point("slot: before the boot loader is settled");
            self.boot.settle(committed).await?;
        }
        crash::point("slot: settled");
        self.records.begin(running).map_err(self.failed("keeping what the slots hold"))?;
        let mut standing = Vec::with_capacity(2);
        for slot in [running, committed] {
            standing.push(
                self.held(slot).await?.map_or_else(|| self.records.unknown(slot), |held| held.reference),
            );
        }
        self.now.set(Some(Found { running, committed }));
        tracing::info!(%running, %committed, "the slots");
        let committed = standing.pop().unwrap_or_default();
        Ok(Standing { running: standing.pop().unwrap_or_default(), committed })
    }

    /// What a slot holds, as far as that is known.
    async fn held(&self, slot: Slot) -> Result<Option<Held>, InstallError> {
        let held = self.records.read(slot).map_err(self.failed("reading what the slots hold"))?;
        let Some(held) = held else { return Ok(None) };
        if !self.options.check_slots {
            return Ok(Some(held));
        }
        // What was there from the beginning has no digest to compare with.
        let Some((size, digest)) = held.payload() else { return Ok(Some(held)) };
        let found = disk::digest(self.path(slot).clone(), size).await?;
        if found == digest {
            return Ok(Some(held));
        }
        tracing::error!(%slot, "the slot does not hold what was put into it: its release is unknown from now on");
        self.records.forget(slot).map_err(self.failed("keeping what the slots hold"))?;
        Ok(None)
    }

    /// The slot that may be overwritten.
    fn candidate(&self) -> Result<Slot, InstallError> {
        match self.now.get() {
            Some(Found { running, committed }) if running == committed => Ok(running.other()),
            Some(Found { running, committed }) => Err(InstallError::Refused(format!(
                "slot {running} is on trial: slot {committed} is what to go back to, and is not overwritten"
            ))),
            None => Err(InstallError::Refused("it is not known which slot runs".into())),
        }
    }

    /// Makes it sure that the candidate neither boots nor passes for anything, and that nobody uses it.
    fn clear(&self) -> Result<PathBuf, InstallError> {
        let slot = self.candidate()?;
        let path = self.path(slot);
        disk::unused(path).map_err(InstallError::Refused)?;
        crash::point("slot: before the other slot is forbidden to boot");
        self.boot.forbid(slot)?;
        crash::point("slot: before the other slot's release is forgotten");
        self.records.forget(slot).map_err(self.failed("keeping what the slots hold"))?;
        crash::point("slot: the other slot may be overwritten");
        Ok(path.clone())
    }

    async fn put(&self, release: Release) -> Result<(), InstallError> {
        let slot = self.candidate()?;
        let path = self.path(slot).clone();
        disk::unused(&path).map_err(InstallError::Refused)?;
        crash::point("slot: before the slot is synced");
        disk::sync(path.clone()).await?;
        if self.options.read_back && disk::digest(path.clone(), release.size).await? != release.digest {
            return Err(InstallError::Io {
                what: format!("reading slot {slot} back from {}", path.display()),
                source: io::Error::other("the medium does not hold what was written to it"),
            });
        }
        if let Some(command) = &self.options.after_write {
            crash::point("slot: before the operator's command");
            let about = About::reference(self.site.target.as_str(), release.reference());
            let program = command.program().about(&about, "after_write");
            program
                .env("FLEETWAVE_SLOT", slot.name())
                .env("FLEETWAVE_SLOT_DEVICE", path.as_os_str())
                .succeed()
                .await?;
            disk::unused(&path).map_err(InstallError::Refused)?;
            disk::sync(path).await?;
        }
        crash::point("slot: before the slot's release is recorded");
        self.records
            .write(slot, &Held { reference: release.reference().clone() })
            .map_err(self.failed("keeping what the slots hold"))?;
        crash::point("slot: staged");
        Ok(())
    }

    /// What checks of what runs are told.
    fn about(&self) -> About {
        let held = self.now.get().and_then(|found| self.records.read(found.running).ok().flatten());
        let target = self.site.target.as_str();
        held.map_or_else(
            || About { target: target.to_owned(), release: None },
            |held| About::reference(target, &held.reference),
        )
    }

    async fn go_down(&self, command: &Command) -> Result<Activated, InstallError> {
        crash::point("slot: before the reboot");
        command.program().succeed().await?;
        crash::point("slot: the reboot was asked for");
        Ok(Activated::GoingDown)
    }

    fn failed(&self, what: &str) -> impl FnOnce(io::Error) -> InstallError + use<> {
        InstallError::io(format!("{what} in {}", self.site.dir.display()))
    }
}

impl Installer for Slots {
    fn standing(self: Rc<Self>) -> Later<Result<Standing, InstallError>> {
        Box::pin(async move { self.find().await })
    }

    /// Whoever asks is about to write: what the slot held is gone from here on, for the records and the boot loader.
    fn place(&self, release: &Release) -> io::Result<Place> {
        let cleared =
            self.clear().inspect_err(|error| tracing::error!(%error, "there is no place for the payload"));
        let path = cleared.map_err(InstallError::into_io)?;
        let capacity = disk::capacity(&path)?;
        if capacity.is_some_and(|capacity| release.size > capacity) {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("{} bytes do not fit into {}", release.size, path.display()),
            ));
        }
        Ok(Place { path, capacity })
    }

    fn stage(self: Rc<Self>, release: Release) -> Later<Result<(), InstallError>> {
        Box::pin(async move { self.put(release).await })
    }

    fn activate(self: Rc<Self>) -> Later<Result<Activated, InstallError>> {
        Box::pin(async move {
            let slot = self.candidate()?;
            if self.records.read(slot).map_err(self.failed("reading what the slots hold"))?.is_none() {
                return Err(InstallError::Refused(format!("slot {slot} holds nothing that was verified")));
            }
            crash::point("slot: before the trial is armed");
            self.boot.try_once(slot).await?;
            crash::point("slot: the trial is armed");
            self.go_down(self.boot.trial_reboot().unwrap_or(&self.options.reboot)).await
        })
    }

    fn go_back(self: Rc<Self>) -> Later<Result<Activated, InstallError>> {
        Box::pin(async move {
            if let Some(Found { committed, .. }) = self.now.get() {
                crash::point("slot: before the trial is given up");
                // A commit may have been half done. If nothing can be said any more, the loader still goes back by itself.
                let settled = self.boot.settle(committed).await;
                let _ = settled.inspect_err(
                    |error| tracing::error!(%error, "the boot loader cannot be told to go back"),
                );
                crash::point("slot: the trial is given up");
            }
            self.go_down(&self.options.reboot).await
        })
    }

    fn healthy(self: Rc<Self>) -> Later<Result<(), InstallError>> {
        Box::pin(async move { self.options.probation.check(&self.about()).await })
    }

    fn commit(self: Rc<Self>) -> Later<Result<(), InstallError>> {
        Box::pin(async move {
            let Some(Found { running, .. }) = self.now.get() else {
                return Err(InstallError::Refused("it is not known which slot runs".into()));
            };
            crash::point("slot: before the commit");
            self.boot.commit(running).await?;
            crash::point("slot: committed");
            self.now.set(Some(Found { running, committed: running }));
            self.records.committed(running).map_err(self.failed("keeping what the slots hold"))
        })
    }

    fn discard(&self) -> io::Result<()> {
        let path = self.clear().map_err(InstallError::into_io)?;
        disk::empty(&path)
    }

    /// The slot that runs: the other one is about to be overwritten.
    fn seeds(&self) -> Vec<Seed> {
        let Some(Found { running, .. }) = self.now.get() else { return Vec::new() };
        // What came with the device may fill all of it.
        let held = self.records.read(running).ok().flatten().and_then(|held| held.payload());
        let length = held.map_or(u64::MAX, |(size, _)| size);
        vec![Seed { path: self.path(running).clone(), length }]
    }
}
