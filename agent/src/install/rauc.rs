//! `installer = "rauc"`: an installed RAUC looks after the slots. The payload is a bundle; the agent fetches it into the
//! state directory, because RAUC reads a bundle more than once, and hands it over by D-Bus.
//!
//! RAUC tells what it installed where and what boots, but not what is on trial. That stands in `rauc.json`: which slot
//! was committed, which one was made to boot for a trial, and the release of each. RAUC's own account goes before it:
//! a slot that RAUC has written since, or that the boot loader has left, is not what the file says.

mod bus;
mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use fleetwave_agent_core::Release;
use serde::Deserialize;

use self::bus::{Bus, Slot, SlotName};
use self::state::{Held, State};
use super::{Activated, InstallError, Installer, Later, Place, Site, Standing};
use crate::command::{About, Command};
use crate::crash;
use crate::files;
use crate::install::slot::reboot;
use crate::probation::Probation;

/// The installer's part of `[firmware]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Options {
    /// The address of the bus; the system's if it is not set.
    bus: Option<String>,
    /// What makes the machine go down.
    #[serde(default = "reboot")]
    reboot: Command,
    /// How long RAUC may take to install a bundle.
    #[serde(default = "install_seconds")]
    install_seconds: u64,
    /// When a new release counts as working.
    #[serde(default)]
    probation: Probation,
}

const fn install_seconds() -> u64 {
    3600
}

impl super::Options for Options {
    fn trial(&self) -> Option<(String, u64)> {
        self.probation.describe()
    }

    fn installer(&self, site: Site) -> Rc<dyn Installer> {
        Rc::new(Rauc { site, options: self.clone() })
    }
}

#[derive(Debug)]
struct Rauc {
    site: Site,
    options: Options,
}

/// The slot that runs and the other one, as RAUC sees them.
#[derive(Debug)]
struct Slots {
    booted: Slot,
    other: Slot,
}

impl Rauc {
    fn bundle(&self) -> PathBuf {
        self.site.dir.join("bundle.raucb")
    }

    async fn bus(&self) -> Result<Bus, InstallError> {
        Bus::connect(self.options.bus.as_deref()).await
    }

    fn state(&self) -> Result<Option<State>, InstallError> {
        State::read(&self.site.dir).map_err(self.failed("reading rauc.json"))
    }

    fn write(&self, state: &State) -> Result<(), InstallError> {
        crash::point("rauc: before the state is written");
        state.write(&self.site.dir).map_err(self.failed("writing rauc.json"))?;
        crash::point("rauc: the state is written");
        Ok(())
    }

    /// What stands in the file, after the first start.
    fn known(&self) -> Result<State, InstallError> {
        self.state()?.ok_or_else(|| InstallError::Refused("it is not known what RAUC's slots hold".into()))
    }

    fn failed(&self, what: &str) -> impl FnOnce(io::Error) -> InstallError + use<> {
        InstallError::io(format!("{what} in {}", self.site.dir.display()))
    }

    async fn find(&self) -> Result<Standing, InstallError> {
        let bus = self.bus().await?;
        let Slots { booted, other } = bus.slots().await?;
        let running = booted.boot_name.clone();
        let mut state = match self.state() {
            Ok(Some(state)) => state,
            Ok(None) => State::new(&running, Held::of(&self.site.installed, &booted)),
            Err(InstallError::Io { what, source }) if source.kind() == io::ErrorKind::InvalidData => {
                tracing::error!(error = %source, "{what}: it is unknown what the slots hold");
                State::lost(&running, &self.site.installed)
            }
            Err(error) => return Err(error),
        };
        for slot in [&booted, &other] {
            state.compare(slot);
        }
        let on_trial = running != state.committed && state.trial.as_ref() == Some(&running);
        if running != state.committed && !on_trial && !bus.boots(&other).await? {
            // The boot loader has given the committed slot up, or somebody has chosen another one.
            tracing::error!(%running, committed = %state.committed, "the committed slot does not boot any more");
            state.committed.clone_from(&running);
        }
        if running == state.committed {
            state.trial = None;
            // The boot loader counts the starts since this was last said.
            bus.mark("good", "booted").await?;
            if bus.boots(&other).await? {
                bus.mark("active", "booted").await?;
            }
        }
        self.write(&state)?;
        tracing::info!(%running, committed = %state.committed, "the slots");
        Ok(Standing { running: state.reference(&running), committed: state.reference(&state.committed) })
    }

