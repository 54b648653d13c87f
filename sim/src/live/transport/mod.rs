//! How a shard's bytes reach the hub: one trait, three siblings.
//!
//! The shard knows connections by number and bytes; it does not see sockets, batches or readiness. A connection may
//! be written to as soon as [`Transport::connect`] has given its number: what cannot go yet waits.

mod memory;
mod tcp;
mod tls;

use std::io;
use std::sync::Arc;
use std::time::Duration;

pub(super) use memory::Memory;
pub(super) use tcp::Tcp;
pub(super) use tls::{Server, Tls};

/// What happened to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// So many of the received bytes are its.
    Bytes(usize),
    /// It could not be made, or is gone.
    Closed,
}

/// A connection: the number that it has as long as it lives, and which of that number's connections it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line {
    number: u32,
    serial: u32,
}

impl Line {
    /// No connection.
    pub(super) const NONE: Self = Self { number: u32::MAX, serial: 0 };
}

/// Something that happened to a device's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) line: Line,
    pub(super) device: u32,
    pub(super) kind: Kind,
}

/// What came in one go: frames in order, and their bytes one after the other. The shard reuses it.
#[derive(Debug, Default)]
pub(super) struct Received {
    pub(super) bytes: Vec<u8>,
    pub(super) frames: Vec<Frame>,
}

impl Received {
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.frames.clear();
    }

    fn add(&mut self, line: Line, device: u32, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.frames.push(Frame { line, device, kind: Kind::Bytes(bytes.len()) });
    }

    fn closed(&mut self, line: Line, device: u32) {
        self.frames.push(Frame { line, device, kind: Kind::Closed });
    }
}

/// Carries a shard's connections.
pub(super) trait Transport: Send {
    /// What other threads wake the shard with.
    fn waker(&self) -> Arc<mio::Waker>;

    /// Opens a connection for a device.
    ///
    /// # Errors
    /// If none can be made at all, e.g. because descriptors are out.
    fn connect(&mut self, device: u32, id: &str) -> io::Result<Line>;

    /// Sends bytes, now or as soon as it goes.
    fn send(&mut self, line: Line, bytes: &[u8]);

    /// Ends a connection; what was sent before still arrives if the other side reads it. One that has ended by
    /// itself needs no closing.
    fn close(&mut self, line: Line);

    /// Hands over everything that was sent.
    fn flush(&mut self);

    /// Waits until something has come, somebody has woken the shard, or `timeout` is over.
    ///
    /// # Errors
    /// If the system cannot wait.
    fn wait(&mut self, timeout: Duration) -> io::Result<()>;

    /// Appends what has come; false if nothing has.
    fn receive(&mut self, into: &mut Received) -> bool;
}

/// The numbers of connections, and whose they are.
#[derive(Debug, Default)]
struct Numbers {
    /// The owner and the serial of each number's last connection.
    owners: Vec<(u32, u32)>,
    free: Vec<u32>,
}

/// Nobody's.
const NOBODY: u32 = u32::MAX;

impl Numbers {
    /// A number for a connection of this device.
    fn take(&mut self, device: u32) -> Line {
        let number = self.free.pop().unwrap_or_else(|| {
            self.owners.push((NOBODY, 0));
            (self.owners.len() - 1) as u32
        });
        let (owner, serial) = &mut self.owners[number as usize];
        *owner = device;
        *serial = serial.wrapping_add(1);
        Line { number, serial: *serial }
    }

    /// Nothing that happens under this number is the owner's any more; false if it was not before.
    fn disown(&mut self, line: Line) -> bool {
        match self.owners.get_mut(line.number as usize) {
            Some((owner, serial)) if *serial == line.serial && *owner != NOBODY => {
                *owner = NOBODY;
                true
            }
            _ => false,
        }
    }

    /// The number is not in use any more.
    fn give_back(&mut self, number: u32) {
        self.owners[number as usize].0 = NOBODY;
        self.free.push(number);
    }

    /// The connection that has this number, and its owner.
    fn of(&self, number: u32) -> Option<(Line, u32)> {
        let &(owner, serial) = self.owners.get(number as usize)?;
        (owner != NOBODY).then_some((Line { number, serial }, owner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_used_again_is_another_connection() {
        let mut numbers = Numbers::default();
        let first = numbers.take(7);
        assert_eq!(numbers.of(0), Some((first, 7)));
        assert!(numbers.disown(first));
        assert_eq!(numbers.of(0), None);
        numbers.give_back(0);
        let second = numbers.take(7);
        assert_ne!(first, second);
        assert!(!numbers.disown(first), "the first one is over");
        assert_eq!(numbers.of(0), Some((second, 7)));
    }
}
