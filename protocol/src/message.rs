//! The messages between a device and a hub, free of any topic or transport.
//!
//! A [`profile`](crate::profile) binds them to MQTT packets; the engines of the harness also pass them
//! unencoded. Request ids are text that the requester chose and the answer repeats, byte for byte.

use std::borrow::Cow;

/// From a device to the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Up<'a> {
    /// Read the whole twin; answered by [`Down::TwinAnswer`].
    TwinGet {
        /// The device's request id.
        rid: &'a str,
    },
    /// Merge `patch` into the reported properties; answered by [`Down::TwinAnswer`].
    Report {
        /// The device's request id.
        rid: &'a str,
        /// The version that the patch was made against, for a device that wants 412 when it is stale.
        base: Option<u64>,
        /// A JSON merge patch.
        patch: &'a [u8],
    },
    /// Telemetry (a D2C message). `properties` is the encoded property bag, see [`crate::bag`].
    Telemetry {
        /// The encoded property bag.
        properties: &'a str,
        /// The payload.
        body: &'a [u8],
    },
    /// The answer to a direct method.
    MethodResponse {
        /// The hub's request id.
        rid: &'a str,
        /// The device's own status code.
        status: i32,
        /// JSON, or empty.
        body: &'a [u8],
    },
}

/// From the hub to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Down<'a> {
    /// Answers [`Up::TwinGet`] (with the twin as body) and [`Up::Report`] (with the new reported version).
    TwinAnswer {
        /// The request's id.
        rid: &'a str,
        /// 200 or 204, or an error's status.
        status: u16,
        /// The new version of the reported properties, for an accepted report.
        version: Option<u64>,
        /// JSON: the twin, or an error's body, or empty.
        body: &'a [u8],
    },
    /// The desired properties changed.
    Desired {
        /// The version that the change made.
        version: u64,
        /// The merge patch as the back end sent it, with `$version` added.
        body: &'a [u8],
    },
    /// A direct method call.
    Method {
        /// The method's name, decoded.
        name: Cow<'a, str>,
        /// The hub's request id.
        rid: &'a str,
        /// JSON, `null` for none.
        body: &'a [u8],
    },
    /// A cloud-to-device message from the queue.
    CloudToDevice {
        /// The encoded property bag.
        properties: &'a str,
        /// The payload.
        body: &'a [u8],
    },
}
