//! Devices that come: who they are, where they are put, and what they are told.

use std::sync::Arc;

use fleetwave_hub_core::{Authentication, DeviceSpec, Identity, IdentityChange, Input, Iso8601, Thumbprint};
use fleetwave_protocol::WallTime;
use serde_json::{Map, Value, json};

use super::attestation::{Attestation, Credential};
use super::certificate::thumbprint;
use super::enrollment::Enrollment;
use super::kept::Place;
use super::{Dps, DpsError, check_id};
use crate::view::ShardView;

/// Seconds until a device asks again.
const RETRY_AFTER: u32 = 1;

/// Operations that are remembered; the oldest are forgotten beyond.
const OPERATIONS: usize = 100_000;

/// A device that has shown who it is.
#[derive(Clone, Debug)]
pub(crate) struct Registration {
    /// The registration's id, in lower case.
    pub(crate) id: String,
    /// The enrollment that let it in.
    enrollment: String,
    group: bool,
    /// The thumbprint of its certificate, if it showed one.
    thumbprint: Option<String>,
}

/// What a device is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The HTTP status.
    pub(crate) status: u16,
    /// Seconds after which to ask again.
    pub(crate) retry_after: Option<u32>,
    pub(crate) body: Value,
}

/// What became of a registration.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) registration: String,
    /// The enrollment, for those of a group.
    pub(super) group: Option<String>,
    pub(super) device_id: String,
    pub(super) etag: String,
    pub(super) created: WallTime,
    pub(super) updated: WallTime,
    pub(super) substatus: &'static str,
    pub(super) outcome: Outcome,
    pub(super) payload: Option<Value>,
}

/// How a device came to where it is, when it has.
pub(super) const SUBSTATUSES: [&str; 3] = ["initialAssignment", "deviceDataMigrated", "deviceDataReset"];

/// How far a registration is.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    Assigning,
    Assigned,
    Disabled,
    Failed { code: u32, message: String },
}

/// Something that a device asks about.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    registration: String,
}

impl State {
    pub(super) fn write(&self, hub: &str) -> Value {
        let mut members = Map::new();
        let mut put = |name: &str, value: Value| members.insert(name.to_owned(), value);
        put("registrationId", json!(self.registration));
        put("createdDateTimeUtc", json!(Iso8601(self.created).to_string()));
        match &self.outcome {
            Outcome::Assigned => {
                put("assignedHub", json!(hub));
                put("deviceId", json!(self.device_id));
                put("status", json!("assigned"));
                put("substatus", json!(self.substatus));
            }
            Outcome::Assigning => drop(put("status", json!("assigning"))),
            Outcome::Disabled => drop(put("status", json!("disabled"))),
            Outcome::Failed { code, message } => {
                put("status", json!("failed"));
                put("errorCode", json!(code));
                put("errorMessage", json!(message));
            }
        }
        put("lastUpdatedDateTimeUtc", json!(Iso8601(self.updated).to_string()));
        put("etag", json!(format!("\"{}\"", self.etag)));
        if let Some(payload) = &self.payload {
            put("payload", payload.clone());
        }
        Value::Object(members)
    }

    fn status(&self) -> &'static str {
        match self.outcome {
            Outcome::Assigning => "assigning",
            Outcome::Assigned => "assigned",
            Outcome::Disabled => "disabled",
            Outcome::Failed { .. } => "failed",
        }
    }
}

