//! Whole updates by the real binary, against the local hub over MQTT and the blob endpoint over HTTP.

mod support;

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;

use fleetwave_hub::blob::{Content, Fault, FaultKind};
use serde_json::json;
use support::{SIZE, World, bytes, content, eventually, runs};

#[test]
fn a_configuration_brings_the_device_to_the_new_release_and_the_next_one_into_the_other_slot() {
    let world = World::new(None, &[]);
    let agent = world.start();
    assert_eq!(world.reports_until(runs("fw-1")), ["fw-1 idle -"]);
    world.release("fw-2", 2, &content(2), content(2));
    assert_eq!(world.reports_until(runs("fw-2")), ["fw-1 updating -", "fw-2 idle ok"]);
    world.release("fw-3", 3, &content(3), content(3));
    assert_eq!(world.reports_until(runs("fw-3")), ["fw-2 updating -", "fw-3 idle ok"]);
    assert!(agent.terminate().success(), "SIGTERM is no failure");

    let image = |slot: &str| fs::read(world.firmware().join(slot).join("image")).expect("an image");
    assert!(image("slot-b") == bytes(&content(2)) && image("slot-a") == bytes(&content(3)));
    assert_eq!(world.blobs.control().counters().bytes, 2 * SIZE, "each byte once");
    let status = world.status();
    assert!(status.contains("committed  fw-3 (seq 3)"), "{status}");
    assert!(status.contains("last       fw-3 (seq 3): ok"), "{status}");
}

#[test]
fn a_report_says_what_an_update_is_going_to_cost() {
    let world = World::new(None, &[]);
    let agent = world.start();
    world.reports_until(runs("fw-1"));
    world.release("fw-2", 2, &content(2), content(2));
    let plan = json!({"id": "fw-2", "method": "full", "bytes": SIZE, "requests": 1});
    let reports = world.reports_until(|report| report["plan"] == plan);
    assert_eq!(reports, ["fw-1 updating -"], "it is the one that says so");
    world.reports_until(runs("fw-2"));
    assert!(agent.terminate().success());
}

