//! Devices that a real agent runs: the shard sees only what the agent shows, and counts it as it counts its own.

use fleetwave_agent_core::ReleaseId;
use fleetwave_agent_core::twin::Progress;
use fleetwave_protocol::Instant;

use super::Shard;
use super::slot::flag;
use crate::device::Invariant;
use crate::live::agents::{Shown, Sign};
use crate::live::cloud::Heard;

/// What is known of a device that a real agent runs.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// What it has said that it runs.
    told: Option<ReleaseId>,
    /// What it has been seen to boot, the latest last, and when.
    booted: [Option<(Instant, Option<ReleaseId>)>; 2],
    /// What it is to have, and when the download of that began.
    wanted: Option<ReleaseId>,
    fetching: Option<Instant>,
}

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
                    self.known.entry(index).or_default().wanted = Some(release);
                    self.noticed(index, release, at);
                }
                Shown::Asked => self.asks_for_grant(index, at),
                Shown::Granted => self.has_grant(index, at),
                Shown::Boots(release) => {
                    let booted = &mut self.known.entry(index).or_default().booted;
                    *booted = [booted[1], Some((at, release))];
                }
                Shown::Fetching => self.known.entry(index).or_default().fetching = Some(at),
                Shown::Fetched => self.fetched_by_agent(index, at),
            }
        }
    }

    /// A real agent has all of its payload. What came in tries that broke off is not seen.
    fn fetched_by_agent(&mut self, index: u32, at: Instant) {
        let known = self.known.entry(index).or_default();
        if let (Some(from), Some(release)) = (known.fetching.take(), known.wanted) {
            let size = self.releases[release].size;
            self.meter.requested(1);
            self.meter.payload(from, at, size, 0);
            self.meter.downloaded(size, at.since(from));
            self.tally.payload.add(size);
        }
    }

    /// A real agent's report was accepted. What it says at rest has to be what was last seen to boot.
    pub(super) fn hear_agent(&mut self, Heard { index, at, status }: &Heard) {
        let known = self.known.entry(*index).or_default();
        known.told = Some(status.running);
        let booted = known.booted.iter().rev().flatten().find(|(since, _)| since <= at);
        let honest = match (booted, status.progress) {
            (Some((_, Some(release))), Progress::Idle(_) | Progress::Failed(..)) => {
                self.releases.same(status.running, *release)
            }
            // What is no release at all has been noted when it booted.
            _ => true,
        };
        if !honest {
            let number = self.who(*index).number;
            self.violations.note(Invariant::HonestReports, number);
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
            return self.known.get(&index).and_then(|known| known.told);
        }
        slot.has(flag::KNOWN).then(|| slot.agent.committed())
    }
}
