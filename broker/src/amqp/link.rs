//! One link of a session, as this side keeps it.

use bytes::{Bytes, BytesMut};

/// A link, by a number that its connection gives only once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LinkId(pub(crate) u32);

/// Where a link stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The peer attached, and waits for this side.
    Asked,
    /// Both sides attached.
    Attached,
    /// This side detached, and waits for the peer.
    Detaching,
}

/// A link.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) channel: u16,
    /// The handle, the same in both directions.
    pub(crate) handle: u32,
    pub(crate) state: State,
    pub(crate) flow: Flow,
}

/// The direction of a link, with what only that direction has.
#[derive(Debug)]
pub(crate) enum Flow {
    /// This side sends.
    Out {
        delivery_count: u32,
        credit: u32,
        /// The peer wants its credit used up or given back.
        drain: bool,
        /// Deliveries go out settled.
        settled: bool,
    },
    /// This side receives.
    In {
        delivery_count: u32,
        /// Deliveries that the peer may begin.
        credit: u32,
        /// Deliveries that came and have no outcome yet.
        open: u32,
        /// How many deliveries may be open or allowed at once.
        window: u32,
        /// A delivery of which more is to come.
        partial: Option<Partial>,
    },
}

/// A delivery of several transfers.
#[derive(Debug)]
pub(crate) struct Partial {
    pub(crate) delivery: u32,
    pub(crate) settled: bool,
    pub(crate) payload: BytesMut,
    /// It grew beyond the limit, and its payload is dropped.
    pub(crate) oversized: bool,
}

impl Partial {
    /// Adds a transfer's part, up to `limit` bytes in all.
    pub(crate) fn add(&mut self, part: &Bytes, limit: usize) {
        if self.payload.len() + part.len() > limit {
            self.oversized = true;
            self.payload = BytesMut::new();
        }
        if !self.oversized {
            self.payload.extend_from_slice(part);
        }
    }
}
