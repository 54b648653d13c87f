//! Whatever happens, in whatever order: safe while it happens, settled once it is over.

use std::time::Duration;

use fleetwave_agent_core::twin::{Desired, Progress, Status};
use fleetwave_agent_core::{
    Agent, AtDeadline, Boot, Caps, Context, Days, Durable, Effect, Event, FetchError, GrantAnswer,
    HealthError, InstallError, LockAnswer, Locks, Method, Phase, Plan, Policy, Record, ReleaseId, Releases,
    ResultCode, StorageError, VerifyError, Window,
};
use fleetwave_protocol::time::{Instant, Now, WallTime};
use proptest::prelude::*;

use crate::luck::Luck;
use crate::world::{DAY, MIDNIGHT, World, catalogue, reference};

/// What an operator, or the weather, does.
#[derive(Clone, Copy, Debug)]
enum Act {
    Desire(u64),
    Cancel,
    Remove,
    Abort,
    Cut,
    Drop,
    Away(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (2..7u64).prop_map(Act::Desire),
        1 => Just(Act::Cancel),
        1 => Just(Act::Remove),
        1 => Just(Act::Abort),
        1 => Just(Act::Cut),
        1 => Just(Act::Drop),
        1 => (0..4_000u64).prop_map(Act::Away),
    ]
}

/// Lives through `acts`, each so many seconds after the one before, with faults of `seed`'s drawing all the while;
/// then the faults end, and the world runs on until it is at rest.
fn live(seed: u64, acts: &[(u64, Act)]) {
    let mut world = World::new(seed);
    world.policy = policy(seed);
    // Plans are of all kinds, and what is fetched is always all of it.
    world.ledger_counts = false;
    let spans = acts.iter().map(|(after, _)| after).sum::<u64>() + 600;
    world.luck = Some(Luck::new(seed, Instant::ZERO + Duration::from_secs(spans)));
    for &(after, act) in acts {
        world.run_for(Duration::from_secs(after));
        match act {
            Act::Desire(sequence) => {
                world.desire(reference(&format!("fw-{sequence}"), sequence, sequence == 3));
            }
            Act::Cancel if world.hub.wants_firmware() => world.cancel(),
            Act::Cancel => {}
            Act::Remove => world.remove(),
            Act::Abort => world.abort(),
            Act::Cut => world.power_cut(),
            Act::Drop => world.drop_link(),
            Act::Away(span) => world.hub_goes_away(Duration::from_secs(span)),
        }
    }
    world.run_for(Duration::from_secs(600));
    // A patch that was lost on the way, or a report refused for good, is made up for on the next connection.
    world.drop_link();
    world.run();
    world.assert_settled();
}

proptest! {
    /// Assumes: a driver that keeps its word. Does: faults of every kind, at random, for a while.
    /// Asserts: the world's invariants at each effect; at the end every device converged or said why not.
    #[test]
    fn a_device_comes_out_of_any_chaos(
        seed in any::<u64>(),
        acts in prop::collection::vec((0..400u64, act()), 0..12),
    ) {
        live(seed, &acts);
    }

    /// Assumes: nothing at all. Does: any event, sense or nonsense, at any time. Asserts: no panic, no deadline in
    /// the past, no endless turn, and never a commit of what was not healthy, a boot of what was not recorded, a
    /// slot written with what was not verified.
    #[test]
    fn no_sequence_of_events_makes_the_machine_unsafe(
        seed in any::<u64>(),
        events in prop::collection::vec((0..2_000_000_000u64, event()), 0..200),
    ) {
        feed(seed, &events);
    }
}

fn releases() -> Releases {
    let mut releases = catalogue();
    releases.preinstalled("fw-1", 1);
    for sequence in 2..5 {
        releases.intern(&reference(&format!("fw-{sequence}"), sequence, sequence == 3));
    }
    let mut forged = reference("fw-2", 2, false);
    forged.insert("size".into(), 1.into());
    releases.intern(&forged);
    releases
}

