//! What one thread counts and collects while it runs shards.

use super::blob::Request;
use crate::device::Violations;
use crate::measure::Meter;
use crate::timeline::Counts;

/// Changes of the timeline's counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Delta {
    pub(super) connected: i64,
    pub(super) targeted: i64,
    pub(super) notified: i64,
    pub(super) converged: i64,
    pub(super) failed: i64,
    pub(super) rolled_back: i64,
}

impl Delta {
    /// Adds them to `counts`.
    pub(super) fn apply(self, counts: &mut Counts) {
        let add = |count: &mut u64, change: i64| *count = count.saturating_add_signed(change);
        add(&mut counts.connected, self.connected);
        add(&mut counts.targeted, self.targeted);
        add(&mut counts.notified, self.notified);
        add(&mut counts.converged, self.converged);
        add(&mut counts.failed, self.failed);
        add(&mut counts.rolled_back, self.rolled_back);
    }
}

/// One thread's part of the measures. What it holds does not depend on which shards the thread ran.
#[derive(Default)]
pub(super) struct Worker {
    pub(super) meter: Meter,
    pub(super) violations: Violations,
    pub(super) delta: Delta,
    /// What devices send to the blob store.
    pub(super) requests: Vec<Request>,
    pub(super) handled: u64,
}
