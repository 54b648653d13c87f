//! Grants, downloads and storage that fail in every way they can.

use std::time::Duration;

use fleetwave_agent_core::{Effect, Event, FetchError, GrantAnswer, Record, ResultCode, State, StorageError};
use fleetwave_protocol::time::{Instant, WallTime};
use serde_json::json;

use crate::world::{Cut, Fetching, Happening, SIZE, World, reference};

const BUSY: FetchError = FetchError::Busy(Duration::from_secs(777));
const ERRORS: [FetchError; 9] = [
    FetchError::Forbidden,
    FetchError::NotFound,
    BUSY,
    FetchError::Server,
    FetchError::Interrupted,
    FetchError::Protocol,
    FetchError::Unplanned,
    FetchError::Storage(StorageError::NoSpace),
    FetchError::Storage(StorageError::Failed),
];

fn updating(prepare: impl FnOnce(&mut World)) -> World {
    let mut world = World::new(21);
    prepare(&mut world);
    world.desire(reference("fw-2", 2, false));
    world.run();
    world.assert_settled();
    world
}

fn code(world: &World) -> ResultCode {
    world.durable().last.expect("an update ended").1
}

fn offsets(world: &World) -> Vec<u64> {
    let offset = |&(_, effect): &(Instant, Effect)| match effect {
        Effect::Fetch { offset, .. } => Some(offset),
        _ => None,
    };
    world.effects.iter().filter_map(offset).collect()
}

fn grants(world: &World) -> usize {
    world.count(|effect| matches!(effect, Effect::RequestGrant { .. }))
}

#[test]
fn a_download_goes_on_from_what_is_durable_whatever_stopped_it() {
    for error in ERRORS {
        let world = updating(|world| world.script.fetches.push_back(Fetching::Fails(1_000, error)));
        // Of an answer that made no sense nothing is kept.
        let kept = if error == FetchError::Protocol { 0 } else { 1_000 };
        assert_eq!(offsets(&world), [0, kept], "{error:?}");
        assert_eq!(code(&world), ResultCode::Ok);
    }
}

#[test]
fn read_only_storage_ends_a_download_at_once() {
    let error = FetchError::Storage(StorageError::ReadOnly);
    let world = updating(|world| world.script.fetches.push_back(Fetching::Fails(0, error)));
    assert_eq!((offsets(&world).len(), code(&world)), (1, ResultCode::ReadOnly));
}

#[test]
fn a_link_that_is_refused_or_leads_nowhere_is_asked_for_again() {
    for error in [FetchError::Forbidden, FetchError::NotFound] {
        let world = updating(|world| world.script.fetches.push_back(Fetching::Fails(0, error)));
        assert_eq!(grants(&world), 2, "{error:?}");
    }
    // Another failure leaves the link as good as it was.
    let error = FetchError::Server;
    let world = updating(|world| world.script.fetches.push_back(Fetching::Fails(0, error)));
    assert_eq!(grants(&world), 1);
}

#[test]
fn a_link_that_has_expired_in_a_pause_is_asked_for_again() {
    let world = updating(|world| world.script.fetches.push_back(Fetching::Fails(5, BUSY)));
    assert_eq!(grants(&world), 2);
    let stale = GrantAnswer::Granted { expires: WallTime::default() };
    let error = FetchError::Interrupted;
    let world = updating(|world| {
        world.script.grants.push_back(Some(stale));
        world.script.fetches.push_back(Fetching::Fails(5, error));
    });
    assert_eq!((grants(&world), code(&world)), (2, ResultCode::Ok));
}

#[test]
fn the_pause_that_a_busy_store_asks_for_is_kept() {
    let world = updating(|world| world.script.fetches.push_back(Fetching::Fails(5, BUSY)));
    let at = |nth: usize| {
        let is = |effect: &Effect| matches!(effect, Effect::RequestGrant { .. } | Effect::Fetch { .. });
        world.effects.iter().filter(|(_, effect)| is(effect)).nth(nth).expect("asked and fetched").0
    };
    // Asked, fetched (20 s), paused, asked.
    assert!(at(2).since(at(1)) >= Duration::from_secs(777 + 19));
}

