//! What is expected of devices, and what is known of how far they are.

use fleetwave_agent_core::twin::{Desired, Progress};
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
            let (old, new) = (slot.aim, groups[usize::from(slot.group)]);
            let same = match (old, new) {
                (None, None) => true,
                (Some(old), Some(new)) => old.release == new.release,
                // A device that has shown what it is to have keeps that until something else is said.
                (Some(old), None) => self.open_aims.contains(&old),
                (None, Some(_)) => false,
            };
            if !same {
                self.aim(index, new);
                if let Some(aim) = new {
                    self.meter.targeted(aim.change, 1);
                    let slot = &self.slots[index as usize];
                    // It may have what it is to have already, and have said so.
                    if slot.has(flag::KNOWN) && self.releases.same(slot.agent.committed(), aim.release) {
                        let at = self.clock.now().at;
                        self.converged(index, aim, at);
                    }
                }
            }
        }
    }

    /// The device is to have something else.
    fn aim(&mut self, index: u32, aim: Option<Aim>) {
        let slot = &mut self.slots[index as usize];
        if let Some(old) = slot.aim {
            self.tally.targeted.sub(1);
            for (flag, gauge) in [
                (flag::NOTIFIED, &self.tally.notified),
                (flag::CONVERGED, &self.tally.converged),
                (flag::FAILED, &self.tally.failed),
                (flag::ROLLED_BACK, &self.tally.rolled_back),
            ] {
                gauge.sub(u64::from(slot.has(flag)));
            }
            if !slot.has(flag::CONVERGED) {
                self.meter.withdrawn(old.change, slot.has(flag::NOTIFIED));
            }
        }
        slot.clear(flag::NOTIFIED | flag::CONVERGED | flag::FAILED | flag::ROLLED_BACK);
        slot.aim = aim;
        self.tally.targeted.add(u64::from(aim.is_some()));
    }

    /// Counts the device as notified once its agent knows what it is to have.
    pub(super) fn notice(&mut self, index: u32) {
        let at = self.clock.now().at;
        let Desired::Release(release) = self.slots[index as usize].agent.desired() else { return };
        if self.slots[index as usize].aim.is_none_or(|aim| aim.release != release)
            && let Some(&aim) = self.open_aims.iter().rev().find(|aim| aim.release == release)
        {
            self.aim(index, Some(aim));
        }
        let slot = &mut self.slots[index as usize];
        let Some(change) = slot.aim.filter(|aim| aim.release == release).map(|aim| aim.change) else {
            return;
        };
        if !slot.has(flag::NOTIFIED) {
            slot.set(flag::NOTIFIED);
            self.tally.notified.add(1);
            self.count(change, at, Step::Notified);
        }
    }

    /// Hears what reports the hub has accepted.
    pub(super) fn listen(&mut self) {
        while let Ok(Heard { index, at, status }) = self.heard.try_recv() {
            let slot = &mut self.slots[index as usize];
            let Some(aim) = slot.aim.filter(|_| !slot.has(flag::CONVERGED)) else { continue };
            if self.releases.same(status.running, aim.release) {
                self.converged(index, aim, at);
                continue;
            }
            let Progress::Failed(release, code) = status.progress else { continue };
            if slot.has(flag::FAILED) || !self.releases.same(release, aim.release) {
                continue;
            }
            slot.set(flag::FAILED);
            self.tally.failed.add(1);
            if code.is_rollback() {
                slot.set(flag::ROLLED_BACK);
                self.tally.rolled_back.add(1);
            }
            let cause = 1 << code as u32;
            self.meter.failed(code.name(), slot.causes & cause == 0);
            slot.causes |= cause;
        }
    }

    fn converged(&mut self, index: u32, aim: Aim, at: Instant) {
        let slot = &mut self.slots[index as usize];
        // One that had given up has been helped.
        self.tally.failed.sub(u64::from(slot.has(flag::FAILED)));
        self.tally.rolled_back.sub(u64::from(slot.has(flag::ROLLED_BACK)));
        slot.clear(flag::FAILED | flag::ROLLED_BACK);
        slot.set(flag::CONVERGED);
        self.tally.converged.add(1);
        self.count(aim.change, at, Step::Converged);
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
