//! The two engines bring every device through the same states, at the same scenario and seed; timing aside.

use fleetwave::run::Target;
use fleetwave_report::record::Transport;

use crate::support::{Bench, QUICK};

/// Compares the histories of all devices.
fn same_ways(changes: &[&str], bench: impl Fn(Bench) -> Bench) {
    let make = || {
        let bench = bench(Bench::of(QUICK));
        changes.iter().fold(bench, |bench, change| bench.with(change))
    };
    let live = make().run_with_stories();
    let (_, histories) = make().virtually(1).run_with_histories();
    let apart: Vec<usize> = (0..histories.len()).filter(|i| histories[*i] != live.histories[*i]).collect();
    let story = apart.first().map(|first| {
        let names: Vec<&str> = live.stories[*first].iter().map(|state| state.name()).collect();
        format!("live, device {first}: {}", names.join(" "))
    });
    assert_eq!(apart, Vec::<usize>::new(), "{story:?}");
}

/// MQTT messages, up and down, that the devices of both engines exchange with their hub.
fn messages(changes: &[&str]) -> [(u64, u64); 2] {
    // Who subscribes after the rollout has begun is not notified of it; and the last answers count, too.
    let pause = "[[step]]\nwait = { for = '1s' }\n";
    let text = QUICK.replace("#rollout\n", pause).replace("[expect]", &format!("{pause}[expect]"));
    let bench =
        || changes.iter().fold(Bench::of(&text).over(Transport::Memory), |bench, set| bench.with(set));
    [bench().judged(), bench().virtually(1).judged()].map(|record| {
        assert_eq!(record.devices.converged + record.devices.failed, 50);
        (record.traffic.messages_up, record.traffic.messages_down)
    })
}

const SETTLED: &str = "step.done.wait.until='settled >= 100%'";

#[test]
fn devices_of_both_engines_go_the_same_way_over_tcp() {
    same_ways(&[], |bench| bench);
}

#[test]
fn devices_of_both_engines_go_the_same_way_over_memory_and_behind_a_broker() {
    same_ways(&[], |bench| bench.over(Transport::Memory));
    same_ways(&[], |bench| bench.at(Target::Rumqttd));
}

#[test]
fn devices_of_both_engines_have_the_same_luck() {
    let luck = [
        SETTLED,
        "release.boot_failure='20%'",
        "release.health_failure='20%'",
        "fleet.group.all.install_failure='20%'",
    ];
    same_ways(&luck, |bench| bench.over(Transport::Memory));
}

#[test]
fn devices_of_both_engines_refuse_what_is_corrupt_or_not_signed() {
    same_ways(&[SETTLED, "release.corrupt=true"], |bench| bench.over(Transport::Memory));
    same_ways(&[SETTLED, "release.signature='bad'"], |bench| bench.over(Transport::Memory));
}

#[test]
fn devices_of_both_engines_say_and_hear_as_much_over_all_their_lives() {
    // Each has two lives, and subscribes in both: the conformance suite holds the live one to the real agent.
    let [live, modelled] = messages(&[]);
    assert_eq!(live, modelled);
    // Two lives as well, but the candidate's begins with a boot that fails.
    let [live, modelled] = messages(&[SETTLED, "release.boot_failure='100%'"]);
    assert_eq!(live, modelled);
}
