//! The limits of twins and messages, and the rules that JSON in a twin has to keep.
//!
//! Source: "Understand and use device twins in IoT Hub", `articles/iot-hub/iot-hub-devguide-device-twins.md`, and
//! the "other limits" of the throttling page, both in MicrosoftDocs/azure-docs.

use core::time::Duration;

use serde_json::Value;

use crate::error::{ErrorCode, HubError};

/// Largest tags section, counted as the twin page says.
pub const TAGS_SIZE: usize = 8 * 1024;
/// Largest desired or reported section.
pub const PROPERTIES_SIZE: usize = 32 * 1024;
/// Largest device-to-cloud message: payload and properties.
pub const D2C_SIZE: usize = 256 * 1024;
/// Largest cloud-to-device message: payload and properties.
pub const C2D_SIZE: usize = 64 * 1024;
/// Largest payload of a direct method, each way.
pub const METHOD_SIZE: usize = 128 * 1024;
/// Largest number of C2D messages that wait for a device.
pub const C2D_QUEUE: usize = 50;
/// How long a device may keep a C2D message that it has fetched over HTTPS.
pub const C2D_LOCK: Duration = Duration::from_secs(60);
/// Most objects that may stand inside each other below a section's root.
pub const DEPTH: usize = 10;
/// Longest key, in bytes.
pub const KEY_SIZE: usize = 1024;
/// Longest string value, in bytes.
pub const STRING_SIZE: usize = 4 * 1024;
/// The smallest integer.
pub const MIN_INTEGER: i64 = -(1 << 52);
/// The largest integer.
pub const MAX_INTEGER: i64 = (1 << 52) - 1;
/// Longest device id and longest module id, in bytes.
pub const DEVICE_ID_SIZE: usize = 128;
/// Most modules that a device may have.
pub const MODULES: usize = 50;
/// Longest reason of a status, in characters.
pub const STATUS_REASON_SIZE: usize = 128;

/// Which section a document is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    Tags,
    Desired,
    Reported,
}

impl Section {
    const fn name(self) -> &'static str {
        match self {
            Self::Tags => "tags",
            Self::Desired => "desired properties",
            Self::Reported => "reported properties",
        }
    }

    const fn limit(self) -> usize {
        match self {
            Self::Tags => TAGS_SIZE,
            Self::Desired | Self::Reported => PROPERTIES_SIZE,
        }
    }

    /// Refuses a document that is larger than the section may be.
    pub(crate) fn check_size(self, size: usize) -> Result<(), HubError> {
        if size <= self.limit() {
            return Ok(());
        }
        let (name, limit) = (self.name(), self.limit());
        Err(HubError::new(
            ErrorCode::MessageTooLarge,
            format!("the {name} would take {size} bytes, the limit is {limit}"),
        ))
    }
}

/// Checks a value and all in it against the format. `depth` counts the objects and arrays around it.
pub(crate) fn check_value(value: &Value, depth: usize) -> Result<(), HubError> {
    match value {
        Value::Null | Value::Bool(_) => Ok(()),
        Value::Number(number) => check_number(number),
        Value::String(text) if text.len() <= STRING_SIZE => Ok(()),
        Value::String(text) => {
            Err(invalid(format!("a string has {} bytes, the limit is {STRING_SIZE}", text.len())))
        }
        Value::Array(_) | Value::Object(_) if depth > DEPTH => {
            Err(invalid(format!("objects are nested deeper than {DEPTH} levels")))
        }
        Value::Array(items) => items.iter().try_for_each(|item| check_value(item, depth + 1)),
        Value::Object(members) => members.iter().try_for_each(|(key, value)| {
            check_key(key)?;
            check_value(value, depth + 1)
        }),
    }
}

