//! What reaches a shard from other threads.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use bytes::BytesMut;
use crossbeam_channel::{Receiver, Sender};
use rumqttc::mqttbytes::v4::Connect;

use crate::control::Command;
use crate::memory::Batch;
use crate::transport::Line;

/// A message for a shard.
pub(crate) enum Message {
    /// A client thread opened a port of the memory transport.
    Port { id: usize, batches: Sender<Batch>, waker: Arc<mio::Waker> },
    /// The port's client is gone, and all its connections with it.
    PortClosed { id: usize },
    /// Frames from a port.
    Batch { port: usize, batch: Batch, unread: Arc<AtomicUsize> },
    /// A connection that arrived at another shard than its device's.
    Handover { line: Line, connect: Box<Connect>, rest: BytesMut },
    /// An operator's request.
    Command(Command),
}

/// The way to a shard: a queue, and what wakes the shard up.
#[derive(Clone, Debug)]
pub(crate) struct Inbox {
    messages: Sender<Message>,
    waker: Arc<mio::Waker>,
}

impl Inbox {
    pub(crate) fn new(waker: mio::Waker) -> (Self, Receiver<Message>) {
        let (messages, receiver) = crossbeam_channel::unbounded();
        (Self { messages, waker: Arc::new(waker) }, receiver)
    }

    /// Hands over a message; false if the shard is gone.
    pub(crate) fn send(&self, message: Message) -> bool {
        let sent = self.messages.send(message).is_ok();
        if sent {
            wake(&self.waker);
        }
        sent
    }
}

/// Wakes a reactor. It can fail only if the reactor's descriptors are gone, and then nobody waits.
pub(crate) fn wake(waker: &mio::Waker) {
    if let Err(error) = waker.wake() {
        tracing::debug!(%error, "a reactor cannot be woken");
    }
}