fn release() -> impl Strategy<Value = ReleaseId> {
    let ids: Vec<_> = releases().iter().map(|(id, _)| id).collect();
    prop::sample::select(ids)
}

fn code() -> impl Strategy<Value = ResultCode> {
    prop::sample::select(ResultCode::ALL)
}

fn storage() -> impl Strategy<Value = Result<(), StorageError>> {
    let error =
        prop::sample::select(vec![StorageError::NoSpace, StorageError::ReadOnly, StorageError::Failed]);
    prop_oneof![4 => Just(Ok(())), 1 => error.prop_map(Err)]
}

fn desired() -> impl Strategy<Value = Desired> {
    prop_oneof![
        1 => Just(Desired::Nothing),
        4 => release().prop_map(Desired::Release),
        1 => release().prop_map(Desired::Cancelled),
    ]
}

fn boot() -> impl Strategy<Value = Boot> {
    let phase = prop_oneof![
        any::<u8>().prop_map(|starts| Phase::Started { starts }),
        any::<u8>().prop_map(|boots| Phase::Staged { boots }),
        code().prop_map(Phase::Reverting),
    ];
    let pending = prop::option::of((release(), phase));
    let last = prop::option::of((release(), code()));
    (release(), pending, last, release(), release(), any::<u64>()).prop_map(
        |(journal, pending, last, running, committed, partial)| {
            let mut durable = Durable::new(journal);
            durable.last = last;
            durable.pending =
                pending.map(|(release, phase)| fleetwave_agent_core::Pending { release, phase });
            Boot { durable, running, committed, partial }
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    let status =
        prop::option::of((release(), release(), code()).prop_map(|(running, target, code)| Status {
            running,
            progress: Progress::Failed(target, code),
        }));
    let error = prop::sample::select(vec![
        FetchError::Forbidden,
        FetchError::NotFound,
        FetchError::Busy(Duration::MAX),
        FetchError::Server,
        FetchError::Interrupted,
        FetchError::Protocol,
        FetchError::Unplanned,
        FetchError::Storage(StorageError::ReadOnly),
        FetchError::Stopped,
        FetchError::OverWindowCap,
    ]);
    let answer = prop_oneof![
        3 => any::<u64>().prop_map(|at| GrantAnswer::Granted { expires: WallTime::from_unix_millis(at) }),
        1 => any::<u32>().prop_map(|pause| GrantAnswer::Later(Duration::from_secs(pause.into()))),
        1 => Just(GrantAnswer::Refused),
    ];
    let verified = prop::sample::select(vec![Ok(()), Err(VerifyError::Size), Err(VerifyError::Digest)]);
    let version = prop_oneof![4 => 0..40u64, 1 => any::<u64>()];
    prop_oneof![
        2 => boot().prop_map(Event::Booted),
        6 => any::<bool>().prop_map(|session_present| Event::Connected { session_present }),
        1 => Just(Event::Disconnected),
        6 => (version.clone(), desired(), status)
            .prop_map(|(version, desired, reported)| Event::Twin { version, desired, reported }),
        1 => any::<u16>().prop_map(Event::TwinRefused),
        4 => (version, desired()).prop_map(|(version, desired)| Event::Desired { version, desired }),
        4 => (0..50u32, any::<u16>()).prop_map(|(rid, status)| Event::Reported { rid, status }),
        8 => (release(), answer).prop_map(|(release, answer)| Event::Grant { release, answer }),
        2 => (error, any::<u64>()).prop_map(|(error, durable)| Event::FetchFailed { error, durable }),
        8 => Just(Event::Fetched),
        8 => verified.prop_map(Event::Verified),
        8 => storage().prop_map(|result| Event::Staged(result.map_err(Into::into))),
        1 => installing().prop_map(|error| Event::Staged(Err(error))),
        1 => installing().prop_map(Event::NotActivated),
        8 => prop::sample::select(vec![LockAnswer::Free, LockAnswer::Held]).prop_map(Event::Locks),
        8 => plan().prop_map(Event::Planned),
        1 => Just(Event::Abort),
        20 => storage().prop_map(Event::Persisted),
        4 => prop::sample::select(vec![Ok(()), Err(HealthError)]).prop_map(Event::Health),
        4 => storage().prop_map(Event::SlotCommitted),
        12 => Just(Event::Timer),
    ]
}

fn installing() -> impl Strategy<Value = InstallError> {
    prop::sample::select(vec![
        InstallError::Payload,
        InstallError::Hook,
        InstallError::Failed,
        InstallError::Refused,
        InstallError::Storage(StorageError::ReadOnly),
    ])
}

fn plan() -> impl Strategy<Value = Result<Plan, FetchError>> {
    let method = prop::sample::select(vec![Method::Full, Method::Delta]);
    let number = || prop_oneof![4 => 0..100_000u64, 1 => any::<u64>()];
    let plan = (method, number(), any::<u32>(), number(), number()).prop_map(
        |(method, bytes, requests, spent, allowance)| Plan { method, bytes, requests, spent, allowance },
    );
    prop_oneof![4 => plan.prop_map(Ok), 1 => Just(Err(FetchError::OverUpdateCap)), 1 => Just(Err(FetchError::Server))]
}

/// One of the policies that use everything, or nothing, of what is optional.
fn policy(seed: u64) -> Policy {
    let policy = Policy { splay: Duration::from_secs(60), ..Policy::default() };
    if seed.is_multiple_of(2) {
        return policy;
    }
    let window = Window {
        days: Days::ALL,
        opens: Duration::from_secs(seed % 86_400),
        lasts: Duration::from_secs(1 + seed / 7 % 86_400),
        grace: Duration::from_secs(seed / 3 % 900),
    };
    let at_deadline = if seed % 4 == 1 { AtDeadline::Proceed } else { AtDeadline::GiveUp };
    let (retry, deadline) = (Duration::from_secs(60), Duration::from_secs(seed / 5 % 7_200));
    Policy {
        download_window: seed.is_multiple_of(3).then_some(window),
        install_window: (seed % 5 < 2).then_some(window),
        utc_offset: (seed % 50_400) as i32,
        locks: Some(Locks { retry, deadline, at_deadline }),
        caps: (seed % 7 < 3).then_some(Caps { per_update: 100_000, per_window: 1_000_000, window: DAY }),
        ..policy
    }
}

fn feed(seed: u64, events: &[(u64, Event)]) {
    let releases = releases();
    let policy = policy(seed);
    let cx = Context { policy: &policy, releases: &releases };
    let (first, _) = releases.iter().next().expect("fw-1");
    let mut agent = Agent::new(seed, first);
    let mut now = Now { at: Instant::ZERO, wall: WallTime::from_unix_millis(MIDNIGHT) };
    let mut out = Vec::new();
    for &(after, event) in events {
        now.at = now.at + Duration::from_micros(after);
        let before = agent.clone();
        out.clear();
        agent.handle(&cx, now, event, &mut out);
        assert!(out.len() < 16, "{out:?}");
        for effect in &out {
            let allowed = match *effect {
                Effect::Wake(at) => at > now.at,
                Effect::Stage(_) => event == Event::Verified(Ok(())),
                Effect::RebootIntoCandidate => event == Event::Persisted(Ok(())),
                // Healthy just now, or healthy and waiting for the hub.
                Effect::CommitSlot => {
                    matches!(event, Event::Health(Ok(())) | Event::Twin { .. })
                        && before.state() == fleetwave_agent_core::State::Probation
                }
                Effect::Persist(Record::Ended(_, ResultCode::Ok)) => {
                    matches!(event, Event::SlotCommitted(Ok(())) | Event::Booted(_))
                }
                _ => true,
            };
            assert!(allowed, "{event:?} led {before:?} to {effect:?}");
        }
    }
}