impl Dps {
    /// Finds the enrollment that lets a device in.
    ///
    /// # Errors
    /// 404 for another scope, 401 if no enrollment lets it in.
    pub(crate) fn authenticate(
        &self,
        scope: &str,
        registration: &str,
        shown: Credential<'_>,
    ) -> Result<Registration, DpsError> {
        if !scope.eq_ignore_ascii_case(&self.settings.id_scope) {
            return Err(DpsError::new(404_002, format!("no id scope {scope:?} here")));
        }
        let id = check_id(registration)?;
        let resource = format!("{scope}/registrations/{registration}");
        let wall = self.wall();
        let thumbprint = match shown {
            Credential::Chain([own, ..]) => Some(thumbprint(own)),
            _ => None,
        };
        let kept = self.kept();
        let of = |enrollment: &Enrollment| Registration {
            id: id.clone(),
            enrollment: enrollment.id.to_ascii_lowercase(),
            group: enrollment.group,
            thumbprint: thumbprint.clone(),
        };
        if let Some(own) = kept.enrollments.get(&id) {
            // Keys of groups are derived from the id as the device wrote it.
            return match own.attestation.admits(false, registration, &resource, shown, wall) {
                Ok(()) => Ok(of(own)),
                Err(why) => Err(DpsError::unauthorized(why)),
            };
        }
        let mut why = "no enrollment of this id, and no group that takes it".to_owned();
        for group in kept.groups.values() {
            match group.attestation.admits(true, registration, &resource, shown, wall) {
                Ok(()) => return Ok(of(group)),
                Err(reason) => why = reason,
            }
        }
        Err(DpsError::unauthorized(why))
    }

    /// Takes a registration up. The device is made in the hub meanwhile; it asks by [`Dps::status`] what became of it.
    pub(crate) fn register(self: &Arc<Self>, who: &Registration, payload: Option<Value>) -> Answer {
        let wall = self.wall();
        let mut kept = self.kept();
        let table = if who.group { &kept.groups } else { &kept.enrollments };
        let Some(enrollment) = table.get(&who.enrollment).cloned() else {
            return self.refusal(&DpsError::unauthorized("the enrollment has been deleted"));
        };
        let before = kept.states.get(&who.id).cloned();
        let etag = kept.etag();
        let operation = format!("5.{:016x}.{}", kept.last, who.id);
        let device_id = enrollment.device_id.clone().unwrap_or_else(|| who.id.clone());
        let state = State {
            registration: who.id.clone(),
            group: who.group.then(|| who.enrollment.clone()),
            device_id,
            etag,
            created: before.as_ref().map_or(wall, |state| state.created),
            updated: wall,
            substatus: "initialAssignment",
            outcome: if enrollment.enabled { Outcome::Assigning } else { Outcome::Disabled },
            payload,
        };
        kept.states.insert(who.id.clone(), state.clone());
        kept.operations.insert(operation.clone(), Operation { registration: who.id.clone() });
        if kept.operations.len() > OPERATIONS {
            kept.operations.pop_first();
        }
        self.begin_saving(&kept, [Place::Registration(who.id.clone())]);
        drop(kept);
        if enrollment.enabled {
            self.assign(who, enrollment, state.device_id, before.is_some());
        }
        Answer {
            status: 202,
            retry_after: Some(RETRY_AFTER),
            body: json!({ "operationId": operation, "status": "assigning" }),
        }
    }

    /// Makes the device in the hub, in its shard, and notes how that went.
    fn assign(self: &Arc<Self>, who: &Registration, enrollment: Enrollment, device_id: String, again: bool) {
        let dps = self.clone();
        let registration = who.clone();
        let id = device_id.clone();
        let job = move |shard: &mut ShardView<'_>| {
            let placed = place(shard, &registration, &enrollment, &device_id, again);
            let wall = shard.now().wall;
            let mut kept = dps.kept();
            let etag = kept.etag();
            if let Some(state) = kept.states.get_mut(&registration.id) {
                state.updated = wall;
                state.etag = etag;
                match placed {
                    Ok(substatus) => {
                        state.substatus = substatus;
                        state.outcome = Outcome::Assigned;
                    }
                    Err(error) => {
                        state.outcome = Outcome::Failed { code: error.code, message: error.message };
                    }
                }
            }
            dps.begin_saving(&kept, [Place::Registration(registration.id.clone())]);
        };
        if self.control.post(&id, job).is_err() {
            tracing::debug!(registration = who.id, "the hub stops, a registration stays undone");
        }
    }

    /// What became of an operation.
    pub(crate) fn status(&self, who: &Registration, operation: &str) -> Answer {
        let kept = self.kept();
        let known = kept.operations.get(operation).filter(|known| known.registration == who.id);
        let Some(state) = known.and_then(|known| kept.states.get(&known.registration)) else {
            drop(kept);
            return self.refusal(&DpsError::not_found("no such operation of this registration"));
        };
        let retry_after = matches!(state.outcome, Outcome::Assigning).then_some(RETRY_AFTER);
        let mut body = json!({ "operationId": operation, "status": state.status() });
        if retry_after.is_none() {
            body["registrationState"] = state.write(&self.settings.hub);
        }
        Answer { status: if retry_after.is_some() { 202 } else { 200 }, retry_after, body }
    }

    /// The state of a registration, as the device itself may read it.
    pub(crate) fn lookup(&self, who: &Registration) -> Answer {
        let kept = self.kept();
        match kept.states.get(&who.id) {
            Some(state) => Answer { status: 200, retry_after: None, body: state.write(&self.settings.hub) },
            None => {
                drop(kept);
                self.refusal(&DpsError::not_found("this registration has not been made yet"))
            }
        }
    }

    /// The answer to a body that is not JSON.
    pub(crate) fn malformed(&self, error: &serde_json::Error) -> Answer {
        self.refusal(&DpsError::invalid(format!("the body is not JSON: {error}")))
    }

    /// A refusal, for a device.
    fn refusal(&self, error: &DpsError) -> Answer {
        Answer { status: error.status(), retry_after: None, body: error.body("", self.wall()) }
    }
}

