//! Refusals, in the shape that service SDKs make their errors of.

use fleetwave_hub_core::{ErrorCode, HubError, Iso8601};
use fleetwave_protocol::WallTime;
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use serde_json::json;

use super::Reply;
use crate::ControlError;
use crate::dps::DpsError;
use crate::policy::PolicyError;
use crate::store::StoreError;

/// Why an operation was not done.
#[derive(Debug)]
pub(crate) enum ApiError {
    /// The hub core refuses.
    Hub(Box<HubError>),
    /// One of the names that only the HTTPS surface has.
    Other { status: StatusCode, name: &'static str, message: String },
    /// The hub does not model it.
    NotModelled(&'static str),
    /// The path takes other methods.
    OtherMethod { allowed: String },
    /// The provisioning service refuses; its errors have a shape of their own.
    Provisioning(DpsError),
    /// A direct method ended without an answer: its error has a shape of its own.
    Method(Box<HubError>),
}

impl From<Box<HubError>> for ApiError {
    fn from(error: Box<HubError>) -> Self {
        Self::Hub(error)
    }
}

impl From<HubError> for ApiError {
    fn from(error: HubError) -> Self {
        Self::Hub(Box::new(error))
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Refused(error) => Self::Hub(error),
            ControlError::Stopped => Self::Other {
                status: StatusCode::SERVICE_UNAVAILABLE,
                name: "ServiceUnavailable",
                message: "the hub is stopping".into(),
            },
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::Other {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            name: "ServerError",
            message: error.to_string(),
        }
    }
}

impl From<PolicyError> for ApiError {
    fn from(error: PolicyError) -> Self {
        Self::unauthorized(error.to_string())
    }
}

impl ApiError {
    pub(crate) fn new(code: ErrorCode, message: impl Into<std::borrow::Cow<'static, str>>) -> Self {
        Self::Hub(Box::new(HubError { code, message: message.into() }))
    }

    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::Other {
            status: StatusCode::UNAUTHORIZED,
            name: "IotHubUnauthorizedAccess",
            message: message.into(),
        }
    }

    pub(crate) fn bad_json(error: &serde_json::Error) -> Self {
        Self::new(ErrorCode::IotHubFormatError, format!("the body: {error}"))
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Hub(error) | Self::Method(error) => {
                StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }
            Self::Other { status, .. } => *status,
            Self::Provisioning(error) => {
                StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }
            Self::NotModelled(_) => StatusCode::NOT_IMPLEMENTED,
            Self::OtherMethod { .. } => StatusCode::METHOD_NOT_ALLOWED,
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Hub(error) | Self::Method(error) => error.code.name(),
            Self::Other { name, .. } => name,
            Self::NotModelled(_) => "NotModelled",
            Self::OtherMethod { .. } => ErrorCode::GenericMethodNotAllowed.name(),
            Self::Provisioning(_) => "ProvisioningServiceError",
        }
    }

    /// The answer. `tracking` helps to find the request in the log.
    pub(crate) fn reply(&self, tracking: &str, wall: WallTime) -> Reply {
        let text = match self {
            Self::Hub(error) | Self::Method(error) => error.message.as_ref(),
            Self::Other { message, .. } => message,
            Self::NotModelled(feature) => feature,
            Self::OtherMethod { allowed } => &format!("this path takes {allowed}"),
            Self::Provisioning(error) => &error.message,
        };
        let body = match self {
            // SDKs read the inner document, and only when the exception's message is empty.
            Self::Method(error) => {
                let inner = json!({
                    "errorCode": error.code.number(),
                    "trackingId": tracking,
                    "message": text,
                    "info": {},
                    "timestampUtc": Iso8601(wall).to_string(),
                });
                json!({ "Message": inner.to_string(), "ExceptionMessage": "" })
            }
            Self::Provisioning(error) => error.body(tracking, wall),
            Self::NotModelled(feature) => json!({
                "Message": format!("ErrorCode:NotModelled;this hub does not model {feature}"),
                "ExceptionMessage": format!("Tracking ID:{tracking}"),
            }),
            _ => json!({
                "Message": format!("ErrorCode:{};{text}", self.name()),
                "ExceptionMessage": format!("Tracking ID:{tracking}"),
            }),
        };
        let mut reply = Reply::json(self.status(), &body).with("iothub-errorcode", self.name());
        if self.status() == StatusCode::TOO_MANY_REQUESTS {
            reply = reply.with(header::RETRY_AFTER, "1");
        }
        if let Self::OtherMethod { allowed } = self {
            reply = reply.with(header::ALLOW, allowed.as_str());
        }
        if self.status() == StatusCode::UNAUTHORIZED {
            reply = reply.with(header::WWW_AUTHENTICATE, HeaderValue::from_static("SharedAccessSignature"));
        }
        reply
    }
}
