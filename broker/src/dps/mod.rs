//! The device provisioning service that hands devices to this hub.
//!
//! A device shows that it belongs to an *enrollment*, its own (individual) or one that it shares (a group), by a
//! token or a certificate; the service makes the device in the hub and tells it where that is. The same [`Dps`]
//! answers over MQTT, over HTTPS, and to the back end that writes enrollments.
//!
//! Source: the REST reference of Azure IoT Hub Device Provisioning Service (service and device API, 2021-10-01), and
//! what the SDKs send and read.

mod attestation;
mod certificate;
mod enrollment;
mod kept;
mod registration;
mod service;

pub(crate) use attestation::Credential;
pub(crate) use registration::{Answer, Registration};
pub(crate) use service::{Bulk, Page};

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use fleetwave_hub_core::Iso8601;
use fleetwave_protocol::WallTime;
use fleetwave_protocol::sas::Key;
use serde_json::{Value, json};

use crate::HubControl;
use crate::policy::{HostNames, Policies, Policy, Rights};
use crate::store::{Pending, Store, StoreError, Table, TableError};
use enrollment::Enrollment;
use kept::{Place, Row};
use registration::{Operation, State};

/// The shared access policy of the service's back end.
pub(crate) const POLICY: &str = "provisioningserviceowner";

/// What makes a provisioning service.
#[derive(Clone, Debug)]
pub struct DpsSettings {
    /// The id scope that devices name.
    pub id_scope: String,
    /// The hub's name that devices are told.
    pub hub: String,
    /// The primary and the secondary key of the policy `provisioningserviceowner`.
    pub keys: [Key; 2],
}

/// A provisioning service.
pub(crate) struct Dps {
    settings: DpsSettings,
    control: HubControl,
    kept: Mutex<Kept>,
    table: Table<Row>,
}

/// What the service keeps.
#[derive(Default)]
struct Kept {
    enrollments: BTreeMap<String, Enrollment>,
    groups: BTreeMap<String, Enrollment>,
    states: BTreeMap<String, State>,
    operations: BTreeMap<String, Operation>,
    /// Counts etags and operations.
    last: u64,
}

impl Kept {
    fn etag(&mut self) -> String {
        self.last += 1;
        // A GUID's shape, as the service's etags have.
        format!("{:08x}-0000-0d00-0000-{:012x}", self.last as u32, self.last)
    }
}

/// Why the service refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct DpsError {
    /// Six digits: the first three are the HTTP status.
    pub code: u32,
    /// What was wrong, and what would have been right.
    pub message: String,
}

/// The back end's handle to a hub's provisioning service, for tests and tools in the same process.
#[derive(Clone, Debug)]
pub struct Provisioning(pub(crate) Arc<Dps>);

impl Provisioning {
    /// Makes an individual enrollment, of the JSON that the REST operation takes; gives what it answers.
    ///
    /// # Errors
    /// If there is one of this id, or the JSON breaks a rule.
    pub fn put_enrollment(&self, id: &str, body: &Value) -> Result<Value, DpsError> {
        self.0.put(false, id, body, None)
    }

    /// Makes an enrollment group.
    ///
    /// # Errors
    /// Like [`Self::put_enrollment`].
    pub fn put_group(&self, id: &str, body: &Value) -> Result<Value, DpsError> {
        self.0.put(true, id, body, None)
    }
}

impl DpsError {
    fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::new(400_004, message)
    }

    fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(401_002, message)
    }

    fn not_found(message: impl Into<String>) -> Self {
        Self::new(404_204, message)
    }

    fn stale(etag: &str) -> Self {
        Self::new(412_204, format!("the etag is {etag:?} now"))
    }

    /// The HTTP status.
    pub(crate) fn status(&self) -> u16 {
        u16::try_from(self.code / 1000).unwrap_or(500)
    }

    /// The body that devices and back ends get.
    pub(crate) fn body(&self, tracking: &str, wall: WallTime) -> Value {
        json!({
            "errorCode": self.code,
            "trackingId": tracking,
            "message": self.message,
            "timestampUtc": Iso8601(wall).to_string(),
        })
    }
}

impl fmt::Debug for Dps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dps").field("id_scope", &self.settings.id_scope).finish_non_exhaustive()
    }
}

impl Dps {
    /// The service, with what the store has of it.
    pub(crate) fn load(
        settings: DpsSettings,
        control: HubControl,
        store: &Store,
    ) -> Result<Arc<Self>, TableError> {
        let table: Table<Row> = store.table("provisioning");
        let mut kept = Kept::default();
        for (key, row) in table.load_all()? {
            if let Err(error) = kept.restore(row) {
                tracing::warn!(key, %error, "what was kept of an enrollment is none any more");
            }
        }
        Ok(Arc::new(Self { settings, control, kept: Mutex::new(kept), table }))
    }

    /// Begins to make durable what stands in these places, under the lock, so that writes keep their order.
    fn begin_saving(&self, kept: &Kept, places: impl IntoIterator<Item = Place>) -> Option<Pending> {
        let rows: Vec<(String, Option<Row>)> =
            places.into_iter().map(|place| (place.key(), kept.row(&place))).collect();
        self.table.begin(rows.iter().map(|(key, row)| (key.as_str(), row.as_ref())))
    }

    /// Returns once all that was begun is durable.
    pub(crate) async fn saved(&self) -> Result<(), StoreError> {
        // Writes become durable in their order, so the last one tells of all before it.
        match self.table.begin([]) {
            Some(pending) => pending.wait().await,
            None => Ok(()),
        }
    }

    /// Whether a back end's token is the owner's.
    ///
    /// # Errors
    /// 401 with what is wrong with it.
    pub(crate) fn check_owner(&self, token: &str, host: &str, wall: WallTime) -> Result<(), DpsError> {
        let [primary, secondary] = self.settings.keys.clone();
        let policy = Policy { name: POLICY.into(), primary, secondary, rights: Rights::SERVICE_CONNECT };
        // It is addressed by whatever name the client knows it by.
        let policies = Policies::new(HostNames::default(), vec![policy]);
        let checked = policies.check(token, host, Rights::SERVICE_CONNECT, wall);
        checked.map(drop).map_err(|error| DpsError::unauthorized(error.to_string()))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().expect("nothing panics under this lock")
    }

    fn wall(&self) -> WallTime {
        self.control.clock().now().wall
    }
}

/// Registration and enrollment ids, which are compared without regard to case.
fn check_id(id: &str) -> Result<String, DpsError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-.:_".contains(&byte);
    let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let bytes = id.as_bytes();
    let good = (1..=128).contains(&bytes.len())
        && bytes.iter().all(|byte| allowed(*byte))
        && ends(bytes.first().copied())
        && ends(bytes.last().copied());
    if good {
        return Ok(id.to_ascii_lowercase());
    }
    Err(DpsError::invalid(format!(
        "the id {id:?} is not 1 to 128 letters, digits and - . : _ that begin and end with a letter or digit"
    )))
}
