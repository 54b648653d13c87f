//! How many devices there are, and how many are connected.

use fleetwave_hub_core::{Statistics, throttle};
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

async fn count(call: &Call) -> Result<Statistics, ApiError> {
    let counts = call.api.control.with_all(|shard| shard.hub().statistics()).await?;
    Ok(counts.into_iter().fold(Statistics::default(), |sum, shard| Statistics {
        total: sum.total + shard.total,
        enabled: sum.enabled + shard.enabled,
        disabled: sum.disabled + shard.disabled,
        connected: sum.connected + shard.connected,
    }))
}

async fn devices(call: Call) -> Result<Reply, ApiError> {
    let Statistics { total, enabled, disabled, .. } = count(&call).await?;
    Ok(Reply::ok(&json!({
        "totalDeviceCount": total,
        "enabledDeviceCount": enabled,
        "disabledDeviceCount": disabled,
    })))
}

async fn service(call: Call) -> Result<Reply, ApiError> {
    Ok(Reply::ok(&json!({ "connectedDeviceCount": count(&call).await?.connected })))
}
