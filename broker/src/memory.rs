//! The memory transport: the same MQTT bytes as on a socket, passed between threads in batches.
//!
//! A client thread opens one [`MemoryPort`] and runs any number of connections over it, which it numbers
//! itself. What it sends is collected into a [`Batch`], one contiguous buffer with a list of frames, and
//! handed to the hub's shard at once. A connection costs neither side a descriptor.
//!
//! The hub sends exactly one [`Event::Closed`] for each [`MemoryPort::connect`], whoever closed first; after
//! it the number is free again. Frames for a number that is not open are ignored, as bytes on a closed
//! socket are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender};

use crate::inbox::{Inbox, Message};
use crate::tls::PeerIdentity;

/// A batch is handed over when it holds this much, so that neither side waits long for a storm's first byte.
const BATCH_BYTES: usize = 128 * 1024;

/// What happened to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// It was opened. Only the hub sees this.
    Opened,
    /// These bytes arrived on it.
    Bytes(&'a [u8]),
    /// It is closed.
    Closed,
}

/// Frames of many connections, in order.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    frames: Vec<Frame>,
    /// What clients have shown where their handshakes were done, by the connection that is opened for them.
    peers: Vec<(u32, PeerIdentity)>,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    connection: u32,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Open,
    Bytes { length: u32 },
    Close,
}

impl Batch {
    /// The frames: a connection's number, and what happened to it.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Event<'_>)> {
        let mut rest = self.bytes.as_slice();
        self.frames.iter().map(move |frame| {
            let event = match frame.kind {
                Kind::Open => Event::Opened,
                Kind::Close => Event::Closed,
                Kind::Bytes { length } => {
                    let (head, tail) = rest.split_at(length as usize);
                    rest = tail;
                    Event::Bytes(head)
                }
            };
            (frame.connection, event)
        })
    }

    pub(crate) fn open(&mut self, connection: u32) {
        self.frames.push(Frame { connection, kind: Kind::Open });
    }

    /// What the client of a connection that is opened here has shown.
    pub(crate) fn peer(&self, connection: u32) -> Option<&PeerIdentity> {
        self.peers.iter().rev().find(|(number, _)| *number == connection).map(|(_, peer)| peer)
    }

    pub(crate) fn close(&mut self, connection: u32) {
        self.frames.push(Frame { connection, kind: Kind::Close });
    }

    pub(crate) fn send(&mut self, connection: u32, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).expect("a frame is a few packets, each below 256 MiB");
        self.bytes.extend_from_slice(bytes);
        self.frames.push(Frame { connection, kind: Kind::Bytes { length } });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.weight() >= BATCH_BYTES
    }

    /// What it occupies, for flow control.
    pub(crate) fn weight(&self) -> usize {
        self.bytes.len() + self.frames.len() * size_of::<Frame>()
    }
}

/// Opens ports into a hub.
#[derive(Clone, Debug)]
pub struct MemoryConnector {
    shards: Arc<[Inbox]>,
    assign: crate::Assign,
    ports: Arc<AtomicUsize>,
}

impl MemoryConnector {
    pub(crate) fn new(shards: Arc<[Inbox]>, assign: crate::Assign) -> Self {
        Self { shards, assign, ports: Arc::default() }
    }

    /// A port for one client thread. The hub calls `waker` when it has put something into the port.
    #[must_use]
    pub fn port(&self, waker: Arc<mio::Waker>) -> MemoryPort {
        let id = self.ports.fetch_add(1, Ordering::Relaxed);
        let (to_client, from_hub) = crossbeam_channel::unbounded();
        for shard in self.shards.iter() {
            shard.send(Message::Port { id, batches: to_client.clone(), waker: waker.clone() });
        }
        let lanes = self.shards.iter().map(|inbox| Lane::new(inbox.clone())).collect();
        MemoryPort { id, lanes, assign: self.assign.clone(), routes: Vec::new(), from_hub }
    }
}

/// One client thread's side of the transport.
#[derive(Debug)]
pub struct MemoryPort {
    id: usize,
    lanes: Vec<Lane>,
    assign: crate::Assign,
    /// The lane of each connection, by its number.
    routes: Vec<u16>,
    from_hub: Receiver<Batch>,
}

/// The way to one of the hub's shards.
#[derive(Debug)]
struct Lane {
    inbox: Inbox,
    batch: Batch,
    unread: Arc<AtomicUsize>,
}

impl Lane {
    fn new(inbox: Inbox) -> Self {
        Self { inbox, batch: Batch::default(), unread: Arc::default() }
    }

    fn flush(&mut self, port: usize) {
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        self.unread.fetch_add(batch.weight(), Ordering::Relaxed);
        self.inbox.send(Message::Batch { port, batch, unread: self.unread.clone() });
    }
}

