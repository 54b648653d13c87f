//! What a back end asks a job to do.

use std::time::Duration;

use bytes::Bytes;
use fleetwave_hub_core::query::{Collection, Query};
use fleetwave_hub_core::{ErrorCode, HubError};
use fleetwave_protocol::WallTime;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::control::MethodCall;

/// A job, as it was asked for.
#[derive(Clone, Debug)]
pub(crate) struct JobRequest {
    pub(crate) work: Work,
    /// As the back end wrote it.
    pub(crate) condition: String,
    pub(crate) query: Query,
    pub(crate) start: Option<WallTime>,
    pub(crate) max_execution: Duration,
    /// The part that is given back as it was: `updateTwin` or `cloudToDeviceMethod`.
    pub(crate) given: Value,
}

/// What is done to each device.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Update { tags: Option<Vec<u8>>, desired: Option<Vec<u8>>, etag: Option<String> },
    Method(MethodCall),
}

fn invalid(message: String) -> HubError {
    HubError { code: ErrorCode::ArgumentInvalid, message: message.into() }
}

impl JobRequest {
    pub(crate) fn read(id: &str, body: &Value) -> Result<Self, HubError> {
        check_id(id)?;
        if let Some(inside) = body["jobId"].as_str()
            && inside != id
        {
            return Err(invalid(format!("jobId is {inside:?}, the path says {id:?}")));
        }
        let (work, given) = match body["type"].as_str() {
            Some("scheduleUpdateTwin") => (update(&body["updateTwin"])?, body["updateTwin"].clone()),
            Some("scheduleDeviceMethod") => {
                (method(&body["cloudToDeviceMethod"])?, body["cloudToDeviceMethod"].clone())
            }
            other => {
                return Err(invalid(format!(
                    "type is {:?}: scheduleUpdateTwin or scheduleDeviceMethod was expected",
                    other.unwrap_or_default()
                )));
            }
        };
        let condition = body["queryCondition"].as_str().unwrap_or_default().trim().to_owned();
        let query = query(&condition)?;
        let start = match body["startTime"].as_str() {
            None | Some("") => None,
            Some(text) => Some(time(text)?),
        };
        let seconds = match &body["maxExecutionTimeInSeconds"] {
            Value::Null => 3600,
            value => value.as_u64().filter(|seconds| *seconds > 0).ok_or_else(|| {
                invalid(format!("maxExecutionTimeInSeconds is {value}: a number above 0 was expected"))
            })?,
        };
        Ok(Self { work, condition, query, start, max_execution: Duration::from_secs(seconds), given })
    }

    /// The job's `type`.
    pub(crate) const fn kind(&self) -> &'static str {
        match self.work {
            Work::Update { .. } => "scheduleUpdateTwin",
            Work::Method(_) => "scheduleDeviceMethod",
        }
    }
}

fn check_id(id: &str) -> Result<(), HubError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-:.+%_#*?!(),=@;$'".contains(&byte);
    if (1..=64).contains(&id.len()) && id.bytes().all(allowed) {
        return Ok(());
    }
    Err(invalid(format!("the job id {id:?} is not 1 to 64 ASCII letters, digits and -:.+%_#*?!(),=@;$'")))
}

fn query(condition: &str) -> Result<Query, HubError> {
    let text = match condition {
        "" => {
            return Err(invalid("queryCondition is missing: `*` selects all devices".into()));
        }
        "*" => "SELECT * FROM devices".to_owned(),
        from if from.get(..5).is_some_and(|word| word.eq_ignore_ascii_case("from ")) => {
            format!("SELECT * {from}")
        }
        condition => format!("SELECT * FROM devices WHERE {condition}"),
    };
    let query = Query::parse(&text)
        .map_err(|error| invalid(format!("queryCondition: {error}\n{}", error.caret(&text))))?;
    if query.collection() == Collection::Jobs {
        return Err(invalid("queryCondition selects from devices or devices.modules".into()));
    }
    Ok(query)
}

