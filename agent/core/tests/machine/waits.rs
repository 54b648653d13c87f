//! When an update may go on: windows in local time, and whoever must not be interrupted.

use std::time::Duration;

use fleetwave_agent_core::{
    AtDeadline, Days, Effect, Event, InstallError, LockAnswer, Locks, ResultCode, State, Window,
};
use fleetwave_protocol::time::Instant;

use crate::world::{SIZE, World, reference};

const HOUR: Duration = Duration::from_secs(3_600);

fn begun(prepare: impl FnOnce(&mut World)) -> World {
    let mut world = World::new(4);
    prepare(&mut world);
    world.desire(reference("fw-2", 2, false));
    world
}

fn updated(prepare: impl FnOnce(&mut World)) -> World {
    let mut world = begun(prepare);
    world.run();
    world.assert_settled();
    world
}

fn code(world: &World) -> ResultCode {
    world.durable().last.expect("an update ended").1
}

/// When the first such effect was carried out, since noon.
fn time(world: &World, is: impl Fn(&Effect) -> bool) -> Duration {
    world.effects[world.position(is)].0.since(Instant::ZERO)
}

fn fetch(effect: &Effect) -> bool {
    matches!(effect, Effect::Fetch { .. })
}

fn reboot(effect: &Effect) -> bool {
    matches!(effect, Effect::RebootIntoCandidate)
}

/// From noon on for `lasts`.
fn noon(lasts: u64, grace: u64) -> Option<Window> {
    let grace = Duration::from_secs(grace);
    Some(Window { grace, ..Window::daily(12 * HOUR, Duration::from_secs(lasts)) })
}

#[test]
fn a_download_stops_after_window_and_grace_and_goes_on_in_the_next_window_from_where_it_was() {
    for (lasts, grace, days) in [(15, 0, 3), (15, 5, 2), (15, 60, 1), (600, 0, 1)] {
        let world = updated(|world| world.policy.download_window = noon(lasts, grace));
        assert_eq!(code(&world), ResultCode::Ok);
        let fetches: Vec<_> = world.effects.iter().filter(|(_, effect)| fetch(effect)).collect();
        assert_eq!(fetches.len(), days, "{lasts} + {grace}: {fetches:?}");
        for (day, (at, effect)) in fetches.iter().enumerate() {
            let Effect::Fetch { offset, .. } = *effect else { unreachable!("filtered") };
            assert_eq!(offset > 0, day > 0, "{fetches:?}");
            let since_noon = at.since(Instant::ZERO) - 24 * HOUR * day as u32;
            assert!(since_noon < Duration::from_secs(lasts), "{since_noon:?}");
        }
        assert_eq!(world.spent_in_all, SIZE, "no byte twice");
    }
}

#[test]
fn a_device_that_gets_nothing_in_window_after_window_gives_up() {
    let world = updated(|world| {
        world.policy.download_window = noon(60, 0);
        world.script.stalls = true;
    });
    assert_eq!(code(&world), ResultCode::DownloadInterrupted);
    assert!(world.count(fetch) <= 1 + usize::from(world.policy.attempts));
}

#[test]
fn windows_are_in_local_time_on_the_days_that_they_name() {
    // The first day is a Thursday.
    let days = Days::NONE.and("sat").and_then(|days| days.and("sun")).expect("days");
    let window = Window { days, ..Window::daily(2 * HOUR, HOUR) };
    for (offset, hours) in [(0, 24 + 14), (2 * 3_600, 24 + 12), (-5 * 3_600, 24 + 19)] {
        let world = updated(|world| {
            world.policy.utc_offset = offset;
            world.policy.download_window = Some(window);
        });
        let at = time(&world, fetch);
        assert!(at >= hours * HOUR && at < (hours + 1) * HOUR, "{offset}: {at:?}");
    }
}

#[test]
fn the_two_windows_are_kept_apart() {
    let world = updated(|world| {
        world.policy.download_window = noon(600, 0);
        world.policy.install_window = Some(Window::daily(3 * HOUR, HOUR));
    });
    assert!(time(&world, fetch) < HOUR);
    let at = time(&world, reboot);
    assert!(at >= 15 * HOUR && at < 16 * HOUR, "{at:?}");
}

#[test]
fn an_installation_that_was_begun_in_its_window_is_ended_in_the_grace_and_one_that_was_not_waits() {
    // Staging begins some 25 seconds after noon.
    let at = |lasts, grace| time(&updated(|world| world.policy.install_window = noon(lasts, grace)), reboot);
    assert!(at(34, 60) < HOUR);
    assert!(at(15, 600) > 23 * HOUR);
    assert!(at(34, 600) < HOUR);
}

#[test]
fn a_clock_that_is_set_while_a_device_waits_is_noticed() {
    // A device without a clock of its own starts in the past: by it the window opens in 25 hours.
    let thursday = Days::NONE.and("thu").expect("a day");
    let mut world = begun(|world| {
        world.clock_is_off_by = -24 * HOUR.as_secs().cast_signed();
        world.policy.download_window = Some(Window { days: thursday, ..Window::daily(13 * HOUR, HOUR) });
    });
    world.run_for(HOUR / 2);
    world.clock_is_off_by = 0;
    world.run();
    world.assert_settled();
    assert!(time(&world, fetch) < 2 * HOUR);
}

#[test]
fn a_window_that_never_opens_keeps_an_update_waiting_until_it_is_cancelled() {
    let never = Window { days: Days::NONE, ..Window::daily(HOUR, HOUR) };
    let mut world = begun(|world| world.policy.download_window = Some(never));
    world.run_for(100 * 24 * HOUR);
    assert_eq!((world.agent.state(), world.count(fetch)), (State::Deferred, 0));
    world.cancel();
    world.run_for(HOUR);
    assert_eq!(world.agent.state(), State::Idle);
}

