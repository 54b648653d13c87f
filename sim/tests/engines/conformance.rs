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
