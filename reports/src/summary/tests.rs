use super::*;
use crate::record::{Devices, Failure, FleetConvergence, Harness, Rates, ScenarioRef};
use crate::sample;

fn screen(record: &RunRecord) -> String {
    let text = summary(record);
    assert!(text.lines().count() <= 40, "{} lines:\n{text}", text.lines().count());
    for line in text.lines() {
        assert!(line.chars().count() <= WIDTH, "{} columns: {line}", line.chars().count());
    }
    text
}

#[test]
fn a_run_that_met_its_expectations_fits_a_screen() {
    insta::assert_snapshot!(screen(&sample::passed()));
}

#[test]
fn a_live_run_stands_beside_this_machines_floor() {
    let mut record = sample::passed();
    record.engine = Engine::Live;
    record.transport = Transport::Tcp;
    record.event_hash = None;
    record.harness.lag_p99 = 0.0008;
    record.harness.lag_max = 0.0124;
    record.harness.floor = Some(Floor {
        connects_per_second: Some(30_000.0),
        messages_per_second: Some(64_600.0),
        blob_bytes_per_second: Some(2.1e9),
        events_per_second: None,
    });
    insta::assert_snapshot!(screen(&record));
}

#[test]
fn missing_devices_stand_in_every_figure_that_they_spoil() {
    let mut record = sample::passed();
    record.devices.notified = 9_900;
    record.devices.converged = 9_900;
    record.devices.missing = 100;
    for latency in [&mut record.fan_out_latency, &mut record.twin_convergence] {
        (latency.count, latency.missing) = (9_900, 100);
        (latency.corrected.p99_9, latency.corrected.max) = (None, None);
    }
    record.fleet_convergence = FleetConvergence { p99_9: None, p100: None, ..record.fleet_convergence };
    record.expectations[0].passed = false;
    record.expectations[0].got = None;
    record.verdict = Verdict::Failed;
    record.exit_code = 99;
    record.notes = vec!["failed: 1 of 3 expectations missed".to_owned()];
    insta::assert_snapshot!(screen(&record));
}

#[test]
fn the_fullest_summary_still_fits_and_shows_what_was_missed() {
    let mut record = sample::passed();
    let met = record.expectations[1].clone();
    record.expectations = (0..30).map(|_| met.clone()).collect();
    record.expectations[29] = Expectation {
        metric: "fan_out_latency.uncorrected.p99_9".to_owned(),
        want: "<= 500ms".to_owned(),
        got: None,
        passed: false,
        note: Some("not measured".to_owned()),
    };
    record.failures = (0..9)
        .map(|i| Failure { cause: format!("digest_mismatch_{i}"), count: 1_000_000 - i, devices: 90_000 })
        .collect();
    record.notes = (0..9).map(|i| format!("a note that is longer than any line {i} ").repeat(4)).collect();
    for latency in [&mut record.fan_out_latency, &mut record.twin_convergence, &mut record.connect_latency] {
        latency.uncorrected = Some(latency.corrected);
    }
    record.replay = format!("fleetwave run {} --seed 7", "a/long/path ".repeat(10));
    let text = summary(&record);
    assert!(text.contains("✗ fan_out_latency.uncorrected.p99_9"));
    let replay = text.find("replay").expect("the command is there");
    assert!(text[..replay].lines().count() < 40, "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
    let command: String = text[replay..].replace(" \\\n", " ");
    assert_eq!(
        command.split_whitespace().skip(1).collect::<Vec<_>>().join(" "),
        record.replay.split_whitespace().collect::<Vec<_>>().join(" ")
    );
}

#[test]
fn a_run_in_which_nothing_happened_has_no_figures() {
    let record = RunRecord {
        scenario: ScenarioRef { name: "empty".to_owned(), sha256: "0".repeat(64), overrides: Vec::new() },
        devices: Devices::default(),
        fan_out_latency: Latency::default(),
        twin_convergence: Latency::default(),
        connect_latency: Latency::default(),
        grant_latency: Latency::default(),
        fleet_convergence: FleetConvergence::default(),
        blob: crate::record::Blob::default(),
        rates: Rates::default(),
        harness: Harness::default(),
        expectations: Vec::new(),
        failures: Vec::new(),
        event_hash: None,
        verdict: Verdict::Interrupted,
        exit_code: 130,
        notes: vec!["interrupted: the figures are those until then".to_owned()],
        ..sample::passed()
    };
    insta::assert_snapshot!(screen(&record));
}
