//! Module identities.

use fleetwave_hub_core::{HubError, throttle};
use hyper::StatusCode;

use super::router::{Verb, does};
use super::{ApiError, Call, Operation, Reply, devices, identity};
use crate::policy::Rights;

const PATH: &str = "/devices/{id}/modules/{module}";

pub(super) const OPERATIONS: &[Operation] = &[
    Operation::new("Create or change a module", Verb::Put, PATH, Rights::REGISTRY_WRITE, does!(devices::put))
        .limited(throttle::Operation::Registry)
        .sdk(
            "Python `IoTHubRegistryManager.create_module_with_sas`, `update_module_with_x509`, …; \
             Node `Registry.addModule`, `updateModule`; Java `RegistryClient.addModule`, `updateModule`",
        )
        .test("rest::a_module_is_created_read_changed_and_deleted"),
    Operation::new("Read a module", Verb::Get, PATH, Rights::REGISTRY_READ, does!(devices::get))
        .limited(throttle::Operation::Registry)
        .sdk("Python `IoTHubRegistryManager.get_module`; Node `Registry.getModule`; Java `RegistryClient.getModule`")
        .test("rest::a_module_is_created_read_changed_and_deleted"),
    Operation::new("Delete a module", Verb::Delete, PATH, Rights::REGISTRY_WRITE, does!(devices::delete))
        .limited(throttle::Operation::Registry)
        .sdk(
            "Python `IoTHubRegistryManager.delete_module`; Node `Registry.removeModule`; \
             Java `RegistryClient.removeModule`",
        )
        .test("rest::a_module_is_created_read_changed_and_deleted"),
    Operation::new(
        "List a device's modules",
        Verb::Get,
        "/devices/{id}/modules",
        Rights::REGISTRY_READ,
        does!(list),
    )
    .limited(throttle::Operation::Registry)
    .sdk(
        "Python `IoTHubRegistryManager.get_modules`; Node `Registry.getModulesOnDevice`; \
         Java `RegistryClient.getModulesOnDevice`",
    )
    .test("rest::a_module_is_created_read_changed_and_deleted"),
];

async fn list(call: Call) -> Result<Reply, ApiError> {
    let (id, control) = (call.target()?, call.api.control.clone());
    let listed = call.api.control.with_device(&id.clone(), move |shard| {
        let device = shard.find(&id)?;
        let mut body = vec![b'['];
        for &module in shard.hub().modules_of(device) {
            if body.len() > 1 {
                body.push(b',');
            }
            identity::write(shard, module, &control, &mut body);
        }
        body.push(b']');
        Ok::<_, Box<HubError>>(body)
    });
    Ok(Reply::text(StatusCode::OK, listed.await??))
}
