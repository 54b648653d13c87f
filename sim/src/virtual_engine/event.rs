//! What can happen to a virtual device, on its own side and at the hub.

/// The kind of an [`Event`](super::wheel::Event), with what its two arguments are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(super) enum Kind {
    /// Taken back.
    Gone,
    // At the device.
    /// It is switched on.
    PowerOn,
    /// It loses power.
    PowerCut,
    /// The agent's wake-up.
    Timer,
    /// CONNACK; a: whether the session was present.
    Connack,
    /// The connection attempt failed, or the connection was closed by the hub.
    Closed,
    /// The twin; a: content, b: version.
    Twin,
    /// The twin was refused; a: status.
    TwinRefused,
    /// A report's answer; a: request id, b: status.
    Reported,
    /// A desired patch; a: patch, b: version.
    Desired,
    /// A grant by direct method; a: release, b: the hub's call.
    GrantCall,
    /// A grant by C2D message; a: release, b: the hub's delivery.
    GrantMessage,
    /// The last byte that was asked for; a, b: the bytes that came, and what they are of
    /// ([`told`](super::blob::told)); the generation's work is done.
    Fetched,
    /// The same, but the bytes are not those that were asked for.
    FetchedCorrupt,
    /// The store refused; a, b: status, and what was asked for.
    FetchRefused,
    /// The download was cut; a, b: as above.
    FetchCut,
    /// Bytes of a download that nobody waits for any longer; a, b: as above.
    FetchDropped,
    /// Verified.
    Verified,
    /// Staged, or not.
    Staged,
    /// The health checks are done.
    Health,
    // At the hub.
    /// CONNECT arrives.
    HubConnect,
    /// A twin read arrives.
    HubTwinGet,
    /// A report arrives; a: request id, b: status' place.
    HubReport,
    /// A grant request arrives; a: release.
    HubGrantRequest,
    /// The cloud side answers a grant request; a: release.
    HubGrantAnswer,
    /// A method response arrives; a: call, b: status.
    HubMethodResponse,
    /// A PUBACK of a C2D message arrives; a: delivery.
    HubAck,
    /// The connection is gone; a: session.
    HubDisconnect,
}
