//! The whole path of one update, as a script.

use fleetwave_agent_core::{Effect, Record, State};
use serde_json::{Value, json};

use crate::world::{World, reference};

fn report(running: &str, seq: u64, state: &str, target: Option<&str>, code: Option<&str>) -> Value {
    json!({"firmware": {"running": {"id": running, "seq": seq}, "state": state, "target": target, "code": code}})
}

#[test]
fn an_update_goes_through_its_states_and_says_what_it_runs() {
    let mut world = World::new(1);
    world.run();
    assert_eq!(world.hub.reports, [report("fw-1", 1, "idle", None, None)]);

    world.desire(reference("fw-2", 2, false));
    world.run();
    world.assert_settled();
    assert_eq!(&*world.running(), "fw-2");
    assert_eq!(
        world.states,
        [
            State::Idle, // the first boot
            State::Deferred,
            State::Granting,
            State::Downloading,
            State::Verifying,
            State::Staging,
            State::Rebooting,
            State::Idle, // the boot into the new slot
            State::Probation,
            State::Committing,
            State::Idle,
        ]
    );
    assert_eq!(
        world.hub.reports[1..],
        [report("fw-1", 1, "updating", Some("fw-2"), None), report("fw-2", 2, "idle", None, Some("ok"))]
    );
    let names: Vec<_> = world.disk.journal.iter().map(|record| record_name(*record)).collect();
    assert_eq!(names, ["started", "staged", "booting", "ended"]);
}

fn record_name(record: Record) -> &'static str {
    match record {
        Record::Started(_) => "started",
        Record::Staged(_) => "staged",
        Record::Booting(_) => "booting",
        Record::Reverting(..) => "reverting",
        Record::Ended(..) => "ended",
    }
}

#[test]
fn a_converged_device_is_silent() {
    let mut world = World::new(2);
    world.desire(reference("fw-2", 2, false));
    world.run();
    let sent = world.hub.reports.len();
    world.drop_link();
    world.run();
    world.power_cut();
    world.run();
    world.assert_settled();
    assert_eq!(world.hub.reports.len(), sent, "the hub knew all of it");
    assert_eq!(world.count(|effect| matches!(effect, Effect::RequestGrant { .. })), 1);
}

#[test]
fn two_devices_of_one_seed_do_the_same() {
    let run = |seed| {
        let mut world = World::new(seed);
        world.desire(reference("fw-2", 2, false));
        world.run();
        world.effects
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8), "delays are a device's own");
}