/// Makes or changes the device; says which substatus that is.
fn place(
    shard: &mut ShardView<'_>,
    who: &Registration,
    enrollment: &Enrollment,
    device_id: &str,
    again: bool,
) -> Result<&'static str, DpsError> {
    let refused = |error: Box<fleetwave_hub_core::HubError>| {
        DpsError::new(error.code.number(), error.message.into_owned())
    };
    let authentication = authentication(who, enrollment)?;
    let text = |value: &Option<Value>| value.as_ref().map(Value::to_string);
    let (tags, desired) = (text(&enrollment.initial_tags), text(&enrollment.initial_desired));
    if let Ok(device) = shard.find(device_id) {
        if again && !enrollment.reprovision.update_assignment {
            return Ok("initialAssignment");
        }
        let change = IdentityChange {
            authentication: Some(authentication),
            edge: Some(enrollment.edge),
            ..IdentityChange::default()
        };
        shard.apply(Input::PutIdentity { device, identity: &change, if_match: None }).map_err(refused)?;
        // A device that was there before its first registration keeps its twin, too: nothing is lost by accident.
        if enrollment.reprovision.migrate_data {
            return Ok(if again { "deviceDataMigrated" } else { "initialAssignment" });
        }
        let empty = "{}";
        let input = Input::ReplaceTwin {
            device,
            tags: Some(tags.as_deref().unwrap_or(empty).as_bytes()),
            desired: Some(desired.as_deref().unwrap_or(empty).as_bytes()),
            if_match: None,
        };
        shard.apply(input).map_err(refused)?;
        return Ok(if again { "deviceDataReset" } else { "initialAssignment" });
    }
    let generation_id = shard.now().wall.as_unix_millis().saturating_mul(10_000);
    let identity = Identity { authentication, generation_id, edge: enrollment.edge, ..Identity::default() };
    let spec = DeviceSpec {
        tags: tags.as_deref(),
        desired: desired.as_deref(),
        identity: Some(&identity),
        ..DeviceSpec::default()
    };
    shard.create(device_id, spec).map_err(refused)?;
    Ok("initialAssignment")
}

fn authentication(who: &Registration, enrollment: &Enrollment) -> Result<Authentication, DpsError> {
    if let Some([primary, secondary]) = enrollment.attestation.keys(who.group, &who.id) {
        return Ok(Authentication::Sas { primary, secondary });
    }
    debug_assert!(!matches!(enrollment.attestation, Attestation::SymmetricKey { .. }));
    let primary = who.thumbprint.as_deref().map(Thumbprint::parse).transpose();
    let primary = primary.map_err(|error| DpsError::new(error.code.number(), error.message.into_owned()))?;
    Ok(Authentication::SelfSigned { primary, secondary: None })
}
