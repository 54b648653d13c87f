//! What users of the `fleetwave` command see: its output and its exit codes.

use std::path::Path;
use std::process::{Command, Output};

fn fleetwave(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fleetwave")).args(arguments).output().expect("the binary can be run")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it ends by itself")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("output is text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("messages are text")
}

/// A scenario file in `dir`.
fn scenario(dir: &Path, text: &str) -> String {
    let path = dir.join("scenario.toml");
    std::fs::write(&path, text).expect("the test's directory is writable");
    path.to_str().expect("the path is text").to_owned()
}

#[test]
fn help_and_version_succeed() {
    for arguments in [&["--help"][..], &["run", "--help"], &["--version"]] {
        assert_eq!(code(&fleetwave(arguments)), 0, "{arguments:?}");
    }
}

#[test]
fn wrong_usage_exits_with_2_and_says_what_was_possible() {
    let cases: [(&[&str], &str); 6] = [
        (&[], "Usage"),
        (&["walk"], "walk"),
        (&["run"], "SCENARIO"),
        (&["run", "quickstart", "--engine", "vertical"], "virtual"),
        (&["run", "quickstart", "--target", "mqtts://host:8883"], "only plain TCP"),
        (&["run", "quickstart", "--seed", "many"], "--seed"),
    ];
    for (arguments, expected) in cases {
        let output = fleetwave(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn contradicting_arguments_exit_with_2_and_name_the_fix() {
    let output = fleetwave(&["run", "quickstart", "--transport", "tcp"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("add --engine live"), "{}", stderr(&output));
}

#[test]
fn a_scenario_that_is_not_there_or_not_right_exits_with_2() {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let wrong = scenario(dir.path(), "schema = 1\nname = \"x\"\n[fleet]\ndevicse = 10\n");
    for arguments in [["run", wrong.as_str()], ["check", wrong.as_str()]] {
        let output = fleetwave(&arguments);
        assert_eq!(code(&output), 2);
        assert!(stderr(&output).contains("devices"), "{}", stderr(&output));
    }
    assert_eq!(code(&fleetwave(&["run", "quikstart"])), 2);
    assert_eq!(code(&fleetwave(&["run", "quickstart", "--devices", "many"])), 2);
    assert_eq!(code(&fleetwave(&["run", "quickstart", "--set", "release.sise=1"])), 2);
}

#[test]
fn a_result_that_has_nowhere_to_go_is_refused_before_the_run() {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let file = scenario(dir.path(), "not a directory");
    let output = fleetwave(&["run", "quickstart", "--out", &file]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("--out"), "{}", stderr(&output));
    assert!(output.stdout.is_empty());
}

#[test]
fn check_explains_a_shipped_scenario() {
    let output = fleetwave(&["check", "quickstart"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains("timeline"));
}

#[test]
fn schemas_are_json_and_say_which_draft_they_are() {
    for arguments in [&["schema"][..], &["schema", "--record"]] {
        let output = fleetwave(arguments);
        assert_eq!(code(&output), 0);
        let schema: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("a schema is JSON");
        assert!(schema["$schema"].is_string());
    }
}

#[test]
fn every_shipped_scenario_is_listed_with_what_it_shows_and_can_be_checked() {
    let output = fleetwave(&["scenarios"]);
    assert_eq!(code(&output), 0);
    let listed = stdout(&output);
    assert!(listed.lines().count() >= 7, "{listed}");
    for line in listed.lines() {
        let (name, summary) = line.split_once(' ').expect("a name and a summary");
        assert!(!summary.trim().is_empty(), "{line}");
        assert_eq!(code(&fleetwave(&["check", name])), 0, "{name}");
    }
}
