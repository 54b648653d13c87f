//! The connection, the twin and the reports.

use std::time::Duration;

use fleetwave_agent_core::twin::Desired;
use fleetwave_agent_core::{Agent, Boot, Context, Durable, Effect, Event, Policy, State};
use fleetwave_protocol::time::{Instant, Now};

use crate::world::{World, catalogue, policy, reference};

fn reads(world: &World) -> usize {
    world.count(|effect| matches!(effect, Effect::GetTwin { .. }))
}

fn report_times(world: &World) -> Vec<Instant> {
    let report = |(_, effect): &&(Instant, Effect)| matches!(effect, Effect::Report { .. });
    world.effects.iter().filter(report).map(|(at, _)| *at).collect()
}

fn at_rest() -> World {
    let mut world = World::new(31);
    world.run();
    world
}

#[test]
fn a_gap_between_versions_leads_to_a_new_reading() {
    let mut world = at_rest();
    world.script.lost_patches = 1;
    world.desire(reference("fw-2", 2, false));
    world.run();
    assert_eq!((&*world.running(), reads(&world)), ("fw-1", 1), "nothing tells of a lost patch but the next");
    world.desire(reference("fw-3", 3, false));
    world.run();
    world.assert_settled();
    // The device booted a release once since, and read its twin then.
    assert_eq!((&*world.running(), reads(&world)), ("fw-3", 3));
}

#[test]
fn a_patch_that_overtakes_the_twin_is_not_undone_by_it() {
    let mut world = World::new(31);
    world.script.twin_delays.push_back(Duration::from_secs(2));
    world.run_for(Duration::from_secs(1));
    assert_eq!(reads(&world), 1);
    world.desire(reference("fw-2", 2, false));
    world.run_for(Duration::from_secs(2));
    assert!(world.agent.is_online());
    assert_eq!((reads(&world), world.agent.desired_version()), (2, world.hub.version));
    world.run();
    world.assert_settled();
    assert_eq!(&*world.running(), "fw-2");
}

#[test]
fn a_late_second_answer_to_a_reading_changes_nothing() {
    let mut world = at_rest();
    world.desire(reference("fw-2", 2, false));
    world.run();
    let before = (world.agent.desired(), world.agent.desired_version());
    world.handle(Event::Twin { version: 1, desired: Desired::Nothing, reported: None });
    world.handle(Event::Desired { version: 1, desired: Desired::Nothing });
    world.run();
    assert_eq!((world.agent.desired(), world.agent.desired_version()), before);
    world.assert_settled();
}

#[test]
fn a_twin_that_was_made_anew_is_followed() {
    let mut world = at_rest();
    for sequence in 2..5 {
        world.desire(reference(&format!("fw-{sequence}"), sequence, false));
        world.run();
    }
    let before = reads(&world);
    world.drop_link();
    world.hub.version = 1;
    world.hub.desired = reference_in("fw-9", 9);
    for _ in 0..20 {
        if world.agent.desired_version() > 0 {
            world.step();
        }
    }
    assert_eq!(world.agent.desired_version(), 0);
    world.seen_version = 0;
    world.run();
    world.assert_settled();
    assert_eq!(&*world.running(), "fw-9");
    assert_eq!(reads(&world), before + 2, "once after the loss, once after the boot");
}

fn reference_in(id: &str, sequence: u64) -> serde_json::Map<String, serde_json::Value> {
    [("firmware".to_owned(), reference(id, sequence, false).into())].into_iter().collect()
}

#[test]
fn a_hub_that_keeps_answering_with_an_old_twin_is_not_asked_in_a_tight_loop() {
    let mut world = at_rest();
    world.drop_link();
    while !world.hub.connected {
        world.step();
    }
    world.handle(Event::Desired { version: 100, desired: Desired::Nothing });
    let before = reads(&world);
    world.run_for(Duration::from_secs(600));
    assert!((3..20).contains(&(reads(&world) - before)), "{}", reads(&world) - before);
}

#[test]
fn a_refused_or_unanswered_twin_is_read_again_after_a_pause() {
    for answer in [Some(429), Some(503), Some(404), None] {
        let mut world = World::new(31);
        world.script.twins.extend([answer; 6]);
        world.desire(reference("fw-2", 2, false));
        world.run();
        world.assert_settled();
        assert_eq!(reads(&world), 8, "{answer:?}: six in vain, one that is answered, one after the boot");
        assert!(world.now.at > Instant::ZERO + Duration::from_secs(60));
    }
}