fn locks(deadline: u64, at_deadline: AtDeadline) -> Option<Locks> {
    Some(Locks { retry: Duration::from_secs(60), deadline: Duration::from_secs(deadline), at_deadline })
}

fn held(world: &mut World, times: usize) {
    world.script.locks.extend(vec![Some(LockAnswer::Held); times]);
}

fn questions(world: &World) -> usize {
    world.count(|effect| matches!(effect, Effect::AskLocks))
}

#[test]
fn a_device_is_not_interrupted_while_a_lock_is_held_and_it_is_asked_again() {
    let world = updated(|world| {
        world.policy.locks = locks(3_600, AtDeadline::GiveUp);
        held(world, 5);
    });
    assert_eq!((questions(&world), code(&world)), (6, ResultCode::Ok));
    assert!(time(&world, reboot) >= Duration::from_secs(5 * 60));
}

#[test]
fn a_lock_that_is_held_beyond_its_deadline_is_overruled_or_ends_the_update_as_the_policy_says() {
    for (at_deadline, ends) in
        [(AtDeadline::Proceed, ResultCode::Ok), (AtDeadline::GiveUp, ResultCode::LockTimeout)]
    {
        let world = updated(|world| {
            world.policy.locks = locks(150, at_deadline);
            held(world, 100);
        });
        // At once, after one and two minutes, and at the deadline.
        assert_eq!((questions(&world), code(&world)), (4, ends));
    }
}

#[test]
fn no_answer_about_locks_is_as_good_as_a_lock() {
    let world = updated(|world| {
        world.policy.locks = locks(3_600, AtDeadline::GiveUp);
        world.script.locks.extend([None, None]);
    });
    assert_eq!((questions(&world), code(&world)), (3, ResultCode::Ok));
}

#[test]
fn the_deadline_of_locks_counts_on_between_two_windows() {
    let world = updated(|world| {
        world.policy.install_window = noon(300, 0);
        world.policy.locks = locks(24 * 3_600, AtDeadline::Proceed);
        held(world, 100);
    });
    let at = time(&world, reboot);
    assert!(at > 24 * HOUR && at < 25 * HOUR, "on the second day, when the day is over: {at:?}");
}

#[test]
fn a_staged_update_that_waits_for_a_lock_can_be_cancelled_and_superseded() {
    let waiting = || {
        let mut world = begun(|world| {
            world.policy.locks = locks(3_600, AtDeadline::GiveUp);
            held(world, 50);
        });
        world.run_to(State::Staging);
        world.run_to(State::Deferred);
        world
    };
    let mut cancelled = waiting();
    cancelled.cancel();
    cancelled.run();
    cancelled.assert_settled();
    assert_eq!(code(&cancelled), ResultCode::Cancelled);
    let mut superseded = waiting();
    superseded.script.locks.clear();
    superseded.desire(reference("fw-3", 3, false));
    superseded.run();
    superseded.assert_settled();
    assert_eq!(&*superseded.running(), "fw-3");
    let mut aborted = waiting();
    aborted.abort();
    aborted.run();
    aborted.assert_settled();
    assert_eq!((code(&aborted), aborted.aborts), (ResultCode::Aborted, vec![true]));
}

#[test]
fn what_cannot_be_made_to_run_ends_the_update_and_leaves_what_ran() {
    for (error, ends) in [
        (InstallError::Hook, ResultCode::HookFailed),
        (InstallError::Refused, ResultCode::InstallRefused),
        (InstallError::Failed, ResultCode::InstallFailed),
    ] {
        let world = updated(|world| world.script.activate.push_back(error));
        assert_eq!((code(&world), &*world.running()), (ends, "fw-1"));
        assert!(!ends.is_rollback(), "nothing was booted");
    }
}

#[test]
fn there_is_nothing_to_abort_on_a_device_at_rest() {
    let mut world = updated(|_| {});
    world.abort();
    world.run();
    world.assert_settled();
    assert_eq!((world.aborts.clone(), code(&world)), (vec![false], ResultCode::Ok));
}

#[test]
fn an_update_is_aborted_without_a_connection_and_the_hub_is_told_later() {
    let mut world = begun(|_| {});
    world.run_to(State::Downloading);
    world.hub_goes_away(HOUR);
    world.run_for(Duration::from_secs(1));
    world.abort();
    world.run();
    world.assert_settled();
    assert_eq!(world.hub.reported["firmware"]["code"], "aborted");
}

#[test]
fn a_machine_that_shares_a_connection_takes_it_up_without_having_asked() {
    let mut world = World::new(4);
    world.run();
    world.hub_goes_away(HOUR);
    world.run_for(HOUR / 2);
    assert!(!world.agent.is_online());
    world.hub.connected = true;
    world.handle(Event::Connected { session_present: true });
    world.run_for(Duration::from_secs(2));
    assert!(world.agent.is_online());
}

#[test]
fn a_release_that_is_committed_and_lost_again_and_again_is_given_up() {
    let mut world = updated(|_| {});
    for _ in 0..100 {
        if world.agent.state() == State::Failed {
            break;
        }
        // Somebody, or a worn-out disk, brings the old one back.
        world.old_slot_comes_back();
        world.power_cut();
        world.run();
        world.assert_settled();
    }
    assert_eq!((code(&world), &*world.running()), (ResultCode::StartLoop, "fw-1"));
    let boots = world.count(reboot);
    assert_eq!(boots, usize::from(world.policy.start_attempts));
    // Another release is another matter.
    world.desire(reference("fw-3", 3, false));
    world.run();
    world.assert_settled();
    assert_eq!(&*world.running(), "fw-3");
}
