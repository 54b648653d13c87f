use super::*;
use crate::scenario::{explain, load, shipped};

#[test]
fn a_minimal_scenario_is_enough() {
    let loaded = loaded(MINIMAL, &[]);
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.scenario.steps.len(), 3);
}

#[test]
fn every_shipped_scenario_loads_by_name_and_without_warnings() {
    for scenario in shipped() {
        let loaded = load(scenario.name, &[]).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(loaded.scenario.name, scenario.name);
        assert_eq!(loaded.warnings, [], "{}", scenario.name);
        assert!(scenario.summary().ends_with('.'), "{}", scenario.summary());
    }
}

#[test]
fn a_scenario_written_out_and_read_again_is_the_same() {
    for scenario in shipped() {
        let first = load(scenario.name, &[]).unwrap().scenario;
        let text = toml_edit::ser::to_string(&first).unwrap();
        let second = loaded(&text, &[]).scenario;
        assert_eq!(second, first, "{text}");
    }
}

#[test]
fn explain_tells_each_shipped_scenario_in_words() {
    for scenario in shipped() {
        let text = explain(&load(scenario.name, &[]).unwrap());
        insta::assert_snapshot!(format!("explain-{}", scenario.name), text);
    }
}

#[test]
fn explain_names_every_fault_and_setting() {
    let text = MINIMAL.replace(
        "[[step]]\nconnect",
        r#"[agent]
probation_timeout = "5s"

[hub]
tier = "S2"
units = 2
configuration_cycle = "5m"

[blob]
concurrency = 50
bandwidth = "1Mbit/s"

[[step]]
at = "1s"
fault.drop_notifications = { share = "1%" }
[[step]]
fault.delay_notifications = { by = "50ms", lasts = "1m" }
[[step]]
fault.power_cut = { during = "now" }
[[step]]
fault.power_cut = { during = "staging", share = "10%" }
[[step]]
fault.blob_error = { status = 503, share = "5%" }
[[step]]
fault.blob_slow = { bandwidth = "1MB/s", lasts = "10s" }
[[step]]
fault.blob_corrupt = { share = "1%" }
[[step]]
fault.harness_stall = { for = "300ms" }
[[step]]
fault.late_step = { by = "1s" }
[[step]]
name = "all at once"
connect"#,
    );
    let text = text
        .replace("over = \"10s\"", "storm = true")
        .replace("id = \"fw-2\"", "id = \"fw-2\"\ncorrupt = true");
    insta::assert_snapshot!(explain(&loaded(&text, &[])));
}

#[test]
fn the_digest_depends_on_the_text_and_on_the_overrides() {
    let digest = |text: &str, sets: &[&str]| loaded(text, sets).sha256;
    let plain = digest(MINIMAL, &[]);
    assert_eq!(plain.len(), 64);
    assert_eq!(plain, digest(MINIMAL, &[]));
    assert_ne!(plain, digest(MINIMAL, &["seed=2"]));
    assert_ne!(plain, digest(&format!("{MINIMAL}\n# a comment"), &[]));
    assert_ne!(digest(MINIMAL, &["seed=2", "clock=02:00"]), digest(MINIMAL, &["clock=02:00", "seed=2"]));
}

#[test]
fn what_is_not_there_is_said_with_what_is() {
    let problem = load("quickstrat", &[]).unwrap_err().to_string();
    insta::assert_snapshot!(problem);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("latin.toml");
    std::fs::write(&file, b"schema = 1\nname = \"\xe9\"\n").unwrap();
    let problem = load(file.to_str().unwrap(), &[]).unwrap_err().to_string();
    assert!(problem.contains("not UTF-8 text (byte 19)"), "{problem}");
}
