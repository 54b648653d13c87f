use super::*;
use crate::scenario::load_text;

const HEAD: &str = r#"
schema = 1
name = "t"
[fleet]
devices = 100
[[fleet.group]]
name = "canary"
share = "10%"
tags = { ring = "canary" }
[[fleet.group]]
name = "rest"
[[release]]
id = "fw-2"
seq = 2
[harness]
max_duration = "1h"
settle = "20s"
"#;

/// A configuration for everybody, and a wait for it.
const ROLLOUT: &str = r#"
[[step]]
configure = { id = "c", release = "fw-2" }
[[step]]
wait = { until = "converged >= 99%" }
"#;

fn scenario(steps: &str) -> Scenario {
    load_text("t.toml", &format!("{HEAD}{steps}"), &[])
        .unwrap_or_else(|problems| panic!("{problems}"))
        .scenario
}

fn timeline(scenario: &Scenario) -> Timeline<'_> {
    Timeline::new(scenario, |group| if group == Some("canary") { 10 } else { 100 })
}

fn secs(seconds: u64) -> Instant {
    Instant::from_micros(seconds * 1_000_000)
}

fn counts(targeted: u64, converged: u64, failed: u64) -> Counts {
    Counts {
        total: 100,
        connected: 100,
        targeted,
        notified: targeted,
        converged,
        failed,
        rolled_back: failed,
    }
}

/// What the actions are, in words that a test can compare.
fn words(actions: &[Action<'_>]) -> Vec<String> {
    let word = |action: &Action<'_>| match action {
        Action::Connect { from, .. } => format!("connect from {}", from.as_secs_f64()),
        Action::Configure { id, intended, configure } => {
            format!("configure {} as {} meant at {}", configure.id, id.0, intended.as_secs_f64())
        }
        Action::Cancel { configuration } => format!("cancel {configuration}"),
        Action::Fault { intended, fault } => format!("{} meant at {}", fault.name(), intended.as_secs_f64()),
        Action::End(end) => format!("{end:?}"),
    };
    actions.iter().map(word).collect()
}

#[test]
fn steps_follow_each_other_and_the_run_ends_after_the_last() {
    let scenario = scenario(&format!("[[step]]\nconnect = {{ over = \"10s\" }}\n{ROLLOUT}"));
    let mut timeline = timeline(&scenario);
    let none = Counts { total: 100, ..Counts::default() };
    assert_eq!(words(&timeline.poll(secs(0), &none)), ["connect from 0"]);
    assert_eq!(timeline.next_wake(), secs(10));
    assert!(timeline.poll(secs(9), &none).is_empty());
    assert_eq!(words(&timeline.poll(secs(10), &none)), ["configure c as 0 meant at 10"]);
    timeline.confirm(ChangeId(0));
    assert!(timeline.poll(secs(11), &counts(100, 98, 0)).is_empty());
    assert_eq!(timeline.phase(), "wait until converged >= 99%");
    assert_eq!(words(&timeline.poll(secs(12), &counts(100, 99, 0))), ["Completed"]);
    assert_eq!(timeline.next_wake(), Instant::NEVER);
    assert!(timeline.poll(secs(13), &counts(100, 99, 0)).is_empty());
}

#[test]
fn a_wait_is_not_judged_by_counts_from_before_the_change() {
    let scenario = scenario(
        r#"
        [[step]]
        configure = { id = "a", release = "fw-2", target = "tags.ring = 'canary'" }
        [[step]]
        wait = { until = "converged >= 99%" }
        [[step]]
        configure = { id = "b", release = "fw-2", priority = 20 }
        [[step]]
        wait = { until = "converged >= 99%" }
        "#,
    );
    let mut timeline = timeline(&scenario);
    assert_eq!(timeline.poll(secs(0), &counts(0, 0, 0)).len(), 1);
    timeline.confirm(ChangeId(0));
    let canaries_done = counts(10, 10, 0);
    assert_eq!(words(&timeline.poll(secs(5), &canaries_done)), ["configure b as 1 meant at 5"]);
    assert!(timeline.poll(secs(6), &canaries_done).is_empty(), "the canaries do not stand for the fleet");
    timeline.confirm(ChangeId(1));
    assert!(timeline.poll(secs(7), &counts(100, 10, 0)).is_empty());
    assert_eq!(words(&timeline.poll(secs(8), &counts(100, 99, 0))), ["Completed"]);
}

#[test]
fn an_engine_that_polls_late_still_gets_the_intended_time() {
    let scenario = scenario(
        r#"
        [[step]]
        wait = { for = "10s" }
        [[step]]
        configure = { id = "c", release = "fw-2" }
        [[step]]
        at = "30s"
        fault = { hub_restart = { down_for = "5s" } }
        "#,
    );
    let mut timeline = timeline(&scenario);
    timeline.poll(secs(0), &counts(0, 0, 0));
    assert_eq!(timeline.next_wake(), secs(10));
    assert_eq!(words(&timeline.poll(secs(13), &counts(0, 0, 0))), ["configure c as 0 meant at 10"]);
    assert_eq!(timeline.next_wake(), secs(30));
    let late = timeline.poll(secs(31), &counts(100, 0, 0));
    assert_eq!(words(&late), ["hub_restart meant at 30", "Completed"]);
}

