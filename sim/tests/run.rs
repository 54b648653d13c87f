//! Whole runs of the `fleetwave` command in virtual time: verdicts, exit codes, and what they leave behind.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use fleetwave_report::RunRecord;
use fleetwave_report::record::Verdict;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleetwave"));
    command.arg("run").args(arguments).arg("--quiet");
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the binary can be run")
}

fn record(output: &Output) -> RunRecord {
    let json: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let validator = jsonschema::validator_for(&fleetwave_report::schema()).expect("the schema is one");
    let errors: Vec<String> = validator.iter_errors(&json).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    serde_json::from_value(json).expect("what is valid can be read")
}

#[test]
fn a_run_that_meets_its_expectations_exits_with_0() {
    let output = run(&["quickstart", "--devices", "200", "--json"]);
    let record = record(&output);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!((record.verdict, record.exit_code), (Verdict::Passed, 0));
    assert_eq!(record.devices.converged, 200);
    assert_eq!(record.scenario.overrides, ["fleet.devices=200"]);
}

#[test]
fn a_run_that_misses_one_exits_with_99_and_shows_it_first() {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let path = dir.path().join("strict.toml");
    let text = "schema = 1\nname = \"strict\"\n[fleet]\ndevices = 100\n[[release]]\nid = \"fw-2\"\nseq = 2\n\
        [[step]]\nconnect = { over = \"1s\" }\n[[step]]\nwait = { until = \"connected >= 100%\" }\n\
        [[step]]\nconfigure = { id = \"c\", release = \"fw-2\" }\n\
        [[step]]\nwait = { until = \"settled >= 100%\" }\n\
        [expect]\n\"fleet_convergence.100\" = \"<= 1ms\"\n";
    std::fs::write(&path, text).expect("the test's directory is writable");
    let output = run(&[path.to_str().expect("the path is text")]);
    assert_eq!(output.status.code(), Some(99), "{}", String::from_utf8_lossy(&output.stderr));
    let summary = String::from_utf8(output.stdout).expect("a summary is text");
    let missed = summary.find('✗').expect("the missed expectation is marked");
    assert!(missed < summary.find("LATENCY").expect("the figures follow"), "{summary}");
    assert!(summary.contains("exit code 99"), "{summary}");
}

#[test]
fn the_printed_command_runs_the_same_again() {
    let first = record(&run(&[
        "quickstart",
        "--devices",
        "300",
        "--seed",
        "9",
        "--set",
        "release.size=16KiB",
        "--json",
    ]));
    let words: Vec<&str> = first.replay.split(' ').skip(2).chain(["--json"]).collect();
    let again = record(&run(&words));
    assert!(first.event_hash.is_some());
    assert_eq!(first.event_hash, again.event_hash);
    assert_eq!(first.scenario, again.scenario);
    assert_eq!(first.fan_out_latency, again.fan_out_latency);
    let other = record(&run(&["quickstart", "--devices", "300", "--seed", "10", "--json"]));
    assert_ne!(first.event_hash, other.event_hash);
}

#[test]
fn results_are_written_where_they_were_asked_for() {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let out = dir.path().join("results");
    let output = run(&["quickstart", "--devices", "50", "--out", out.to_str().expect("the path is text")]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    for name in ["run.json", "histograms.hlog", "summary.txt"] {
        assert!(out.join(name).metadata().expect("the file is there").len() > 0, "{name}");
    }
    let summary = std::fs::read(out.join("summary.txt")).expect("the file is there");
    assert_eq!(summary, output.stdout);
}

/// Whether the process has its own handler for the interrupt signal by now.
fn handles_interrupts(child: &Child) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0").trim();
    u64::from_str_radix(caught, 16).unwrap_or(0) & 0b10 != 0
}

#[test]
fn an_interrupted_run_exits_with_130_and_reports_what_it_has() {
    if !Path::new("/proc/self/status").exists() {
        return; // How the test knows when to interrupt.
    }
    // More than can be run before the signal arrives, on any machine.
    let mut child = command(&["quickstart", "--devices", "1M", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary can be run");
    while !handles_interrupts(&child) {
        assert!(
            child.try_wait().expect("it can be asked").is_none(),
            "it ended before it could be interrupted"
        );
        std::thread::yield_now();
    }
    let killed =
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill can be run");
    assert!(killed.success());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    let record = record(&output);
    assert_eq!(record.verdict, Verdict::Interrupted);
    assert!(record.devices.converged < 1_000_000);
}
