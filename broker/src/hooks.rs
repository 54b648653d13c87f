//! Where a caller plugs its own code into a hub.

use std::time::Duration;

use bytes::Bytes;
use fleetwave_protocol::Now;

use crate::control::MethodOutcome;

/// A telemetry message that the hub has accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Telemetry<'a> {
    /// Whose it is.
    pub device: &'a str,
    /// The encoded property bag, see [`fleetwave_protocol::bag`].
    pub properties: &'a str,
    /// The payload.
    pub body: &'a [u8],
}

/// Called by a hub's shard, on its thread: what takes long here delays the shard's devices. Each shard has
/// hooks of its own, so that nothing needs to be locked.
pub trait Hooks: Send {
    /// A device's telemetry was accepted. What is put into `replies` goes back to the same device.
    fn telemetry(&mut self, now: Now, message: Telemetry<'_>, replies: &mut Replies) {
        let _ = (now, message, replies);
    }

    /// A report was accepted: the reported properties are at `version`, after `patch` (a JSON merge patch).
    fn reported(&mut self, now: Now, device: &str, version: u64, patch: &[u8]) {
        let _ = (now, device, version, patch);
    }

    /// A method that was called by way of [`Replies`] has its outcome.
    fn method_result(&mut self, now: Now, device: &str, outcome: &MethodOutcome) {
        let _ = (now, device, outcome);
    }
}

/// Hooks that do nothing.
impl Hooks for () {}

/// What goes back to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A direct method call.
    Method {
        /// Its name.
        name: String,
        /// Its JSON payload.
        payload: Bytes,
        /// How long the device may take to answer.
        timeout: Duration,
    },
    /// A C2D message.
    CloudToDevice {
        /// The encoded property bag.
        properties: String,
        /// The payload.
        body: Bytes,
    },
}

/// Collects what a hook wants to send to the device that it was called for.
#[derive(Debug, Default)]
pub struct Replies {
    pub(crate) queue: Vec<(Duration, Reply)>,
}

impl Replies {
    /// Sends `reply` at once.
    pub fn send(&mut self, reply: Reply) {
        self.send_after(Duration::ZERO, reply);
    }

    /// Sends `reply` after `delay`. It does not survive a restart of the hub.
    pub fn send_after(&mut self, delay: Duration, reply: Reply) {
        self.queue.push((delay, reply));
    }
}
