//! How devices show who they are to a hub.

use fleetwave_protocol::WallTime;
use fleetwave_protocol::sas::{self, Key};

/// The name by which devices call the embedded hub.
pub(super) const EMBEDDED: &str = "fleetwave.local";
/// What devices say of their software: `fleetwave/VERSION`, percent-encoded.
const CLIENT_TYPE: &str = concat!("fleetwave%2F", env!("CARGO_PKG_VERSION"));

/// What a device's user name and token are made from.
#[derive(Clone, Debug)]
pub(super) struct Login {
    /// The name by which devices call the hub.
    pub(super) host: String,
    /// The key that devices' own keys are derived from.
    pub(super) group_key: Key,
    /// When tokens end.
    pub(super) expires: WallTime,
}

impl Login {
    /// The user name and the token of a device.
    pub(super) fn of(&self, id: &str) -> (String, String) {
        let host = &self.host;
        let user = format!("{host}/{id}/?api-version=2021-04-12&DeviceClientType={CLIENT_TYPE}");
        let key = self.group_key.derive(id);
        (user, sas::token(&key, &format!("{host}/devices/{id}"), self.expires, None))
    }
}
