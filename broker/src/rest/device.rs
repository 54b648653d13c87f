//! What a device sends over HTTPS: messages, one by one or in batches.
//!
//! Source of the header names and of a batch's form: what the Node and Java device SDKs send, and the reference of the
//! operation "Send device event".

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fleetwave_hub_core::{ErrorCode, limits, throttle};
use fleetwave_protocol::bag;
use hyper::{HeaderMap, header};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::router::{Verb, does};
use super::{ApiError, Call, Operation, Reply, header_case};

const SDK: &str =
    "Node `Client.sendEvent`, `sendEventBatch` and Java `DeviceClient.sendEventAsync` over HTTPS";
/// The media type of a batch.
const BATCH: &str = "application/vnd.microsoft.iothub.json";
/// In front of the names of application properties.
const APPLICATION: &str = "iothub-app-";

const fn send_operation(name: &'static str, path: &'static str) -> Operation {
    Operation::of_device(name, Verb::Post, path, does!(send))
        .limited(throttle::Operation::DeviceToCloud)
        .sdk(SDK)
        .test("rest::a_device_sends_messages_over_https")
}

pub(super) const OPERATIONS: &[Operation] = &[
    send_operation("Send a device's messages", "/devices/{id}/messages/events"),
    send_operation("Send a module's messages", "/devices/{id}/modules/{module}/messages/events"),
];

/// A message as the hub takes it.
#[derive(Debug, PartialEq)]
struct Message {
    properties: String,
    body: Bytes,
}

/// A message of a batch.
#[derive(Debug, Deserialize)]
struct Item {
    body: String,
    #[serde(default = "yes", rename = "base64Encoded")]
    base64: bool,
    #[serde(default)]
    properties: Map<String, Value>,
}

const fn yes() -> bool {
    true
}

async fn send(call: Call) -> Result<Reply, ApiError> {
    let id = call.identity.clone().unwrap_or_default();
    let is_batch = call
        .header(header::CONTENT_TYPE.as_str())
        .and_then(|given| given.split(';').next())
        .is_some_and(|given| given.trim().eq_ignore_ascii_case(BATCH));
    let messages = if is_batch {
        batch(&call)?
    } else {
        vec![Message { properties: properties(&call).await?, body: call.body.clone() }]
    };
    let posted = call.api.control.with_device(&id.clone(), move |shard| {
        let device = shard.find(&id)?;
        messages.iter().try_for_each(|message| shard.post(device, &message.properties, &message.body))
    });
    posted.await??;
    Ok(Reply::no_content())
}

/// The name that a property has in a message's bag; `None` for headers that are not the message's.
fn key(name: &str) -> Option<&str> {
    let is = |known: &str| name.eq_ignore_ascii_case(known);
    if name.get(..APPLICATION.len()).is_some_and(|start| start.eq_ignore_ascii_case(APPLICATION)) {
        return name.get(APPLICATION.len()..).filter(|name| !name.is_empty());
    }
    [
        ("iothub-messageid", "$.mid"),
        ("iothub-correlationid", "$.cid"),
        ("iothub-userid", "$.uid"),
        ("iothub-contenttype", "$.ct"),
        ("iothub-contentencoding", "$.ce"),
        ("iothub-expiry", "$.exp"),
        ("iothub-interface-id", "$.ifid"),
        ("iothub-outputname", "$.on"),
        ("iothub-creation-time-utc", "iothub-creation-time-utc"),
        ("dt-subject", "$.sub"),
    ]
    .into_iter()
    .find_map(|(header, key)| is(header).then_some(key))
}

/// The property bag that headers tell.
async fn properties(call: &Call) -> Result<String, ApiError> {
    let told = call.headers.iter().filter(|(name, _)| key(name.as_str()).is_some());
    let told: HeaderMap = told.map(|(name, value)| (name.clone(), value.clone())).collect();
    let mut written = HashMap::new();
    if told.keys().any(|name| name.as_str().starts_with(APPLICATION)) {
        written = header_case::original(told.clone(), call.extensions.clone()).await;
    }
    let mut properties = String::new();
    for (name, value) in &told {
        let name = written.get(name.as_str()).map_or(name.as_str(), String::as_str);
        let value = std::str::from_utf8(value.as_bytes()).map_err(|_| {
            ApiError::new(ErrorCode::ArgumentInvalid, format!("the value of the header {name} is not UTF-8"))
        })?;
        bag::push(&mut properties, key(name).unwrap_or(name), value);
    }
    Ok(properties)
}

fn batch(call: &Call) -> Result<Vec<Message>, ApiError> {
    let items: Vec<Item> = call.json()?;
    let mut messages = Vec::with_capacity(items.len());
    let mut size = 0;
    for (place, item) in items.into_iter().enumerate() {
        let message = message_of(item).map_err(|why| {
            ApiError::new(ErrorCode::ArgumentInvalid, format!("message {place} of the batch: {why}"))
        })?;
        size += message.properties.len() + message.body.len();
        messages.push(message);
    }
    if size > limits::D2C_SIZE {
        let limit = limits::D2C_SIZE;
        let message = format!("the batch has {size} bytes, the limit is {limit}");
        return Err(ApiError::new(ErrorCode::MessageTooLarge, message));
    }
    Ok(messages)
}

fn message_of(item: Item) -> Result<Message, String> {
    let body = if item.base64 {
        STANDARD.decode(&item.body).map_err(|error| format!("the body is not base64: {error}"))?
    } else {
        item.body.into_bytes()
    };
    let mut properties = String::new();
    for (name, value) in &item.properties {
        let value = match value {
            Value::String(text) => text.clone(),
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            _ => return Err(format!("the property {name:?} is no simple value")),
        };
        bag::push(&mut properties, key(name).unwrap_or(name), &value);
    }
    Ok(Message { properties, body: body.into() })
}
