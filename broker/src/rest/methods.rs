//! Direct methods on devices and modules.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use fleetwave_hub_core::{ErrorCode, HubError, MethodAnswer, throttle};
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::oneshot;

use super::router::{Verb, does};
use super::{Api, ApiError, Call, Operation, Reply};
use crate::policy::Rights;
use crate::{ControlError, MethodCall};

/// How long a device may take to answer, in seconds.
const RESPONSE: RangeInclusive<i64> = 5..=300;
const DEFAULT_RESPONSE: i64 = 30;
/// How long it may take to connect.
const CONNECT: RangeInclusive<i64> = 0..=300;

const SDK: &str = "Python `IoTHubRegistryManager.invoke_device_method`, `invoke_device_module_method`; \
                   Node `Client.invokeDeviceMethod`; Java `DirectMethodsClient.invoke`";

const fn method(name: &'static str, path: &'static str) -> Operation {
    Operation::new(name, Verb::Post, path, Rights::SERVICE_CONNECT, does!(invoke))
        .limited(throttle::Operation::Method)
        .sdk(SDK)
        .test("rest::a_method_is_answered_by_its_device")
}

pub(super) const OPERATIONS: &[Operation] = &[
    method("Call a device's method", "/twins/{id}/methods"),
    method("Call a module's method", "/twins/{id}/modules/{module}/methods"),
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MethodBody<'a> {
    method_name: Option<String>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    response_timeout_in_seconds: Option<i64>,
    connect_timeout_in_seconds: Option<i64>,
}

/// The two times that a call may take, checked.
pub(super) fn timeouts(
    connect: Option<i64>,
    response: Option<i64>,
) -> Result<(Duration, Duration), HubError> {
    let seconds = |name: &str, given: i64, range: &RangeInclusive<i64>| {
        if !range.contains(&given) {
            let message = format!("{name} is {given}, {} to {} were expected", range.start(), range.end());
            return Err(HubError { code: ErrorCode::ArgumentInvalid, message: message.into() });
        }
        Ok(Duration::from_secs(given.unsigned_abs()))
    };
    Ok((
        seconds("connectTimeoutInSeconds", connect.unwrap_or(0), &CONNECT)?,
        seconds("responseTimeoutInSeconds", response.unwrap_or(DEFAULT_RESPONSE), &RESPONSE)?,
    ))
}

async fn invoke(call: Call) -> Result<Reply, ApiError> {
    let id = call.target()?;
    let body: MethodBody<'_> = call.json()?;
    let (connect_timeout, response_timeout) =
        timeouts(body.connect_timeout_in_seconds, body.response_timeout_in_seconds)?;
    let Some(name) = body.method_name.filter(|name| !name.is_empty()) else {
        return Err(ApiError::new(ErrorCode::ArgumentNull, "methodName is missing"));
    };
    let payload = body.payload.map_or("null", RawValue::get);
    let method = MethodCall {
        name,
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        connect_timeout,
        response_timeout,
    };
    let answer = run(&call.api, id, method).await?;
    let mut body = format!("{{\"status\":{},\"payload\":", answer.status).into_bytes();
    body.extend_from_slice(json_of(&answer)?);
    body.push(b'}');
    Ok(Reply::text(StatusCode::OK, body))
}

/// Calls a method of a device or module and waits for its answer.
pub(super) async fn run(api: &Api, id: String, method: MethodCall) -> Result<MethodAnswer, ApiError> {
    let (tell, told) = oneshot::channel();
    let called = api.control.with_device(&id.clone(), move |shard| {
        let device = shard.find(&id)?;
        // Nobody waits any more: that is fine.
        shard.invoke(device, &method, move |outcome| drop(tell.send(outcome)));
        Ok::<_, Box<HubError>>(())
    });
    // What is wrong with a call, too, is told as methods' errors are.
    called.await?.map_err(ApiError::Method)?;
    match told.await {
        Ok(outcome) => outcome.map_err(ApiError::Method),
        Err(_) => Err(ControlError::Stopped.into()),
    }
}

/// What a device answered, as JSON; nothing is `null`.
pub(super) fn json_of(answer: &MethodAnswer) -> Result<&[u8], ApiError> {
    let payload = answer.payload.trim_ascii();
    if payload.is_empty() {
        return Ok(b"null");
    }
    match serde_json::from_slice::<&RawValue>(payload) {
        Ok(_) => Ok(payload),
        Err(error) => Err(ApiError::Other {
            status: StatusCode::BAD_GATEWAY,
            name: "BadDeviceResponse",
            message: format!("the device's answer is not JSON: {error}"),
        }),
    }
}
