//! What a simulated device is beside its agent: a journal, two slots with a boot loader, a payload on its way, and
//! its luck. Both engines carry out the agent's effects on it. No IO, no clock: spans come out, and the engine waits.
//!
//! Beside doing what it is told, a device checks the [`Invariant`]s of the design that can be judged from one device
//! alone, at each effect, and notes what is broken in [`Violations`].
//!
//! An engine's part: [`Effect::Persist`](fleetwave_agent_core::Effect::Persist) is [`Device::persist`];
//! `Fetch` is [`Device::fetch`], then [`Device::keep`] at each checkpoint; `Verify` is [`World::verify_time`], then
//! [`Device::verified`]; `Stage` is [`Device::begin_stage`], then [`Device::end_stage`]; a reboot is
//! [`Device::arm`] (for the candidate) and [`Device::begin_boot`], then [`Device::booted`]; `CheckHealth` is
//! [`Device::probation_time`], then [`Device::health`]; `CommitSlot` is [`Device::commit`]. A power cut is nothing
//! but the engine dropping what is under way, waiting for [`Device::off_time`], and booting.

mod violations;
mod world;

#[cfg(test)]
mod tests;

use std::time::Duration;

use fleetwave_agent_core::twin::{Progress, Status};
use fleetwave_agent_core::{
    Boot, Durable, HealthError, LockAnswer, Record, ReleaseId, Releases, State, StorageError,
};
use fleetwave_protocol::CounterRng;
use fleetwave_protocol::rng::mix;

use crate::scenario::dist::Dist;
use crate::scenario::fault::CutMoment;
use crate::scenario::fleet::Purpose;

pub use violations::{Invariant, Violations};
pub use world::World;

/// Which device: its number in the fleet, and the index of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    /// Its number.
    pub number: u64,
    /// Its group.
    pub group: usize,
}

/// The state in which a power cut of that moment finds its device; `None` if it comes whatever the device does.
#[must_use]
pub const fn state_of(moment: CutMoment) -> Option<State> {
    Some(match moment {
        CutMoment::Random | CutMoment::Now => return None,
        CutMoment::Deferred => State::Deferred,
        CutMoment::Granting => State::Granting,
        CutMoment::Downloading => State::Downloading,
        CutMoment::Verifying => State::Verifying,
        CutMoment::Staging => State::Staging,
        CutMoment::Rebooting => State::Rebooting,
        CutMoment::Probation => State::Probation,
        CutMoment::Committing => State::Committing,
    })
}

/// What survives a power cut, and which slot runs.
#[derive(Clone, Debug)]
pub struct Device {
    journal: Durable,
    /// The release in the slot that boots by default.
    default: ReleaseId,
    /// The release in the other slot, if it holds a whole one.
    other: Option<ReleaseId>,
    /// Payload bytes in store.
    stored: u64,
    /// Every state that the agent went through, as a hash.
    history: u64,
    /// The newest version of the desired properties that it acted on.
    version: u32,
    /// Spans that were drawn.
    draws: u16,
    /// The other slot is to be booted, once.
    armed: bool,
    /// The other slot runs.
    on_trial: bool,
    /// What is in store was compared with what was signed, since the last boot.
    verified: bool,
}

impl Device {
    /// A device that runs `release` and has never updated.
    #[must_use]
    pub const fn new(release: ReleaseId) -> Self {
        Self {
            journal: Durable::new(release),
            default: release,
            other: None,
            stored: 0,
            history: 0,
            version: 0,
            draws: 0,
            armed: false,
            on_trial: false,
            verified: false,
        }
    }

    /// The release that runs.
    #[must_use]
    pub fn running(&self) -> ReleaseId {
        if self.on_trial { self.other.unwrap_or(self.default) } else { self.default }
    }

    /// Payload bytes that a power cut leaves.
    #[must_use]
    pub const fn stored(&self) -> u64 {
        self.stored
    }

    /// A hash of the states that the agent has gone through, in their order.
    #[must_use]
    pub const fn history(&self) -> u64 {
        self.history
    }

    /// The agent entered a state.
    pub fn entered(&mut self, state: State) {
        self.history = mix(self.history ^ (state as u64 + 1));
    }

    /// Makes a record durable.
    pub fn persist(&mut self, record: Record) {
        self.journal.apply(record);
        // The store is free once the slot has the payload, or nobody wants it any more.
        if matches!(record, Record::Staged(_) | Record::Ended(..)) {
            self.discard();
        }
    }

    /// A download of the payload begins at `offset`.
    pub fn fetch(&mut self, who: Who, offset: u64, violations: &mut Violations) {
        if offset < self.stored {
            violations.note(Invariant::NothingFetchedTwice, who.number);
        }
    }

    /// So many bytes from the start of the payload would survive a power cut now.
    pub fn keep(&mut self, stored: u64) {
        self.stored = stored;
    }

    /// The payload in store is forgotten.
    pub fn discard(&mut self) {
        self.stored = 0;
        self.verified = false;
    }

    /// The payload in store was compared with what was signed.
    pub fn verified(&mut self, genuine: bool) {
        self.verified = genuine;
    }

