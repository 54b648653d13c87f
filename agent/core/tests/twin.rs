//! The JSON that the agent reads and writes, against arbitrary input.

use std::collections::BTreeMap;

use fleetwave_agent_core::twin::{self, Desired, Progress, Status};
use fleetwave_agent_core::{Method, Release, ReleaseId, Releases, ResultCode, TrustRoot};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn catalogue() -> (Releases, Vec<ReleaseId>) {
    let mut releases = Releases::new(TrustRoot::default());
    let ids = (1..6).map(|sequence| releases.preinstalled(&format!("fw-{sequence}"), sequence)).collect();
    (releases, ids)
}

fn status() -> impl Strategy<Value = Status> {
    let id = || prop::sample::select(catalogue().1);
    let code = || prop::sample::select(ResultCode::ALL);
    let method = || prop::sample::select(vec![None, Some(Method::Full), Some(Method::Delta)]);
    let progress = prop_oneof![
        prop::option::of(code()).prop_map(Progress::Idle),
        (id(), method()).prop_map(|(release, method)| Progress::Updating(release, method)),
        (id(), code()).prop_map(|(release, code)| Progress::Failed(release, code)),
    ];
    (id(), progress).prop_map(|(running, progress)| Status { running, progress })
}

/// Any JSON, with a liking for the names that mean something.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0..3u64).prop_map(Value::from),
        "[a-z0-9-]{0,6}".prop_map(Value::from),
        Just(json!("ab".repeat(32))),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            1 => prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            4 => object(inner).prop_map(Value::from),
        ]
    })
}

fn object(inner: impl Strategy<Value = Value>) -> impl Strategy<Value = Map<String, Value>> {
    const NAMES: [&str; 10] =
        ["id", "seq", "size", "sha256", "sigs", "cancel", "downgrade", "firmware", "k1", "running"];
    prop::collection::btree_map(prop::sample::select(&NAMES[..]), inner, 0..6)
        .prop_map(|members: BTreeMap<_, _>| members.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
}

/// JSON merge patch as RFC 7396 writes it down.
fn merge_patch(target: Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut target = if let Value::Object(target) = target { target } else { Map::new() };
    for (name, value) in patch {
        if value.is_null() {
            target.remove(name);
        } else {
            let before = target.remove(name).unwrap_or(Value::Null);
            target.insert(name.clone(), merge_patch(before, value));
        }
    }
    Value::Object(target)
}

fn twin_of(desired: &Value, version: u64) -> Vec<u8> {
    let mut desired = desired.clone();
    desired["$version"] = version.into();
    json!({"desired": desired, "reported": {}}).to_string().into_bytes()
}

/// What is asked for, as the release that it leads to: two catalogues number the same release differently.
fn meaning(desired: Desired, releases: &Releases) -> (u8, Option<Release>) {
    match desired {
        Desired::Nothing => (0, None),
        Desired::Release(id) => (1, Some(releases[id].clone())),
        Desired::Cancelled(id) => (2, Some(releases[id].clone())),
    }
}

proptest! {
    /// Does: writes a report, merges it into whatever was reported before, reads it. Asserts: it says the same.
    #[test]
    fn a_report_is_read_as_it_was_written(status in status(), before in value()) {
        let (releases, _) = catalogue();
        let report: Value = serde_json::from_str(&twin::write_report(&status, &releases)).unwrap();
        let reported = merge_patch(json!({ "firmware": before }), &report);
        prop_assert_eq!(twin::read_status(&reported, &releases), Some(status));
    }

    /// Assumes: stored properties hold no nulls (a hub drops them). Does: follows desired properties by patches.
    /// Asserts: that leads where reading the merged document does.
    #[test]
    fn following_patches_leads_to_what_a_whole_reading_gives(
        patches in prop::collection::vec(
            (any::<bool>(), value()).prop_map(|(about_firmware, value)| {
                if about_firmware { json!({ "firmware": value }) } else { json!({ "other": value }) }
            }),
            1..6,
        ),
    ) {
        let (mut releases, _) = catalogue();
        let mut document = json!({});
        let mut followed = Desired::Nothing;
        for (version, patch) in patches.iter().enumerate() {
            let body = patch.to_string();
            if let Some(desired) = twin::read_patch(body.as_bytes(), followed, &mut releases).unwrap() {
                followed = desired;
            }
            document = merge_patch(document, patch);
            let whole = twin::read_twin(&twin_of(&document, version as u64), &mut releases).unwrap();
            prop_assert_eq!(whole.version, version as u64);
            let (followed, whole) = (meaning(followed, &releases), meaning(whole.desired, &releases));
            prop_assert_eq!(followed, whole, "{}", document);
        }
    }

    /// Does: reads bytes that need not be JSON. Asserts: no panic.
    #[test]
    fn arbitrary_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let (mut releases, ids) = catalogue();
        let _ = twin::read_twin(&bytes, &mut releases);
        for before in [Desired::Nothing, Desired::Release(ids[0]), Desired::Cancelled(ids[1])] {
            let _ = twin::read_patch(&bytes, before, &mut releases);
        }
    }

    /// Does: reads any JSON as twin, patch and reported properties. Asserts: no panic.
    #[test]
    fn arbitrary_json_is_read_or_refused(value in value(), reported in value()) {
        let (mut releases, _) = catalogue();
        for document in [value.clone(), json!({"desired": value, "reported": reported})] {
            let _ = twin::read_twin(document.to_string().as_bytes(), &mut releases);
            let _ = twin::read_patch(document.to_string().as_bytes(), Desired::Nothing, &mut releases);
            let _ = twin::read_status(&document, &releases);
        }
        let _ = twin::read_status(&json!({ "firmware": reported }), &releases);
    }
}
