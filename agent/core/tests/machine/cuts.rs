//! The power goes at every effect of an update, once and twice, whatever else goes wrong with it.

use std::time::Duration;

use fleetwave_agent_core::{AtDeadline, Caps, FetchError, LockAnswer, Locks, Plan, ResultCode, Window};
use fleetwave_protocol::CounterRng;

use crate::coverage::Coverage;
use crate::world::{Cut, DAY, Fetching, Happening, SIZE, World, reference};

/// A release's story, and how it may end. A cut adds to the boots of a slot, so it may turn one failure of a trial
/// into another; it never turns a failure into a success.
pub(crate) struct Story {
    pub(crate) name: &'static str,
    prepare: fn(&mut World),
    ends: &'static [ResultCode],
}

pub(crate) const STORIES: [Story; 10] = [
    Story { name: "all goes well", prepare: |_| {}, ends: &[ResultCode::Ok] },
    Story {
        name: "the release does not boot",
        prepare: |world| world.script.dead.push("fw-2"),
        ends: &[ResultCode::BootFailed],
    },
    Story {
        name: "the release is not healthy",
        prepare: |world| world.script.sick.push("fw-2"),
        ends: &[ResultCode::Unhealthy, ResultCode::BootFailed],
    },
    Story {
        name: "the hub is away in the trial",
        prepare: |world| world.script.hub_away_in_trial = Some(Duration::from_secs(3_600)),
        ends: &[ResultCode::ProbationTimeout, ResultCode::BootFailed, ResultCode::Ok],
    },
    Story {
        name: "the download is cut twice",
        prepare: |world| {
            for bytes in [SIZE / 4, SIZE / 2] {
                world.script.fetches.push_back(Fetching::Fails(bytes, FetchError::Interrupted));
            }
        },
        ends: &[ResultCode::Ok],
    },
    Story {
        name: "the payload is wrong once",
        prepare: |world| world.script.fetches.push_back(Fetching::Corrupted),
        ends: &[ResultCode::Ok],
    },
    Story {
        name: "windows close in the middle of it",
        prepare: |world| {
            let window = |opens, lasts| Window::daily(Duration::from_secs(opens), Duration::from_secs(lasts));
            let grace = Duration::from_secs(5);
            world.policy.download_window = Some(Window { grace, ..window(12 * 3_600, 15) });
            world.policy.install_window = Some(window(20 * 3_600, 3_600));
        },
        ends: &[ResultCode::Ok],
    },
    Story {
        name: "it is not to be interrupted for a while",
        prepare: |world| {
            let (retry, deadline) = (Duration::from_secs(60), Duration::from_secs(600));
            world.policy.locks = Some(Locks { retry, deadline, at_deadline: AtDeadline::GiveUp });
            world.script.locks.extend([Some(LockAnswer::Held), None, Some(LockAnswer::Held)]);
        },
        ends: &[ResultCode::Ok],
    },
    Story {
        name: "bytes are counted",
        prepare: |world| {
            world.policy.caps = Some(Caps { per_update: 4 * SIZE, per_window: 4 * SIZE, window: DAY });
            world.policy.report_plan = true;
            world.script.plans.push_back(Err(FetchError::Interrupted));
            world.script.fetches.push_back(Fetching::Fails(SIZE / 2, FetchError::Interrupted));
        },
        ends: &[ResultCode::Ok],
    },
    Story {
        name: "it costs more than is left, twice",
        prepare: |world| {
            world.policy.caps = Some(Caps { per_update: 4 * SIZE, per_window: 2 * SIZE, window: DAY });
            world.script.plans.push_back(Ok(Plan { allowance: SIZE - 1, ..Plan::full(SIZE, 0) }));
            world.script.fetches.push_back(Fetching::Fails(SIZE / 2, FetchError::OverWindowCap));
        },
        ends: &[ResultCode::Ok],
    },
];

impl Story {
    fn begun(&self) -> World {
        let mut world = World::new(11);
        (self.prepare)(&mut world);
        world.desire(reference("fw-2", 2, false));
        world
    }

    pub(crate) fn run(&self, happenings: impl IntoIterator<Item = (usize, Happening)>) -> World {
        let mut world = self.begun();
        world.script.happenings.extend(happenings);
        world.run();
        world.assert_settled();
        world
    }

