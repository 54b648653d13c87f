//! What an update costs: planned before the first byte, told, and refused above a cap.

use std::time::Duration;

use fleetwave_agent_core::{
    Archive, Caps, Effect, FetchError, GrantAnswer, Method, Plan, ResultCode, State, Unsigned,
};
use serde_json::{Map, Value, json};

use crate::world::{DAY, Fetching, MIDNIGHT, SIZE, World, key, reference};

fn with_archive() -> Map<String, Value> {
    let delta = Archive { size: SIZE / 2, header_size: 1_000, header_digest: [9; 32] };
    let release = Unsigned { delta: Some(delta), ..Unsigned::new("fw-2", 2, SIZE, [2; 32]) };
    release.sign(&[("k1", &key(1))])
}

fn updated(reference: Map<String, Value>, prepare: impl FnOnce(&mut World)) -> World {
    let mut world = World::new(21);
    world.policy.report_plan = true;
    prepare(&mut world);
    world.desire(reference);
    world.run();
    world.assert_settled();
    world
}

fn plain() -> Map<String, Value> {
    reference("fw-2", 2, false)
}

fn code(world: &World) -> ResultCode {
    world.durable().last.expect("an update ended").1
}

fn plans(world: &World) -> usize {
    world.count(|effect| matches!(effect, Effect::Plan { .. }))
}

fn fetches(world: &World) -> usize {
    world.count(|effect| matches!(effect, Effect::Fetch { .. }))
}

/// The plans in reports, by order.
fn told(world: &World) -> Vec<Value> {
    world.hub.reports.iter().map(|report| report["firmware"]["plan"].clone()).collect()
}

fn delta(bytes: u64, requests: u32) -> Plan {
    Plan { method: Method::Delta, bytes, requests, spent: 0, allowance: u64::MAX }
}

#[test]
fn without_caps_and_archive_nobody_is_asked_and_the_report_that_says_updating_says_what_it_costs() {
    let world = updated(plain(), |_| {});
    let full = json!({"id": "fw-2", "method": "full", "bytes": SIZE, "requests": 1});
    // None at rest before it, and none with the outcome.
    assert_eq!((plans(&world), told(&world)), (0, vec![Value::Null, full, Value::Null]));
}

#[test]
fn a_policy_that_says_nothing_of_plans_has_none_reported() {
    let world = updated(plain(), |world| world.policy.report_plan = false);
    assert!(told(&world).iter().all(Value::is_null));
    let world = updated(with_archive(), |world| world.policy.report_plan = false);
    assert_eq!((plans(&world), world.hub.reports.len()), (1, 3));
}

#[test]
fn a_plan_by_chunks_is_told_in_one_more_report_before_the_first_byte() {
    let world = updated(with_archive(), |world| world.script.plans.push_back(Ok(delta(SIZE / 8, 3))));
    assert_eq!((code(&world), plans(&world)), (ResultCode::Ok, 1));
    let planned = json!({"id": "fw-2", "method": "delta"});
    assert_eq!(told(&world), [Value::Null, Value::Null, planned, Value::Null]);
    let told = world.position(
        |effect| matches!(effect, Effect::Report { status, .. } if format!("{status:?}").contains("Delta")),
    );
    let fetched = world.position(|effect| matches!(effect, Effect::Fetch { .. }));
    assert!(told < fetched + 2, "in the same turn");
}

#[test]
fn a_plan_is_made_again_after_a_cut_and_not_told_again() {
    let mut world = World::new(21);
    world.policy.report_plan = true;
    world.script.plans.extend([Ok(delta(SIZE / 8, 3)), Ok(delta(SIZE / 16, 2))]);
    world.desire(with_archive());
    world.run_to(State::Downloading);
    world.run_for(Duration::from_secs(10));
    world.power_cut();
    world.run();
    world.assert_settled();
    assert_eq!((plans(&world), world.hub.reports.len()), (2, 4));
}

#[test]
fn a_failure_in_between_needs_no_new_plan_but_bytes_that_are_thrown_away_do() {
    let interrupted = Fetching::Fails(SIZE / 2, FetchError::Interrupted);
    let caps = Some(Caps { per_update: 3 * SIZE, per_window: u64::MAX, window: DAY });
    for (fetching, expected) in [(interrupted, 1), (Fetching::Corrupted, 2)] {
        let world = updated(plain(), |world| {
            world.policy.caps = caps;
            world.script.fetches.push_back(fetching);
        });
        assert_eq!(
            (code(&world), plans(&world), fetches(&world)),
            (ResultCode::Ok, expected, 2),
            "{fetching:?}"
        );
    }
}

#[test]
fn an_update_that_cannot_be_cheap_enough_is_refused_before_anyone_is_asked() {
    let world = updated(plain(), |world| {
        world.policy.caps = Some(Caps { per_update: SIZE - 1, per_window: u64::MAX, window: DAY });
    });
    assert_eq!(code(&world), ResultCode::OverUpdateCap);
    assert_eq!(world.count(|effect| matches!(effect, Effect::RequestGrant { .. })), 0);
}

