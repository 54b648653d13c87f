//! What the hub answers when it refuses, with IoT Hub's numbers and names.

use std::borrow::Cow;
use std::io::Write as _;

use fleetwave_protocol::WallTime;

use crate::time_text::Iso8601;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal),+ $(,)?) => {
        /// An IoT Hub error code: the first three digits are the HTTP status.
        ///
        /// Source of numbers and names: "Troubleshoot Azure IoT Hub error codes" in the MicrosoftDocs/azure-docs
        /// repository, `articles/iot-hub/troubleshoot-error-codes.md`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum ErrorCode { $($(#[$doc])* $name = $number),+ }

        impl ErrorCode {
            /// The name that stands in the `iothub-errorcode` header.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),+ }
            }
        }
    };
}

codes! {
    /// A request that breaks a rule of the format: key, depth, string length, integer range.
    ArgumentInvalid = 400_004,
    /// Not JSON, or not an object.
    IotHubFormatError = 400_006,
    /// A target condition that does not parse.
    InvalidConfigurationTargetCondition = 400_401,
    /// Configuration content that cannot become desired properties.
    InvalidConfigurationContent = 400_402,
    /// A metric's query that does not parse.
    InvalidConfigurationCustomMetricsQuery = 400_404,
    /// 50 C2D messages wait already.
    DeviceMaximumQueueDepthExceeded = 403_004,
    /// The message had expired before it was sent.
    InvalidMessageExpiryTime = 403_009,
    /// No such device.
    DeviceNotFound = 404_001,
    /// The device is not connected, or has not subscribed to methods.
    DeviceNotOnline = 404_103,
    /// No such configuration.
    ConfigurationNotFound = 404_301,
    /// The device exists already.
    DeviceAlreadyExists = 409_001,
    /// The etag or the base version is stale.
    PreconditionFailed = 412_001,
    /// Larger than a message or a twin section may be.
    MessageTooLarge = 413_001,
    /// More configurations than a hub may have.
    ConfigurationCountLimitExceeded = 413_101,
    /// Throttled.
    ThrottlingException = 429_001,
    /// The device did not answer the method in time.
    GatewayTimeout = 504_101,
}

impl ErrorCode {
    /// The number that stands in error bodies.
    #[must_use]
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The HTTP status, which MQTT answers carry too.
    #[must_use]
    pub const fn status(self) -> u16 {
        (self as u32 / 1000) as u16
    }
}

/// A refusal: what kind, and in words what was wrong and what would have been right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} {}: {message}", code.number(), code.name())]
pub struct HubError {
    /// What kind of refusal it is.
    pub code: ErrorCode,
    /// The words.
    pub message: Cow<'static, str>,
}

impl HubError {
    pub(crate) fn new(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into() }
    }

    /// The HTTP status.
    #[must_use]
    pub const fn status(&self) -> u16 {
        self.code.status()
    }

    /// Appends the JSON body that a device gets; SDKs look only into it, not at the topic's status.
    /// `tracking` is any text that helps to find the request in a log.
    pub fn write_device_body(&self, tracking: &str, at: WallTime, out: &mut Vec<u8>) {
        let message = serde_json::Value::from(self.message.as_ref());
        let tracking = serde_json::Value::from(tracking);
        write!(
            out,
            r#"{{"errorCode":{},"trackingId":{tracking},"message":{message},"timestampUtc":"{}"}}"#,
            self.code.number(),
            Iso8601(at)
        )
        .expect("a vector takes all that is written to it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_carries_status_number_and_name() {
        let code = ErrorCode::DeviceNotOnline;
        assert_eq!((code.status(), code.number(), code.name()), (404, 404_103, "DeviceNotOnline"));
    }

    #[test]
    fn the_devices_error_body_is_json_with_code_and_message() {
        let mut body = Vec::new();
        HubError::new(ErrorCode::ArgumentInvalid, "no \"$\" in keys").write_device_body(
            "t-1",
            WallTime::from_unix_millis(1_456_789_012_345),
            &mut body,
        );
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["errorCode"], 400_004);
        assert_eq!(body["message"], "no \"$\" in keys");
        assert_eq!(body["timestampUtc"], "2016-02-29T23:36:52.345Z");
    }
}
