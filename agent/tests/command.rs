//! What the command line says to people.

mod support;

use std::fs;

use support::{World, agent, program, runs};

/// What `check-config` says to a file in which `from` was replaced by `to`.
fn complaint(world: &World, from: &str, to: &str) -> String {
    let good = fs::read_to_string(world.config()).expect("a configuration");
    assert!(good.contains(from), "{from}");
    let file = world.dir.path().join("bad.toml");
    fs::write(&file, good.replace(from, to)).expect("written");
    let output = agent(&["check-config"], &file);
    assert_eq!(output.status.code(), Some(2), "{to}");
    String::from_utf8(output.stderr).expect("text")
}

#[test]
fn a_mistake_in_the_configuration_is_told_with_its_place() {
    let world = World::new(None, &[]);
    assert!(agent(&["check-config"], &world.config()).status.success());
    for (from, to, says) in [
        ("splay_seconds", "splay_secs", "bad.toml:12:1: unknown field `splay_secs`"),
        ("DeviceId=", "Device=", "`Device` in the connection string is not supported"),
        ("plain = true", "host = \"hub.example\"", "has to be said in one way"),
        ("plain = true", "username = \"me\"", "for profile = \"plain\""),
        ("plain = true", "token_seconds = 3", "token_seconds of [hub] is 5 or more"),
        ("seq = 1", "seq = -1", "bad.toml:10:34:"),
        ("installer = ", "installed_by = ", "unknown field `installed_by`: did you mean `installer`?"),
        ("directory", "nowhere", "there is no installer \"nowhere\""),
        ("threshold = 1", "threshold = 2", "threshold is 2, with 1 keys"),
        ("k1 = \"", "k1 = \"x", "not a base64 Ed25519 public key"),
        ("state = ", "other = ", "unknown field `other`"),
    ] {
        let complaint = complaint(&world, from, to);
        assert!(complaint.contains(says), "{to}: {complaint}");
        assert!(!complaint.contains("SharedAccessKey="), "{complaint}");
    }
}

#[test]
fn a_file_that_is_missing_is_named() {
    let world = World::new(None, &[]);
    let output = agent(&["check-config"], &world.dir.path().join("nowhere.toml"));
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nowhere.toml"), "{output:?}");
}

#[test]
fn the_version_is_the_packages() {
    let output = program().arg("version").output().expect("the agent runs");
    assert_eq!(output.stdout, format!("fleetwave-agent {}\n", env!("CARGO_PKG_VERSION")).into_bytes());
}

#[test]
fn two_agents_do_not_share_a_state_directory() {
    let world = World::new(None, &[]);
    assert!(world.status().contains("no agent has run"), "{}", world.status());
    let _first = world.start();
    world.reports_until(runs("fw-1"));
    assert_eq!(world.run_once().code(), Some(1));
    assert!(world.log().contains("in use by another agent"), "{}", world.log());
    assert!(world.status().contains("committed  fw-1 (seq 1)"), "{}", world.status());
}

#[test]
fn a_configuration_that_is_fine_is_told_with_what_it_means_and_what_may_hurt() {
    let world = World::with(None, &[], "[windows]\ninstall = { from = \"00:00\", to = \"00:00\" }\n");
    let output = agent(&["check-config"], &world.config());
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success());
    let has = |label: &str, said: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(label) && line.contains(said));
        assert!(line.is_some(), "no line {label} with {said}:\n{text}");
    };
    let hub = world.hub.address().expect("the hub listens").to_string();
    has("at", &hub);
    has("by", "MQTT without TLS");
    has("device", "dev-1");
    has("shows", "a key, from the configuration");
    has("keys", "1 of these must have signed: k1");
    has("installed", "fw-1 (seq 1)");
    has("downloads", "at any time");
    has("installs", "every day from 00:00 to 00:00: open now, for");
    has("delay", "up to 0 s before an update");
    has("warning", "firmware: nothing is asked of a release on trial but that the hub is reached");
    has("warning", "per_update and per_window");
    assert!(!text.contains(&world.device_key()), "{text}");
}

#[test]
fn a_check_for_programs_has_the_same_and_a_mistake_with_its_place() {
    let world = World::new(None, &["true"]);
    let check = |config: &std::path::Path| {
        let output = agent(&["check-config", "--json"], config);
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (output.status.code(), said)
    };
    let (code, said) = check(&world.config());
    assert_eq!(code, Some(0));
    assert_eq!(
        said["understood"]["firmware"]["trial"],
        "true is content, within 60 s, and has to reach the hub"
    );
    let codes: Vec<_> =
        said["warnings"].as_array().expect("a list").iter().map(|of| of["code"].clone()).collect();
    assert_eq!(codes, ["secret", "tryout", "no_cap"], "{said}");
    let good = fs::read_to_string(world.config()).expect("a configuration");
    fs::write(world.config(), good.replace("threshold", "treshold")).expect("written");
    let (code, said) = check(&world.config());
    assert_eq!(
        (code, &said["error"]["line"], &said["error"]["column"]),
        (Some(2), &6.into(), &1.into()),
        "{said}"
    );
}
