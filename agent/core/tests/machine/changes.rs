//! The operator thinks again: newer releases, cancellations, windows, downgrades.

use std::time::Duration;

use fleetwave_agent_core::{Effect, Event, GrantAnswer, Record, ResultCode, State, Window};
use serde_json::json;

use crate::coverage::Coverage;
use crate::cuts::STORIES;
use crate::world::{Happening, MIDNIGHT, World, reference};

const HOUR: u64 = 3_600;

fn last(world: &World) -> ResultCode {
    world.durable().last.expect("an update ended").1
}

/// A newer release at every effect of every story.
pub(crate) fn superseded_everywhere() -> Coverage {
    let mut coverage = Coverage::default();
    for story in &STORIES {
        for number in 0..story.run([]).effects.len() {
            let world = story.run([(number, Happening::Desire(reference("fw-3", 3, false)))]);
            // If the newer one is there before the trial, it may be the one that does not reach the hub.
            let took = &*world.running() == "fw-3" || last(&world) == ResultCode::ProbationTimeout;
            assert!(took, "{}, newer at effect {number}", story.name);
            coverage.add(&world.coverage);
        }
    }
    coverage
}

/// A cancellation at every effect of every story, in both forms.
pub(crate) fn cancelled_everywhere() -> Coverage {
    let mut coverage = Coverage::default();
    for story in &STORIES {
        let whole = story.run([]);
        let staging = whole.position(|effect| matches!(effect, Effect::Stage(_)));
        for number in 0..whole.effects.len() {
            for happening in [Happening::Cancel, Happening::Remove] {
                let world = story.run([(number, happening)]);
                if number <= staging {
                    assert_eq!(&*world.running(), "fw-1", "{}, cancelled at effect {number}", story.name);
                }
                coverage.add(&world.coverage);
            }
        }
    }
    coverage
}

/// Somebody on the device wants an end at every effect of every story.
pub(crate) fn aborted_everywhere() -> Coverage {
    let mut coverage = Coverage::default();
    for story in &STORIES {
        for number in 0..story.run([]).effects.len() {
            let world = story.run([(number, Happening::Abort)]);
            let how = format!("{}, aborted at effect {number}", story.name);
            // The power may have gone before anybody was heard.
            if let Some(&taken) = world.aborts.first() {
                let (ended, runs) = (last(&world), world.running());
                assert_eq!(taken, ended == ResultCode::Aborted, "{how}");
                assert!(!taken || &*runs == "fw-1", "{how}: {ended:?}, {runs}");
            }
            coverage.add(&world.coverage);
        }
    }
    coverage
}

/// The connection is lost at every effect of every story.
pub(crate) fn disconnected_everywhere() -> Coverage {
    let mut coverage = Coverage::default();
    for story in &STORIES {
        for number in 0..story.run([]).effects.len() {
            let world = story.run([(number, Happening::Drop)]);
            coverage.add(&world.coverage);
        }
    }
    coverage
}

#[test]
fn a_newer_release_wins_whenever_it_comes() {
    superseded_everywhere();
}

#[test]
fn a_cancelled_release_is_not_installed_unless_the_device_is_already_booting_it() {
    cancelled_everywhere();
}

#[test]
fn an_aborted_update_is_not_begun_again_and_one_that_cannot_be_ended_goes_on() {
    aborted_everywhere();
}

#[test]
fn a_lost_connection_changes_nothing_about_where_an_update_ends() {
    disconnected_everywhere();
}

#[test]
fn a_release_that_is_cancelled_and_desired_again_is_installed() {
    for number in 0..STORIES[0].run([]).effects.len() {
        let mut world = STORIES[0].run([(number, Happening::Cancel)]);
        world.desire(reference("fw-2", 2, false));
        world.run();
        world.assert_settled();
        assert_eq!(&*world.running(), "fw-2", "cancelled at effect {number}");
    }
}

#[test]
fn a_newer_release_waits_for_the_end_of_a_trial() {
    let mut world = World::new(1);
    world.desire(reference("fw-2", 2, false));
    world.run_to(State::Probation);
    world.desire(reference("fw-3", 3, false));
    world.run();
    world.assert_settled();
    let ends: Vec<_> =
        world.disk.journal.iter().filter(|record| matches!(record, Record::Ended(..))).collect();
    assert_eq!(ends.len(), 2, "{ends:?}");
    assert_eq!(&*world.running(), "fw-3");
}

#[test]
fn a_cancel_that_comes_while_the_slot_is_being_recorded_is_in_time() {
    let whole = STORIES[0].run([]);
    let staged = whole.position(|effect| matches!(effect, Effect::Persist(Record::Staged(_))));
    let mut world = World::new(11);
    world.desire(reference("fw-2", 2, false));
    let arrives = whole.effects[staged].0 + Duration::from_millis(1);
    world.run_for((arrives - crate::world::NET).since(world.now.at));
    world.cancel();
    world.run();
    world.assert_settled();
    assert_eq!(last(&world), ResultCode::Cancelled);
    assert_eq!(world.count(|effect| matches!(effect, Effect::RebootIntoCandidate)), 0);
}

fn second_of_day(world: &World, effect: impl Fn(&Effect) -> bool) -> u64 {
    let number = world.position(effect);
    let since_start = world.effects[number].0.as_micros() / 1_000_000;
    (12 * HOUR + since_start) % (24 * HOUR)
}

fn with_window(opens: u64, lasts: u64) -> World {
    let mut world = World::new(4);
    let window = Window::daily(Duration::from_secs(opens), Duration::from_secs(lasts));
    world.policy.download_window = Some(Window { grace: Duration::MAX, ..window });
    world.policy.install_window = Some(window);
    world.desire(reference("fw-2", 2, false));
    world
}

