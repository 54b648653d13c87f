//! How devices show who they are to the embedded hub.

use fleetwave_protocol::WallTime;
use fleetwave_protocol::sas::{self, Key};

/// The name by which devices call the hub.
const HOST: &str = "fleetwave.local";

/// What a device's user name and token are made from.
#[derive(Clone, Debug)]
pub(super) struct Login {
    /// The key that devices' own keys are derived from.
    pub(super) group_key: Key,
    /// When tokens end.
    pub(super) expires: WallTime,
}

impl Login {
    /// The user name and the token of a device.
    pub(super) fn of(&self, id: &str) -> (String, String) {
        let user = format!("{HOST}/{id}/?api-version=2021-04-12");
        let key = self.group_key.derive(id);
        (user, sas::token(&key, &format!("{HOST}/devices/{id}"), self.expires, None))
    }
}
