//! Who a device is that speaks over HTTPS: by its own key, a policy that may speak as a device, or a certificate.

use fleetwave_hub_core::{DeviceIx, ErrorCode, HubError};

use super::router::Operation;
use super::{ApiError, Call};
use crate::ShardView;
use crate::auth::Claim;

/// Checks that the client is the device or module that the path names; gives its id.
///
/// # Errors
/// 401 if it is not, 404 for a device that does not exist, 403 for one that is disabled.
pub(super) async fn authenticate(operation: &Operation, call: &Call) -> Result<String, ApiError> {
    let named = if operation.is_of_module() { 2 } else { 1 };
    let parts = call.params.get(..named).unwrap_or_default();
    if let Some(part) = parts.iter().find(|part| part.contains('/')) {
        return Err(ApiError::new(ErrorCode::ArgumentInvalid, format!("{part:?} is no id: it has a slash")));
    }
    let id = parts.join("/");
    let token = call.header("authorization").unwrap_or_default().to_owned();
    let (gate, peer, host) = (call.api.gate.clone(), call.peer.clone(), call.host.clone());
    let checked = call.api.control.with_device(&id.clone(), move |shard| {
        let claim = Claim::over_https(&id, &host, &token);
        let wall = shard.now().wall;
        let refused = |why| ApiError::unauthorized(format!("{id}: {why}"));
        match shard.find(&id) {
            Ok(ix) => {
                let registered = shard.hub().identity(ix).authentication;
                gate.check(&claim, registered, &peer, wall).map_err(|error| refused(error.why))?;
                if !is_enabled(shard, ix) {
                    return Err(ApiError::new(ErrorCode::DeviceDisabled, format!("{id} is disabled")));
                }
                Ok(id)
            }
            Err(error) => {
                let beside_known = error.code == ErrorCode::ModuleNotFound;
                gate.check_unknown(&claim, beside_known, wall).map_err(|error| refused(error.why))?;
                Err(unknown(*error).into())
            }
        }
    });
    checked.await?
}

/// A module is enabled as its device is.
fn is_enabled(shard: &ShardView<'_>, ix: DeviceIx) -> bool {
    let hub = shard.hub();
    hub.identity(ix).enabled && hub.parent_of(ix).is_none_or(|device| hub.identity(device).enabled)
}

fn unknown(error: HubError) -> HubError {
    HubError { message: format!("{}: create it first", error.message).into(), ..error }
}
