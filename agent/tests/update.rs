//! Whole updates by the real binary, against the local hub over MQTT and the blob endpoint over HTTP.

mod support;

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::time::{SystemTime, UNIX_EPOCH};

use fleetwave_hub::blob::{Content, Fault, FaultKind};
use serde_json::{Value, json};
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
    let stored = status.split(" once, ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
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
    assert!(status.contains("committed  fw-1") && status.contains("staged, booted once"), "{status}");

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
    let decade = 3650 * 86_400;
    limit("3650 days");
    world.release("fw-2", 2, &content(2), content(2));
    assert!(world.run_once().success(), "{}", world.log());
    // Another process, another update.
    world.release("fw-3", 3, &content(3), content(3));
    let agent = world.start();
    let mut until = 0;
    world.reports_until(|report| {
        until = report["problem"]["until"].as_u64().unwrap_or_default();
        report["problem"]["code"] == "over_window_cap"
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("later than 1970").as_secs();
    assert_eq!(until, (now / decade + 1) * decade, "the end of the window");
    let (_, status) = world.call("status", &Value::Null);
    let firmware = &status["targets"]["firmware"];
    assert_eq!((&firmware["state"], &firmware["problem"]["until"]), (&json!("deferred"), &json!(until)));
    assert!(agent.terminate().success());
    assert_eq!(world.blobs.control().counters().bytes, SIZE, "the first update's alone");
    // By now it is another second.
    limit("1 s");
    assert!(world.run_once().success(), "{}", world.log());
    let mut over = false;
    world.reports_until(|report| {
        over |= report.get("problem").is_some_and(Value::is_null);
        over && report["running"]["id"] == "fw-3"
    });
}

#[test]
fn an_update_goes_on_when_the_window_ends_that_had_too_little_left_and_one_that_fits_in_none_is_refused() {
    // The first two may need more than one window together, and the third needs more than any has.
    let world = World::with(None, &[], "[ledger]\nper_window = '600 kB'\nwindow = '4 s'\n");
    let agent = world.start();
    for (id, seq) in [("fw-2", 2), ("fw-3", 3)] {
        world.release(id, seq, &content(seq), content(seq));
        world.reports_until(runs(id));
    }
    let large = Content::Generated { seed: 4, size: 700_000 };
    world.release("fw-4", 4, &large, large.clone());
    let mut cause = Value::Null;
    world.reports_until(|report| {
        cause = report["cause"].clone();
        report["code"] == "over_window_cap"
    });
    assert!(cause.as_str().is_some_and(|cause| cause.ends_with("a whole window has 600000")), "{cause}");
    assert_eq!(world.blobs.control().counters().bytes, 2 * SIZE, "and not begun");
    assert!(agent.terminate().success());
}

#[test]
fn a_failure_is_told_with_its_cause_in_the_same_report_which_goes_when_what_runs_is_desired_again() {
    let world = World::new(None, &["sh", "-c", "echo one >&2; echo no sensor at 0x48 >&2; exit 3"]);
    world.release("fw-2", 2, &content(2), content(2));
    assert_eq!(world.run_once().code(), Some(3), "{}", world.log());
    let mut causes = Vec::new();
    let mut hear = |report: &Value| {
        if let Some(cause) = report.get("cause") {
            assert!(report.get("code").is_some(), "never alone: {report}");
            causes.push(cause.clone());
        }
    };
    world.reports_until(|report| {
        hear(report);
        report["code"] == "unhealthy"
    });
    let cause = "sh failed with exit status: 3: no sensor at 0x48";
    let status = world.status();
    assert!(status.contains("last       fw-2 (seq 2): unhealthy\nbecause    "), "{status}");
    assert!(status.contains(cause), "{status}");

    // The hub knows it, also in the eyes of another process.
    let agent = world.start();
    let (_, status) = world.call("status", &Value::Null);
    let last = &status["targets"]["firmware"]["last"];
    assert!(last["cause"].as_str().is_some_and(|told| told.ends_with(cause)), "{status}");
    let runs = world.sign(None, "fw-1", 1, &content(1), content(1));
    let content = json!({"properties.desired.firmware": runs}).to_string();
    world.configure_all("back", 9, &content);
    world.reports_until(|report| {
        hear(report);
        report["state"] == "idle"
    });
    assert!(agent.terminate().success());
    assert!(causes[0].as_str().is_some_and(|told| told.ends_with(cause)), "{causes:?}");
    assert_eq!(causes[1..], [Value::Null]);
}

#[test]
fn a_hook_that_stops_an_update_is_named_and_so_is_what_a_store_answers() {
    let hook = "[firmware.hooks]\nbefore_install = ['sh', '-c', 'echo the disk is busy; exit 7']\n";
    let world = World::with(None, &[], hook);
    world.release("fw-2", 2, &content(2), content(2));
    let agent = world.start();
    let cause = |code: &str| {
        let mut cause = Value::Null;
        world.reports_until(|report| {
            cause = report["cause"].clone();
            report["code"] == *code
        });
        cause
    };
    let told = cause("hook_failed");
    assert_eq!(told, "the hook before_install: sh failed with exit status: 7: the disk is busy");
    // What is refused before it is begun says what does not fit.
    let strange = world.sign(Some("components.app"), "app-3", 3, &content(3), content(3));
    let section = json!({"properties.desired.firmware": strange}).to_string();
    world.configure_all("app-3", 3, &section);
    assert_eq!(cause("wrong_target"), "it is signed for components.app, and asked for as firmware");
    assert!(agent.terminate().success());
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
