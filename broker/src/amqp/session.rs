//! One session: its windows, its handles, and what waits to be sent on it.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::frame;
use super::link::LinkId;
use super::performative::{Begin, Flow, Transfer};

/// Transfers that a peer may send before it hears of this side again.
pub(crate) const WINDOW: u32 = 2048;
/// The highest handle, and the number of links less one.
pub(crate) const HANDLE_MAX: u32 = 255;

/// A session.
#[derive(Debug, Default)]
pub(crate) struct Session {
    pub(crate) handles: BTreeMap<u32, LinkId>,
    /// Deliveries of this side whose outcome is wanted, by their id, with the sender's tag.
    pub(crate) unsettled: BTreeMap<u32, (LinkId, u64)>,
    next_incoming_id: u32,
    /// Transfers that came since the peer last heard of the window.
    unannounced: u32,
    next_outgoing_id: u32,
    remote_incoming_window: u32,
    next_delivery_id: u32,
    outbox: VecDeque<Outgoing>,
}

/// A delivery that is being sent.
#[derive(Debug)]
struct Outgoing {
    link: LinkId,
    transfer: Transfer,
    payload: Bytes,
    sent: usize,
}

impl Session {
    pub(crate) fn new(begin: &Begin) -> Self {
        Self {
            next_incoming_id: begin.next_outgoing_id,
            remote_incoming_window: begin.incoming_window,
            ..Self::default()
        }
    }

    pub(crate) fn answer(&self, channel: u16) -> Begin {
        Begin {
            remote_channel: Some(channel),
            next_outgoing_id: self.next_outgoing_id,
            incoming_window: WINDOW,
            outgoing_window: WINDOW,
            handle_max: Some(HANDLE_MAX),
            ..Begin::default()
        }
    }

    /// A transfer came; true if it is time to tell the peer of its window again.
    pub(crate) fn transfer_came(&mut self) -> bool {
        self.next_incoming_id = self.next_incoming_id.wrapping_add(1);
        self.unannounced += 1;
        self.unannounced >= WINDOW / 2
    }

    /// The session's part of a flow.
    pub(crate) fn flow(&mut self) -> Flow {
        self.unannounced = 0;
        Flow {
            next_incoming_id: Some(self.next_incoming_id),
            incoming_window: WINDOW,
            next_outgoing_id: self.next_outgoing_id,
            outgoing_window: WINDOW,
            ..Flow::default()
        }
    }

    /// The peer told of its window.
    pub(crate) fn flow_came(&mut self, flow: &Flow) {
        let base = flow.next_incoming_id.unwrap_or(0);
        let ahead = self.next_outgoing_id.wrapping_sub(base);
        self.remote_incoming_window = flow.incoming_window.saturating_sub(ahead);
    }

    /// Whether what is sent now goes out at once.
    pub(crate) fn is_clear(&self) -> bool {
        self.outbox.is_empty() && self.remote_incoming_window > 0
    }

    /// Begins a delivery; gives its id.
    pub(crate) fn begin_delivery(&mut self, link: LinkId, handle: u32, settled: bool, payload: Bytes) -> u32 {
        let id = self.next_delivery_id;
        self.next_delivery_id = id.wrapping_add(1);
        let transfer = Transfer {
            handle,
            delivery_id: Some(id),
            delivery_tag: Some(Bytes::copy_from_slice(&id.to_be_bytes())),
            message_format: Some(0),
            settled: Some(settled),
            ..Transfer::default()
        };
        self.outbox.push_back(Outgoing { link, transfer, payload, sent: 0 });
        id
    }

    /// Sends as much of what waits as the peer's window takes.
    pub(crate) fn pump(&mut self, channel: u16, limit: usize, out: &mut Vec<u8>) {
        while self.remote_incoming_window > 0
            && let Some(first) = self.outbox.front_mut()
        {
            let rest = &first.payload[first.sent..];
            first.sent += frame::put_transfer(channel, &mut first.transfer, rest, limit, out);
            let more = first.transfer.more;
            self.remote_incoming_window -= 1;
            self.next_outgoing_id = self.next_outgoing_id.wrapping_add(1);
            if !more {
                self.outbox.pop_front();
            }
        }
    }

    /// A link is gone, and what was to be sent on it.
    pub(crate) fn forget(&mut self, handle: u32, link: LinkId) {
        self.handles.remove(&handle);
        self.outbox.retain(|outgoing| outgoing.link != link);
        self.unsettled.retain(|_, (owner, _)| *owner != link);
    }
}
