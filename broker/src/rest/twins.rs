//! Twins of devices and modules.

use fleetwave_hub_core::{DeviceIx, Doc, HubError, Input, throttle};
use hyper::StatusCode;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::router::{Verb, does};
use super::{ApiError, Call, Operation, Reply};
use crate::ShardView;
use crate::policy::Rights;

const DEVICE: &str = "/twins/{id}";
const MODULE: &str = "/twins/{id}/modules/{module}";

const fn read(name: &'static str, path: &'static str) -> Operation {
    Operation::new(name, Verb::Get, path, Rights::SERVICE_CONNECT, does!(get))
        .limited(throttle::Operation::TwinRead)
        .test("rest::a_twin_is_read_merged_and_replaced")
}

const fn write(name: &'static str, verb: Verb, path: &'static str) -> Operation {
    let handler = match verb {
        Verb::Put => does!(replace),
        _ => does!(merge),
    };
    Operation::new(name, verb, path, Rights::SERVICE_CONNECT, handler)
        .limited(throttle::Operation::TwinUpdate)
        .test("rest::a_twin_is_read_merged_and_replaced")
}

pub(super) const OPERATIONS: &[Operation] = &[
    read("Read a device's twin", DEVICE)
        .sdk("Python `IoTHubRegistryManager.get_twin`; Node `Registry.getTwin`, `Twin.get`; Java `TwinClient.get`"),
    write("Merge into a device's twin", Verb::Patch, DEVICE).sdk(
        "Python `IoTHubRegistryManager.update_twin`; Node `Registry.updateTwin`, `Twin.update`; \
         Java `TwinClient.patch`",
    ),
    write("Replace a device's twin", Verb::Put, DEVICE)
        .sdk("Python `IoTHubRegistryManager.replace_twin`; Java `TwinClient.replace`"),
    read("Read a module's twin", MODULE)
        .sdk("Python `IoTHubRegistryManager.get_module_twin`; Node `Registry.getModuleTwin`; Java `TwinClient.get`"),
    write("Merge into a module's twin", Verb::Patch, MODULE).sdk(
        "Python `IoTHubRegistryManager.update_module_twin`; Node `Registry.updateModuleTwin`; \
         Java `TwinClient.patch`",
    ),
    write("Replace a module's twin", Verb::Put, MODULE)
        .sdk("Python `IoTHubRegistryManager.replace_module_twin`; Java `TwinClient.replace`"),
];

/// What of a twin a service can write; all else that SDKs send along is the hub's to say. A section that is null is
/// to be emptied, one that is absent stays.
#[derive(Deserialize)]
struct TwinBody<'a> {
    #[serde(borrow, default, deserialize_with = "given")]
    tags: Option<&'a RawValue>,
    #[serde(borrow)]
    properties: Option<PropertiesBody<'a>>,
}

#[derive(Deserialize)]
struct PropertiesBody<'a> {
    #[serde(borrow, default, deserialize_with = "given")]
    desired: Option<&'a RawValue>,
}

/// Tells a null from what is absent.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// A twin and its etag.
pub(super) struct Written {
    etag: String,
    json: Vec<u8>,
}

impl Written {
    pub(super) fn of(shard: &ShardView<'_>, device: DeviceIx) -> Self {
        let mut json = Vec::new();
        shard.hub().write_service_twin(device, &mut json);
        Self { etag: shard.hub().twin(device).etag.to_string(), json }
    }

    fn reply(self) -> Reply {
        Reply::text(StatusCode::OK, self.json).etag(&self.etag)
    }
}

async fn get(call: Call) -> Result<Reply, ApiError> {
    let id = call.target()?;
    let twin = call.api.control.with_device(&id.clone(), move |shard| {
        let device = shard.find(&id)?;
        Ok::<_, Box<HubError>>(Written::of(shard, device))
    });
    Ok(twin.await??.reply())
}

async fn merge(call: Call) -> Result<Reply, ApiError> {
    change(call, false).await
}

async fn replace(call: Call) -> Result<Reply, ApiError> {
    change(call, true).await
}

async fn change(call: Call, whole: bool) -> Result<Reply, ApiError> {
    let (id, if_match) = (call.target()?, call.if_match());
    let TwinBody { tags, properties } = call.json()?;
    let text = |raw: Option<&RawValue>| raw.map(|raw| raw.get().to_owned());
    let (tags, desired) = (text(tags), text(properties.and_then(|properties| properties.desired)));
    let written = call.api.control.with_device(&id.clone(), move |shard| {
        let device = shard.find(&id)?;
        let now = shard.hub().twin(device);
        let section = |text: Option<String>, now: &Doc| match text.as_deref() {
            Some("null") if whole => Some(b"{}".to_vec()),
            Some("null") => Some(emptied(now.text())),
            _ => text.map(String::into_bytes),
        };
        let (tags, desired) = (section(tags, now.tags), section(desired, now.desired));
        let (tags, desired, if_match) = (tags.as_deref(), desired.as_deref(), if_match.as_deref());
        shard.apply(if whole {
            Input::ReplaceTwin { device, tags, desired, if_match }
        } else {
            Input::PatchTwin { device, tags, desired, if_match }
        })?;
        Ok::<_, Box<HubError>>(Written::of(shard, device))
    });
    Ok(written.await??.reply())
}

/// The merge patch that takes away all that a section has.
fn emptied(section: &str) -> Vec<u8> {
    let members: Map<String, Value> = serde_json::from_str(section).expect("the hub writes JSON objects");
    let nulls: Map<_, _> = members.into_iter().map(|(name, _)| (name, Value::Null)).collect();
    Value::Object(nulls).to_string().into_bytes()
}