impl MemoryPort {
    /// Opens connection `connection` for `device`.
    ///
    /// Numbers are indices: keep them dense. The device's name says which of the hub's shards to go to; the
    /// hub closes a connection whose CONNECT names a device of another shard.
    pub fn connect(&mut self, connection: u32, device: &str) {
        self.connect_as(connection, device, PeerIdentity::NONE);
    }

    /// The same for a client that has shown a certificate where its connection was accepted.
    pub fn connect_as(&mut self, connection: u32, device: &str, peer: PeerIdentity) {
        let index = connection as usize;
        if self.routes.len() <= index {
            self.routes.resize(index + 1, 0);
        }
        let lane = self.assign.shard(device, self.lanes.len());
        self.routes[index] = u16::try_from(lane).expect("a hub has fewer shards than that");
        self.queue(connection, |batch| {
            batch.open(connection);
            if !peer.chain().is_empty() {
                batch.peers.push((connection, peer));
            }
        });
    }

    /// Sends bytes on a connection. They leave with [`MemoryPort::flush`], or before.
    ///
    /// # Panics
    /// If the number was never passed to [`MemoryPort::connect`].
    pub fn send(&mut self, connection: u32, bytes: &[u8]) {
        self.queue(connection, |batch| batch.send(connection, bytes));
    }

    /// Closes a connection without a word, as a reset does. [`Event::Closed`] confirms it.
    ///
    /// # Panics
    /// If the number was never passed to [`MemoryPort::connect`].
    pub fn close(&mut self, connection: u32) {
        self.queue(connection, |batch| batch.close(connection));
    }

    fn queue(&mut self, connection: u32, write: impl FnOnce(&mut Batch)) {
        let lane = &mut self.lanes[usize::from(self.routes[connection as usize])];
        write(&mut lane.batch);
        if lane.batch.is_full() {
            lane.flush(self.id);
        }
    }

    /// Hands everything that was queued to the hub.
    pub fn flush(&mut self) {
        for lane in &mut self.lanes {
            lane.flush(self.id);
        }
    }

    /// Bytes that were handed over and that the hub has not read yet. A client that keeps this below a
    /// megabyte or so gives the hub the back-pressure that a socket would.
    #[must_use]
    pub fn unread(&self) -> usize {
        self.lanes.iter().map(|lane| lane.unread.load(Ordering::Relaxed)).sum()
    }

    /// The next batch from the hub, if there is one.
    #[must_use]
    pub fn receive(&mut self) -> Option<Batch> {
        self.from_hub.try_recv().ok()
    }
}

impl Drop for MemoryPort {
    /// Loses all connections, as a process that dies does.
    fn drop(&mut self) {
        self.flush();
        for lane in &self.lanes {
            lane.inbox.send(Message::PortClosed { id: self.id });
        }
    }
}

/// A shard's side of one port.
#[derive(Debug)]
pub(crate) struct HubPort {
    batch: Batch,
    batches: Sender<Batch>,
    waker: Arc<mio::Waker>,
    /// The session of each of the port's connections, by its number.
    sessions: Vec<u32>,
}

const CLOSED: u32 = u32::MAX;

impl HubPort {
    pub(crate) fn new(batches: Sender<Batch>, waker: Arc<mio::Waker>) -> Self {
        Self { batch: Batch::default(), batches, waker, sessions: Vec::new() }
    }

    pub(crate) fn bind(&mut self, connection: u32, session: u32) {
        let index = connection as usize;
        if self.sessions.len() <= index {
            self.sessions.resize(index + 1, CLOSED);
        }
        self.sessions[index] = session;
    }

    pub(crate) fn session(&self, connection: u32) -> Option<u32> {
        self.sessions.get(connection as usize).copied().filter(|session| *session != CLOSED)
    }

    /// The sessions of all connections that are open.
    pub(crate) fn open_sessions(&self) -> Vec<u32> {
        self.sessions.iter().copied().filter(|session| *session != CLOSED).collect()
    }

    pub(crate) fn send(&mut self, connection: u32, bytes: &[u8]) {
        self.batch.send(connection, bytes);
        if self.batch.is_full() {
            self.flush();
        }
    }

    pub(crate) fn close(&mut self, connection: u32) {
        self.sessions[connection as usize] = CLOSED;
        self.batch.close(connection);
    }

    pub(crate) fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        // A port whose client is gone reads nothing any more; the shard will soon hear of it.
        if self.batches.send(std::mem::take(&mut self.batch)).is_ok() {
            crate::inbox::wake(&self.waker);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_gives_back_its_frames_in_order() {
        let mut batch = Batch::default();
        batch.open(7);
        batch.send(7, b"one");
        batch.send(3, b"");
        batch.send(7, b"two");
        batch.close(3);
        let frames: Vec<_> = batch.iter().collect();
        assert_eq!(
            frames,
            [
                (7, Event::Opened),
                (7, Event::Bytes(b"one")),
                (3, Event::Bytes(b"")),
                (7, Event::Bytes(b"two")),
                (3, Event::Closed)
            ]
        );
    }
}