#[test]
fn a_planted_late_step_is_sent_late_and_keeps_its_intended_time() {
    let scenario = scenario(
        r#"
        [[step]]
        fault = { late_step = { by = "2s" } }
        [[step]]
        at = "10s"
        configure = { id = "c", release = "fw-2" }
        "#,
    );
    let mut timeline = timeline(&scenario);
    assert!(timeline.poll(secs(0), &counts(0, 0, 0)).is_empty());
    assert!(timeline.poll(secs(11), &counts(0, 0, 0)).is_empty());
    assert_eq!(timeline.next_wake(), secs(12));
    assert_eq!(
        timeline.poll(secs(12), &counts(0, 0, 0))[0],
        Action::Configure {
            id: ChangeId(0),
            intended: secs(10),
            configure: match &scenario.steps[1].action {
                step::Action::Configure(configure) => configure,
                other => panic!("{other:?}"),
            },
        }
    );
}

#[test]
fn a_step_at_a_time_waits_for_its_turn_and_then_is_not_late() {
    let scenario = scenario(
        r#"
        [[step]]
        connect = { over = "10s" }
        [[step]]
        wait = { until = "connected >= 100%" }
        [[step]]
        at = "20s"
        fault = { hub_restart = { down_for = "5s" } }
        "#,
    );
    let none = Counts { total: 100, ..Counts::default() };
    for (connected, fault_sent, meant) in
        [(12, 20, "hub_restart meant at 20"), (30, 30, "hub_restart meant at 30")]
    {
        let mut timeline = timeline(&scenario);
        assert_eq!(words(&timeline.poll(secs(0), &none)), ["connect from 0"]);
        assert!(timeline.poll(secs(11), &none).is_empty());
        let mut actions = timeline.poll(secs(connected), &counts(0, 0, 0));
        actions.extend(timeline.poll(secs(fault_sent), &counts(0, 0, 0)));
        assert_eq!(words(&actions), [meant, "Completed"]);
    }
}

#[test]
fn an_abort_cancels_every_configuration_and_waits_for_devices_under_way() {
    let scenario = scenario(
        r#"
        [[step]]
        configure = { id = "canary", release = "fw-2", target = "tags.ring = 'canary'" }
        [[step]]
        name = "watch the canary"
        wait = { until = "converged >= 99%", abort_if = "failed > 5%" }
        [[step]]
        configure = { id = "fleet", release = "fw-2" }
        "#,
    );
    let end = |when: u64, counts: &Counts| {
        let mut timeline = timeline(&scenario);
        timeline.poll(secs(0), &Counts::default());
        timeline.confirm(ChangeId(0));
        assert_eq!(words(&timeline.poll(secs(5), &super::tests::counts(10, 3, 1))), ["cancel canary"]);
        assert_eq!(timeline.next_wake(), secs(25));
        words(&timeline.poll(secs(when), counts))
    };
    let aborted = r#"Aborted { step: "watch the canary", condition: "failed > 5%" }"#;
    assert!(end(6, &counts(10, 3, 2)).is_empty());
    assert_eq!(end(6, &counts(10, 3, 7)), [aborted]);
    assert_eq!(end(25, &counts(10, 3, 2)), [aborted]);
}

#[test]
fn a_wait_that_times_out_stops_the_run_or_goes_on_as_it_says() {
    for (on_timeout, expected) in [
        ("stop", r#"TimedOut { step: "wait until converged >= 99%", condition: "converged >= 99%" }"#),
        ("continue", "Completed"),
    ] {
        let scenario = scenario(&format!(
            r#"
            [[step]]
            configure = {{ id = "c", release = "fw-2" }}
            [[step]]
            wait = {{ until = "converged >= 99%", timeout = "30s", on_timeout = "{on_timeout}" }}
            "#
        ));
        let mut timeline = timeline(&scenario);
        timeline.poll(secs(0), &Counts::default());
        timeline.confirm(ChangeId(0));
        assert_eq!(timeline.next_wake(), secs(30));
        assert_eq!(words(&timeline.poll(secs(30), &counts(100, 50, 0))), [expected]);
        assert_eq!(timeline.notes().len(), usize::from(on_timeout == "continue"));
    }
}

#[test]
fn a_run_ends_when_its_time_is_over_whatever_it_waits_for() {
    let scenario = scenario(ROLLOUT);
    let mut timeline = timeline(&scenario);
    timeline.poll(secs(0), &Counts::default());
    assert_eq!(timeline.next_wake(), secs(3600));
    let end = timeline.poll(secs(3600), &counts(100, 0, 0));
    assert_eq!(words(&end), [r#"OutOfTime { step: "wait until converged >= 99%" }"#]);
}

#[test]
fn arrivals_are_even_and_the_last_one_comes_at_the_end() {
    let over = Arrival::Over("10s".parse().expect("a span"));
    let offsets: Vec<u64> = (0..5).map(|rank| arrival_offset(over, rank, 5).as_millis() as u64).collect();
    assert_eq!(offsets, [0, 2500, 5000, 7500, 10_000]);
    assert_eq!(arrival_offset(over, 0, 1), Duration::ZERO);
    assert_eq!(arrival_offset(Arrival::At("100/s".parse().expect("a rate")), 50, 100).as_millis(), 500);
    assert_eq!(arrival_offset(Arrival::Storm, 99, 100), Duration::ZERO);
}
