//! Enrollments and registrations as the store keeps them.

use fleetwave_protocol::WallTime;
use fleetwave_protocol::sas::Key;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::enrollment::Enrollment;
use super::registration::{Outcome, SUBSTATUSES, State};
use super::{DpsError, Kept};

/// A row of the provisioning service.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Row {
    Enrollment { document: Value, group: bool, etag: String, created: u64, updated: u64 },
    Registration(KeptState),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct KeptState {
    registration: String,
    group: Option<String>,
    device_id: String,
    etag: String,
    created: u64,
    updated: u64,
    substatus: String,
    status: KeptOutcome,
    payload: Option<Value>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KeptOutcome {
    Assigning,
    Assigned,
    Disabled,
    Failed { code: u32, message: String },
}

/// What is kept under which key.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Enrollment { group: bool, id: String },
    Registration(String),
}

impl Place {
    pub(super) fn key(&self) -> String {
        match self {
            Self::Enrollment { group: false, id } => format!("enrollment/{id}"),
            Self::Enrollment { group: true, id } => format!("group/{id}"),
            Self::Registration(id) => format!("registration/{id}"),
        }
    }
}

impl Kept {
    /// The row of a place, if there is something.
    pub(super) fn row(&self, place: &Place) -> Option<Row> {
        match place {
            Place::Enrollment { group, id } => {
                let table = if *group { &self.groups } else { &self.enrollments };
                table.get(id).map(Row::of)
            }
            Place::Registration(id) => {
                self.states.get(id).map(|state| Row::Registration(KeptState::of(state)))
            }
        }
    }

    /// Takes up a row that was kept.
    pub(super) fn restore(&mut self, row: Row) -> Result<(), DpsError> {
        match row {
            Row::Enrollment { document, group, etag, created, updated } => {
                let name = if group { "enrollmentGroupId" } else { "registrationId" };
                let id = document[name].as_str().unwrap_or_default();
                let mut no_key = || Key::from_bytes([]);
                let mut enrollment = Enrollment::read(id, &document, group, None, &mut no_key)?;
                self.count_on(&etag);
                enrollment.etag = etag;
                enrollment.created = WallTime::from_unix_millis(created);
                enrollment.updated = WallTime::from_unix_millis(updated);
                let table = if group { &mut self.groups } else { &mut self.enrollments };
                table.insert(id.to_ascii_lowercase(), enrollment);
            }
            Row::Registration(kept) => {
                self.count_on(&kept.etag);
                let state = kept.restore();
                self.states.insert(state.registration.clone(), state);
            }
        }
        Ok(())
    }

    /// Etags that come are to be others.
    fn count_on(&mut self, etag: &str) {
        let number = etag.rsplit('-').next().and_then(|digits| u64::from_str_radix(digits, 16).ok());
        self.last = self.last.max(number.unwrap_or_default());
    }
}

impl Row {
    fn of(enrollment: &Enrollment) -> Self {
        Self::Enrollment {
            document: enrollment.write(true, None),
            group: enrollment.group,
            etag: enrollment.etag.clone(),
            created: enrollment.created.as_unix_millis(),
            updated: enrollment.updated.as_unix_millis(),
        }
    }
}

impl KeptState {
    fn of(state: &State) -> Self {
        Self {
            registration: state.registration.clone(),
            group: state.group.clone(),
            device_id: state.device_id.clone(),
            etag: state.etag.clone(),
            created: state.created.as_unix_millis(),
            updated: state.updated.as_unix_millis(),
            substatus: state.substatus.to_owned(),
            status: match &state.outcome {
                Outcome::Assigning => KeptOutcome::Assigning,
                Outcome::Assigned => KeptOutcome::Assigned,
                Outcome::Disabled => KeptOutcome::Disabled,
                Outcome::Failed { code, message } => {
                    KeptOutcome::Failed { code: *code, message: message.clone() }
                }
            },
            payload: state.payload.clone(),
        }
    }

    fn restore(self) -> State {
        let substatus = SUBSTATUSES.into_iter().find(|known| *known == self.substatus);
        State {
            registration: self.registration,
            group: self.group,
            device_id: self.device_id,
            etag: self.etag,
            created: WallTime::from_unix_millis(self.created),
            updated: WallTime::from_unix_millis(self.updated),
            substatus: substatus.unwrap_or(SUBSTATUSES[0]),
            outcome: match self.status {
                KeptOutcome::Assigning => Outcome::Assigning,
                KeptOutcome::Assigned => Outcome::Assigned,
                KeptOutcome::Disabled => Outcome::Disabled,
                KeptOutcome::Failed { code, message } => Outcome::Failed { code, message },
            },
            payload: self.payload,
        }
    }
}