#[test]
fn an_absurd_pause_does_not_park_the_device_for_good() {
    for absurd in [Duration::MAX, Duration::from_secs(u64::from(u32::MAX))] {
        let world = updating(|world| {
            world.script.grants.push_back(Some(GrantAnswer::Later(absurd)));
            world.script.fetches.push_back(Fetching::Fails(5, FetchError::Busy(absurd)));
        });
        assert_eq!(code(&world), ResultCode::Ok);
        assert!(world.now.at < Instant::ZERO + Duration::from_secs(3 * 86_400));
    }
}

#[test]
fn tries_without_progress_are_bounded_and_those_with_progress_are_not_counted() {
    for error in ERRORS {
        let world = updating(|world| world.script.fetches.extend([Fetching::Fails(0, error); 60]));
        assert_eq!(offsets(&world).len(), usize::from(world.policy.attempts) + 1, "{error:?}");
        assert_eq!(code(&world), error.code());
    }
    let error = FetchError::Interrupted;
    let world = updating(|world| world.script.fetches.extend([Fetching::Fails(1_000, error); 60]));
    assert_eq!((offsets(&world).len(), code(&world)), (61, ResultCode::Ok));
}

#[test]
fn bytes_that_are_thrown_away_again_and_again_are_no_progress() {
    let rounds =
        [Fetching::Fails(1_000, FetchError::Protocol), Fetching::Fails(900, FetchError::Interrupted)];
    let world = updating(|world| world.script.fetches.extend(rounds.into_iter().cycle().take(200)));
    // The first failure is progress, as is the third: 900 and then 1,000 more.
    assert!(offsets(&world).len() <= usize::from(world.policy.attempts) + 4);
    assert!(code(&world).is_failure());
}

#[test]
fn a_payload_that_does_not_match_is_fetched_again_as_often_as_the_policy_says() {
    for attempts in 1..4 {
        let world = updating(|world| {
            world.policy.verify_attempts = attempts;
            world.script.fetches.extend([Fetching::Corrupted; 5]);
        });
        assert_eq!(offsets(&world), vec![0; attempts.into()]);
        assert_eq!(code(&world), ResultCode::DigestMismatch);
        assert_eq!(world.count(|effect| matches!(effect, Effect::Stage(_))), 0);
    }
}

#[test]
fn a_grant_for_later_is_asked_for_later() {
    let pause = Duration::from_secs(500);
    let world = updating(|world| world.script.grants.push_back(Some(GrantAnswer::Later(pause))));
    let asked: Vec<_> = world
        .effects
        .iter()
        .filter(|(_, effect)| matches!(effect, Effect::RequestGrant { .. }))
        .map(|(at, _)| *at)
        .collect();
    assert_eq!(asked.len(), 2);
    assert!(asked[1].since(asked[0]) >= pause);
}

#[test]
fn a_grant_that_does_not_come_is_asked_for_again_and_one_that_nobody_waits_for_is_declined() {
    let mut world = World::new(21);
    world.script.grants.push_back(None);
    world.desire(reference("fw-2", 2, false));
    world.run_to(State::Backoff);
    let release = world.releases.find("fw-2", 2).expect("known by now");
    let expires = WallTime::from_unix_millis(u64::MAX);
    world.handle(Event::Grant { release, answer: GrantAnswer::Granted { expires } });
    assert_eq!(world.agent.state(), State::Backoff);
    assert_eq!(world.count(|effect| matches!(effect, Effect::AnswerGrant { accepted: false })), 1);
    world.run_to(State::Downloading);
    world.handle(Event::Grant { release, answer: GrantAnswer::Refused });
    world.run();
    world.assert_settled();
    assert_eq!((grants(&world), code(&world)), (2, ResultCode::Ok));
}

