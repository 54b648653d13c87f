//! Enrollments: what a back end writes about devices that may come.

use fleetwave_hub_core::Iso8601;
use fleetwave_protocol::WallTime;
use fleetwave_protocol::sas::Key;
use serde_json::{Map, Value, json};

use super::attestation::Attestation;
use super::{DpsError, check_id};

/// What happens to a device that registers again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reprovision {
    /// Whether it is assigned anew at all.
    pub(super) update_assignment: bool,
    /// Whether its twin stays; else it is made anew from the initial twin.
    pub(super) migrate_data: bool,
}

/// An individual enrollment, or a group of them.
#[derive(Clone, Debug)]
pub(super) struct Enrollment {
    /// As the back end wrote it; compared in lower case.
    pub(super) id: String,
    pub(super) group: bool,
    pub(super) attestation: Attestation,
    pub(super) enabled: bool,
    /// Of an individual enrollment: the device's id, if it is not the registration's.
    pub(super) device_id: Option<String>,
    pub(super) reprovision: Reprovision,
    pub(super) edge: bool,
    pub(super) initial_tags: Option<Value>,
    pub(super) initial_desired: Option<Value>,
    pub(super) etag: String,
    pub(super) created: WallTime,
    pub(super) updated: WallTime,
    /// What is kept and given back as it was.
    kept: Map<String, Value>,
}

/// Members that are given back as they were.
const KEPT: [&str; 5] =
    ["allocationPolicy", "iotHubHostName", "iotHubs", "optionalDeviceInformation", "capabilities"];

impl Enrollment {
    /// Reads what a back end wrote.
    pub(super) fn read(
        id: &str,
        body: &Value,
        group: bool,
        before: Option<&Self>,
        draw: &mut dyn FnMut() -> Key,
    ) -> Result<Self, DpsError> {
        check_id(id)?;
        let name = if group { "enrollmentGroupId" } else { "registrationId" };
        match body[name].as_str() {
            Some(inside) if inside.eq_ignore_ascii_case(id) => {}
            Some(inside) => {
                return Err(DpsError::invalid(format!("{name} is {inside:?}, the path says {id:?}")));
            }
            None => return Err(DpsError::invalid(format!("{name} is missing"))),
        }
        // Keys are not shown when an enrollment is read, so one that is written back without them keeps its own.
        let attestation = match (&body["attestation"], before.map(|before| &before.attestation)) {
            (given, Some(own @ Attestation::SymmetricKey { .. }))
                if given["type"] == "symmetricKey" && given["symmetricKey"]["primaryKey"].is_null() =>
            {
                own.clone()
            }
            (given, _) => Attestation::read(given, group, draw)?,
        };
        let enabled = match body["provisioningStatus"].as_str() {
            None | Some("enabled") => true,
            Some("disabled") => false,
            Some(other) => {
                return Err(DpsError::invalid(format!(
                    "provisioningStatus is {other:?}: enabled or disabled"
                )));
            }
        };
        match body["allocationPolicy"].as_str() {
            None | Some("hashed" | "geoLatency" | "static") => {}
            Some("custom") => {
                return Err(DpsError::new(501_000, "custom allocation (a webhook) is not modelled"));
            }
            Some(other) => {
                return Err(DpsError::invalid(format!(
                    "allocationPolicy is {other:?}: hashed, geoLatency, static or custom"
                )));
            }
        }
        let policy = &body["reprovisionPolicy"];
        let flag = |name: &str| policy[name].as_bool().unwrap_or(true);
        let kept = KEPT.iter().filter(|name| !body[**name].is_null());
        let now = WallTime::from_unix_millis(0);
        Ok(Self {
            id: id.to_owned(),
            group,
            attestation,
            enabled,
            device_id: body["deviceId"].as_str().filter(|id| !id.is_empty()).map(str::to_owned),
            reprovision: Reprovision {
                update_assignment: flag("updateHubAssignment"),
                migrate_data: flag("migrateDeviceData"),
            },
            edge: body["capabilities"]["iotEdge"].as_bool().unwrap_or(false),
            initial_tags: object(&body["initialTwin"]["tags"]),
            initial_desired: object(&body["initialTwin"]["properties"]["desired"]),
            etag: String::new(),
            created: now,
            updated: now,
            kept: kept.map(|name| ((*name).to_owned(), body[*name].clone())).collect(),
        })
    }

    /// The JSON of it, as a back end reads it.
    pub(super) fn write(&self, with_keys: bool, state: Option<&Value>) -> Value {
        let mut members = Map::new();
        let id = if self.group { "enrollmentGroupId" } else { "registrationId" };
        members.insert(id.to_owned(), json!(self.id));
        if let Some(device_id) = &self.device_id {
            members.insert("deviceId".to_owned(), json!(device_id));
        }
        if let Some(state) = state {
            members.insert("registrationState".to_owned(), state.clone());
        }
        members.insert("attestation".to_owned(), self.attestation.write(with_keys));
        members.extend(self.kept.clone());
        members.entry("capabilities").or_insert_with(|| json!({ "iotEdge": self.edge }));
        members.entry("allocationPolicy").or_insert_with(|| json!("hashed"));
        if self.initial_tags.is_some() || self.initial_desired.is_some() {
            let empty = || json!({});
            members.insert(
                "initialTwin".to_owned(),
                json!({
                    "tags": self.initial_tags.clone().unwrap_or_else(empty),
                    "properties": { "desired": self.initial_desired.clone().unwrap_or_else(empty) },
                }),
            );
        }
        let status = if self.enabled { "enabled" } else { "disabled" };
        members.insert("provisioningStatus".to_owned(), json!(status));
        members.insert(
            "reprovisionPolicy".to_owned(),
            json!({
                "updateHubAssignment": self.reprovision.update_assignment,
                "migrateDeviceData": self.reprovision.migrate_data,
            }),
        );
        members.insert("etag".to_owned(), json!(format!("\"{}\"", self.etag)));
        members.insert("createdDateTimeUtc".to_owned(), json!(Iso8601(self.created).to_string()));
        members.insert("lastUpdatedDateTimeUtc".to_owned(), json!(Iso8601(self.updated).to_string()));
        Value::Object(members)
    }
}

fn object(value: &Value) -> Option<Value> {
    // Tools send an empty collection with its own bookkeeping; only what a twin takes is kept.
    let members = value.as_object()?;
    let members: Map<String, Value> = members
        .iter()
        .filter(|(key, _)| !key.starts_with('$'))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    (!members.is_empty()).then_some(Value::Object(members))
}