fn update(twin: &Value) -> Result<Work, HubError> {
    if !twin.is_object() {
        return Err(invalid("updateTwin is missing: an object with tags, properties.desired or both".into()));
    }
    let section = |value: &Value, name: &str| match value {
        Value::Null => Ok(None),
        Value::Object(_) => Ok(Some(value.to_string().into_bytes())),
        _ => Err(invalid(format!("updateTwin.{name} is not an object"))),
    };
    Ok(Work::Update {
        tags: section(&twin["tags"], "tags")?,
        desired: section(&twin["properties"]["desired"], "properties.desired")?,
        etag: twin["etag"].as_str().map(str::to_owned),
    })
}

fn method(call: &Value) -> Result<Work, HubError> {
    let Some(name) = call["methodName"].as_str().filter(|name| !name.is_empty()) else {
        return Err(invalid("cloudToDeviceMethod.methodName is missing".into()));
    };
    let seconds = |field: &str, default: u64, range: std::ops::RangeInclusive<u64>| match &call[field] {
        Value::Null => Ok(Duration::from_secs(default)),
        value => match value.as_u64() {
            // Zero is what SDKs send for a value that nobody gave.
            Some(0) => Ok(Duration::from_secs(default)),
            Some(seconds) if range.contains(&seconds) => Ok(Duration::from_secs(seconds)),
            _ => Err(invalid(format!(
                "cloudToDeviceMethod.{field} is {value}: {} to {} seconds",
                range.start(),
                range.end()
            ))),
        },
    };
    Ok(Work::Method(MethodCall {
        name: name.to_owned(),
        payload: Bytes::from(call["payload"].to_string()),
        connect_timeout: seconds("connectTimeoutInSeconds", 0, 0..=300)?,
        response_timeout: seconds("responseTimeoutInSeconds", 30, 5..=300)?,
    }))
}

/// A date and time by ISO 8601, with or without a zone.
fn time(text: &str) -> Result<WallTime, HubError> {
    let parsed = OffsetDateTime::parse(text, &Rfc3339)
        .or_else(|_| OffsetDateTime::parse(&format!("{text}Z"), &Rfc3339))
        .map_err(|_| invalid(format!("startTime {text:?} is not a time such as 2026-01-31T08:00:00Z")))?;
    let millis = parsed.unix_timestamp_nanos() / 1_000_000;
    Ok(WallTime::from_unix_millis(u64::try_from(millis).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_come_as_the_sdks_write_them() {
        for text in ["2026-01-31T08:00:00.000Z", "2026-01-31T08:00:00", "2026-01-31T09:00:00+01:00"] {
            assert_eq!(time(text).unwrap().as_unix_secs(), 1_769_846_400, "{text}");
        }
        // Before 1970 is at once, too.
        assert_eq!(time("0001-01-01T00:00:00Z").unwrap().as_unix_secs(), 0);
        assert!(time("soon").unwrap_err().message.contains("2026-01-31T08:00:00Z"));
    }

    #[test]
    fn a_request_that_breaks_a_rule_says_which() {
        let good =
            json!({ "type": "scheduleUpdateTwin", "updateTwin": { "tags": {} }, "queryCondition": "*" });
        assert!(JobRequest::read("j", &good).is_ok());
        for (member, value, expected) in [
            ("jobId", json!("k"), "jobId"),
            ("type", json!("export"), "scheduleUpdateTwin"),
            ("updateTwin", json!(null), "updateTwin"),
            ("updateTwin", json!({ "tags": 1 }), "updateTwin.tags"),
            ("queryCondition", json!(""), "queryCondition"),
            ("queryCondition", json!("tags.a ="), "queryCondition"),
            ("queryCondition", json!("FROM devices.jobs"), "devices.modules"),
            ("startTime", json!("soon"), "startTime"),
            ("maxExecutionTimeInSeconds", json!(-1), "maxExecutionTimeInSeconds"),
        ] {
            let mut bad = good.clone();
            bad[member] = value;
            let error = JobRequest::read("j", &bad).unwrap_err();
            assert!(error.message.contains(expected), "{error}");
        }
        assert!(JobRequest::read("a b", &good).is_err());
    }
}
