//! What an engine hands over when its run is over.

use std::time::Duration;

use fleetwave_report::record::{Devices, Floor, Harness, Rates};

use super::{MemoryUse, Meter};
use crate::timeline::{Counts, End};

/// What an engine hands over when its run is over, or was stopped.
#[derive(Clone, Debug)]
pub struct EngineOutcome {
    /// Everything that was counted and timed, all threads together.
    pub meter: Meter,
    /// How far the devices had come at the end.
    pub counts: Counts,
    /// Why the run is over; `None` if it was stopped from outside.
    pub end: Option<End>,
    /// What the timeline noted.
    pub notes: Vec<String>,
    /// Invariants of the design that the run broke, a sentence each. Any makes the run fail.
    pub violations: Vec<String>,
    /// How the engine itself knows that the harness was in the way, beside the lag that it measured.
    pub disturbances: Vec<String>,
    /// Length of the run on the engine's clock.
    pub duration: Duration,
    /// Wall time from the making of the fleet to its last event.
    pub wall: Duration,
    /// The hash of all events, if the engine is deterministic.
    pub event_hash: Option<u64>,
    /// Resident memory from before the fleet was made.
    pub memory: MemoryUse,
    /// Threads that ran devices and hub.
    pub threads: u32,
    /// What this machine does at best, if it was measured.
    pub floor: Option<Floor>,
}

impl EngineOutcome {
    pub(crate) fn devices(&self) -> Devices {
        let Counts { total, targeted, notified, converged, failed, rolled_back, .. } = self.counts;
        let missing = targeted.saturating_sub(converged + failed);
        Devices { total, targeted, notified, converged, failed, rolled_back, missing }
    }

    pub(crate) fn rates(&self) -> Rates {
        let seconds = self.wall.as_secs_f64();
        let events = self.meter.events_handled() as f64;
        Rates {
            connects_per_second: self.meter.connects_per_second(),
            notifications_per_second: self.meter.notifications_per_second(),
            events_per_second: if seconds > 0.0 { events / seconds } else { 0.0 },
        }
    }

    pub(crate) fn harness(&self, lag_limit: Duration) -> Harness {
        let (lag_p99, lag_max) = self.meter.lag_seconds();
        Harness {
            wall_seconds: self.wall.as_secs_f64(),
            lag_p99,
            lag_max,
            lag_limit: lag_limit.as_secs_f64(),
            peak_rss_bytes: self.memory.peak,
            resident_bytes_per_device: self.memory.per_device(self.counts.total),
            events: self.meter.events_handled(),
            threads: self.threads,
            floor: self.floor,
        }
    }

    /// A figure of the fleet, over its devices.
    pub(crate) fn per_device(&self, amount: u64) -> f64 {
        if self.counts.total == 0 { 0.0 } else { amount as f64 / self.counts.total as f64 }
    }
}
