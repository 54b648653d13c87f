//! Devices that a real agent runs: the shard sees only what the agent shows, and counts it as it counts its own.

use fleetwave_agent_core::ReleaseId;

use super::Shard;
use super::slot::flag;
use crate::live::agents::{Shown, Sign};

impl Shard {
    /// Looks at what real agents have shown.
    pub(super) fn look_at_agents(&mut self) {
        while let Ok(Sign { index, at, what }) = self.signs.try_recv() {
            match what {
                Shown::Connecting => {
                    let slot = &mut self.slots[index as usize];
                    // A first connection was timed by the scenario.
                    if slot.has(flag::KNOWN) && !slot.has(flag::CONNECTING) {
                        slot.intended = at;
                    }
                    self.begin_connecting(index, at);
                }
                Shown::Connected => {
                    self.link_is_up(index, at);
                }
                Shown::Lost => self.link_is_down(index),
                Shown::Wanted(reference) => {
                    let release = self.releases.intern(&reference);
                    self.noticed(index, release, at);
                }
                Shown::Asked => self.asks_for_grant(index, at),
                Shown::Granted => self.has_grant(index, at),
            }
        }
    }

    fn link_is_down(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if slot.has(flag::UP) {
            slot.clear(flag::UP);
            self.tally.connected.sub(1);
        }
    }

    /// What a device is known to run for good.
    pub(super) fn committed(&self, index: u32) -> Option<ReleaseId> {
        let slot = &self.slots[index as usize];
        if slot.has(flag::REAL) {
            return self.told.get(&index).copied();
        }
        slot.has(flag::KNOWN).then(|| slot.agent.committed())
    }
}
