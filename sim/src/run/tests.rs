use std::time::Duration;

use fleetwave_protocol::Instant;

use super::*;
use crate::measure::{Change, ChangeId, Meter};
use crate::scenario::load_text;
use crate::timeline::Counts;

pub(crate) fn plan(expectations: &str) -> RunPlan {
    let text = format!(
        "schema = 1\nname = \"t\"\n[fleet]\ndevices = 1000\n[[release]]\nid = \"fw-2\"\nseq = 2\n\
         [[step]]\nconnect = {{ storm = true }}\n\
         [[step]]\nconfigure = {{ id = \"c\", release = \"fw-2\" }}\n\
         [[step]]\nwait = {{ until = \"settled >= 100%\" }}\n[expect]\n{expectations}\n"
    );
    let loaded = load_text("t.toml", &text, &[]).unwrap_or_else(|problems| panic!("{problems}"));
    RunPlan {
        scenario: loaded.scenario,
        sha256: loaded.sha256,
        overrides: Vec::new(),
        engine: Engine::Virtual,
        target: Target::Hub,
        transport: Transport::Model,
        threads: None,
        replay: "fleetwave run t.toml --seed 1".to_owned(),
    }
}

/// 1,000 devices were targeted; `missing` of them never learned of it, the others needed 20 ms, and a second more.
pub(crate) fn outcome(missing: u64) -> EngineOutcome {
    let mut meter = Meter::default();
    let at = Instant::from_micros(1_000_000);
    meter.change(ChangeId(0), Change { intended: at, sent: at, accepted: at });
    meter.targeted(ChangeId(0), 1000);
    for _ in missing..1000 {
        meter.notified(ChangeId(0), at + Duration::from_millis(20));
        meter.converged(ChangeId(0), at + Duration::from_millis(1020));
    }
    let reached = 1000 - missing;
    EngineOutcome {
        meter,
        counts: Counts {
            total: 1000,
            connected: 1000,
            targeted: 1000,
            notified: reached,
            converged: reached,
            failed: 0,
            rolled_back: 0,
        },
        end: Some(End::Completed),
        notes: Vec::new(),
        violations: Vec::new(),
        disturbances: Vec::new(),
        duration: Duration::from_secs(3),
        wall: Duration::from_millis(30),
        event_hash: Some(0xabc),
        memory: crate::measure::MemoryUse { baseline: 1_000_000, peak: 2_000_000 },
        threads: 1,
        floor: None,
    }
}

const USUAL: &str = "\"devices.missing\" = \"= 0\"\n\"fan_out_latency.p99_9\" = \"<= 500ms\"";

#[test]
fn a_run_that_met_its_expectations_has_passed() {
    let record = judge(&plan(USUAL), &outcome(0));
    assert_eq!((record.verdict, record.exit_code), (Verdict::Passed, 0));
    assert_eq!(record.notes, Vec::<String>::new());
    assert_eq!(record.event_hash.as_deref(), Some("0000000000000abc"));
    assert_eq!(record.harness.resident_bytes_per_device, 1000.0);
}

#[test]
fn one_percent_never_notified_is_missing_and_makes_the_tail_infinite() {
    let record = judge(&plan(USUAL), &outcome(10));
    assert_eq!((record.verdict, record.exit_code), (Verdict::Failed, 99));
    assert_eq!(record.devices.missing, 10);
    assert_eq!(record.fan_out_latency.missing, 10);
    assert!(record.fan_out_latency.corrected.p99.is_some());
    assert_eq!(record.fan_out_latency.corrected.p99_9, None);
    assert_eq!(record.fleet_convergence.p99_9, None);
    assert!(record.expectations.iter().all(|expectation| !expectation.passed));
}