#[test]
fn an_archive_brings_an_update_below_a_cap_that_all_of_it_would_break() {
    let caps = Some(Caps { per_update: SIZE / 4, per_window: SIZE, window: DAY });
    let world = updated(with_archive(), |world| {
        world.policy.caps = caps;
        world.ledger_counts = false;
        world.script.plans.push_back(Ok(delta(SIZE / 4, 3)));
    });
    assert_eq!(code(&world), ResultCode::Ok);
    for plan in [delta(SIZE / 4 + 1, 3), Plan { spent: 1, ..delta(SIZE / 4, 3) }] {
        let world = updated(with_archive(), |world| {
            world.policy.caps = caps;
            world.script.plans.push_back(Ok(plan));
        });
        assert_eq!((code(&world), fetches(&world)), (ResultCode::OverUpdateCap, 0), "{plan:?}");
    }
}

#[test]
fn all_attempts_of_one_update_count_towards_its_cap() {
    // The payload is wrong once, and a second whole one would be too much.
    let world = updated(plain(), |world| {
        world.policy.caps = Some(Caps { per_update: 2 * SIZE - 1, per_window: u64::MAX, window: DAY });
        world.script.fetches.push_back(Fetching::Corrupted);
    });
    assert_eq!((code(&world), fetches(&world)), (ResultCode::OverUpdateCap, 1));
    // What was cut in the middle costs only what is left.
    let world = updated(plain(), |world| {
        world.policy.caps = Some(Caps { per_update: SIZE, per_window: SIZE, window: DAY });
        world.script.fetches.push_back(Fetching::Fails(SIZE / 2, FetchError::Interrupted));
    });
    assert_eq!((code(&world), fetches(&world)), (ResultCode::Ok, 2));
}

#[test]
fn a_cap_that_is_met_under_way_ends_the_update_if_no_window_renews_it() {
    for (error, ends) in [
        (FetchError::OverUpdateCap, ResultCode::OverUpdateCap),
        (FetchError::OverWindowCap, ResultCode::OverWindowCap),
    ] {
        let world = updated(plain(), |world| world.script.fetches.push_back(Fetching::Fails(10, error)));
        assert_eq!((code(&world), fetches(&world)), (ends, 1));
    }
}

/// A device that may fetch twice the payload each day; it is noon.
fn daily(world: &mut World) {
    world.policy.caps = Some(Caps { per_update: 8 * SIZE, per_window: 2 * SIZE, window: DAY });
}

fn too_dear(left: u64) -> Result<Plan, FetchError> {
    Ok(Plan { allowance: left, ..Plan::full(SIZE, 0) })
}

/// Seconds after the first midnight at which the last such effect came.
fn into_the_next_day(world: &World, effect: impl Fn(&Effect) -> bool) -> Option<u64> {
    let (at, _) = world.effects.iter().rfind(|(_, made)| effect(made))?;
    (at.as_micros() / 1_000_000).checked_sub(12 * 3_600)
}

#[test]
fn an_update_that_costs_more_than_is_left_waits_for_the_next_window_and_asks_nobody_meanwhile() {
    let world = updated(plain(), |world| {
        daily(world);
        world.script.plans.push_back(too_dear(SIZE - 1));
    });
    assert_eq!((code(&world), plans(&world), fetches(&world)), (ResultCode::Ok, 2, 1));
    assert_eq!(world.count(|effect| matches!(effect, Effect::RequestGrant { .. })), 2);
    let began = into_the_next_day(&world, |effect| matches!(effect, Effect::Fetch { .. }));
    assert!(began.is_some_and(|seconds| seconds < 20), "a little after midnight: {began:?}");
    assert_eq!(world.hub.reports.len(), 3, "the machine says no more than of any other update");
}

#[test]
fn a_cap_that_is_met_under_way_leaves_what_has_come_for_the_next_window() {
    let mut world = World::new(21);
    daily(&mut world);
    world.script.fetches.push_back(Fetching::Fails(SIZE / 2, FetchError::OverWindowCap));
    world.desire(plain());
    world.run_to(State::Downloading);
    assert_eq!(world.agent.capped_until(), None);
    world.run_to(State::Deferred);
    let midnight = world.agent.capped_until().map(fleetwave_protocol::WallTime::as_unix_millis);
    assert_eq!(midnight, Some(MIDNIGHT + 86_400_000));
    world.run();
    world.assert_settled();
    assert_eq!((code(&world), fetches(&world), world.agent.capped_until()), (ResultCode::Ok, 2, None));
    let rest = |effect: &Effect| matches!(effect, Effect::Fetch { offset, .. } if *offset == SIZE / 2);
    assert!(into_the_next_day(&world, rest).is_some_and(|seconds| seconds < 20));
}