    fn assert_end(&self, world: &World, how: &str) {
        let (_, code) = world.durable().last.expect("an update ended");
        assert!(self.ends.contains(&code), "{}, {how}: {code:?}", self.name);
        let runs = if code == ResultCode::Ok { "fw-2" } else { "fw-1" };
        assert_eq!(&*world.running(), runs, "{}, {how}", self.name);
    }
}

pub(crate) const CUTS: [Cut; 3] = [Cut::Before, Cut::Midway, Cut::After];

/// Every story with one cut, at each effect in each way.
pub(crate) fn single_cuts() -> Coverage {
    let mut coverage = Coverage::default();
    for story in &STORIES {
        let whole = story.run([]);
        story.assert_end(&whole, "undisturbed");
        for number in 0..whole.effects.len() {
            for cut in CUTS {
                let world = story.run([(number, Happening::Cut(cut))]);
                story.assert_end(&world, &format!("cut {cut:?} effect {number}"));
                coverage.add(&world.coverage);
            }
        }
    }
    coverage
}

/// Every story with one fault between two events, while the device waits for the second: each fault at each place.
pub(crate) fn between_events() -> Coverage {
    const FAULTS: [fn(&mut World); 6] = [
        World::power_cut,
        |world| world.desire(reference("fw-3", 3, false)),
        World::cancel,
        World::remove,
        World::abort,
        World::drop_link,
    ];
    let mut coverage = Coverage::default();
    for story in &STORIES {
        let mut undisturbed = story.begun();
        let mut steps = 0;
        while undisturbed.step() {
            steps += 1;
        }
        for (number, fault) in (1..=steps).flat_map(|number| FAULTS.map(|fault| (number, fault))) {
            let mut world = story.begun();
            for _ in 0..number {
                world.step();
            }
            fault(&mut world);
            world.run();
            world.assert_settled();
            coverage.add(&world.coverage);
        }
    }
    coverage
}

#[test]
fn a_fault_between_any_two_events_leaves_a_device_that_converges_or_says_why_not() {
    between_events();
}

#[test]
fn a_power_cut_at_any_effect_leaves_a_device_that_converges_or_says_why_not() {
    single_cuts();
}

#[test]
fn so_do_two_power_cuts() {
    let mut rng = CounterRng::new(5);
    for story in &STORIES {
        let length = story.run([]).effects.len() as u64;
        for _ in 0..1_500 {
            let first = rng.below(length) as usize;
            let second = first + 1 + rng.below(length) as usize;
            let mut cut = || CUTS[rng.below(3) as usize];
            let cuts = [(first, Happening::Cut(cut())), (second, Happening::Cut(cut()))];
            let how = format!("{cuts:?}");
            story.assert_end(&story.run(cuts), &how);
        }
    }
}

#[test]
fn a_device_that_is_reset_again_and_again_gives_the_release_up() {
    // Each life gets as far as its first fetch.
    let mut world = World::new(3);
    world.desire(reference("fw-2", 2, false));
    for _ in 0..200 {
        world.run_to_fetch_or_rest();
        if world.durable().last.is_some() {
            break;
        }
        world.power_cut();
    }
    world.run();
    world.assert_settled();
    assert_eq!(world.durable().last.map(|(_, code)| code), Some(ResultCode::StartLoop));
}

#[test]
fn a_cut_between_the_commit_and_its_record_does_not_send_the_device_back() {
    // The slot is the default one already: a second trial that failed could never be left.
    let whole = STORIES[0].run([]);
    let commit = whole.position(|effect| matches!(effect, fleetwave_agent_core::Effect::CommitSlot));
    let mut world = World::new(11);
    world.script.happenings.push_back((commit, Happening::Cut(Cut::After)));
    world.desire(reference("fw-2", 2, false));
    while world.script.happenings.front().is_some() {
        assert!(world.step());
    }
    world.script.sick.push("fw-2");
    world.run();
    world.assert_settled();
    assert_eq!(&*world.running(), "fw-2");
    assert_eq!(world.durable().last.map(|(_, code)| code), Some(ResultCode::Ok));
}
