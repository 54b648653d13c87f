//! Digital twins: the twin of a device that follows the conventions of IoT Plug and Play, seen through its components,
//! properties and commands.
//!
//! The hub needs no model for that: components are marked in the twin, acknowledgements have their form, and a
//! component's command is the method `component*command`. What only a model tells is not checked: whether a property
//! or a command is in it, and of which type. Source: "Understand IoT Plug and Play digital twins" and "Manage digital
//! twins" in MicrosoftDocs/azure-docs.

mod patch;
mod view;

use bytes::Bytes;
use fleetwave_hub_core::{DeviceIx, ErrorCode, Input, throttle};
use hyper::StatusCode;
use serde_json::Value;

use super::methods::{json_of, run, timeouts};
use super::router::{Verb, does};
use super::{ApiError, Call, Operation, Reply};
use crate::policy::Rights;
use crate::{MethodCall, ShardView};

const TWIN: &str = "/digitaltwins/{id}";
const UNCHECKED: &str = "nothing is checked against the device's model";

const fn operation(
    name: &'static str,
    verb: Verb,
    path: &'static str,
    handler: super::router::Handler,
    limit: throttle::Operation,
) -> Operation {
    Operation::new(name, verb, path, Rights::SERVICE_CONNECT, handler).limited(limit).short(UNCHECKED)
}

pub(super) const OPERATIONS: &[Operation] = &[
    operation("Read a digital twin", Verb::Get, TWIN, does!(get), throttle::Operation::TwinRead)
        .sdk("Python `DigitalTwinClient.get_digital_twin`; Node `DigitalTwinClient.getDigitalTwin`; Java `DigitalTwinClient.getDigitalTwin`")
        .short("")
        .test("rest::a_digital_twin_shows_components_and_what_was_acknowledged"),
    operation("Change a digital twin", Verb::Patch, TWIN, does!(change), throttle::Operation::TwinUpdate)
        .sdk("Python `DigitalTwinClient.update_digital_twin`; Node `DigitalTwinClient.updateDigitalTwin`; Java `DigitalTwinClient.updateDigitalTwin`")
        .test("rest::a_digital_twin_is_changed_by_a_json_patch"),
    operation(
        "Call a command",
        Verb::Post,
        "/digitaltwins/{id}/commands/{command}",
        does!(command),
        throttle::Operation::Method,
    )
    .sdk("Python `DigitalTwinClient.invoke_command`; Node `DigitalTwinClient.invokeCommand`; Java `DigitalTwinClient.invokeRootLevelCommand`")
    .test("rest::commands_are_methods_of_the_device"),
    operation(
        "Call a component's command",
        Verb::Post,
        "/digitaltwins/{id}/components/{component}/commands/{command}",
        does!(component_command),
        throttle::Operation::Method,
    )
    .sdk("Python `DigitalTwinClient.invoke_component_command`; Node `DigitalTwinClient.invokeComponentCommand`; Java `DigitalTwinClient.invokeComponentCommand`")
    .test("rest::commands_are_methods_of_the_device"),
];

/// The device of the path; digital twins of modules have no path.
fn device_id(call: &Call) -> Result<String, ApiError> {
    match call.param(0) {
        id if id.contains('/') => Err(ApiError::new(
            ErrorCode::ArgumentInvalid,
            format!("{id:?} is no device's id: it has a slash"),
        )),
        id => Ok(id.to_owned()),
    }
}

/// A device's twin and its etag.
fn twin(shard: &ShardView<'_>, device: DeviceIx) -> (Value, String) {
    let mut text = Vec::new();
    shard.hub().write_service_twin(device, &mut text);
    let twin = serde_json::from_slice(&text).expect("the hub writes JSON");
    (twin, shard.hub().twin(device).etag.to_string())
}

async fn get(call: Call) -> Result<Reply, ApiError> {
    let id = device_id(&call)?;
    let found =
        call.api.control.with_device(&id.clone(), move |shard| shard.find(&id).map(|ix| twin(shard, ix)));
    let (twin, etag) = found.await??;
    Ok(Reply::ok(&view::digital_twin(&twin)).etag(&etag))
}

async fn change(call: Call) -> Result<Reply, ApiError> {
    let (id, if_match) = (device_id(&call)?, call.if_match());
    let operations = patch::read(&call.body)?;
    let changed = call.api.control.with_device(&id.clone(), move |shard| {
        let device = shard.find(&id)?;
        let desired = patch::desired(&operations, &twin(shard, device).0)?.to_string();
        let desired = Some(desired.as_bytes());
        shard.apply(Input::PatchTwin { device, tags: None, desired, if_match: if_match.as_deref() })?;
        Ok::<_, ApiError>(shard.hub().twin(device).etag.to_string())
    });
    let etag = changed.await??;
    let location =
        format!("https://{}/digitaltwins/{}", call.host, fleetwave_protocol::bag::encode(call.param(0)));
    Ok(Reply::text(StatusCode::ACCEPTED, Bytes::new()).etag(&etag).with("location", location))
}

async fn command(call: Call) -> Result<Reply, ApiError> {
    let name = call.param(1).to_owned();
    invoke(call, name).await
}

async fn component_command(call: Call) -> Result<Reply, ApiError> {
    let name = format!("{}*{}", call.param(1), call.param(2));
    invoke(call, name).await
}

async fn invoke(call: Call, name: String) -> Result<Reply, ApiError> {
    let id = device_id(&call)?;
    let seconds = |name: &str| match call.query_param(name) {
        None => Ok(None),
        Some(text) => text.parse::<i64>().map(Some).map_err(|_| {
            ApiError::new(ErrorCode::ArgumentInvalid, format!("{name} is {text:?}, a number was expected"))
        }),
    };
    let (connect_timeout, response_timeout) =
        timeouts(seconds("connectTimeoutInSeconds")?, seconds("responseTimeoutInSeconds")?)?;
    let payload = match call.body.trim_ascii() {
        [] => Bytes::from_static(b"null"),
        body => {
            serde_json::from_slice::<&serde_json::value::RawValue>(body)
                .map_err(|error| ApiError::bad_json(&error))?;
            Bytes::copy_from_slice(body)
        }
    };
    let answer = run(&call.api, id, MethodCall { name, payload, connect_timeout, response_timeout }).await?;
    let body = json_of(&answer)?.to_vec();
    Ok(Reply::text(StatusCode::OK, body).with("x-ms-command-statuscode", answer.status.to_string()))
}
