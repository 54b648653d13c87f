//! How far the fleet is: counters that the engine's threads share.

use crate::progress::Gauge;
use crate::timeline::Counts;

/// How many devices have come how far. Shards change it, the run reads it.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) connected: Gauge,
    pub(super) targeted: Gauge,
    pub(super) notified: Gauge,
    pub(super) converged: Gauge,
    pub(super) failed: Gauge,
    pub(super) rolled_back: Gauge,
    /// Payload bytes received.
    pub(super) payload: Gauge,
}

impl Tally {
    /// The counts, for a fleet of `total` devices.
    pub(super) fn counts(&self, total: u64) -> Counts {
        Counts {
            total,
            connected: self.connected.get(),
            targeted: self.targeted.get(),
            notified: self.notified.get(),
            converged: self.converged.get(),
            failed: self.failed.get(),
            rolled_back: self.rolled_back.get(),
        }
    }
}
