use super::*;
use crate::scenario::model::{Scenario, Share};
use crate::scenario::step::{Action, WaitFor};

fn with(sets: &[&str]) -> Scenario {
    loaded(MINIMAL, sets).scenario
}

const GROUPS: &str =
    "[[fleet.group]]\nname = \"canary\"\nshare = \"1%\"\n[[fleet.group]]\nname = \"rest\"\n\n[[release]]";

fn grouped() -> String {
    MINIMAL.replacen("[[release]]", GROUPS, 1)
}

#[test]
fn the_only_member_of_an_array_needs_no_name() {
    assert_eq!(with(&["release.size=1MB"]).releases[0].size.to_string(), "1MB");
    assert_eq!(with(&["release[0].size=1MB"]).releases[0].size.to_string(), "1MB");
    assert_eq!(with(&["release.fw-2.size=1MB"]).releases[0].size.to_string(), "1MB");
}

#[test]
fn members_go_by_name_or_number_and_names_may_have_dots() {
    let text = grouped().replace("\"canary\"", "\"v1.2\"");
    let scenario = loaded(&text, &["fleet.group.v1.2.share=20%", "fleet.group[1].tags.site=7"]).scenario;
    assert_eq!(scenario.fleet.groups[0].share, Share::Of("20%".parse().unwrap()));
    assert_eq!(scenario.fleet.groups[1].tags["site"], 7);
}

#[test]
fn steps_go_by_name_or_by_their_configuration() {
    let scenario = with(&["step.c.configure.priority=3", "step[2].wait.timeout=90s"]);
    assert!(matches!(&scenario.steps[1].action, Action::Configure(put) if put.priority == 3));
    let Action::Wait(wait) = &scenario.steps[2].action else { panic!("not a wait") };
    assert!(matches!(wait.what, WaitFor::Progress { timeout: Some(t), .. } if t.to_string() == "90s"));
}

#[test]
fn sections_that_the_file_leaves_out_are_made() {
    let scenario = with(&["hub.tier=S1", "agent.backoff={ first = '2s', max = '9s' }", "clock=02:00"]);
    assert_eq!(format!("{:?}", scenario.hub.tier), "S1");
    assert_eq!(scenario.agent.backoff.max.to_string(), "9s");
    assert_eq!(scenario.clock.to_string(), "02:00");
}

#[test]
fn metrics_are_set_by_their_own_names() {
    let scenario = with(&["expect.fleet_convergence.99.9=<= 10m", "expect.devices.missing=5"]);
    let wants: Vec<_> = scenario.expect.0.iter().map(|e| (e.metric.name, e.want.as_str())).collect();
    assert_eq!(wants, [("devices.missing", "= 5"), ("fleet_convergence.99.9", "<= 10m")]);
}

#[test]
fn the_last_override_of_a_key_wins() {
    assert_eq!(with(&["seed=2", "seed=3"]).seed, 3);
}

#[test]
fn an_override_that_is_wrong_is_named() {
    let cases: [&[&str]; 14] = [
        &["release.size"],
        &["release.sise=64KiB"],
        &["release.size=64kb"],
        &["fleet.devcies=5"],
        &["fleet.group.canari.share=5%"],
        &["fleet.group[7].share=5%"],
        &["fleet.group.canary.share.deep=5%"],
        &["fleet[0].devices=5"],
        &["step.wait.timeout=1m"],
        &["expect.fan_out_latency.p95=<= 1s"],
        &["expect.devices.missing=<= 5%"],
        &["=5"],
        &["a..b=5"],
        &["release[x].size=5", "seed=-1"],
    ];
    let said: String =
        cases.iter().map(|sets| format!("# {}\n{}\n", sets.join(" "), refused(&grouped(), sets))).collect();
    insta::assert_snapshot!(said);
}

#[test]
fn an_array_that_is_not_there_cannot_be_changed() {
    insta::assert_snapshot!(refused(MINIMAL, &["fleet.group.canary.share=5%"]));
}
