//! What operators ask of a device by direct methods.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use fleetwave_hub_core::{Configuration, ConfigurationSpec};
use serde_json::{Value, json};
use support::{PATIENCE, World, content, eventually, runs};

/// A check that comes to no end, but ends with its agent: one that is killed takes nothing with it.
const UNDECIDED: [&str; 3] = ["sh", "-c", "while kill -0 $PPID; do sleep 0.1; done"];

/// Waits until the machine of the firmware is in a state.
fn until(world: &World, state: &str) {
    let entered = format!("entered target=firmware state={state:?}");
    eventually(state, || world.log().contains(&entered));
}

fn cancelled(world: &World) {
    let (status, said) = world.call("cancel", &json!({"target": "firmware"}));
    assert_eq!(status, 200, "{said}; {}", world.log());
    let reports = world.reports_until(|report| report["state"] == "failed");
    assert_eq!(reports.last().map(String::as_str), Some("fw-1 failed aborted"));
    // It is not begun again, and leaves nothing behind.
    until(world, "failed");
    assert_eq!(world.download(), 0);
}

#[test]
fn status_says_what_runs_and_how_the_last_update_ended() {
    let world = World::new(None, &[]);
    let _agent = world.start();
    world.release("fw-2", 2, &content(2), content(2));
    world.reports_until(runs("fw-2"));
    let (status, said) = world.call("status", &json!(null));
    assert_eq!((status, &said["version"]), (200, &json!(env!("CARGO_PKG_VERSION"))));
    let firmware = &said["targets"]["firmware"];
    assert_eq!(firmware["running"], json!({"id": "fw-2", "seq": 2}), "{said}");
    assert_eq!(firmware["last"], json!({"id": "fw-2", "seq": 2, "code": "ok"}), "{said}");
    assert_eq!((&firmware["state"], &firmware["updating"]), (&json!("idle"), &json!(null)), "{said}");
}

#[test]
fn a_method_that_there_is_not_is_answered_with_those_that_there_are() {
    let world = World::new(None, &[]);
    let _agent = world.start();
    let (status, said) = world.call("restart", &json!(null));
    assert_eq!(status, 404);
    assert!(said["message"].as_str().is_some_and(|text| text.contains("cancel, collect-logs")), "{said}");
    let (status, said) = world.call("cancel", &json!({"targets": "firmware"}));
    assert_eq!(status, 400, "{said}");
    assert!(said["message"].as_str().is_some_and(|text| text.contains("unknown field")), "{said}");
}

#[test]
fn an_update_is_called_off_in_mid_download() {
    let world = World::new(Some(50_000), &[]);
    let _agent = world.start();
    world.release("fw-2", 2, &content(2), content(2));
    eventually("a part of the payload is there", || world.download() > 0);
    until(&world, "downloading");
    cancelled(&world);
}

/// Puts a configuration of the firmware.
fn configure(world: &World, id: &str, priority: u32, firmware: &Value) {
    let content = json!({"properties.desired.firmware": firmware}).to_string();
    let configuration = Configuration::new(&ConfigurationSpec {
        id,
        priority,
        target_condition: "*",
        device_content: &content,
        ..ConfigurationSpec::default()
    });
    world.hub.control().put_configuration(configuration.expect("well-formed")).expect("accepted");
}

#[test]
fn a_configuration_of_higher_priority_calls_off_what_another_one_asks_for_and_a_write_into_the_twin_does_not()
{
    let world = World::new(Some(50_000), &[]);
    let _agent = world.start();
    let mut reference = world.sign(None, "fw-2", 2, &content(2), content(2));
    configure(&world, "rollout", 1, &reference);
    eventually("a part of the payload is there", || world.download() > 0);
    world.desire(&json!({"firmware": {"cancel": true}}));
    // Had the device heard of it, it would have heard of it before.
    let (_, said) = world.call("status", &json!(null));
    assert_eq!(said["targets"]["firmware"]["updating"]["id"], "fw-2", "{said}");
    reference["cancel"] = true.into();
    configure(&world, "stop", 2, &reference);
    let reports = world.reports_until(|report| report["code"] == "cancelled");
    assert_eq!(reports.last().map(String::as_str), Some("fw-1 idle cancelled"));
    world.hub.control().delete_configuration("stop").expect("accepted");
    world.reports_until(|report| report["state"] == "updating");
}

#[test]
fn an_update_is_called_off_while_a_lock_holds_it_up() {
    let marks = tempfile::tempdir().expect("a directory");
    let lock = marks.path().join("busy");
    fs::write(&lock, "").expect("a lock");
    let world =
        World::with(None, &[], &format!("[locks]\nfiles = [{:?}]\nretry_seconds = 1\n", lock.display()));
    let _agent = world.start();
    world.release("fw-2", 2, &content(2), content(2));
    eventually("the lock is found", || world.log().contains("a lock is held"));
    cancelled(&world);
}

