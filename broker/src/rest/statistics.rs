//! How many devices there are, and how many are connected.

use fleetwave_hub_core::throttle;
use serde_json::json;

use super::router::{Handler, Outcome, Verb};
use super::{Access, ApiError, Call, Operation, Reply};
use crate::policy::Rights;

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "Device statistics",
        method: Verb::Get,
        path: "/statistics/devices",
        access: Access::Policy(Rights::REGISTRY_READ),
        limit: Some(throttle::Operation::Registry),
        sdk: "Python `IoTHubRegistryManager.get_device_registry_statistics`, Node `Registry.getRegistryStatistics`",
        test: "rest::statistics_count_devices",
        short: "",
        handler: Handler::Does(|call| -> Outcome { Box::pin(devices(call)) }),
    },
    Operation {
        name: "Service statistics",
        method: Verb::Get,
        path: "/statistics/service",
        access: Access::Policy(Rights::SERVICE_CONNECT),
        limit: Some(throttle::Operation::Registry),
        sdk: "Python `IoTHubRegistryManager.get_service_statistics`",
        test: "rest::statistics_count_devices",
        short: "",
        handler: Handler::Does(|call| -> Outcome { Box::pin(service(call)) }),
    },
];

/// Total, enabled, connected.
async fn count(call: &Call) -> Result<[u64; 3], ApiError> {
    let counts = call
        .api
        .control
        .with_all(|shard| {
            let hub = shard.hub();
            hub.devices().map(|device| hub.twin(device)).fold([0; 3], |[total, enabled, connected], twin| {
                [total + 1, enabled + u64::from(twin.enabled), connected + u64::from(twin.connected)]
            })
        })
        .await?;
    Ok(counts
        .into_iter()
        .fold([0; 3], |sum, shard| [sum[0] + shard[0], sum[1] + shard[1], sum[2] + shard[2]]))
}

async fn devices(call: Call) -> Result<Reply, ApiError> {
    let [total, enabled, _] = count(&call).await?;
    Ok(Reply::ok(&json!({
        "totalDeviceCount": total,
        "enabledDeviceCount": enabled,
        "disabledDeviceCount": total - enabled,
    })))
}

async fn service(call: Call) -> Result<Reply, ApiError> {
    let [_, _, connected] = count(&call).await?;
    Ok(Reply::ok(&json!({ "connectedDeviceCount": connected })))
}
