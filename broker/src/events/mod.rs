//! What happens in a hub, for those who follow it: the event endpoint, the bus, feedback receivers.

mod cloud;
mod log;
mod mailbox;
mod routed;

pub use cloud::{CloudEvents, EventOptions};
pub use log::{Entry, Event, EventLog, PartitionInfo, Retention, Source, Start};
pub use mailbox::{LockToken, Mailbox, Taken};
pub(crate) use routed::routed;

use fleetwave_hub_core::{C2dMessage, FeedbackStatus};
use fleetwave_protocol::{Now, WallTime};

/// Something that happened.
#[derive(Clone, Copy, Debug)]
pub struct HubEvent<'a> {
    /// The device, or `device/module`.
    pub id: &'a str,
    /// The identity's generation id.
    pub generation: &'a str,
    /// How the identity shows who it is, as IoT Hub names it: `sas`, `x509Certificate`.
    pub authentication: &'static str,
    /// The model that it named when it connected.
    pub model: Option<&'a str>,
    /// What it was.
    pub kind: EventKind<'a>,
}

/// The kinds of events.
#[derive(Clone, Copy, Debug)]
pub enum EventKind<'a> {
    /// A device-to-cloud message.
    Telemetry {
        /// The encoded property bag, see [`fleetwave_protocol::bag`].
        properties: &'a str,
        /// The payload.
        body: &'a [u8],
    },
    /// The device changed its reported properties.
    Reported {
        /// Their version now.
        version: u64,
        /// The JSON merge patch.
        patch: &'a [u8],
    },
    /// The back end or a configuration changed tags or desired properties.
    TwinWritten {
        /// The tags' JSON merge patch, or all of them.
        tags: Option<&'a [u8]>,
        /// The desired properties' JSON merge patch, or all of them.
        desired: Option<&'a [u8]>,
        /// The version of the desired properties now.
        version: u64,
        /// Whether what is given replaced what was there.
        replaced: bool,
    },
    /// The identity was made.
    Created {
        /// The twin as the back end reads it.
        twin: &'a [u8],
    },
    /// The identity was deleted.
    Deleted {
        /// The twin as the back end read it last.
        twin: &'a [u8],
    },
    /// It connected.
    Connected {
        /// Counts up with each connection and disconnection of this identity.
        sequence: u64,
    },
    /// Its connection ended.
    Disconnected {
        /// As for `Connected`.
        sequence: u64,
    },
    /// A C2D message that asked for feedback reached its end.
    Feedback {
        /// The message.
        message: &'a C2dMessage,
        /// What became of it.
        status: FeedbackStatus,
        /// When.
        at: WallTime,
    },
}

/// Follows a hub. Called on the shards' threads, from several at once: what takes long here holds devices up.
pub trait EventSink: Send + Sync {
    /// Something happened.
    fn event(&self, now: Now, event: &HubEvent<'_>);
}
