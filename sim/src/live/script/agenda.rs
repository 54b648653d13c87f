//! What scripted devices have to do, in the order of time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use fleetwave_protocol::Instant;

use super::Bytes;
use crate::live::transport::Line;

/// Something to do.
#[derive(Clone, Debug)]
pub(super) enum Todo {
    /// Connect.
    Connect,
    /// Answer a method, if the connection is still that one.
    Answer { line: Line, rid: Box<str>, name: Box<str>, payload: Bytes },
    /// Take desired properties over, if the connection is still that one.
    Report { line: Line, desired: Bytes },
    /// Send telemetry, if the connection is still that one.
    Telemetry { line: Line },
    /// Keep the connection alive, if it is still that one.
    Ping { line: Line },
}

struct Entry {
    at: Instant,
    /// What is due at the same time is done in the order of its coming.
    order: u64,
    device: u32,
    todo: Todo,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// Everything that is to be done.
#[derive(Default)]
pub(super) struct Agenda {
    heap: BinaryHeap<Reverse<Entry>>,
    added: u64,
}

impl Agenda {
    pub(super) fn add(&mut self, at: Instant, device: u32, todo: Todo) {
        self.added += 1;
        self.heap.push(Reverse(Entry { at, order: self.added, device, todo }));
    }

    /// The next thing that is due.
    pub(super) fn due(&mut self, now: Instant) -> Option<(u32, Todo)> {
        if self.heap.peek()?.0.at > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| (entry.device, entry.todo))
    }

    /// When that is.
    pub(super) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse(entry)| entry.at)
    }
}