    /// Begins to write the payload into the inactive slot; says how long that takes.
    pub fn begin_stage(
        &mut self,
        world: &World,
        who: Who,
        release: ReleaseId,
        violations: &mut Violations,
    ) -> Duration {
        if !self.verified || self.stored != world.releases()[release].size {
            violations.note(Invariant::OnlyVerified, who.number);
        }
        // On trial the inactive slot is the one that the device has to be able to go back to.
        if self.on_trial {
            violations.note(Invariant::AlwaysBootable, who.number);
        }
        self.other = None;
        self.draw(world, who, Purpose::Install, &world.group(who).install)
    }

    /// The time of [`begin_stage`](Self::begin_stage) is over.
    ///
    /// # Errors
    /// If the device is one that cannot write this release.
    pub fn end_stage(&mut self, world: &World, who: Who, release: ReleaseId) -> Result<(), StorageError> {
        let spec = world.spec_of(release);
        if spec.is_some_and(|spec| world.fleet().install_fails(who.number, who.group, spec)) {
            return Err(StorageError::Failed);
        }
        self.other = Some(release);
        Ok(())
    }

    /// The next boot is of the other slot, once.
    pub fn arm(&mut self) {
        self.armed = true;
    }

    /// The device goes down and boots; says after which time the agent runs. A power cut before that time is one
    /// in mid-boot: begin again.
    pub fn begin_boot(&mut self, world: &World, who: Who) -> Duration {
        let reboot = &world.group(who).reboot;
        let mut took = self.draw(world, who, Purpose::Reboot, reboot);
        self.verified = false;
        self.on_trial = false;
        if !std::mem::take(&mut self.armed) {
            return took;
        }
        let Some(candidate) = self.other else { return took };
        let spec = world.spec_of(candidate);
        if spec.is_some_and(|spec| world.fleet().boot_fails(who.number, who.group, spec)) {
            // The boot loader waits for the candidate in vain, and boots the default slot.
            took += self.draw(world, who, Purpose::Reboot, reboot);
        } else {
            self.on_trial = true;
        }
        took
    }

    /// The time of [`begin_boot`](Self::begin_boot) is over: what the agent is told.
    #[must_use]
    pub fn booted(&self) -> Boot {
        Boot { durable: self.journal, running: self.running(), committed: self.default, partial: self.stored }
    }

    /// Whether the device may be interrupted now.
    pub fn locks(&mut self, world: &World, who: Who) -> LockAnswer {
        let stream = world.fleet().rng(who.number, Purpose::Busy).next_u64();
        self.draws = self.draws.wrapping_add(1);
        let busy = world.group(who).busy;
        let drawn = CounterRng::of(stream, u64::from(self.draws)).below(1_000_000);
        if drawn < u64::from(busy.millionths()) { LockAnswer::Held } else { LockAnswer::Free }
    }

    /// How long the health checks take this time.
    pub fn probation_time(&mut self, world: &World, who: Who) -> Duration {
        self.draw(world, who, Purpose::Probation, &world.group(who).probation)
    }

    /// How the health checks end.
    ///
    /// # Errors
    /// If the device is one that is not healthy with the release that it runs.
    pub fn health(&self, world: &World, who: Who) -> Result<(), HealthError> {
        let spec = world.spec_of(self.running());
        let fails = spec.is_some_and(|spec| world.fleet().health_fails(who.number, who.group, spec));
        if fails { Err(HealthError) } else { Ok(()) }
    }

    /// Makes the running slot the default one.
    ///
    /// # Errors
    /// If the default slot runs: there is nothing to commit.
    pub fn commit(
        &mut self,
        who: Who,
        releases: &Releases,
        violations: &mut Violations,
    ) -> Result<(), StorageError> {
        let Some(candidate) = self.other.filter(|_| self.on_trial) else { return Err(StorageError::Failed) };
        let (new, old) = (&releases[candidate], &releases[self.default]);
        if new.sequence < old.sequence && !new.downgrade {
            violations.note(Invariant::NeverDown, who.number);
        }
        self.other = Some(self.default);
        self.default = candidate;
        self.on_trial = false;
        Ok(())
    }

    /// The agent reports `status`.
    pub fn reports(&self, who: Who, status: &Status, releases: &Releases, violations: &mut Violations) {
        let is = |release| releases.same(status.running, release);
        let honest = match status.progress {
            // In mid-update the old release is still the one that boots, or has been until a moment ago.
            Progress::Updating(..) => is(self.default) || self.other.is_some_and(is),
            Progress::Idle(_) | Progress::Failed(..) => is(self.running()),
        };
        if !honest {
            violations.note(Invariant::HonestReports, who.number);
        }
    }

    /// The agent acts on this version of the desired properties.
    pub fn saw_version(&mut self, who: Who, version: u64, violations: &mut Violations) {
        let version = u32::try_from(version).unwrap_or(u32::MAX);
        if version < self.version {
            violations.note(Invariant::VersionsRise, who.number);
        }
        self.version = version;
    }

    /// How long the device stays without power, of `off_for`.
    pub fn off_time(&mut self, world: &World, who: Who, off_for: &Dist) -> Duration {
        self.draw(world, who, Purpose::PowerCut, off_for)
    }

    /// Draws a span: a function of seed, device, purpose and the number of spans that this device drew before.
    fn draw(&mut self, world: &World, who: Who, purpose: Purpose, dist: &Dist) -> Duration {
        let stream = world.fleet().rng(who.number, purpose).next_u64();
        self.draws = self.draws.wrapping_add(1);
        dist.sample(&mut CounterRng::of(stream, u64::from(self.draws)))
    }
}
