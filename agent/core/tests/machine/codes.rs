//! Every way in which an update ends is reached.

use std::collections::BTreeSet;
use std::time::Duration;

use fleetwave_agent_core::{
    AtDeadline, Caps, Effect, FetchError, GrantAnswer, InstallError, LockAnswer, Locks, ResultCode,
    StorageError, Unsigned, sign,
};
use serde_json::{Map, Value, json};

use crate::cuts::STORIES;
use crate::world::{Cut, DAY, Fetching, Happening, SIZE, World, key, reference};

/// What goes wrong, and with what reference.
type Case = (ResultCode, fn(&mut World) -> Map<String, Value>);

fn genuine() -> Map<String, Value> {
    reference("fw-2", 2, false)
}

fn unsigned() -> Unsigned<'static> {
    Unsigned::new("fw-2", 2, SIZE, [2; 32])
}

fn downloads_fail(world: &mut World, error: FetchError) -> Map<String, Value> {
    world.script.fetches.extend([Fetching::Fails(0, error); 40]);
    genuine()
}

fn staging_fails(world: &mut World, error: impl Into<InstallError>) -> Map<String, Value> {
    world.script.stage.push_back(error.into());
    genuine()
}

fn happens_at(world: &mut World, effect: fn(&Effect) -> bool, happening: Happening) -> Map<String, Value> {
    let number = STORIES[0].run([]).position(effect);
    world.script.happenings.push_back((number, happening));
    genuine()
}

const CASES: &[Case] = &[
    (ResultCode::Ok, |_| genuine()),
    (ResultCode::Cancelled, |world| {
        happens_at(world, |effect| matches!(effect, Effect::Verify(_)), Happening::Cancel)
    }),
    (ResultCode::Superseded, |world| {
        // What comes next is what the device has: nothing follows the end of this update.
        let back = Happening::Desire(reference("fw-1", 1, false));
        happens_at(world, |effect| matches!(effect, Effect::Verify(_)), back)
    }),
    (ResultCode::ReferenceMalformed, |_| {
        let mut reference = genuine();
        reference.remove("size");
        reference
    }),
    (ResultCode::SignatureMissing, |_| sign("fw-2", 2, 10, &[2; 32], false, &[("k9", &key(9))])),
    (ResultCode::SignatureInvalid, |_| sign("fw-2", 2, 10, &[2; 32], false, &[("k1", &key(9))])),
    (ResultCode::Downgrade, |_| reference("fw-0", 0, false)),
    (ResultCode::TooLarge, |world| {
        world.policy.slot_size = 1_000;
        genuine()
    }),
    (ResultCode::GrantRefused, |world| {
        world.script.grants.push_back(Some(GrantAnswer::Refused));
        genuine()
    }),
    (ResultCode::GrantTimeout, |world| {
        world.script.grants.extend([None; 40]);
        genuine()
    }),
    (ResultCode::DownloadForbidden, |world| downloads_fail(world, FetchError::Forbidden)),
    (ResultCode::DownloadNotFound, |world| downloads_fail(world, FetchError::NotFound)),
    (ResultCode::DownloadThrottled, |world| downloads_fail(world, FetchError::Busy(Duration::from_secs(1)))),
    (ResultCode::DownloadServerError, |world| downloads_fail(world, FetchError::Server)),
    (ResultCode::DownloadInterrupted, |world| downloads_fail(world, FetchError::Interrupted)),
    (ResultCode::DownloadProtocol, |world| downloads_fail(world, FetchError::Protocol)),
    (ResultCode::SizeMismatch, |world| {
        world.script.fetches.extend([Fetching::Short; 2]);
        genuine()
    }),
    (ResultCode::DigestMismatch, |world| {
        world.script.fetches.extend([Fetching::Corrupted; 2]);
        genuine()
    }),
    (ResultCode::NoSpace, |world| staging_fails(world, StorageError::NoSpace)),
    (ResultCode::ReadOnly, |world| staging_fails(world, StorageError::ReadOnly)),
    (ResultCode::StorageFailed, |world| staging_fails(world, StorageError::Failed)),
    (ResultCode::WrongTarget, |_| {
        Unsigned { target: Some("components.app"), ..unsigned() }.sign(&[("k1", &key(1))])
    }),
    (ResultCode::Incompatible, |_| {
        Unsigned { compatible: vec!["pi-5"], ..unsigned() }.sign(&[("k1", &key(1))])
    }),
    (ResultCode::OverUpdateCap, |world| {
        world.policy.caps = Some(Caps { per_update: SIZE - 1, per_window: u64::MAX, window: DAY });
        genuine()
    }),
    (ResultCode::OverWindowCap, |world| {
        world.policy.caps = Some(Caps { per_update: SIZE, per_window: SIZE - 1, window: DAY });
        genuine()
    }),
    (ResultCode::PayloadUnfit, |world| staging_fails(world, InstallError::Payload)),
    (ResultCode::InstallFailed, |world| staging_fails(world, InstallError::Failed)),
    (ResultCode::InstallRefused, |world| staging_fails(world, InstallError::Refused)),
    (ResultCode::HookFailed, |world| {
        world.script.activate.push_back(InstallError::Hook);
        genuine()
    }),
    (ResultCode::LockTimeout, |world| {
        let (retry, deadline) = (Duration::from_secs(60), Duration::from_secs(600));
        world.policy.locks = Some(Locks { retry, deadline, at_deadline: AtDeadline::GiveUp });
        world.script.locks.extend([Some(LockAnswer::Held); 40]);
        genuine()
    }),
    (ResultCode::Aborted, |world| {
        happens_at(world, |effect| matches!(effect, Effect::Verify(_)), Happening::Abort)
    }),
    (ResultCode::StartLoop, |world| {
        world.policy.start_attempts = 1;
        happens_at(world, |effect| matches!(effect, Effect::Fetch { .. }), Happening::Cut(Cut::Before))
    }),
    (ResultCode::BootFailed, |world| {
        world.script.dead.push("fw-2");
        genuine()
    }),
    (ResultCode::Unhealthy, |world| {
        world.script.sick.push("fw-2");
        genuine()
    }),
    (ResultCode::ProbationTimeout, |world| {
        world.script.endless_checks = true;
        genuine()
    }),
    (ResultCode::CommitFailed, |world| {
        world.script.commit.push_back(StorageError::Failed);
        genuine()
    }),
];

