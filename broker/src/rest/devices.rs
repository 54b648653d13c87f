//! Device identities, one by one and as a list; modules use the same functions.

use fleetwave_hub_core::{DeviceIx, DeviceSpec, ErrorCode, HubError, Input, throttle};
use hyper::StatusCode;

use super::call::Condition;
use super::identity::{self, IdentityBody};
use super::router::{Verb, does};
use super::{Api, ApiError, Call, Operation, Reply};
use crate::ShardView;
use crate::policy::Rights;

/// The largest page of devices, and the size of a page whose size nobody gave.
const PAGE: usize = 1000;

pub(super) const OPERATIONS: &[Operation] = &[
    Operation::new("Create or change a device", Verb::Put, "/devices/{id}", Rights::REGISTRY_WRITE, does!(put))
        .limited(throttle::Operation::Registry)
        .sdk(
            "Python `IoTHubRegistryManager.create_device_with_sas`, `update_device_with_x509`, …; \
             Node `Registry.create`, `update`; Java `RegistryClient.addDevice`, `updateDevice`",
        )
        .test("rest::a_device_is_created_read_changed_and_deleted"),
    Operation::new("Read a device", Verb::Get, "/devices/{id}", Rights::REGISTRY_READ, does!(get))
        .limited(throttle::Operation::Registry)
        .sdk("Python `IoTHubRegistryManager.get_device`; Node `Registry.get`; Java `RegistryClient.getDevice`")
        .test("rest::a_device_is_created_read_changed_and_deleted"),
    Operation::new("Delete a device", Verb::Delete, "/devices/{id}", Rights::REGISTRY_WRITE, does!(delete))
        .limited(throttle::Operation::Registry)
        .sdk("Python `IoTHubRegistryManager.delete_device`; Node `Registry.delete`; Java `RegistryClient.removeDevice`")
        .test("rest::a_device_is_created_read_changed_and_deleted"),
    Operation::new("List devices", Verb::Get, "/devices", Rights::REGISTRY_READ, does!(list))
        .limited(throttle::Operation::Registry)
        .sdk("Python `IoTHubRegistryManager.get_devices`; Node `Registry.list`")
        .test("rest::devices_are_listed_up_to_a_number"),
];

/// Reads the identity of a device or module.
pub(super) async fn get(call: Call) -> Result<Reply, ApiError> {
    let id = call.target()?;
    let control = call.api.control.clone();
    let found = call.api.control.with_device(&id.clone(), move |shard| {
        let ix = shard.find(&id)?;
        Ok::<_, Box<HubError>>(written(shard, ix, &control))
    });
    Ok(found.await??.reply())
}

/// Creates or changes a device or module.
pub(super) async fn put(call: Call) -> Result<Reply, ApiError> {
    let id = call.target()?;
    let body: IdentityBody = call.json()?;
    body.check_id(&id)?;
    check_scopes(&call.api, &body).await?;
    let (condition, control) = (call.condition(), call.api.control.clone());
    let put = call.api.control.with_device(&id.clone(), move |shard| {
        let ix = put_identity(shard, &id, &body, &condition)?;
        Ok::<_, Box<HubError>>(written(shard, ix, &control))
    });
    Ok(put.await??.reply())
}

/// Without `If-Match` an identity is made, with it one is changed.
fn put_identity(
    shard: &mut ShardView<'_>,
    id: &str,
    body: &IdentityBody,
    condition: &Condition,
) -> Result<DeviceIx, Box<HubError>> {
    match condition {
        Condition::None => create(shard, id, body, None, None),
        condition => change(shard, id, body, condition.etag()),
    }
}

/// Makes a device or module, with what its twin has from the beginning.
pub(super) fn create(
    shard: &mut ShardView<'_>,
    id: &str,
    body: &IdentityBody,
    tags: Option<&str>,
    desired: Option<&str>,
) -> Result<DeviceIx, Box<HubError>> {
    let (identity, enabled) = body.new_identity(shard.now().wall)?;
    shard
        .create(id, DeviceSpec { tags, desired, enabled, identity: Some(&identity), ..DeviceSpec::default() })
}

/// Changes the identity of a device or module.
pub(super) fn change(
    shard: &mut ShardView<'_>,
    id: &str,
    body: &IdentityBody,
    if_match: Option<&str>,
) -> Result<DeviceIx, Box<HubError>> {
    let device = shard.find(id)?;
    let change = body.change(&shard.hub().identity(device))?;
    shard.apply(Input::PutIdentity { device, identity: &change, if_match })?;
    Ok(device)
}

/// Deletes a device with its modules, or a module.
pub(super) async fn delete(call: Call) -> Result<Reply, ApiError> {
    let (id, if_match) = (call.target()?, call.if_match());
    let deleted = call.api.control.with_device(&id.clone(), move |shard| {
        let device = shard.find(&id)?;
        shard.apply(Input::DeleteDevice { device, if_match: if_match.as_deref() })
    });
    deleted.await??;
    Ok(Reply::no_content())
}

async fn list(call: Call) -> Result<Reply, ApiError> {
    let top = call.top(PAGE)?;
    let control = &call.api.control;
    let mut body = vec![b'['];
    let mut left = top;
    for shard in 0..control.shards() {
        let keys = control.clone();
        let page = control.with_shard(shard, move |shard| {
            let mut page = Vec::new();
            let devices: Vec<_> = shard.hub().devices().take(left).collect();
            for &device in &devices {
                page.push(b',');
                identity::write(shard, device, &keys, &mut page);
            }
            (devices.len(), page)
        });
        let (count, page) = page.await?;
        let page = if body.len() == 1 { page.get(1..).unwrap_or_default() } else { &page };
        body.extend_from_slice(page);
        left -= count;
        if left == 0 {
            break;
        }
    }
    body.push(b']');
    Ok(Reply::text(StatusCode::OK, body))
}

/// An identity as it is to be answered.
struct Written {
    etag: String,
    json: Vec<u8>,
}

impl Written {
    fn reply(self) -> Reply {
        Reply::text(StatusCode::OK, self.json).etag(&self.etag)
    }
}

fn written(shard: &ShardView<'_>, ix: DeviceIx, control: &crate::HubControl) -> Written {
    let mut json = Vec::new();
    identity::write(shard, ix, control, &mut json);
    Written { etag: shard.hub().identity(ix).etag.to_string(), json }
}

/// Refuses scopes that are no edge device's.
pub(super) async fn check_scopes(api: &Api, body: &IdentityBody) -> Result<(), ApiError> {
    let scopes = body.device_scope.iter().chain(body.parent_scopes.iter().flatten());
    for scope in scopes.filter(|scope| !scope.is_empty()) {
        let bad = |why: &str| {
            let message = format!("the scope {scope:?} {why}: it is ms-azure-iot-edge://DEVICE-GENERATION");
            ApiError::new(ErrorCode::InvalidDeviceScope, message)
        };
        let edge = scope.strip_prefix("ms-azure-iot-edge://").and_then(|rest| rest.rsplit_once('-'));
        let Some((edge, _)) = edge else { return Err(bad("has not the form of one")) };
        if body.device_id.as_deref() == Some(edge) {
            continue;
        }
        let (id, wanted) = (edge.to_owned(), scope.clone());
        let found = api.control.with_device(edge, move |shard| {
            let edge = shard.hub().find(&id)?;
            shard.hub().identity(edge).device_scope.filter(|scope| *scope == wanted).map(|_| ())
        });
        found.await?.ok_or_else(|| bad("is no edge device's"))?;
    }
    Ok(())
}