#[test]
fn a_report_is_repeated_with_growing_pauses_until_the_hub_takes_it() {
    for answer in [Some(429), Some(500), Some(503), None] {
        let mut world = World::new(31);
        world.script.reports.extend([answer; 6]);
        world.run();
        world.assert_settled();
        let times = report_times(&world);
        assert_eq!(times.len(), 7, "{answer:?}");
        let pauses: Vec<_> = times.windows(2).map(|pair| pair[1].since(pair[0])).collect();
        let unanswered = if answer.is_none() { world.policy.request_timeout } else { Duration::ZERO };
        for (tries, pause) in pauses.iter().enumerate() {
            let ceiling = world.policy.retry.first * (1 << tries) + unanswered + Duration::from_secs(1);
            assert!(*pause <= ceiling && *pause >= ceiling / 4, "{answer:?}, {tries}: {pause:?}");
        }
    }
}

#[test]
fn a_report_that_is_refused_for_good_is_not_repeated_but_the_next_one_is_made() {
    for answer in [400, 404, 413] {
        let mut world = World::new(31);
        world.script.reports.push_back(Some(answer));
        world.run();
        assert_eq!(report_times(&world).len(), 1, "{answer}");
        world.desire(reference("fw-2", 2, false));
        world.run();
        world.assert_settled();
        assert_eq!(world.hub.reports.len(), 2);
    }
}

#[test]
fn what_the_hub_knows_is_not_reported_again_after_a_loss() {
    // It took the report, but the answer was lost.
    let mut world = World::new(31);
    world.script.reports.push_back(None);
    world.run_for(Duration::from_secs(5));
    world.drop_link();
    world.run();
    world.assert_settled();
    assert_eq!(report_times(&world).len(), 1);
}

#[test]
fn a_report_that_times_out_while_the_twin_is_read_does_not_keep_the_device_awake() {
    let mut world = at_rest();
    world.script.reports.extend([None; 2]);
    world.script.twins.push_back(None);
    world.desire(reference("fw-2", 2, false));
    world.run_to(State::Downloading);
    world.script.lost_patches = 1;
    world.patch(crate::coverage::Cause::Start, serde_json::json!({"other": 1}));
    world.run_for(Duration::from_secs(2));
    world.patch(crate::coverage::Cause::Start, serde_json::json!({"other": 2}));
    // The world itself notices a device that turns without time passing.
    world.run();
    world.assert_settled();
}

#[test]
fn a_patch_about_other_things_is_only_a_version() {
    let mut world = at_rest();
    world.patch(crate::coverage::Cause::Start, serde_json::json!({"interval": 5}));
    world.run();
    world.assert_settled();
    assert_eq!((world.agent.desired_version(), reads(&world)), (2, 1));
}

#[test]
fn a_hub_that_is_away_for_days_is_found_again() {
    let mut world = at_rest();
    world.hub_goes_away(Duration::from_secs(3 * 86_400));
    world.desire(reference("fw-2", 2, false));
    world.run();
    world.assert_settled();
    assert_eq!(&*world.running(), "fw-2");
    let connects = world.count(|effect| matches!(effect, Effect::Connect));
    assert!(connects < 3 * 86_400 / 100, "{connects}");
}

#[test]
fn subscriptions_that_the_hub_still_knows_are_not_made_again() {
    let mut releases = catalogue();
    let first = releases.preinstalled("fw-1", 1);
    let policy = Policy::default();
    let cx = Context { policy: &policy, releases: &releases };
    for session_present in [false, true] {
        let mut agent = booted(1, &cx, first);
        let mut out = Vec::new();
        agent.handle(&cx, Now::default(), Event::Connected { session_present }, &mut out);
        assert_eq!(out.contains(&Effect::Subscribe), !session_present);
    }
}

#[test]
fn subscriptions_on_a_connection_that_broke_off_at_once_are_made_again() {
    let mut releases = catalogue();
    let first = releases.preinstalled("fw-1", 1);
    let policy = Policy::default();
    let cx = Context { policy: &policy, releases: &releases };
    let mut agent = booted(1, &cx, first);
    let mut out = Vec::new();
    let mut at = Instant::ZERO;
    let mut turn = |agent: &mut Agent, event| {
        at = at + policy.reconnect.max;
        out.clear();
        agent.handle(&cx, Now { at, ..Now::default() }, event, &mut out);
        out.contains(&Effect::Subscribe)
    };
    // The hub made the session and never heard the SUBSCRIBE.
    assert!(turn(&mut agent, Event::Connected { session_present: false }));
    turn(&mut agent, Event::Disconnected);
    turn(&mut agent, Event::Timer);
    assert!(turn(&mut agent, Event::Connected { session_present: true }));
    // An answer came, so the subscriptions are in force.
    turn(&mut agent, Event::Twin { version: 1, desired: Desired::Nothing, reported: None });
    turn(&mut agent, Event::Disconnected);
    turn(&mut agent, Event::Timer);
    assert!(!turn(&mut agent, Event::Connected { session_present: true }));
}

