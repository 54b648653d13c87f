//! The part of the device twin that the agent reads and writes: `firmware`, in desired and reported properties.
//!
//! ```json
//! desired   {"firmware": {"id": "fw-2", "seq": 2, "size": 65536, "sha256": "…", "sigs": {"k1": "…"}, "cancel": true}}
//! reported  {"firmware": {"running": {"id": "fw-1", "seq": 1}, "state": "updating", "target": "fw-2", "code": null}}
//! ```
//!
//! Removing `firmware` from the desired properties, or setting `cancel`, stops an update that is under way.

use serde_json::{Map, Value, json};

use crate::{ReleaseId, Releases, ResultCode};

/// What the desired properties ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Desired {
    /// Nothing.
    #[default]
    Nothing,
    /// This release.
    Release(ReleaseId),
    /// This release no longer.
    Cancelled(ReleaseId),
}

/// What the agent says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status {
    /// The release that is committed.
    pub running: ReleaseId,
    /// What it is doing.
    pub progress: Progress,
}

impl Status {
    /// Whether both are reported in the same words: several references may bear one name, of which a report tells
    /// no more than that.
    #[must_use]
    pub fn reads_like(&self, other: &Self, releases: &Releases) -> bool {
        let named = |a: ReleaseId, b: ReleaseId| a == b || releases[a].id == releases[b].id;
        releases.same(self.running, other.running)
            && match (self.progress, other.progress) {
                (Progress::Idle(a), Progress::Idle(b)) => a == b,
                (Progress::Updating(a), Progress::Updating(b)) => named(a, b),
                (Progress::Failed(a, why), Progress::Failed(b, reason)) => named(a, b) && why == reason,
                _ => false,
            }
    }
}

/// What the agent is doing, as coarse as it is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Progress {
    /// Nothing; how the last update ended that did not fail, if there was one.
    Idle(Option<ResultCode>),
    /// Installing this release.
    Updating(ReleaseId),
    /// Has given this release up.
    Failed(ReleaseId, ResultCode),
}

/// A twin, as far as the agent is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TwinContent {
    /// The version of the desired properties.
    pub version: u64,
    /// What they ask for.
    pub desired: Desired,
    /// What was reported last, if it is of the form that this agent writes.
    pub reported: Option<Status>,
}

/// Why a twin or a patch could not be read. The agent keeps what it knew.
#[derive(Debug, thiserror::Error)]
pub enum TwinError {
    /// Not JSON.
    #[error("the twin is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// JSON of another form.
    #[error("the twin has no {0}")]
    Missing(&'static str),
}

/// Reads a whole twin, in the form that devices get.
///
/// # Errors
/// [`TwinError`] if it is not one.
pub fn read_twin(body: &[u8], releases: &mut Releases) -> Result<TwinContent, TwinError> {
    let twin: Map<String, Value> = serde_json::from_slice(body)?;
    let Some(Value::Object(desired)) = twin.get("desired") else { return Err(TwinError::Missing("desired")) };
    let version =
        desired.get("$version").and_then(Value::as_u64).ok_or(TwinError::Missing("desired.$version"))?;
    Ok(TwinContent {
        version,
        desired: read_desired(desired, releases),
        reported: twin.get("reported").and_then(|reported| read_status(reported, releases)),
    })
}

/// Reads the desired properties of a twin.
#[must_use]
pub fn read_desired(desired: &Map<String, Value>, releases: &mut Releases) -> Desired {
    match desired.get("firmware") {
        Some(Value::Object(firmware)) => read_firmware(firmware.clone(), releases),
        Some(Value::Null) | None => Desired::Nothing,
        // Not even an object: a release that is refused as malformed, so that the device says so.
        Some(_) => Desired::Release(releases.intern(&Map::new())),
    }
}

/// Applies a patch of the desired properties to what was desired before; `None` if it is not about firmware.
///
/// # Errors
/// [`TwinError`] if it is not a JSON object.
pub fn read_patch(
    body: &[u8],
    before: Desired,
    releases: &mut Releases,
) -> Result<Option<Desired>, TwinError> {
    let mut patch: Map<String, Value> = serde_json::from_slice(body)?;
    let Some(change) = patch.remove("firmware") else { return Ok(None) };
    let Value::Object(change) = change else {
        patch.insert("firmware".into(), change);
        return Ok(Some(read_desired(&patch, releases)));
    };
    let mut firmware = match before {
        Desired::Nothing => Map::new(),
        Desired::Release(release) => releases[release].reference().clone(),
        Desired::Cancelled(release) => {
            let mut reference = releases[release].reference().clone();
            reference.insert("cancel".into(), true.into());
            reference
        }
    };
    merge(&mut firmware, change);
    Ok(Some(read_firmware(firmware, releases)))
}

fn read_firmware(mut firmware: Map<String, Value>, releases: &mut Releases) -> Desired {
    let cancel = firmware.remove("cancel");
    let release = releases.intern(&firmware);
    if cancel == Some(Value::Bool(true)) { Desired::Cancelled(release) } else { Desired::Release(release) }
}

/// JSON merge patch (RFC 7396) of one object into another.
fn merge(into: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (key, value) in patch {
        match (value, into.get_mut(&key)) {
            (Value::Null, _) => {
                into.remove(&key);
            }
            (Value::Object(patch), Some(Value::Object(target))) => merge(target, patch),
            (Value::Object(patch), _) => {
                let mut target = Map::new();
                merge(&mut target, patch);
                into.insert(key, Value::Object(target));
            }
            (value, _) => {
                into.insert(key, value);
            }
        }
    }
}

/// Reads reported properties of the form that [`write_report`] writes.
#[must_use]
pub fn read_status(reported: &Value, releases: &Releases) -> Option<Status> {
    let firmware = reported.get("firmware")?;
    let running = firmware.get("running")?;
    let running = releases.find(running.get("id")?.as_str()?, running.get("seq")?.as_u64()?)?;
    let code = match firmware.get("code") {
        None | Some(Value::Null) => None,
        Some(code) => Some(ResultCode::from_name(code.as_str()?)?),
    };
    let target = match firmware.get("target") {
        None | Some(Value::Null) => None,
        Some(target) => Some(releases.by_name(target.as_str()?)?),
    };
    let progress = match (firmware.get("state")?.as_str()?, target, code) {
        ("idle", None, code) => Progress::Idle(code),
        ("updating", Some(target), None) => Progress::Updating(target),
        ("failed", Some(target), Some(code)) => Progress::Failed(target, code),
        _ => return None,
    };
    Some(Status { running, progress })
}

/// The merge patch that reports `status`: it sets every member that the agent reports, so that it says the same
/// whatever was there before.
#[must_use]
pub fn write_report(status: &Status, releases: &Releases) -> String {
    let running = &releases[status.running];
    let (state, target, code) = match status.progress {
        Progress::Idle(code) => ("idle", None, code),
        Progress::Updating(target) => ("updating", Some(target), None),
        Progress::Failed(target, code) => ("failed", Some(target), Some(code)),
    };
    json!({
        "firmware": {
            "running": {"id": &*running.id, "seq": running.sequence},
            "state": state,
            "target": target.map(|target| &*releases[target].id),
            "code": code.map(ResultCode::name),
        }
    })
    .to_string()
}