#[test]
fn a_harness_that_was_late_makes_the_run_invalid_whatever_else_it_showed() {
    let mut stalled = outcome(10);
    for _ in 0..10_000 {
        stalled.meter.lag(Duration::from_micros(100));
    }
    stalled.meter.lag(Duration::from_millis(300));
    let record = judge(&plan(USUAL), &stalled);
    assert_eq!((record.verdict, record.exit_code), (Verdict::Invalid, 3));
    assert!(record.harness.lag_max > 0.25 && record.harness.lag_p99 < 0.001);
    assert!(record.notes[0].contains("300 ms late"), "{:?}", record.notes);
}

#[test]
fn what_the_engine_knows_to_have_disturbed_the_run_makes_it_invalid() {
    let disturbed = EngineOutcome { disturbances: vec!["out of descriptors".to_owned()], ..outcome(0) };
    assert_eq!(judge(&plan(USUAL), &disturbed).verdict, Verdict::Invalid);
}

#[test]
fn an_interrupted_run_has_a_record_of_what_there_was() {
    let record = judge(&plan(USUAL), &EngineOutcome { end: None, ..outcome(400) });
    assert_eq!((record.verdict, record.exit_code), (Verdict::Interrupted, 130));
    assert_eq!(record.fan_out_latency.count, 600);
}

#[test]
fn a_broken_invariant_or_a_wait_without_an_end_fails_a_run_without_expectations() {
    let broken = EngineOutcome { violations: vec!["dev-1 runs what nobody signed".to_owned()], ..outcome(0) };
    assert_eq!(judge(&plan(""), &broken).verdict, Verdict::Failed);
    let end = Some(End::TimedOut { step: "wait".to_owned(), condition: "converged >= 99%".to_owned() });
    assert_eq!(judge(&plan(""), &EngineOutcome { end, ..outcome(0) }).verdict, Verdict::Failed);
}

#[test]
fn an_aborted_rollout_is_noted_and_judged_by_its_expectations() {
    let end = Some(End::Aborted { step: "canary".to_owned(), condition: "failed > 5%".to_owned() });
    let record = judge(&plan(USUAL), &EngineOutcome { end, ..outcome(0) });
    assert_eq!(record.verdict, Verdict::Passed);
    assert_eq!(record.notes, ["the rollout was aborted at step \"canary\": failed > 5%"]);
}

#[test]
fn what_was_not_measured_meets_no_expectation() {
    let record = judge(&plan("\"grant_latency.p99\" = \"<= 1s\""), &outcome(0));
    assert_eq!(record.verdict, Verdict::Failed);
    assert!(record.expectations[0].note.is_some());
}

#[test]
fn a_judged_record_is_valid_by_the_published_schema() {
    let record = serde_json::to_value(judge(&plan(USUAL), &outcome(10))).expect("a record is JSON");
    let validator = jsonschema::validator_for(&fleetwave_report::schema()).expect("the schema is one");
    let errors: Vec<String> = validator.iter_errors(&record).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:#?}");
}

#[test]
fn targets_are_read_as_they_are_written() {
    for text in ["hub", "rumqttd", "mqtt://127.0.0.1:1883", "mqtt://[::1]:8883", "mqtt://broker.local:1"] {
        assert_eq!(text.parse::<Target>().expect("a target").to_string(), text);
    }
    assert_eq!("mqtt://broker".parse::<Target>().expect("a target").to_string(), "mqtt://broker:1883");
}

#[test]
fn what_is_no_target_says_why() {
    let messages: Vec<String> = [
        "",
        "azure",
        "mqtt://",
        "mqtt://:1883",
        "mqtt://a:b",
        "mqtt://a:0",
        "mqtt://a:70000",
        "mqtts://a:8883",
        "mqtt://[::1",
        "mqtt://[::1]x",
        "mqtt://user@a",
        "http://a",
    ]
    .into_iter()
    .map(|text| format!("{text:<16} {}", text.parse::<Target>().expect_err("no target")))
    .collect();
    insta::assert_snapshot!(messages.join("\n"));
}
