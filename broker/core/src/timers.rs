//! What falls due later.

use std::collections::BTreeMap;

use fleetwave_protocol::Instant;

use crate::io::DeviceIx;

/// Names a timer, to cancel it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket {
    at: Instant,
    /// Ties are resolved by the order in which timers were set.
    serial: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Due {
    /// A C2D message of the device expires.
    C2dExpiry(DeviceIx),
    /// The lock of a C2D message of the device passes.
    C2dLock(DeviceIx),
    /// A method call has waited long enough, for the device or for its answer.
    Method(u32),
    /// Configurations are evaluated.
    Cycle,
}

#[derive(Debug, Default)]
pub(crate) struct Timers {
    queue: BTreeMap<Ticket, Due>,
    serial: u64,
}

impl Timers {
    pub(crate) fn set(&mut self, at: Instant, due: Due) -> Ticket {
        self.serial += 1;
        let ticket = Ticket { at, serial: self.serial };
        self.queue.insert(ticket, due);
        ticket
    }

    pub(crate) fn cancel(&mut self, ticket: Ticket) {
        self.queue.remove(&ticket);
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.queue.first_key_value().map(|(ticket, _)| ticket.at)
    }

    /// The first timer that is due.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<(Ticket, Due)> {
        let first = self.queue.first_entry()?;
        (first.key().at <= now).then(|| first.remove_entry())
    }
}
