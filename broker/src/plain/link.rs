//! How a hub reaches a broker: one trait, two siblings.

use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::Receiver;
use fleetwave_protocol::QoS;

use crate::control::Command;

/// How long attaching to a broker may take.
pub(super) const ATTACH_WITHIN: Duration = Duration::from_secs(10);

/// What reaches the hub's thread.
pub(super) enum Heard {
    /// The broker is there (again): subscribe.
    Connected,
    /// A device published.
    Message { topic: Bytes, payload: Bytes },
    /// An operator's request.
    Command(Command),
}

/// The way to a broker is lost for good.
#[derive(Debug, thiserror::Error)]
#[error("the broker is gone: {0}")]
pub(super) struct LinkLost(pub(super) String);

/// The sending half of the way to a broker. Its receiving half is a thread of the implementation, which passes
/// [`Heard`] on; it ends when the link is dropped.
pub(super) trait Link: Send {
    /// Asks the broker for everything that devices publish.
    fn subscribe(&mut self, filter: &str) -> Result<(), LinkLost>;

    /// Publishes a message.
    fn publish(&mut self, topic: &str, payload: &[u8], qos: QoS) -> Result<(), LinkLost>;
}

/// A link, and what is known about it.
pub(super) struct Attached {
    pub(super) link: Box<dyn Link>,
    pub(super) host: String,
    pub(super) port: u16,
    /// Says when the hub hears its devices, or why it never will.
    pub(super) ready: Receiver<Result<(), String>>,
}
