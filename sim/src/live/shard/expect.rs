//! What is expected of devices, and what is known of how far they are.

use fleetwave_agent_core::twin::{Desired, Progress};
use fleetwave_agent_core::{ReleaseId, ResultCode};
use fleetwave_protocol::Instant;

use super::Shard;
use super::slot::flag;
use crate::live::aim::Aim;
use crate::live::cloud::Heard;
use crate::measure::{Change, ChangeId};

/// Something that happened under a change before the shard knew when the change was accepted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Early {
    change: ChangeId,
    at: Instant,
    what: Step,
}

/// How far a device has come.
#[derive(Clone, Copy, Debug)]
enum Step {
    Notified,
    Converged,
}

impl Shard {
    /// The groups' devices are to have something else from now on.
    pub(super) fn take_aim(&mut self, groups: &[Option<Aim>], open: Vec<Aim>) {
        self.open_aims = open;
        for index in 0..self.slots.len() as u32 {
            let slot = &self.slots[index as usize];
            let old = slot.aim.filter(|_| slot.has(flag::WANTED));
            match (old, groups[usize::from(slot.group)]) {
                (None, None) => {}
                (Some(old), Some(new)) if old.release == new.release => {}
                // A device that has shown what it is to have keeps that until something else is said.
                (Some(old), None) if self.open_aims.contains(&old) => {}
                (Some(old), None) => self.withdraw(index, old),
                (_, Some(new)) => {
                    self.aim(index, new);
                    self.tally.targeted.add(1);
                    self.meter.targeted(new.change, 1);
                    // It may have what it is to have already, and have said so.
                    if self.committed(index).is_some_and(|runs| self.releases.same(runs, new.release)) {
                        let at = self.clock.now().at;
                        self.converged(index, new, at);
                    }
                }
            }
        }
    }

    /// Nobody waits any more for the device to have what it was given. It stays one of those that were given it.
    fn withdraw(&mut self, index: u32, aim: Aim) {
        let slot = &mut self.slots[index as usize];
        slot.clear(flag::WANTED);
        if !slot.has(flag::CONVERGED | flag::WITHDRAWN) {
            slot.set(flag::WITHDRAWN);
            self.meter.withdrawn(aim.change, slot.has(flag::NOTIFIED));
        }
    }

    /// The device is given something, in the place of what it was given before.
    fn aim(&mut self, index: u32, aim: Aim) {
        if let Some(old) = self.slots[index as usize].aim {
            self.withdraw(index, old);
            let slot = &self.slots[index as usize];
            for (flag, gauge) in [
                (flag::NOTIFIED, &self.tally.notified),
                (flag::CONVERGED, &self.tally.converged),
                (flag::FAILED, &self.tally.failed),
                (flag::ROLLED_BACK, &self.tally.rolled_back),
            ] {
                gauge.sub(u64::from(slot.has(flag)));
            }
            self.tally.targeted.sub(u64::from(!slot.has(flag::SHOWN)));
        }
        let slot = &mut self.slots[index as usize];
        let told = flag::NOTIFIED | flag::CONVERGED | flag::FAILED | flag::ROLLED_BACK;
        slot.clear(told | flag::WITHDRAWN | flag::SHOWN);
        slot.set(flag::WANTED);
        slot.aim = Some(aim);
    }

    /// Counts the device as notified once its agent knows what it is to have.
    pub(super) fn notice(&mut self, index: u32) {
        let at = self.clock.now().at;
        if let Desired::Release(release) = self.slots[index as usize].agent.desired() {
            self.noticed(index, release, at);
        }
    }

    /// A device's agent knows that it is to have this release.
    pub(super) fn noticed(&mut self, index: u32, release: ReleaseId, at: Instant) {
        let slot = &self.slots[index as usize];
        let known = slot.aim.filter(|_| slot.has(flag::WANTED));
        if known.is_none_or(|aim| aim.release != release)
            && let Some(&aim) = self.open_aims.iter().rev().find(|aim| aim.release == release)
        {
            self.aim(index, aim);
            // The hub has said how many these are.
            self.slots[index as usize].set(flag::SHOWN);
        }
        let slot = &mut self.slots[index as usize];
        let Some(change) = slot.aim.filter(|aim| aim.release == release).map(|aim| aim.change) else {
            return;
        };
        if slot.has(flag::WANTED) && !slot.has(flag::NOTIFIED) {
            slot.set(flag::NOTIFIED);
            self.tally.notified.add(1);
            self.count(change, at, Step::Notified);
        }
    }

    /// Hears what reports the hub has accepted.
    pub(super) fn listen(&mut self) {
        let heard: Vec<Heard> = self.heard.try_iter().collect();
        // What was booted before it was reported is known then.
        self.look_at_agents();
        for heard in heard {
            self.hear(heard);
        }
    }

    /// The hub has accepted a report.
    pub(super) fn hear(&mut self, heard: Heard) {
        let Heard { index, at, status } = heard;
        if self.slots[index as usize].has(flag::REAL) {
            self.hear_agent(&heard);
        }
        let slot = &mut self.slots[index as usize];
        let Some(aim) = slot.aim.filter(|_| !slot.has(flag::CONVERGED)) else { return };
        if self.releases.same(status.running, aim.release) {
            self.converged(index, aim, at);
            return;
        }
        let Progress::Failed(release, code) = status.progress else { return };
        if slot.has(flag::FAILED) || !self.releases.same(release, aim.release) {
            return;
        }
        slot.set(flag::FAILED);
        self.tally.failed.add(1);
        if code.is_rollback() {
            slot.set(flag::ROLLED_BACK);
            self.tally.rolled_back.add(1);
        }
        const { assert!(ResultCode::ALL.len() <= 64, "a bit for each") };
        let cause = 1 << code as u64;
        self.meter.failed(code.name(), slot.causes & cause == 0);
        slot.causes |= cause;
    }

    fn converged(&mut self, index: u32, aim: Aim, at: Instant) {
        let slot = &mut self.slots[index as usize];
        // One that had given up has been helped.
        self.tally.failed.sub(u64::from(slot.has(flag::FAILED)));
        self.tally.rolled_back.sub(u64::from(slot.has(flag::ROLLED_BACK)));
        slot.clear(flag::FAILED | flag::ROLLED_BACK);
        slot.set(flag::CONVERGED);
        self.tally.converged.add(1);
        if !slot.has(flag::WITHDRAWN) {
            self.count(aim.change, at, Step::Converged);
        }
    }

    /// A change was accepted then: what happened under it counts from there.
    pub(super) fn changed(&mut self, id: ChangeId, change: Change) {
        self.meter.change(id, change);
        self.accepted.push(id);
        for early in std::mem::take(&mut self.early) {
            self.count(early.change, early.at, early.what);
        }
    }

    fn count(&mut self, change: ChangeId, at: Instant, what: Step) {
        if !self.accepted.contains(&change) {
            self.early.push(Early { change, at, what });
            return;
        }
        match what {
            Step::Notified => self.meter.notified(change, at),
            Step::Converged => self.meter.converged(change, at),
        }
    }
}