#[test]
fn an_update_that_gets_no_further_in_window_after_window_is_given_up() {
    let world = updated(plain(), |world| {
        daily(world);
        world.script.plans.extend([too_dear(0); 99]);
    });
    assert_eq!((code(&world), fetches(&world)), (ResultCode::OverWindowCap, 0));
    assert_eq!(plans(&world), 1 + usize::from(world.policy.attempts));
}

#[test]
fn an_update_that_costs_more_than_a_whole_window_is_refused_at_once() {
    let world = updated(plain(), |world| {
        daily(world);
        world.script.plans.push_back(Ok(Plan { bytes: 2 * SIZE + 1, ..Plan::full(SIZE, 0) }));
    });
    assert_eq!((code(&world), plans(&world), fetches(&world)), (ResultCode::OverWindowCap, 1, 0));
    assert!(world.now.wall.as_unix_millis() < MIDNIGHT + 86_400_000);
}

#[test]
fn an_update_that_waits_for_a_window_can_be_called_off_and_superseded() {
    let waits = || {
        let mut world = World::new(21);
        daily(&mut world);
        world.script.plans.push_back(too_dear(0));
        world.desire(plain());
        while world.agent.capped_until().is_none() {
            assert!(world.step(), "it never waits");
        }
        world
    };
    let mut cancelled = waits();
    cancelled.cancel();
    cancelled.run();
    cancelled.assert_settled();
    assert_eq!((code(&cancelled), fetches(&cancelled)), (ResultCode::Cancelled, 0));
    let mut newer = waits();
    newer.desire(reference("fw-3", 3, false));
    newer.run();
    newer.assert_settled();
    assert_eq!((code(&newer), &*newer.running()), (ResultCode::Ok, "fw-3"));
    assert!(newer.now.wall.as_unix_millis() < MIDNIGHT + 86_400_000, "what it costs was not asked yet");
}

#[test]
fn a_clock_that_is_set_right_while_an_update_waits_does_not_keep_it_waiting() {
    let mut world = World::new(21);
    daily(&mut world);
    world.clock_is_off_by = 400 * 86_400;
    world.script.plans.push_back(too_dear(0));
    world.desire(plain());
    while world.agent.capped_until().is_none() {
        assert!(world.step(), "it never waits");
    }
    world.clock_is_off_by = 0;
    world.run();
    world.assert_settled();
    assert_eq!((code(&world), fetches(&world)), (ResultCode::Ok, 1));
    assert!(
        into_the_next_day(&world, |effect| matches!(effect, Effect::Fetch { .. })).is_some_and(|s| s < 20)
    );
}

#[test]
fn plans_that_fail_are_tried_again_and_in_the_end_given_up() {
    let world = updated(with_archive(), |world| {
        world.script.plans.extend([Err(FetchError::Forbidden), Err(FetchError::Protocol)]);
    });
    assert_eq!((code(&world), plans(&world)), (ResultCode::Ok, 3));
    let world = updated(with_archive(), |world| world.script.plans.extend([Err(FetchError::Server); 99]));
    assert_eq!(code(&world), ResultCode::DownloadServerError);
    assert_eq!(plans(&world), 1 + usize::from(world.policy.attempts));
}

#[test]
fn a_plan_that_cannot_be_carried_out_is_made_again_and_priced_again() {
    let cap = |world: &mut World, per_update| {
        world.policy.caps = Some(Caps { per_update, per_window: u64::MAX, window: DAY });
        let delta = Plan { method: Method::Delta, bytes: 10, requests: 1, spent: 0, allowance: u64::MAX };
        world.script.plans.push_back(Ok(delta));
        world.script.plans.push_back(Ok(Plan { spent: 10, ..Plan::full(SIZE, 0) }));
        world.script.fetches.push_back(Fetching::Fails(0, FetchError::Unplanned));
    };
    let world = updated(with_archive(), |world| cap(world, SIZE + 10));
    assert_eq!((code(&world), plans(&world), fetches(&world)), (ResultCode::Ok, 2, 2));
    // All of it in place of a part is refused where it may not cost so much.
    let world = updated(with_archive(), |world| cap(world, SIZE));
    assert_eq!((code(&world), plans(&world), fetches(&world)), (ResultCode::OverUpdateCap, 2, 1));
}

#[test]
fn a_cloud_side_that_puts_a_device_off_for_ever_is_given_up() {
    let later = GrantAnswer::Later(Duration::from_secs(1));
    let world = updated(plain(), |world| {
        world.policy.postponements = 12;
        world.script.grants.extend([Some(later); 99]);
    });
    assert_eq!(code(&world), ResultCode::GrantTimeout);
    assert_eq!(world.count(|effect| matches!(effect, Effect::RequestGrant { .. })), 13);
}
