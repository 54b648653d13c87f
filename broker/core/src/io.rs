//! What goes into a hub, and what comes out.

use core::time::Duration;
use std::sync::Arc;

use fleetwave_protocol::WallTime;

use crate::c2d::{C2dMessage, FeedbackStatus};
use crate::configuration::{Configuration, ConfigurationEtag};
use crate::error::HubError;
use crate::identity::{DeviceEtag, IdentityChange};
use crate::store::{DesiredPatch, PatchId};

/// A device's dense index in its shard, given by [`Hub::create_device`](crate::Hub::create_device) and never
/// given to another device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceIx(pub(crate) u32);

impl DeviceIx {
    /// The index, for tables that a driver keeps beside the hub's.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The device at `index`, as [`DeviceIx::index`] gave it.
    #[must_use]
    pub const fn from_index(index: u32) -> Self {
        Self(index)
    }

    /// The index behind this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// A set of the things that a device can subscribe to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Topics(u8);

impl Topics {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// Answers to twin reads and reports.
    pub const TWIN_ANSWERS: Self = Self(1);
    /// Changes of the desired properties.
    pub const DESIRED: Self = Self(2);
    /// Direct methods.
    pub const METHODS: Self = Self(4);
    /// Cloud-to-device messages.
    pub const C2D: Self = Self(8);
    /// All of them.
    pub const ALL: Self = Self(15);

    /// This set and `other`.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set without `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(crate) const fn bits(self) -> u8 {
        self.0
    }

    /// The topics of bits; those that are none are dropped.
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits as u8 & Self::ALL.0)
    }

    /// Whether all of `other` is in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl std::ops::BitOr for Topics {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.with(other)
    }
}

/// A merge patch for reported properties.
#[derive(Clone, Copy, Debug)]
pub enum Patch<'a> {
    /// As the device sent it.
    Json(&'a [u8]),
    /// Interned before by [`Hub::intern_patch`](crate::Hub::intern_patch): the report costs two table look-ups.
    Interned(PatchId),
}

