//! The part of the device twin that the agent reads and writes: a section for each target, in desired and reported
//! properties. The firmware's is `firmware`, a component's `components.NAME`, a workload's `workloads.NAME`.
//!
//! ```json
//! desired   {"firmware": {"id": "fw-2", "seq": 2, "size": 65536, "sha256": "…", "sigs": {"k1": "…"}, "cancel": true}}
//! reported  {"firmware": {"running": {"id": "fw-1", "seq": 1}, "state": "updating", "target": "fw-2", "code": null,
//!                         "plan": {"id": "fw-2", "method": "full", "bytes": 65536, "requests": 1}}}
//! ```
//!
//! Removing a section from the desired properties, or setting `cancel`, stops an update that is under way. `plan` is
//! what an update was going to cost when that became known, if the policy has it reported; it stays when that update
//! has ended.
//!
//! A driver may add to a section what keeps the target from its work: `problem`, and the state `broken` for a target of
//! which it is not known what runs. Who reads a section of that state knows nothing of what it said before.
//!
//! What a driver with several targets needs are [`read_section`], [`patch_section`], [`read_section_status`] and
//! [`write_section`]; the other functions are these for the firmware of a device that has nothing else.

use serde_json::{Map, Value, json};

use crate::reference::FIRMWARE;
use crate::{Method, Plan, ReleaseId, Releases, ResultCode};

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
    /// Whether this, which was reported, says all that `other` would: several references may bear one name, of which a
    /// report tells no more than that.
    #[must_use]
    pub fn reads_like(&self, other: &Self, releases: &Releases) -> bool {
        let named = |a: ReleaseId, b: ReleaseId| a == b || releases[a].id == releases[b].id;
        releases.same(self.running, other.running)
            && match (self.progress, other.progress) {
                (Progress::Idle(a), Progress::Idle(b)) => a == b,
                // What is not known yet is nothing to say.
                (Progress::Updating(a, told), Progress::Updating(b, method)) => {
                    named(a, b) && (method.is_none() || told == method)
                }
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
    /// Installing this release, whose payload is fetched in this way, once that is known.
    Updating(ReleaseId, Option<Method>),
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

/// Reads the desired properties of a twin, as far as they are about the firmware.
#[must_use]
pub fn read_desired(desired: &Map<String, Value>, releases: &mut Releases) -> Desired {
    read_section(desired, FIRMWARE, releases)
}

/// Reads the section of a target in desired properties.
#[must_use]
pub fn read_section(desired: &Map<String, Value>, section: &str, releases: &mut Releases) -> Desired {
    let (outer, inner) = path(section);
    let found = match (desired.get(outer), inner) {
        (found, None) => found,
        (Some(Value::Object(members)), Some(inner)) => members.get(inner),
        (_, Some(_)) => None,
    };
    match found {
        Some(Value::Object(reference)) => read_reference(reference.clone(), releases),
        Some(Value::Null) | None => Desired::Nothing,
        // Not even an object: a release that is refused as malformed, so that the device says so.
        Some(_) => Desired::Release(releases.intern(&Map::new())),
    }
}

/// Applies a patch of the desired properties to what was desired before; `None` if it is not about the firmware.
///
/// # Errors
/// [`TwinError`] if it is not a JSON object.
pub fn read_patch(
    body: &[u8],
    before: Desired,
    releases: &mut Releases,
) -> Result<Option<Desired>, TwinError> {
    let patch: Map<String, Value> = serde_json::from_slice(body)?;
    Ok(patch_section(&patch, FIRMWARE, before, releases))
}

/// Applies a patch of the desired properties to what was desired of a target before; `None` if the patch is not about
/// it.
#[must_use]
pub fn patch_section(
    patch: &Map<String, Value>,
    section: &str,
    before: Desired,
    releases: &mut Releases,
) -> Option<Desired> {
    let (outer, inner) = path(section);
    let change = match (patch.get(outer)?, inner) {
        (Value::Object(members), Some(inner)) => members.get(inner)?,
        // All sections of this kind go.
        (_, Some(_)) => return Some(Desired::Nothing),
        (change, None) => change,
    };
    let Value::Object(change) = change else { return Some(read_section(patch, section, releases)) };
    let mut reference = match before {
        Desired::Nothing => Map::new(),
        Desired::Release(release) => releases[release].reference().clone(),
        Desired::Cancelled(release) => {
            let mut reference = releases[release].reference().clone();
            reference.insert("cancel".into(), true.into());
            reference
        }
    };
    merge(&mut reference, change.clone());
    Some(read_reference(reference, releases))
}

/// The two names of a section `components.app`, or the one of `firmware`.
fn path(section: &str) -> (&str, Option<&str>) {
    match section.split_once('.') {
        Some((outer, inner)) => (outer, Some(inner)),
        None => (section, None),
    }
}

fn read_reference(mut reference: Map<String, Value>, releases: &mut Releases) -> Desired {
    let cancel = reference.remove("cancel");
    let release = releases.intern(&reference);
    if cancel == Some(Value::Bool(true)) { Desired::Cancelled(release) } else { Desired::Release(release) }
}

/// JSON merge patch (RFC 7396) of one object into another.
pub fn merge(into: &mut Map<String, Value>, patch: Map<String, Value>) {
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
    read_section_status(reported, FIRMWARE, releases)
}

/// Reads the section of a target in reported properties, if it is of the form that [`write_section`] writes.
#[must_use]
pub fn read_section_status(reported: &Value, section: &str, releases: &Releases) -> Option<Status> {
    let (outer, inner) = path(section);
    let firmware = reported.get(outer)?;
    let firmware = inner.map_or(Some(firmware), |inner| firmware.get(inner))?;
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
        ("updating", Some(target), None) => {
            // One of another release is of an update that has ended.
            let plan = firmware.get("plan").filter(|plan| plan.get("id") == firmware.get("target"));
            let method = plan.and_then(|plan| plan.get("method")).and_then(Value::as_str);
            Progress::Updating(target, method.and_then(Method::from_name))
        }
        ("failed", Some(target), Some(code)) => Progress::Failed(target, code),
        _ => return None,
    };
    Some(Status { running, progress })
}

/// The merge patch that reports `status` of a device's firmware.
#[must_use]
pub fn write_report(status: &Status, releases: &Releases) -> String {
    Value::Object(write_section(status, None, FIRMWARE, releases)).to_string()
}

/// The merge patch that reports `status` of a target: it sets every member that the agent reports, so that it says the
/// same whatever was there before. `plan` is the one that the driver made last, if it made one.
#[must_use]
pub fn write_section(
    status: &Status,
    plan: Option<&Plan>,
    section: &str,
    releases: &Releases,
) -> Map<String, Value> {
    let running = &releases[status.running];
    let (state, target, code) = match status.progress {
        Progress::Idle(code) => ("idle", None, code),
        Progress::Updating(target, _) => ("updating", Some(target), None),
        Progress::Failed(target, code) => ("failed", Some(target), Some(code)),
    };
    let mut report = json!({
        "running": {"id": &*running.id, "seq": running.sequence},
        "state": state,
        "target": target.map(|target| &*releases[target].id),
        "code": code.map(ResultCode::name),
    });
    if let Progress::Updating(target, Some(method)) = status.progress {
        let release = &releases[target];
        let mut told = json!({"id": &*release.id, "method": method.name()});
        // Without a plan it is all of it: when an update begins, nothing of it is there.
        let full = Plan::full(release.size, 0);
        if let Some(plan) = plan.or(Some(&full)).filter(|plan| plan.method == method) {
            told["bytes"] = plan.bytes.into();
            told["requests"] = plan.requests.into();
        }
        report["plan"] = told;
    }
    let (outer, inner) = path(section);
    let report = match inner {
        Some(inner) => Value::Object(Map::from_iter([(inner.to_owned(), report)])),
        None => report,
    };
    Map::from_iter([(outer.to_owned(), report)])
}