fn check_number(number: &serde_json::Number) -> Result<(), HubError> {
    let fits = match (number.as_i64(), number.is_u64()) {
        (Some(integer), _) => (MIN_INTEGER..=MAX_INTEGER).contains(&integer),
        (None, above_i64) => !above_i64,
    };
    if fits {
        return Ok(());
    }
    Err(invalid(format!("the integer {number} is outside {MIN_INTEGER}..={MAX_INTEGER}")))
}

fn check_key(key: &str) -> Result<(), HubError> {
    if key.len() > KEY_SIZE {
        return Err(invalid(format!("a key has {} bytes, the limit is {KEY_SIZE}", key.len())));
    }
    match key.chars().find(|&c| matches!(c, '.' | '$' | ' ') || c.is_control()) {
        None => Ok(()),
        Some(c) => {
            Err(invalid(format!("the key {key:?} has {c:?}: no '.', '$', space or control character")))
        }
    }
}

/// Refuses a device-to-cloud message that is larger than one may be.
pub(crate) fn check_d2c_size(size: usize) -> Result<(), HubError> {
    if size <= D2C_SIZE {
        return Ok(());
    }
    Err(HubError::new(
        ErrorCode::MessageTooLarge,
        format!("the message has {size} bytes, the limit is {D2C_SIZE}"),
    ))
}

/// Checks the id of a device (`what` is "device") or of a module.
pub(crate) fn check_id(what: &str, id: &str) -> Result<(), HubError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-.+%_#*?!(),:;=@$'".contains(&b);
    if (1..=DEVICE_ID_SIZE).contains(&id.len()) && id.bytes().all(allowed) {
        return Ok(());
    }
    Err(invalid(format!(
        "the {what} id {id:?} is not 1 to {DEVICE_ID_SIZE} ASCII letters, digits and -.+%_#*?!(),:;=@$'"
    )))
}

/// Checks the reason of a status.
pub(crate) fn check_status_reason(reason: &str) -> Result<(), HubError> {
    let length = reason.chars().count();
    if length <= STATUS_REASON_SIZE {
        return Ok(());
    }
    Err(invalid(format!("the status reason has {length} characters, the limit is {STATUS_REASON_SIZE}")))
}

pub(crate) fn invalid(message: impl Into<String>) -> HubError {
    HubError::new(ErrorCode::ArgumentInvalid, message.into())
}

/// The size of a string as the twin page counts it: characters, without control characters.
pub(crate) fn text_size(text: &str) -> usize {
    text.chars().filter(|c| !c.is_control()).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn nested(levels: usize) -> Value {
        (0..levels).fold(json!("value"), |inner, _| json!({ "k": inner }))
    }

    #[test]
    fn ten_objects_below_the_root_are_the_most() {
        // The root itself is one of the objects.
        assert!(check_value(&nested(11), 0).is_ok());
        assert!(check_value(&nested(12), 0).is_err());
    }

    #[test]
    fn integers_keys_and_strings_have_their_limits() {
        for good in [json!(MIN_INTEGER), json!(MAX_INTEGER), json!(1e300), json!("x".repeat(4096))] {
            assert!(check_value(&good, 1).is_ok(), "{good}");
        }
        for bad in [
            json!(MIN_INTEGER - 1),
            json!(MAX_INTEGER + 1),
            json!(u64::MAX),
            json!("x".repeat(4097)),
            json!({"a.b": 1}),
            json!({"$a": 1}),
            json!({"a b": 1}),
            json!({"a\u{1}": 1}),
            json!({"a\u{85}": 1}),
            json!({"k".repeat(1025): 1}),
            json!([[{"a b": 1}]]),
        ] {
            assert_eq!(check_value(&bad, 1).unwrap_err().code, ErrorCode::ArgumentInvalid, "{bad}");
        }
    }

    #[test]
    fn device_ids_are_what_the_registry_takes() {
        assert!(check_id("device", "dev-0000001").is_ok());
        for bad in ["", "a b", "a/b", "ü", &"x".repeat(129)] {
            assert!(check_id("device", bad).is_err(), "{bad:?}");
        }
    }
}
