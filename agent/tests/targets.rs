//! Several targets in one device: one connection, one patch, one trial at a time.

mod support;

use std::fs;
use std::time::Duration;

use fleetwave_hub::blob::Content;
use serde_json::{Value, json};
use support::{World, eventually, runs};

const TARGETS: &str =
    "[component.app]\ninstaller = \"directory\"\n[workload.web]\ninstaller = \"directory\"\n";

fn content(seed: u64) -> Content {
    Content::Generated { seed, size: 200_000 }
}

/// What a device with these targets is asked for.
fn desired(world: &World, seq: u64) -> Value {
    let sign =
        |target, id: &str| world.sign(target, &format!("{id}-{seq}"), seq, &content(seq), content(seq));
    json!({
        "firmware": sign(None, "fw"),
        "components": {"app": sign(Some("components.app"), "app")},
        "workloads": {"web": sign(Some("workloads.web"), "web")},
    })
}

/// The reports until all three run a release of `seq`, as the device's reported properties stand then.
fn converged(world: &World, seq: u64) -> Value {
    let mut reported = json!({});
    let paths = ["/firmware", "/components/app", "/workloads/web"];
    while !paths.iter().all(|path| reported.pointer(path).is_some_and(|s| s["running"]["seq"] == json!(seq)))
    {
        merge(&mut reported, world.report());
    }
    reported
}

fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (name, value) in patch {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch,
    }
}

#[test]
fn each_target_takes_its_release_and_the_first_report_of_all_is_one_patch() {
    let world = World::with(None, &[], TARGETS);
    let agent = world.start();
    let first = world.report();
    for path in ["/firmware/state", "/components/app/state", "/workloads/web/state"] {
        assert_eq!(first.pointer(path), Some(&json!("idle")), "{path} in {first}");
    }
    world.desire(&desired(&world, 2));
    let reported = converged(&world, 2);
    for path in ["/firmware/code", "/components/app/code", "/workloads/web/code"] {
        assert_eq!(reported.pointer(path), Some(&json!("ok")), "{path} in {reported}");
    }
    assert_eq!(world.blobs.control().counters().bytes, 600_000, "each byte once");
    assert!(agent.terminate().success());
    let status = world.status();
    for says in ["components.app\ncommitted  app-2 (seq 2)", "workloads.web\ncommitted  web-2 (seq 2)"] {
        assert!(status.contains(says), "{status}");
    }
}

#[test]
fn no_two_targets_are_on_trial_at_a_time() {
    // A check that finds another one under way fails, and so does its update.
    let marks = tempfile::tempdir().expect("a directory");
    let mark = marks.path().join("checking");
    let check = format!("mkdir {0} && sleep 0.3 && rmdir {0}", mark.display());
    let health = ["sh", "-c", check.as_str()];
    let section = |name: &str| format!("[{name}]\ninstaller = \"directory\"\nhealth = {health:?}\n");
    let world =
        World::with(None, &health, &format!("{}{}", section("component.app"), section("workload.web")));
    world.desire(&desired(&world, 2));
    assert!(world.run_once().success(), "{}", world.log());
    converged(&world, 2);
}

#[test]
fn a_release_of_one_target_is_refused_by_another_and_leaves_it_as_it_is() {
    let world = World::with(None, &[], TARGETS);
    let strange = world.sign(Some("components.app"), "app-2", 2, &content(2), content(2));
    world.desire(&json!({"firmware": strange}));
    assert_eq!(world.run_once().code(), Some(3), "{}", world.log());
    let reports = world.reports_until(|report| report["state"] == "failed");
    assert_eq!(reports.last().map(String::as_str), Some("fw-1 failed wrong_target"));
    assert_eq!(world.blobs.control().counters().requests, 0);
}