    async fn hand_over(&self, release: Release) -> Result<(), InstallError> {
        let bus = self.bus().await?;
        let Slots { booted, other } = bus.slots().await?;
        let mut state = self.known()?;
        if booted.boot_name != state.committed {
            return Err(InstallError::Refused(format!(
                "slot {} is on trial: slot {} is what to go back to, and is not overwritten",
                booted.boot_name, state.committed
            )));
        }
        // From RAUC's first byte on the slot holds nothing.
        state.slots.remove(&other.boot_name);
        self.write(&state)?;
        let limit = Duration::from_secs(self.options.install_seconds);
        bus.install(&self.bundle(), limit).await?;
        crash::point("rauc: installed");
        let Slots { other, .. } = bus.slots().await?;
        if bus.boots(&other).await? {
            // Then a power cut would begin the trial before anyone has recorded that there is one.
            tracing::warn!(
                "RAUC has made the new slot the one that boots: set activate-installed=false in its system.conf"
            );
            bus.mark("active", "booted").await?;
        }
        state.slots.insert(other.boot_name.clone(), Held::of(release.reference(), &other));
        self.write(&state)
    }

    async fn arm(&self) -> Result<Activated, InstallError> {
        let bus = self.bus().await?;
        let Slots { booted, other } = bus.slots().await?;
        let mut state = self.known()?;
        state.compare(&other);
        if booted.boot_name != state.committed || !state.slots.contains_key(&other.boot_name) {
            return Err(InstallError::Refused(format!(
                "slot {} holds nothing that was verified",
                other.boot_name
            )));
        }
        state.trial = Some(other.boot_name.clone());
        self.write(&state)?;
        bus.mark("active", "other").await?;
        crash::point("rauc: the trial is armed");
        self.go_down().await
    }

    async fn leave(&self) -> Result<(), InstallError> {
        let bus = self.bus().await?;
        let booted = bus.slots().await?.booted;
        if booted.boot_name != self.known()?.committed {
            crash::point("rauc: before the trial is given up");
            bus.mark("bad", "booted").await?;
            bus.mark("active", "other").await?;
            crash::point("rauc: the trial is given up");
        }
        Ok(())
    }

    async fn keep(&self) -> Result<(), InstallError> {
        let bus = self.bus().await?;
        let booted = bus.slots().await?.booted;
        let mut state = self.known()?;
        crash::point("rauc: before the commit");
        bus.mark("good", "booted").await?;
        bus.mark("active", "booted").await?;
        crash::point("rauc: committed");
        state.commit(&booted.boot_name);
        self.write(&state)?;
        files::remove(&self.bundle()).map_err(self.failed("removing the bundle"))
    }

    async fn go_down(&self) -> Result<Activated, InstallError> {
        crash::point("rauc: before the reboot");
        self.options.reboot.program().succeed().await?;
        Ok(Activated::GoingDown)
    }

    async fn check(&self) -> Result<(), InstallError> {
        let state = self.known()?;
        let held = state.trial.as_ref().and_then(|slot: &SlotName| state.slots.get(slot));
        let target = self.site.target.as_str();
        let about = held.map_or_else(
            || About { target: target.to_owned(), release: None },
            |held| About::reference(target, &held.reference),
        );
        self.options.probation.check(&about).await
    }
}

impl Installer for Rauc {
    fn standing(self: Rc<Self>) -> Later<Result<Standing, InstallError>> {
        Box::pin(async move { self.find().await })
    }

    fn place(&self, _: &Release) -> io::Result<Place> {
        std::fs::create_dir_all(&self.site.dir)?;
        Ok(Place { path: self.bundle(), capacity: None })
    }

    fn stage(self: Rc<Self>, release: Release) -> Later<Result<(), InstallError>> {
        Box::pin(async move { self.hand_over(release).await })
    }

    fn activate(self: Rc<Self>) -> Later<Result<Activated, InstallError>> {
        Box::pin(async move { self.arm().await })
    }

    fn go_back(self: Rc<Self>) -> Later<Result<Activated, InstallError>> {
        Box::pin(async move {
            // The boot loader goes back by itself when the tries of the slot are used up.
            let left = self.leave().await;
            let _ = left.inspect_err(|error| tracing::error!(%error, "RAUC cannot be told to go back"));
            self.go_down().await
        })
    }

    fn healthy(self: Rc<Self>) -> Later<Result<(), InstallError>> {
        Box::pin(async move { self.check().await })
    }

    fn commit(self: Rc<Self>) -> Later<Result<(), InstallError>> {
        Box::pin(async move { self.keep().await })
    }

    fn discard(&self) -> io::Result<()> {
        if let Some(mut state) = State::read(&self.site.dir)? {
            state.slots.retain(|slot, _| *slot == state.committed);
            state.write(&self.site.dir)?;
        }
        files::remove(&self.bundle())
    }
}
