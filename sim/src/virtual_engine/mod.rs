//! The virtual engine: a fleet in virtual time, deterministic from its seed, on any number of threads.
//!
//! * `wheel`: what each shard's devices wait for. `shard`: some thousands of devices and their part of the hub.
//! * `blob`: the store that all downloads share. `delta`: what is fetched of chunked archives. `gate`: the hub's throttles.
//! * This file: windows, one after the other. In each, shards run in parallel; between them, sequentially and in
//!   a fixed order, the timeline acts, throttles admit and the store sends.
//!
//! Why the result does not depend on threads: devices meet only through the blob store and the throttles, and what a
//! device does within a window can't come back through the store before its end, which is at most four of the
//! shortest link latency away (one, with throttles). So shards read only what was fixed before the window; sums of
//! theirs are exact integers; everything else happens between windows. The hash of all events is a sum over devices,
//! each device's a chain in its own order.

mod blob;
mod delta;
mod env;
mod event;
mod gate;
mod pool;
mod shard;
mod sizes;
mod stage;
mod wheel;
mod worker;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant as Clock};

use fleetwave_protocol::WallTime;
use fleetwave_protocol::time::Instant;

use self::env::Env;
use self::pool::Pool;
use self::stage::Stage;
use crate::device::World;
use crate::measure::{EngineOutcome, MemoryProbe};
use crate::progress::Progress;
use crate::run::{EngineError, RunPlan};
use crate::timeline::{End, Timeline};

/// Midnight of the day on which every virtual run takes place: 2030-01-01, UTC.
const EPOCH: WallTime = WallTime::from_unix_millis(1_893_456_000_000);

/// Windows between two looks at the display's counters.
const SHOWN_EVERY: u64 = 64;

/// Runs a plan in virtual time.
///
/// # Errors
/// [`EngineError`] if the fleet can't be made.
pub fn run(plan: &RunPlan, progress: &Progress, stop: &AtomicBool) -> Result<EngineOutcome, EngineError> {
    run_with_histories(plan, progress, stop).map(|(outcome, _)| outcome)
}

/// The same, and a hash of the states that each device went through, in the fleet's order.
///
/// # Errors
/// As [`run`].
pub fn run_with_histories(
    plan: &RunPlan,
    progress: &Progress,
    stop: &AtomicBool,
) -> Result<(EngineOutcome, Vec<u64>), EngineError> {
    plan.check_drivers()?;
    let threads = plan.threads.or_else(|| thread::available_parallelism().ok()).map_or(1, usize::from);
    // No byte is sent, so no payload is made: its digest is one that stands for it.
    let world = World::new(plan.scenario.clone(), |release| stage::stand_in_digest(&release.id));
    let memory = MemoryProbe::start();
    let started = Clock::now();
    progress.phase("making the fleet");
    let pool = Pool::new(Env::new(world), threads)?;
    thread::scope(|scope| {
        let crew = pool.start(scope);
        let (end, now, counts, notes) = {
            let env = pool.env();
            let scenario = env.world().scenario().clone();
            let fleet = env.world().fleet().clone();
            drop(env);
            let mut timeline = Timeline::new(&scenario, |group| {
                fleet.member_count(group.and_then(|name| fleet.group_named(name)))
            });
            let mut stage = Stage::new(&pool, &scenario);
            let end = play(&mut timeline, &mut stage, progress, stop)?;
            (end, stage.now(), stage.counts(), timeline.notes().to_vec())
        };
        let (meter, violations) = pool.finish(crew);
        let wall = started.elapsed();
        let env = pool.env();
        let (hash, histories) = pool.hashes();
        let outcome = EngineOutcome {
            meter,
            counts,
            end,
            notes,
            violations: violations.sentences(env.world().fleet()),
            disturbances: Vec::new(),
            duration: Duration::from_micros(now),
            wall,
            event_hash: Some(hash),
            memory: memory.finish(),
            threads: threads as u32,
            floor: None,
        };
        Ok((outcome, histories))
    })
}

/// Plays window after window until the timeline is over; `None` if it was stopped before.
fn play(
    timeline: &mut Timeline<'_>,
    stage: &mut Stage<'_>,
    progress: &Progress,
    stop: &AtomicBool,
) -> Result<Option<End>, EngineError> {
    for window in 0_u64.. {
        let due = timeline.next_wake();
        let actions = timeline.poll(Instant::from_micros(stage.now()), &stage.counts());
        for action in actions {
            if let Some(end) = stage.act(action, due, timeline)? {
                stage.show(progress, &timeline.phase());
                return Ok(Some(end));
            }
        }
        if window.is_multiple_of(SHOWN_EVERY) {
            stage.show(progress, &timeline.phase());
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
        }
        // An action may have made another one due.
        stage.advance(timeline.next_wake());
    }
    unreachable!("every run has a longest duration")
}
