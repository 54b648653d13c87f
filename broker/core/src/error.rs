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
    /// A request that is wrong in a way that has no code of its own.
    GenericBadRequest = 400_000,
    /// An api-version that the hub does not know, or none.
    InvalidProtocolVersion = 400_001,
    /// An operation that does not fit what it is asked of.
    InvalidOperation = 400_003,
    /// A request that breaks a rule of the format: key, depth, string length, integer range.
    ArgumentInvalid = 400_004,
    /// Something that must be given is missing.
    ArgumentNull = 400_005,
    /// Not JSON, or not an object.
    IotHubFormatError = 400_006,
    /// A storage container that can't be used.
    BlobContainerValidationError = 400_008,
    /// A schema version that the hub does not know.
    InvalidSchemaVersion = 400_010,
    /// The same device twice in one bulk request.
    DeviceDefinedMultipleTimes = 400_011,
    /// A body that is JSON and not what the operation takes.
    DeserializationError = 400_012,
    /// At least one item of a bulk request was refused.
    BulkRegistryOperationFailure = 400_013,
    /// The hub has no storage for uploads.
    DefaultStorageEndpointNotConfigured = 400_014,
    /// A correlation id that no upload has.
    InvalidFileUploadCorrelationId = 400_015,
    /// The upload of this correlation id took too long.
    ExpiredFileUploadCorrelationId = 400_016,
    /// An upload's end that is not told in the right form.
    InvalidFileUploadCompletionStatus = 400_019,
    /// An etag that does not match in a bulk request.
    EtagDoesNotMatch = 400_023,
    /// A twin operation or method of a connection that another one has just ended.
    ConnectionForcefullyClosedOnNewConnection = 400_027,
    /// A device scope that is no edge device's.
    InvalidDeviceScope = 400_028,
    /// A module below a module.
    CannotRegisterModuleToModule = 400_301,
    /// A target condition that does not parse.
    InvalidConfigurationTargetCondition = 400_401,
    /// Configuration content that cannot become desired properties.
    InvalidConfigurationContent = 400_402,
    /// The content of a configuration can't be changed.
    CannotModifyImmutableConfigurationContent = 400_403,
    /// A metric's query that does not parse.
    InvalidConfigurationCustomMetricsQuery = 400_404,
    /// A JSON patch of a digital twin that is not of the form.
    InvalidDigitalTwinJsonPatch = 400_505,
    /// A JSON patch of a digital twin that breaks a rule.
    InvalidDigitalTwinPatch = 400_507,
    /// A path of a digital twin that a patch can't change.
    InvalidDigitalTwinPatchPath = 400_508,
    /// Not authorised, in a way that has no code of its own.
    GenericUnauthorized = 401_000,
    /// No hub of this name.
    IotHubNotFound = 401_001,
    /// The token's policy does not have this right.
    IotHubUnauthorizedAccess = 401_002,
    /// No token, or one that is forged, expired or for something else; a certificate that is not the device's.
    IotHubUnauthorized = 401_003,
    /// The edge's own modules can't be changed so.
    SystemModuleModifyUnauthorizedAccess = 401_100,
    /// Forbidden, in a way that has no code of its own.
    GenericForbidden = 403_000,
    /// The hub is suspended.
    IotHubSuspended = 403_001,
    /// The day's messages, or the hub's devices, are used up.
    IotHubQuotaExceeded = 403_002,
    /// As many jobs run as may.
    JobQuotaExceeded = 403_003,
    /// 50 C2D messages wait already.
    DeviceMaximumQueueDepthExceeded = 403_004,
    /// More tokens on one AMQP connection than may be.
    IotHubMaxCbsTokenExceeded = 403_005,
    /// Ten uploads of the device are under way already.
    DeviceMaximumActiveFileUploadLimitExceeded = 403_006,
    /// The C2D messages that wait take too much room.
    DeviceMaximumQueueSizeExceeded = 403_007,
    /// The message had expired before it was sent.
    InvalidMessageExpiryTime = 403_009,
    /// The hub's tier does not have this operation.
    OperationNotAvailableInCurrentTier = 403_010,
    /// The device is disabled.
    DeviceDisabled = 403_012,
    /// More methods of a device under way than may be.
    DeviceMaximumInflightMethodExceeded = 403_800,
    /// Not found, in a way that has no code of its own: a path that the hub does not have.
    GenericNotFound = 404_000,
    /// No such device.
    DeviceNotFound = 404_001,
    /// No such job.
    JobNotFound = 404_002,
    /// No such AMQP address.
    AmqpAddressNotFound = 404_006,
    /// No such certificate.
    CertificateNotFound = 404_008,
    /// No such module.
    ModuleNotFound = 404_010,
    /// No such component in a digital twin.
    DigitalTwinInterfaceNotFound = 404_014,
    /// The device is not connected, or has not subscribed to methods.
    DeviceNotOnline = 404_103,
    /// The device's connection broke.
    DeviceConnectionClosedRemotely = 404_104,
    /// No such configuration.
    ConfigurationNotFound = 404_301,
    /// No such model.
    DigitalTwinModelNotFound = 404_401,
    /// The path is there, and not with this verb.
    GenericMethodNotAllowed = 405_000,
    /// What it is asked of is in a state that forbids it: a job that has ended can't be cancelled.
    OperationNotAllowedInCurrentState = 405_102,
    /// A conflict that has no code of its own.
    GenericConflict = 409_000,
    /// The device exists already.
    DeviceAlreadyExists = 409_001,
    /// The client's older connection was closed by a newer one.
    LinkCreationConflict = 409_002,
    /// A job has this device already.
    DeviceJobAlreadyExists = 409_103,
    /// The job exists already.
    JobAlreadyExists = 409_104,
    /// The module exists already.
    ModuleAlreadyExistsOnDevice = 409_301,
    /// The configuration exists already.
    ConfigurationAlreadyExists = 409_401,
    /// A precondition that has no code of its own.
    GenericPreconditionFailed = 412_000,
    /// The etag or the base version is stale.
    PreconditionFailed = 412_001,
    /// The lock of a C2D message has passed, or never was.
    DeviceMessageLockLost = 412_002,
    /// The job can't run as things stand.
    JobRunPreconditionFailed = 412_003,
    /// Too large, in a way that has no code of its own.
    GenericRequestEntityTooLarge = 413_000,
    /// Larger than a message or a twin section may be.
    MessageTooLarge = 413_001,
    /// More devices than a bulk request or a hub may have.
    TooManyDevices = 413_002,
    /// More modules than a device may have.
    TooManyModulesOnDevice = 413_003,
    /// More configurations than a hub may have.
    ConfigurationCountLimitExceeded = 413_101,
    /// A content type that the operation does not take.
    GenericUnsupportedMediaType = 415_000,
    /// Too many requests, in a way that has no code of its own.
    GenericTooManyRequests = 429_000,
    /// Throttled.
    ThrottlingException = 429_001,
    /// The queue of throttled requests is full.
    ThrottleBacklogLimitExceeded = 429_002,
    /// The request waited too long in the queue of throttled ones.
    ThrottlingBacklogTimeout = 429_003,
    /// As many jobs are active as may be.
    ThrottlingMaxActiveJobCountExceeded = 429_004,
    /// One device's own limit.
    DeviceThrottlingLimitExceeded = 429_005,
    /// Something is wrong in the hub.
    ServerError = 500_001,
    /// A job was cancelled.
    JobCancelled = 500_002,
    /// The hub itself took too long.
    GenericTimeout = 500_008,
    /// A part of IoT Hub that this hub does not model. The number is this hub's own: IoT Hub has no such answer.
    NotImplemented = 501_000,
    /// The hub is not there for now.
    ServiceUnavailable = 503_001,
    /// No such partition.
    PartitionNotFound = 503_003,
    /// The hub has too much to do.
    ServerBusy = 503_005,
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
    /// A refusal of a kind, in words that name what was wrong and what would have been right.
    pub fn new(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
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
