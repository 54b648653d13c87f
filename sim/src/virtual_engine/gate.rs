//! The hub's throttles in virtual time. They are the hub's, not a shard's, so before a window runs all that it asks
//! for is put in one order and admitted in it: the same for any number of threads.

use fleetwave_hub_core::throttle::{Admission, Operation, Throttles};
use fleetwave_protocol::time::{Instant, micros};

/// An operation that a shard wants to do in the window that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) at: u64,
    pub(super) shard: u32,
    /// The event's place among those of the window.
    pub(super) place: u32,
    pub(super) operation: Operation,
    pub(super) cost: u32,
}

/// What an operation was told. One that passes at once is not told anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Wait until then.
    At(u64),
    /// No; there may be room after so many microseconds.
    No(u64),
}

/// Admits `asks`, and says what those are told that do not pass at once: shard, place and word.
pub(super) fn admit(throttles: &mut Throttles, asks: &mut [Ask], told: &mut Vec<(u32, u32, Told)>) {
    asks.sort_unstable_by_key(|ask| (ask.at, ask.shard, ask.place));
    for ask in asks.iter() {
        match throttles.admit(ask.operation, ask.cost, Instant::from_micros(ask.at)) {
            Admission::Now => {}
            Admission::At(at) => told.push((ask.shard, ask.place, Told::At(at.as_micros()))),
            Admission::Reject { retry_after } => {
                told.push((ask.shard, ask.place, Told::No(micros(retry_after))));
            }
        }
    }
}