#[test]
fn a_grant_for_another_release_is_declined() {
    let mut world = World::new(21);
    world.desire(reference("fw-2", 2, false));
    world.run_to(State::Granting);
    let other = world.releases.intern(&reference("fw-3", 3, false));
    world.handle(Event::Grant { release: other, answer: GrantAnswer::Refused });
    assert_eq!(world.agent.state(), State::Granting);
    world.run();
    assert_eq!(code(&world), ResultCode::Ok);
}

#[test]
fn storage_that_cannot_take_a_record_ends_the_update_with_a_cause_or_is_not_needed() {
    type Fails = fn(Record) -> Option<StorageError>;
    let cases: [(Fails, &str, ResultCode); 5] = [
        (
            |record| matches!(record, Record::Started(_)).then_some(StorageError::ReadOnly),
            "fw-1",
            ResultCode::ReadOnly,
        ),
        (
            |record| matches!(record, Record::Staged(_)).then_some(StorageError::NoSpace),
            "fw-1",
            ResultCode::NoSpace,
        ),
        (
            |record| matches!(record, Record::Booting(_)).then_some(StorageError::Failed),
            "fw-1",
            ResultCode::StorageFailed,
        ),
        (
            |record| matches!(record, Record::Ended(..)).then_some(StorageError::ReadOnly),
            "fw-2",
            ResultCode::Ok,
        ),
        (|_| Some(StorageError::NoSpace), "fw-1", ResultCode::NoSpace),
    ];
    for (index, (fails, runs, code)) in cases.into_iter().enumerate() {
        let world = updating(|world| world.script.persist = Some(fails));
        assert_eq!(&*world.running(), runs, "case {index}");
        assert_eq!(world.hub.reported["firmware"]["code"], code.name(), "case {index}");
    }
}

#[test]
fn an_update_that_cannot_be_recorded_says_so_at_once_and_begins_when_it_can_be() {
    let mut world = World::new(11);
    world.script.persist =
        Some(|record| matches!(record, Record::Started(_)).then_some(StorageError::NoSpace));
    world.desire(reference("fw-2", 2, false));
    world.run_to(State::Failed);
    world.run_for(Duration::from_secs(1));
    let told = &world.hub.reported["firmware"];
    assert_eq!((&told["state"], &told["code"]), (&json!("failed"), &json!("no_space")));
    assert_eq!(world.count(|effect| matches!(effect, Effect::Fetch { .. })), 0);
    world.run_for(Duration::from_secs(60));
    let tries = world.count(|effect| matches!(effect, Effect::Persist(Record::Started(_))));
    assert!((3..=6).contains(&tries), "{tries} tries in a minute");
    assert_eq!(world.hub.reports.len(), 2, "and it is told once");
    // Somebody makes room.
    world.script.persist = None;
    world.run();
    world.assert_settled();
    assert_eq!((&*world.running(), code(&world)), ("fw-2", ResultCode::Ok));
}

#[test]
fn an_update_that_waits_for_its_first_record_can_be_called_off_or_superseded() {
    type Change = fn(&mut World);
    let changes: [(Change, &str, ResultCode); 4] = [
        (World::cancel, "fw-1", ResultCode::Cancelled),
        (World::remove, "fw-1", ResultCode::Cancelled),
        (World::abort, "fw-1", ResultCode::Aborted),
        (|world| world.desire(reference("fw-3", 3, false)), "fw-3", ResultCode::Ok),
    ];
    for (change, runs, ended) in changes {
        let mut world = World::new(11);
        world.script.persist = Some(|_| Some(StorageError::NoSpace));
        world.desire(reference("fw-2", 2, false));
        world.run_to(State::Failed);
        world.run_for(Duration::from_secs(20));
        world.script.persist = None;
        change(&mut world);
        world.run();
        world.assert_settled();
        assert_eq!((&*world.running(), code(&world)), (runs, ended));
    }
}