#[test]
fn a_release_for_certain_types_of_devices_is_taken_by_these_alone() {
    let world = World::new(None, &[]);
    let release = world.sign(None, "fw-2", 2, &content(2), content(2));
    world.desire(&json!({"firmware": world.sign_for(&["rpi3", "rpi4"], &release)}));
    assert_eq!(world.run_once().code(), Some(3), "{}", world.log());
    let reports = world.reports_until(|report| report["state"] == "failed");
    assert_eq!(reports.last().map(String::as_str), Some("fw-1 failed incompatible"));

    let typed = format!("device_type = \"rpi4\"\n{}", fs::read_to_string(world.config()).expect("text"));
    fs::write(world.config(), typed).expect("written");
    let release = world.sign(None, "fw-3", 3, &content(3), content(3));
    world.desire(&json!({"firmware": world.sign_for(&["rpi3", "rpi4"], &release)}));
    assert!(world.run_once().success(), "{}", world.log());
    world.reports_until(runs("fw-3"));
}

#[test]
fn a_component_that_fails_its_trial_goes_back_while_the_firmware_goes_on() {
    let world = World::with(None, &[], "[component.app]\ninstaller = \"directory\"\nhealth = [\"false\"]\n");
    let app = world.sign(Some("components.app"), "app-2", 2, &content(2), content(2));
    let firmware = world.sign(None, "fw-2", 2, &content(3), content(3));
    let agent = world.start();
    world.desire(&json!({"firmware": firmware, "components": {"app": app}}));
    let mut reported = json!({});
    while reported.pointer("/firmware/code") != Some(&json!("ok"))
        || reported.pointer("/components/app/code") != Some(&json!("unhealthy"))
    {
        merge(&mut reported, world.report());
    }
    assert_eq!(reported["components"]["app"]["running"], json!({"id": "none", "seq": 0}));
    assert!(agent.terminate().success());
}

#[test]
fn what_changes_while_the_hub_is_away_is_found_when_it_is_back() {
    let world = World::with(None, &[], TARGETS);
    let _agent = world.start();
    world.report();
    for seq in 2..5 {
        world.restart_hub(Duration::from_millis(300));
        world.desire(&desired(&world, seq));
        converged(&world, seq);
    }
}

#[test]
fn a_target_whose_state_is_gone_begins_anew_and_the_others_do_not_notice() {
    let world = World::with(None, &[], TARGETS);
    world.desire(&desired(&world, 2));
    assert!(world.run_once().success(), "{}", world.log());
    converged(&world, 2);
    fs::remove_dir_all(world.state().join("components.app")).expect("removed");
    let before = world.blobs.control().counters().bytes;
    let _agent = world.start();
    eventually("the component is there again", || {
        world.status().contains("components.app\ncommitted  app-2")
    });
    eventually("it was reported", || world.report()["components"]["app"]["code"] == "ok");
    assert_eq!(world.blobs.control().counters().bytes - before, 200_000);
}

#[test]
fn a_target_of_which_it_cannot_be_told_what_runs_says_so_and_leaves_the_others_as_they_are() {
    let world = World::with(None, &[], TARGETS);
    // Boots by default what is not there.
    let dir = world.state().join("components.app");
    fs::create_dir_all(&dir).expect("a directory");
    fs::write(dir.join("boot.json"), r#"{"default": "b", "once": null}"#).expect("written");
    let agent = world.start();
    world.desire(&desired(&world, 2));
    let mut reported = json!({});
    let is = |reported: &Value, path: &str, value: &str| reported.pointer(path) == Some(&json!(value));
    while !is(&reported, "/components/app/state", "broken") || !is(&reported, "/firmware/code", "ok") {
        merge(&mut reported, world.report());
    }
    let problem = &reported["components"]["app"]["problem"];
    assert_eq!(problem["code"], "storage_failed", "{problem}");
    assert!(problem["detail"].as_str().is_some_and(|told| told.contains("holds no release")), "{problem}");
    let (_, answer) = world.call("status", &Value::Null);
    assert_eq!(answer["targets"]["components.app"]["state"], "broken", "{answer}");
    let status = world.status();
    assert!(status.contains("components.app\nbroken     storage_failed: it cannot be told"), "{status}");

    fs::remove_file(dir.join("boot.json")).expect("mended");
    while !is(&reported, "/components/app/code", "ok") || !reported["components"]["app"]["problem"].is_null()
    {
        merge(&mut reported, world.report());
    }
    assert_eq!(reported["components"]["app"]["running"]["id"], "app-2");
    assert_eq!(reported["workloads"]["web"]["running"]["id"], "web-2");
    assert!(agent.terminate().success());
    assert!(!world.status().contains("broken"), "{}", world.status());
}