/// What happens to a hub.
///
/// Inputs of a device that does not exist or is not connected are dropped: they are what was under way when its
/// session ended. Each service input but [`Input::InvokeMethod`] is answered by one [`Output::Service`].
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// An authenticated client connects. A connection that the device had is closed.
    Connect {
        /// Who.
        device: DeviceIx,
        /// The driver's number for the connection, so that a late `Disconnect` of an old one ends only the old one.
        session: u32,
        /// MQTT's CleanSession: forget subscriptions, now and when it disconnects.
        clean: bool,
        /// The `model-id` that it named.
        model: Option<&'a str>,
    },
    /// A connection ended.
    Disconnect {
        /// Who.
        device: DeviceIx,
        /// As it was given to `Connect`.
        session: u32,
    },
    /// The device subscribes.
    Subscribe {
        /// Who.
        device: DeviceIx,
        /// To what.
        topics: Topics,
    },
    /// The device unsubscribes.
    Unsubscribe {
        /// Who.
        device: DeviceIx,
        /// From what.
        topics: Topics,
    },
    /// The device reads its twin.
    TwinGet {
        /// Who.
        device: DeviceIx,
    },
    /// The device changes its reported properties.
    Report {
        /// Who.
        device: DeviceIx,
        /// The version that the patch was made against: 412 if that is not the current one.
        base: Option<u64>,
        /// The change.
        patch: Patch<'a>,
    },
    /// The device sends a message.
    Telemetry {
        /// Who.
        device: DeviceIx,
        /// The encoded property bag.
        properties: &'a str,
        /// The payload.
        body: &'a [u8],
    },
    /// A device that need not be connected sends a message; whoever let it do so has checked who it is. Answered like
    /// a service's input.
    Post {
        /// Who.
        device: DeviceIx,
        /// The encoded property bag.
        properties: &'a str,
        /// The payload.
        body: &'a [u8],
    },
    /// The device answers a direct method.
    MethodResponse {
        /// Who.
        device: DeviceIx,
        /// As [`Output::Method`] had it.
        call: u32,
        /// The device's own status.
        status: i32,
        /// JSON, or empty.
        body: &'a [u8],
    },
    /// The device acknowledges a C2D message, which completes it.
    C2dAck {
        /// Who.
        device: DeviceIx,
        /// As [`Output::C2d`] had it.
        delivery: u32,
    },
    /// The device fetches the next message of its queue under a lock, without a connection.
    ReceiveC2d {
        /// Who.
        device: DeviceIx,
        /// What the lock is to be called: a number that nobody guesses.
        lock: u128,
    },
    /// The device says what is to become of a message that it has fetched.
    SettleC2d {
        /// Who.
        device: DeviceIx,
        /// As it was given to `ReceiveC2d`.
        lock: u128,
        /// What is to become of it.
        outcome: Settlement,
    },
    /// Create a configuration, or change the one of the same id.
    PutConfiguration {
        /// What it is from now on.
        configuration: Arc<Configuration>,
        /// The etag that must be current; none or `*` forces. One that does not exist has none.
        if_match: Option<&'a str>,
    },
    /// Delete a configuration; its values leave the twins.
    DeleteConfiguration {
        /// Which.
        id: &'a str,
        /// The etag that must be current; none or `*` forces.
        if_match: Option<&'a str>,
    },
    /// Write the content of a configuration into the desired properties of one device and its modules, once.
    ApplyContent {
        /// Whose.
        device: DeviceIx,
        /// JSON: an object with `deviceContent`, `modulesContent` or both.
        content: &'a [u8],
    },
    /// Merge into tags and desired properties.
    PatchTwin {
        /// Whose.
        device: DeviceIx,
        /// JSON merge patch of the tags.
        tags: Option<&'a [u8]>,
        /// JSON merge patch of the desired properties.
        desired: Option<&'a [u8]>,
        /// The etag that must be current; none or `*` forces.
        if_match: Option<&'a str>,
    },
    /// Replace tags and desired properties whole; what is not given stays.
    ReplaceTwin {
        /// Whose.
        device: DeviceIx,
        /// The new tags.
        tags: Option<&'a [u8]>,
        /// The new desired properties.
        desired: Option<&'a [u8]>,
        /// The etag that must be current; none or `*` forces.
        if_match: Option<&'a str>,
    },
    /// Queue a message for the device.
    SendC2d {
        /// For whom.
        device: DeviceIx,
        /// The message.
        message: Arc<C2dMessage>,
    },
    /// Drop the device's queue.
    PurgeC2d {
        /// Whose.
        device: DeviceIx,
    },
    /// Call a direct method. Answered by one [`Output::MethodResult`], at once or later.
    InvokeMethod {
        /// Whose.
        device: DeviceIx,
        /// The method.
        name: &'a str,
        /// JSON.
        payload: &'a [u8],
        /// How long to wait for the device to connect and subscribe; zero: not at all.
        connect_timeout: Duration,
        /// How long to wait for its answer.
        response_timeout: Duration,
        /// The caller's own number, given back with the result.
        tag: u64,
    },
    /// Enable or disable the device; disabling ends its connection.
    SetStatus {
        /// Whose.
        device: DeviceIx,
        /// Whether it may connect.
        enabled: bool,
    },
    /// Change the identity of a device or module; disabling a device ends its connection and its modules'.
    PutIdentity {
        /// Whose.
        device: DeviceIx,
        /// What is to be another.
        identity: &'a IdentityChange,
        /// The identity's etag that must be current; none or `*` forces.
        if_match: Option<&'a str>,
    },
    /// Forget the device and its modules, or the module.
    DeleteDevice {
        /// Which.
        device: DeviceIx,
        /// The identity's etag that must be current; none or `*` forces.
        if_match: Option<&'a str>,
    },
    /// [`Hub::next_deadline`](crate::Hub::next_deadline) has come.
    Timer,
}

/// What a device does with a message that it has fetched under a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// It is done with it.
    Complete,
    /// It can't do anything with it: the message ends.
    Reject,
    /// It wants to have it again.
    Abandon,
}

/// A message that a device has fetched under a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedC2d {
    /// The message.
    pub message: Arc<C2dMessage>,
    /// How often it was delivered, this time included.
    pub deliveries: u32,
    /// When it expires.
    pub expires: WallTime,
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No such device.
    Unknown,
    /// The device is disabled.
    Disabled,
}