#[test]
fn every_result_code_is_reached_recorded_and_reported() {
    let mut reached = BTreeSet::new();
    for (code, prepare) in CASES {
        let mut world = World::new(11);
        let reference = prepare(&mut world);
        world.desire(reference);
        world.run();
        world.assert_settled();
        assert_eq!(world.durable().last.map(|(_, code)| code), Some(*code));
        assert_eq!(world.hub.reported["firmware"]["code"], code.name());
        assert_eq!(&*world.running() == "fw-2", *code == ResultCode::Ok, "{code:?}");
        reached.insert(*code);
    }
    assert_eq!(reached, ResultCode::ALL.iter().copied().collect());
}

#[test]
fn junk_in_place_of_a_reference_is_reported_as_malformed() {
    let with = |name: &str, value: Value| {
        let mut reference = genuine();
        reference.insert(name.into(), value);
        Value::Object(reference)
    };
    let junk = [
        json!("fw-2"),
        json!(2),
        json!(true),
        json!([genuine()]),
        json!({}),
        json!({"id": "fw-2"}),
        json!({"sigs": {"k1": {"k1": {}}}}),
        with("id", json!("")),
        with("id", json!("fw\n2")),
        with("id", json!("x".repeat(129))),
        with("id", json!(["fw-2"])),
        with("seq", json!(-1)),
        with("seq", json!(2.5)),
        with("size", json!("65536")),
        with("sha256", json!("12")),
        with("sha256", json!("é".repeat(32))),
        with("sha256", json!({"hex": "00"})),
        with("downgrade", json!("yes")),
    ];
    for value in junk {
        let mut world = World::new(11);
        world.run();
        world.patch(crate::coverage::Cause::Start, json!({"firmware": value}));
        world.run();
        world.assert_settled();
        assert_eq!(world.hub.reported["firmware"]["code"], "reference_malformed", "{value}");
        // Told once, and not again on the next connection.
        let sent = world.hub.reports.len();
        world.drop_link();
        world.run();
        assert_eq!(world.hub.reports.len(), sent, "{value}");
    }
}

#[test]
fn signatures_of_the_wrong_form_are_not_signatures() {
    for (sigs, code) in [
        (json!(null), "signature_missing"),
        (json!("k1"), "signature_missing"),
        (json!([]), "signature_missing"),
        (json!({"k1": 1}), "signature_invalid"),
        (json!({"k1": "AAAA"}), "signature_invalid"),
        (json!({"k1": {"alg": "none"}}), "signature_invalid"),
    ] {
        let mut world = World::new(11);
        let mut reference = genuine();
        reference.insert("sigs".into(), sigs.clone());
        world.desire(reference);
        world.run();
        world.assert_settled();
        assert_eq!(world.hub.reported["firmware"]["code"], code, "{sigs}");
    }
}