#[test]
fn killed_in_mid_download_the_agent_fetches_only_what_is_missing() {
    let world = World::new(Some(100_000), &[]);
    world.release("fw-2", 2, &content(2), content(2));
    let agent = world.start();
    eventually("a part of the payload is durable", || world.firmware().join("partial").exists());
    agent.kill();
    let blobs = world.blobs.control();
    eventually("the store notices", || blobs.counters().in_flight == 0);
    let status = world.status();
    let stored = status.split(" times, ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    let (stored, before): (u64, _) = (stored.expect(&status), blobs.counters().bytes);
    assert!(status.contains(&format!("{stored} of {SIZE} bytes")) && stored <= world.download(), "{status}");

    assert!(world.run_once().success(), "{}", world.log());
    world.reports_until(runs("fw-2"));
    assert_eq!(blobs.counters().bytes - before, SIZE - stored);
}

#[test]
fn killed_on_trial_the_agent_boots_the_slot_again_and_fetches_nothing() {
    let marks = tempfile::tempdir().expect("a directory");
    let first = marks.path().join("first");
    // The first check kills its agent, the second one is content.
    let check = "if mkdir \"$0\" 2>/dev/null; then kill -9 $PPID; fi";
    let world = World::new(None, &["sh", "-c", check, first.to_str().expect("text")]);
    world.release("fw-2", 2, &content(2), content(2));
    assert_eq!(world.run_once().signal(), Some(9), "{}", world.log());
    let status = world.status();
    assert!(status.contains("committed  fw-1") && status.contains("staged, booted 1 times"), "{status}");

    assert!(world.run_once().success(), "{}", world.log());
    world.reports_until(runs("fw-2"));
    assert_eq!(world.blobs.control().counters().bytes, SIZE);
    assert_eq!(String::from_utf8_lossy(&world.journal()).matches("\"booting\"").count(), 2);
}

#[test]
fn a_release_that_fails_its_health_check_is_rolled_back_and_not_tried_again() {
    let world = World::new(None, &["false"]);
    world.release("fw-2", 2, &content(2), content(2));
    assert_eq!(world.run_once().code(), Some(3), "{}", world.log());
    let reports = world.reports_until(|report| report["code"] == "unhealthy");
    assert_eq!(reports.last().map(String::as_str), Some("fw-1 failed unhealthy"));
    assert_eq!(world.run_once().code(), Some(3), "{}", world.log());
    assert_eq!(world.blobs.control().counters().bytes, SIZE);
}

#[test]
fn a_payload_that_is_not_what_was_signed_is_reported_and_never_reaches_a_slot() {
    let world = World::new(None, &[]);
    world.release("fw-2", 2, &content(2), content(9));
    assert_eq!(world.run_once().code(), Some(3), "{}", world.log());
    let reports = world.reports_until(|report| report["state"] == "failed");
    assert_eq!(reports.last().map(String::as_str), Some("fw-1 failed digest_mismatch"));
    assert!(!world.firmware().join("slot-b/image").exists() && world.download() == 0);
    assert_eq!(world.blobs.control().counters().bytes, 2 * SIZE, "tried twice");
}

#[test]
fn a_payload_of_another_size_than_was_signed_is_reported_as_that() {
    let world = World::new(None, &[]);
    world.release("fw-2", 2, &content(2), Content::Generated { seed: 2, size: SIZE - 1 });
    assert_eq!(world.run_once().code(), Some(3), "{}", world.log());
    let reports = world.reports_until(|report| report["state"] == "failed");
    assert_eq!(reports.last().map(String::as_str), Some("fw-1 failed size_mismatch"));
}

#[test]
fn a_store_that_cuts_answers_short_delays_the_update_and_no_more() {
    let world = World::new(None, &[]);
    world.blobs.control().set_faults(&[Fault { kind: FaultKind::Truncated, share: 0.5 }]);
    world.release("fw-2", 2, &content(2), content(2));
    assert!(world.run_once().success(), "{}", world.log());
    world.reports_until(runs("fw-2"));
}

#[test]
fn a_torn_journal_is_cut_back_to_its_last_record_and_the_update_goes_on() {
    let world = World::new(Some(100_000), &[]);
    world.release("fw-2", 2, &content(2), content(2));
    let agent = world.start();
    eventually("a part of the payload is there", || world.download() >= 50_000);
    agent.kill();
    let sound = world.journal();
    let torn = [&sound[..], b"0123456789abcdef {\"sta"].concat();
    fs::write(world.firmware().join("journal"), torn).expect("the journal is torn");
    assert!(world.status().contains("22 bytes at its end are torn"), "{}", world.status());

    assert!(world.run_once().success(), "{}", world.log());
    assert!(world.log().contains("torn or corrupt"), "{}", world.log());
    assert!(world.journal().starts_with(&sound), "what was sound is kept");
    world.reports_until(runs("fw-2"));

    // The record of the outcome is lost: the boot loader knows it still, and nothing is fetched again.
    let journal = world.journal();
    let file = File::options().write(true).open(world.firmware().join("journal")).expect("the journal");
    file.set_len(journal.len() as u64 - 5).expect("cut");
    let before = world.blobs.control().counters().requests;
    assert!(world.run_once().success(), "{}", world.log());
    assert_eq!(world.blobs.control().counters().requests, before);
    assert_eq!(world.journal(), journal, "the same record again");
}

#[test]
fn an_update_above_a_cap_is_refused_without_a_byte_and_status_tells_what_others_have_cost() {
    let world = World::new(None, &[]);
    world.release("fw-2", 2, &content(2), content(2));
    assert!(world.run_once().success(), "{}", world.log());
    assert!(world.status().contains("by 1 requests in this window; 39"), "{}", world.status());

    let mut config = fs::read_to_string(world.config()).expect("a configuration");
    config.push_str("[ledger]\nper_update = '300 kB'\n");
    fs::write(world.config(), config).expect("written");
    world.release("fw-3", 3, &content(3), content(3));
    assert_eq!(world.run_once().code(), Some(3), "{}", world.log());
    let reports = world.reports_until(|report| report["state"] == "failed");
    assert_eq!(reports.last().map(String::as_str), Some("fw-2 failed over_update_cap"));
    assert_eq!(world.blobs.control().counters().bytes, SIZE, "the first update's alone");
}

#[test]
fn a_cap_of_a_window_holds_over_restarts_and_ends_with_its_window() {
    let world = World::new(None, &[]);
    let good = fs::read_to_string(world.config()).expect("a configuration");
    let limit = |window: &str| {
        let text = format!("{good}[ledger]\nper_window = '600 kB'\nwindow = '{window}'\n");
        fs::write(world.config(), text).expect("written");
    };
    limit("3650 days");
    world.release("fw-2", 2, &content(2), content(2));
    assert!(world.run_once().success(), "{}", world.log());
    // Another process, another update.
    world.release("fw-3", 3, &content(3), content(3));
    assert_eq!(world.run_once().code(), Some(3), "{}", world.log());
    let reports = world.reports_until(|report| report["state"] == "failed");
    assert_eq!(reports.last().map(String::as_str), Some("fw-2 failed over_window_cap"));
    assert_eq!(world.blobs.control().counters().bytes, SIZE, "the first update's alone");
    // By now it is another second.
    limit("1 s");
    world.release("fw-4", 4, &content(4), content(4));
    assert!(world.run_once().success(), "{}", world.log());
    world.reports_until(runs("fw-4"));
}

#[test]
fn records_that_a_bad_medium_has_damaged_are_told_and_updates_go_on() {
    let world = World::new(Some(400_000), &[]);
    world.release("fw-2", 2, &content(2), content(2));
    assert!(world.run_once().success(), "{}", world.log());
    let mut damaged = world.journal();
    damaged[40] ^= 1;
    fs::write(world.firmware().join("journal"), &damaged).expect("written");
    assert!(world.status().contains("records that had been durable were lost"), "{}", world.status());
    let agent = world.start();
    world.reports_until(|report| report["problem"]["code"] == "journal_damaged");
    // What runs is known all the same, and is not installed again.
    assert_eq!(world.blobs.control().counters().bytes, SIZE);
    world.release("fw-3", 3, &content(3), content(3));
    let kept = world.firmware().join("journal.damaged");
    eventually("the next update is written down", || kept.exists());
    assert_eq!(fs::read(&kept).ok(), Some(damaged));
    let mut mended = false;
    world.reports_until(|report| {
        mended |= report.get("problem").is_some_and(serde_json::Value::is_null);
        mended && report["running"]["id"] == "fw-3"
    });
    assert!(!kept.exists(), "an update has ended well");
    assert!(agent.terminate().success());
}