/// Why the hub ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The same device connected again.
    TakenOver,
    /// The device was disabled.
    Disabled,
    /// The device was deleted.
    Deleted,
    /// It sent a message above the limit.
    MessageTooLarge,
}

/// What a service input did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// The configuration is in force.
    ConfigurationPut {
        /// The etag that it has now.
        etag: ConfigurationEtag,
    },
    /// The configuration is gone.
    ConfigurationDeleted,
    /// The twin was written; read it for its new etag.
    TwinWritten {
        /// Whether something of it stands at paths that configurations own: it is not seen until none of them applies.
        hidden: bool,
    },
    /// The message is in the queue.
    Queued {
        /// How many wait now, this one included.
        depth: usize,
    },
    /// The message of a device that need not be connected is accepted; [`Output::Telemetry`] follows.
    Posted,
    /// What the device has fetched, if there was something.
    Received(Option<ReceivedC2d>),
    /// The message is settled.
    Settled,
    /// The queue is empty.
    Purged {
        /// How many were dropped.
        dropped: usize,
    },
    /// The status is set.
    StatusSet,
    /// The identity is written.
    IdentityPut {
        /// The etag that it has now.
        etag: DeviceEtag,
    },
    /// The device is gone.
    DeviceDeleted,
}

/// A device's answer to a method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodAnswer {
    /// The device's own status.
    pub status: i32,
    /// JSON, or empty.
    pub payload: Vec<u8>,
}

/// What a hub wants done, in order.
#[derive(Clone, Debug)]
pub enum Output {
    /// The connection is accepted.
    Accepted {
        /// Whose.
        device: DeviceIx,
        /// Which.
        session: u32,
        /// MQTT's session-present: subscriptions of the session before are in force.
        session_present: bool,
    },
    /// The connection is refused.
    Refused {
        /// Whose.
        device: DeviceIx,
        /// Which.
        session: u32,
        /// Why.
        reason: Refusal,
    },
    /// End a connection.
    Close {
        /// Whose.
        device: DeviceIx,
        /// Which.
        session: u32,
        /// Why.
        reason: CloseReason,
    },
    /// Answer a twin read; the body is what [`Hub::write_device_twin`](crate::Hub::write_device_twin) writes now.
    TwinAnswer {
        /// Whose.
        device: DeviceIx,
        /// 200.
        status: u16,
        /// Whether the device subscribed to answers; if not, nothing is to be sent.
        deliver: bool,
    },
    /// Answer a report.
    ReportAnswer {
        /// Whose.
        device: DeviceIx,
        /// 204, or the error's status.
        status: u16,
        /// The version of the reported properties now.
        version: u64,
        /// Why it was refused.
        error: Option<Box<HubError>>,
        /// Whether the device subscribed to answers; if not, nothing is to be sent.
        deliver: bool,
    },
    /// Notify a connected device of a change of its desired properties.
    Desired {
        /// Whom.
        device: DeviceIx,
        /// The version that the change made.
        version: u64,
        /// The change, shared by all devices that get the same.
        patch: Arc<DesiredPatch>,
    },
    /// Call a method on a connected device.
    Method {
        /// Whom.
        device: DeviceIx,
        /// To be repeated in the response.
        call: u32,
        /// The method.
        name: Arc<str>,
        /// JSON.
        payload: Arc<[u8]>,
    },
    /// Deliver a message to a connected device.
    C2d {
        /// Whom.
        device: DeviceIx,
        /// To be repeated in the acknowledgement.
        delivery: u32,
        /// The message.
        message: Arc<C2dMessage>,
    },
    /// A method call ended.
    MethodResult {
        /// As the caller gave it.
        tag: u64,
        /// The device's answer, or 404103 or 504101.
        result: Result<MethodAnswer, Box<HubError>>,
    },
    /// The message that the driver has just passed in is accepted; it is the driver's to route.
    Telemetry {
        /// From whom.
        device: DeviceIx,
    },
    /// A C2D message that asked for feedback reached its end.
    Feedback {
        /// Whose queue.
        device: DeviceIx,
        /// The message.
        message: Arc<C2dMessage>,
        /// What became of it.
        status: FeedbackStatus,
        /// When.
        at: WallTime,
    },
    /// Answers a service input. It comes before what else the input caused.
    Service(Result<Done, Box<HubError>>),
}