#[test]
fn on_a_connection_that_takes_the_place_of_another_the_twin_is_read_again_and_the_report_repeated() {
    let mut releases = catalogue();
    let first = releases.preinstalled("fw-1", 1);
    let policy = Policy::default();
    let cx = Context { policy: &policy, releases: &releases };
    let mut agent = booted(1, &cx, first);
    let mut turn = |event| {
        let mut out = Vec::new();
        agent.handle(&cx, Now::default(), event, &mut out);
        out
    };
    let twin = |version| Event::Twin { version, desired: Desired::Nothing, reported: None };
    let reports = |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::Report { .. }));
    let reads = |effects: &[Effect]| effects.iter().any(|effect| matches!(effect, Effect::GetTwin { .. }));
    turn(Event::Connected { session_present: false });
    assert!(reports(&turn(twin(7))));
    // Its answer never comes: the token is renewed.
    let effects = turn(Event::Connected { session_present: true });
    assert!(reads(&effects) && !reports(&effects), "{effects:?}");
    assert!(!effects.contains(&Effect::Subscribe) && !effects.contains(&Effect::Connect), "{effects:?}");
    assert!(reports(&turn(twin(2))), "versions are compared within a connection, and the report was lost");
}

fn booted(seed: u64, cx: &Context<'_>, first: fleetwave_agent_core::ReleaseId) -> Agent {
    let mut agent = Agent::new(seed, first);
    let boot = Boot { durable: Durable::new(first), running: first, committed: first, partial: 0 };
    let mut out = Vec::new();
    agent.handle(cx, Now::default(), Event::Booted(boot), &mut out);
    assert!(out.contains(&Effect::Connect));
    agent
}

/// Pearson's statistic of `counts` against a uniform distribution.
fn chi_square(counts: &[u64]) -> f64 {
    let expected = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
    counts.iter().map(|&count| (count as f64 - expected).powi(2) / expected).sum()
}

#[test]
fn a_fleet_that_loses_its_hub_comes_back_evenly_over_the_policys_range() {
    const DEVICES: u64 = 10_000;
    const BUCKETS: usize = 20;
    let mut releases = catalogue();
    let first = releases.preinstalled("fw-1", 1);
    let policy = policy();
    let cx = Context { policy: &policy, releases: &releases };
    let now = Now { at: Instant::ZERO + Duration::from_secs(9), ..Now::default() };
    // By number of tries in vain: the range doubles up to the policy's longest.
    for (failures, range) in [(0, 5), (1, 10), (3, 40), (9, 300)] {
        let range = Duration::from_secs(range);
        let mut buckets = [0; BUCKETS];
        for device in 0..DEVICES {
            let mut agent = booted(device, &cx, first);
            let mut out = Vec::new();
            agent.handle(&cx, now, Event::Connected { session_present: false }, &mut out);
            let twin = Event::Twin { version: 1, desired: Desired::Nothing, reported: None };
            agent.handle(&cx, now, twin, &mut out);
            assert!(agent.is_online());
            let mut lost_at = now;
            out.clear();
            agent.handle(&cx, lost_at, Event::Disconnected, &mut out);
            for _ in 0..failures {
                lost_at.at = wake(&out);
                agent.handle(&cx, lost_at, Event::Timer, &mut out);
                out.clear();
                agent.handle(&cx, lost_at, Event::Disconnected, &mut out);
            }
            let pause = if out.contains(&Effect::Connect) {
                Duration::ZERO // drawn as no pause at all
            } else {
                wake(&out).since(lost_at.at)
            };
            assert!(pause <= range, "{pause:?}");
            let bucket = (pause.as_micros() * BUCKETS as u128 / range.as_micros()) as usize;
            buckets[bucket.min(BUCKETS - 1)] += 1;
        }
        // 19 degrees of freedom: 43.8 is exceeded by chance once in a thousand.
        let statistic = chi_square(&buckets);
        assert!(statistic < 43.8, "after {failures} failures: {statistic}, {buckets:?}");
    }
}

fn wake(out: &[Effect]) -> Instant {
    let wake = |effect: &Effect| match *effect {
        Effect::Wake(at) => Some(at),
        _ => None,
    };
    out.iter().rev().find_map(wake).expect("a device that is not connected has a timer")
}