#[test]
fn a_lock_that_goes_lets_the_update_go_on() {
    let marks = tempfile::tempdir().expect("a directory");
    let lock = marks.path().join("busy");
    fs::write(&lock, "reason = \"the arm moves\"").expect("a lock");
    let world =
        World::with(None, &[], &format!("[locks]\nfiles = [{:?}]\nretry_seconds = 1\n", lock.display()));
    let _agent = world.start();
    world.release("fw-2", 2, &content(2), content(2));
    eventually("the lock is found", || world.log().contains("the arm moves"));
    fs::remove_file(&lock).expect("removed");
    world.reports_until(runs("fw-2"));
}

#[test]
fn nothing_is_called_off_when_there_is_nothing_or_when_it_is_on_trial() {
    let world = World::new(None, &UNDECIDED);
    let _agent = world.start();
    for parameters in [json!(null), json!({"target": "firmware"})] {
        let (status, said) = world.call("cancel", &parameters);
        assert_eq!(status, 409, "{said}");
    }
    assert_eq!(world.call("cancel", &json!({"target": "components.app"})).0, 404);
    world.release("fw-2", 2, &content(2), content(2));
    until(&world, "probation");
    let (status, said) = world.call("cancel", &json!(null));
    assert_eq!(status, 409);
    assert!(said["message"].as_str().is_some_and(|text| text.contains("probation")), "{said}");
}

#[test]
fn a_reboot_waits_for_no_trial_unless_it_is_forced() {
    let marks = tempfile::tempdir().expect("a directory");
    let down = marks.path().join("down");
    let reboot = format!("[reboot]\ncommand = [\"touch\", {:?}]\n", down.display());
    let world = World::with(None, &UNDECIDED, &reboot);
    let agent = world.start();
    world.release("fw-2", 2, &content(2), content(2));
    until(&world, "probation");
    let (status, said) = world.call("reboot", &json!(null));
    assert!(status == 409 && !down.exists(), "{said}");
    assert_eq!(
        world.call("reboot", &json!({"force": true})).0,
        200,
        "the answer comes before the device goes down"
    );
    eventually("the command is run", || down.exists());
    assert!(agent.terminate().success(), "told to end while the machine goes down");
}

#[test]
fn a_reboot_that_fails_leaves_the_agent_connected() {
    let world = World::with(None, &[], "[reboot]\ncommand = [\"false\"]\n");
    let _agent = world.start();
    assert_eq!(world.call("reboot", &json!(null)).0, 200);
    eventually("it is told", || world.log().contains("the device is not rebooted"));
    assert_eq!(world.call("status", &json!(null)).0, 200);
}

#[test]
fn the_end_of_the_log_comes_with_an_answer() {
    let world = World::new(None, &[]);
    let _agent = world.start();
    world.reports_until(runs("fw-1"));
    let (status, said) = world.call("collect-logs", &json!({"lines": 3}));
    assert_eq!(status, 200, "{said}");
    let log = said["log"].as_str().expect("text");
    assert!(log.lines().count() == 3 && log.contains("collect-logs"), "{log}");
}

#[test]
fn logs_of_units_are_collected_two_at_a_time() {
    // As slow as a large journal on an old card.
    let tools = tempfile::tempdir().expect("a directory");
    let (script, go) = (tools.path().join("journalctl"), tools.path().join("go"));
    let wait = format!("while kill -0 $PPID && test ! -e {}; do sleep 0.05; done", go.display());
    fs::write(&script, format!("#!/bin/sh\n{wait}\necho the end\n")).expect("written");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("it can be run");
    let mut world = World::new(None, &[]);
    let path = format!("{}:{}", tools.path().display(), std::env::var("PATH").unwrap_or_default());
    world.environment.push(("PATH", path));
    let _agent = world.start();
    world.reports_until(runs("fw-1"));
    let unit = json!({"unit": "app.service"});
    let begun = [(); 2].map(|()| world.begin_call("collect-logs", &unit, PATIENCE).expect("called"));
    assert_eq!(world.call("collect-logs", &unit).0, 429);
    assert_eq!(world.call("collect-logs", &json!({"lines": 1})).0, 200, "its own log is at hand");
    assert_eq!(world.call("collect-logs", &json!({"unit": "../app.service"})).0, 400);
    fs::write(&go, "").expect("written");
    for call in begun {
        let answer = call.wait().expect("answered");
        assert_eq!((answer.status, &answer.payload[..]), (200, &br#"{"log":"the end\n"}"#[..]));
    }
    assert_eq!(world.call("collect-logs", &unit).0, 200);
}
