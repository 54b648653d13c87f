//! One device of a shard: what it costs at rest.

use fleetwave_agent_core::{Agent, ReleaseId};
use fleetwave_protocol::Instant;

use crate::device::Device;
use crate::live::aim::Aim;
use crate::live::transport::Line;

/// What a device is doing that takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Nothing,
    /// Boots, or is switched on, at the end of it.
    Boot,
    Verify(ReleaseId),
    Stage(ReleaseId),
    Health,
}

/// What is or is not so.
pub(super) mod flag {
    /// The agent runs.
    pub(in super::super) const ON: u16 = 1;
    /// The hub has accepted the connection.
    pub(in super::super) const UP: u16 = 1 << 1;
    /// Means to connect.
    pub(in super::super) const CONNECTING: u16 = 1 << 2;
    /// Has been connected before.
    pub(in super::super) const KNOWN: u16 = 1 << 3;
    /// Has asked for a grant.
    pub(in super::super) const ASKED: u16 = 1 << 4;
    /// A download is under way.
    pub(in super::super) const FETCHING: u16 = 1 << 5;
    /// Its agent knows what it is to have.
    pub(in super::super) const NOTIFIED: u16 = 1 << 6;
    /// The hub knows that it has it.
    pub(in super::super) const CONVERGED: u16 = 1 << 7;
    /// The hub knows that it has given it up.
    pub(in super::super) const FAILED: u16 = 1 << 8;
    /// And that it went back.
    pub(in super::super) const ROLLED_BACK: u16 = 1 << 9;
    /// Has an entry among the rare things.
    pub(in super::super) const RARE: u16 = 1 << 10;
    /// A ping has not been answered.
    pub(in super::super) const PINGED: u16 = 1 << 11;
    /// What it was given last is still what it is to have.
    pub(in super::super) const WANTED: u16 = 1 << 12;
    /// Nobody waits for it to have that any more, and it had not by then.
    pub(in super::super) const WITHDRAWN: u16 = 1 << 13;
    /// It has shown by itself what it is to have, and is counted by the hub.
    pub(in super::super) const SHOWN: u16 = 1 << 14;
    /// A real agent runs it, elsewhere in this process.
    pub(in super::super) const REAL: u16 = 1 << 15;
}

/// One device.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) agent: Agent,
    pub(super) hardware: Device,
    pub(super) line: Line,
    /// When the agent wants to be woken.
    pub(super) wake: Instant,
    /// When the work is done.
    pub(super) done: Instant,
    /// When the connection is to be kept alive, or given up.
    pub(super) ping: Instant,
    /// The earliest turn that the wheel holds for it.
    pub(super) turn: Instant,
    /// When it was meant to connect.
    pub(super) intended: Instant,
    /// When it began to.
    pub(super) started: Instant,
    /// When it first asked for the grant that it waits for.
    pub(super) asked: Instant,
    /// What it was given last.
    pub(super) aim: Option<Aim>,
    /// Grows when what is under way is given up.
    pub(super) generation: u32,
    /// The request that reads the twin; 0 until it was first asked for since the device booted.
    pub(super) twin_rid: u32,
    /// Result codes that it has failed with, a bit each.
    pub(super) causes: u64,
    pub(super) work: Work,
    pub(super) group: u16,
    pub(super) flags: u16,
}

impl Slot {
    pub(super) fn new(agent: Agent, hardware: Device, group: usize) -> Self {
        Self {
            agent,
            hardware,
            line: Line::NONE,
            wake: Instant::NEVER,
            done: Instant::NEVER,
            ping: Instant::NEVER,
            turn: Instant::NEVER,
            intended: Instant::NEVER,
            started: Instant::NEVER,
            asked: Instant::NEVER,
            aim: None,
            generation: 0,
            twin_rid: 0,
            causes: 0,
            work: Work::Nothing,
            group: u16::try_from(group).expect("a scenario has fewer groups than that"),
            flags: 0,
        }
    }

    pub(super) const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub(super) const fn set(&mut self, flag: u16) {
        self.flags |= flag;
    }

    pub(super) const fn clear(&mut self, flag: u16) {
        self.flags &= !flag;
    }

    /// When its turn is next, apart from rare things.
    pub(super) fn due(&self) -> Instant {
        self.wake.min(self.done).min(self.ping)
    }

    /// What is under way on the device is given up: what comes of it later is stale.
    pub(super) const fn give_up_work(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.work = Work::Nothing;
        self.done = Instant::NEVER;
        self.flags &= !flag::FETCHING;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_at_rest_costs_no_more_than_it_is_meant_to() {
        assert!(size_of::<Slot>() <= 448, "{} bytes", size_of::<Slot>());
    }
}