#[test]
fn a_payload_that_the_installer_has_no_place_for_is_not_asked_for_again() {
    let world = updating(|world| {
        world.script.fetches.extend([Fetching::Fails(0, FetchError::Unfit); 40]);
    });
    assert_eq!(code(&world), ResultCode::PayloadUnfit);
    assert_eq!(world.count(|effect| matches!(effect, Effect::Fetch { .. })), 1);
}

#[test]
fn a_sick_release_is_left_even_if_the_journal_cannot_be_written() {
    // Nothing but the number of boots ends the trial then.
    let world = updating(|world| {
        world.script.sick.push("fw-2");
        world.script.persist =
            Some(|record| matches!(record, Record::Reverting(..)).then_some(StorageError::ReadOnly));
    });
    assert_eq!((&*world.running(), code(&world)), ("fw-1", ResultCode::BootFailed));
    let boots = world.count(|effect| matches!(effect, Effect::RebootIntoCandidate));
    assert_eq!(boots, usize::from(world.policy.boot_attempts));
}

#[test]
fn an_end_that_was_not_recorded_is_come_to_again() {
    let mut world = updating(|world| {
        world.script.persist =
            Some(|record| matches!(record, Record::Ended(..)).then_some(StorageError::ReadOnly));
    });
    world.script.persist = None;
    world.power_cut();
    world.run();
    world.assert_settled();
    assert_eq!((&*world.running(), code(&world)), ("fw-2", ResultCode::Ok));
    world.desire(reference("fw-3", 3, false));
    world.run();
    world.assert_settled();
    assert_eq!(&*world.running(), "fw-3");
}

#[test]
fn a_trial_tells_the_release_to_go_back_to_even_if_the_journal_does_not_know_it() {
    // The end of the update to fw-2 is nowhere on disk: only the boot loader knows of it.
    let mut world = updating(|world| {
        world.script.persist =
            Some(|record| matches!(record, Record::Ended(..)).then_some(StorageError::ReadOnly));
    });
    world.script.persist = None;
    world.script.sick.push("fw-3");
    world.desire(reference("fw-3", 3, false));
    world.run_to(State::Probation);
    assert_eq!(world.agent.committed(), world.releases.find("fw-2", 2).expect("known"));
    world.run();
    world.assert_settled();
    assert_eq!((&*world.running(), code(&world)), ("fw-2", ResultCode::Unhealthy));
}

#[test]
fn a_payload_that_is_complete_is_not_asked_for_again_after_a_cut() {
    for cut in [Cut::Before, Cut::After] {
        let whole = updating(|_| {});
        let staging = whole.position(|effect| matches!(effect, Effect::Stage(_)));
        let world = updating(|world| world.script.happenings.push_back((staging, Happening::Cut(cut))));
        assert_eq!((offsets(&world), grants(&world)), (vec![0], 1), "{cut:?}");
        assert_eq!(code(&world), ResultCode::Ok);
    }
}

#[test]
fn a_cut_after_the_last_byte_needs_no_empty_fetch() {
    let error = FetchError::Interrupted;
    let world = updating(|world| world.script.fetches.push_back(Fetching::Fails(SIZE, error)));
    assert_eq!((offsets(&world), code(&world)), (vec![0], ResultCode::Ok));
}

#[test]
fn what_an_update_left_behind_is_not_taken_for_bytes_of_the_next() {
    let whole = updating(|_| {});
    let staged = whole.effects.len();
    // The payload of fw-2 is still in store when fw-3 is started and the power goes before its first fetch.
    let mut world = updating(|_| {});
    world.script.happenings.push_back((staged + 3, Happening::Cut(Cut::Before)));
    world.desire(reference("fw-3", 3, false));
    world.run();
    world.assert_settled();
    assert_eq!(&*world.running(), "fw-3");
}