#[test]
fn an_update_waits_for_its_window() {
    let mut world = with_window(22 * HOUR, 4 * HOUR);
    world.run();
    world.assert_settled();
    let started = second_of_day(&world, |effect| matches!(effect, Effect::RequestGrant { .. }));
    assert!((22 * HOUR..23 * HOUR).contains(&started), "{started}");
    assert_eq!(&*world.running(), "fw-2");
}

#[test]
fn a_window_that_closes_before_the_reboot_is_waited_for_again() {
    // The download alone takes 20 s.
    for (opens, lasts) in [(12 * HOUR, 15), (24 * HOUR - 10, 20)] {
        let mut world = with_window(opens, lasts);
        world.run();
        world.assert_settled();
        let reboot = second_of_day(&world, |effect| matches!(effect, Effect::RebootIntoCandidate));
        assert!((reboot + 24 * HOUR - opens) % (24 * HOUR) < lasts, "opens {opens}, reboots {reboot}");
        let number = world.position(|effect| matches!(effect, Effect::RebootIntoCandidate));
        assert!(world.effects[number].0.as_micros() > 20 * HOUR * 1_000_000, "on another day");
        assert_eq!(&*world.running(), "fw-2");
    }
}

#[test]
fn a_staged_release_that_waits_for_its_window_survives_a_cut_and_can_be_cancelled() {
    let staged = || {
        let mut world = with_window(12 * HOUR, 15);
        world.run_to(State::Staging);
        world.run_to(State::Deferred);
        world
    };
    let mut cut = staged();
    cut.power_cut();
    cut.run();
    cut.assert_settled();
    assert_eq!(&*cut.running(), "fw-2");
    assert_eq!(cut.count(|effect| matches!(effect, Effect::Fetch { .. })), 1);

    let mut cancelled = staged();
    cancelled.cancel();
    cancelled.run();
    cancelled.assert_settled();
    assert_eq!(last(&cancelled), ResultCode::Cancelled);
}

#[test]
fn a_lower_sequence_needs_a_signed_permission() {
    let go_down = |permitted| {
        let mut world = World::new(5);
        world.desire(reference("fw-5", 5, false));
        world.run();
        world.desire(reference("fw-4", 4, permitted));
        world.run();
        world.assert_settled();
        (world.running().to_string(), last(&world))
    };
    assert_eq!(go_down(false), ("fw-5".into(), ResultCode::Downgrade));
    assert_eq!(go_down(true), ("fw-4".into(), ResultCode::Ok));
}

#[test]
fn a_failure_is_not_told_any_more_when_what_runs_is_desired_again_and_is_if_it_is_asked_for_again() {
    let told = |world: &World| {
        let firmware = &world.hub.reports.last().expect("a report")["firmware"];
        [&firmware["state"], &firmware["target"], &firmware["code"]].map(Clone::clone)
    };
    let (refused, runs) = (json!(["failed", "fw-4", "downgrade"]), json!(["idle", null, null]));
    let mut world = World::new(5);
    world.desire(reference("fw-5", 5, false));
    world.run();
    world.desire(reference("fw-4", 4, false));
    world.run();
    assert_eq!(json!(told(&world)), refused);
    world.desire(reference("fw-5", 5, false));
    world.run();
    world.assert_settled();
    assert_eq!(json!(told(&world)), runs);
    // A start says no more than what the hub knows.
    let reports = world.hub.reports.len();
    world.power_cut();
    world.run();
    world.assert_settled();
    assert_eq!(world.hub.reports.len(), reports);
    world.desire(reference("fw-4", 4, false));
    world.run();
    world.assert_settled();
    assert_eq!(json!(told(&world)), refused);
    // One that was tried, and did not work.
    let mut world = World::new(5);
    world.script.sick.push("fw-2");
    world.desire(reference("fw-2", 2, false));
    world.run();
    assert_eq!(json!(told(&world)), json!(["failed", "fw-2", "unhealthy"]));
    world.desire(reference("fw-1", 1, false));
    world.run();
    world.assert_settled();
    assert_eq!(json!(told(&world)), runs);
}

#[test]
fn a_corrected_reference_is_taken_up() {
    let mut world = World::new(6);
    let mut forged = reference("fw-2", 2, false);
    forged["sha256"] = json!("00".repeat(32));
    world.desire(forged);
    world.run();
    assert_eq!(last(&world), ResultCode::SignatureInvalid);
    world.desire(reference("fw-2", 2, false));
    world.run();
    world.assert_settled();
    assert_eq!(last(&world), ResultCode::Ok);
}

#[test]
fn a_refusal_counts_for_the_release_in_flight_whatever_entry_the_answer_names() {
    // The catalogue holds a badly signed reference of the same name, and a driver finds that one first.
    let mut world = World::new(6);
    let mut forged = reference("fw-2", 2, false);
    forged["sha256"] = json!("00".repeat(32));
    let first = world.releases.intern(&forged);
    world.script.grants.extend([None; 3]);
    world.desire(reference("fw-2", 2, false));
    world.run_to(State::Granting);
    world.run_for(Duration::from_secs(1));
    world.handle(Event::Grant { release: first, answer: GrantAnswer::Refused });
    world.run();
    world.assert_settled();
    assert_eq!(last(&world), ResultCode::GrantRefused);
    assert_eq!(world.count(|effect| matches!(effect, Effect::RequestGrant { .. })), 1);
}

#[test]
fn the_world_starts_at_noon() {
    assert_eq!(World::new(0).now.wall.as_unix_millis(), MIDNIGHT + 12 * HOUR * 1000);
}
