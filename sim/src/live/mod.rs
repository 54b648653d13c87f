//! The live engine: real MQTT bytes and real HTTP downloads on this machine, against the embedded hub, an embedded
//! rumqttd, or any broker.
//!
//! One thread runs the timeline (`play`), a few run the devices (`shard`), one downloads (`fetch`); the hub and
//! the blob endpoint have their own. Devices share nothing but counters. Installation, reboots and health checks take
//! simulated time; the scenario's link latency, loss and bandwidth are *not* simulated: bytes take as long as this
//! machine takes.

mod agents;
mod aim;
mod beat;
mod cloud;
mod codec;
mod fetch;
mod floor;
mod granting;
mod limits;
mod login;
mod operator;
mod play;
pub mod script;
mod shard;
mod stage;
mod tally;
mod transport;
mod wheel;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant as Clock};

use fleetwave_agent_core::State;
use fleetwave_hub::HubControl;
use fleetwave_hub::blob::BlobControl;
use fleetwave_hub::recorder::Recorder;
use fleetwave_protocol::Instant;
use fleetwave_protocol::sas::Key;
use fleetwave_report::record::Transport;

use self::play::Play;
use self::stage::Stage;
use crate::measure::{EngineOutcome, MemoryProbe};
use crate::progress::Progress;
use crate::remote::{self, Remote, Tenancy};
use crate::run::{EngineError, RunPlan, Target};
use crate::scenario::model::Scenario;
use crate::scenario::step::Action;
use crate::timeline::Timeline;

/// A live run with the way of each device, for a comparison with another engine's.
#[derive(Debug)]
pub struct LiveRun {
    /// What was measured.
    pub outcome: EngineOutcome,
    /// The hash of the states that each device went through.
    pub histories: Vec<u64>,
    /// The states themselves.
    pub stories: Vec<Vec<State>>,
}

/// Who looks on, beside the run itself.
#[derive(Default)]
struct Audience {
    /// Keep each device's states.
    stories: bool,
    witness: Option<Witness>,
}

/// What a witness has happen to all devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// They lose power, for so long.
    Cut(Duration),
    /// They may be interrupted from now on.
    Free,
}

/// Whoever is shown all that the embedded hub and the blob endpoint see. Figures are not measured for it: the machine's
/// own rates are left out.
pub struct Witness {
    /// Keeps it.
    pub recorder: Arc<Recorder>,
    /// Is given the handles of both before the first step.
    pub ready: Box<dyn FnOnce(HubControl, BlobControl) + Send>,
    /// What is to happen to all devices.
    pub wishes: mpsc::Receiver<Wish>,
    /// What the devices' calendar is ahead of the scenario's `clock`.
    pub ahead: Duration,
}

/// Runs a plan live.
///
/// # Errors
/// [`EngineError`] if this machine has no room for it, or if what it needs cannot be started.
pub fn run(plan: &RunPlan, progress: &Progress, stop: &AtomicBool) -> Result<EngineOutcome, EngineError> {
    play(plan, progress, stop, Audience::default()).map(|run| run.outcome)
}

/// The same, and the way of each device.
///
/// # Errors
/// As for [`run`].
pub fn run_with_stories(
    plan: &RunPlan,
    progress: &Progress,
    stop: &AtomicBool,
) -> Result<LiveRun, EngineError> {
    play(plan, progress, stop, Audience { stories: true, ..Audience::default() })
}

/// The same for a witness.
///
/// # Errors
/// As for [`run`].
pub fn run_witnessed(
    plan: &RunPlan,
    progress: &Progress,
    stop: &AtomicBool,
    witness: Witness,
) -> Result<EngineOutcome, EngineError> {
    let audience = Audience { witness: Some(witness), ..Audience::default() };
    play(plan, progress, stop, audience).map(|run| run.outcome)
}

fn play(
    plan: &RunPlan,
    progress: &Progress,
    stop: &AtomicBool,
    audience: Audience,
) -> Result<LiveRun, EngineError> {
    plan.check_drivers()?;
    limits::make_room(plan)?;
    let clock = fleetwave_hub::Clock::new();
    let Target::Remote(remote) = &plan.target else {
        return perform(plan, clock, None, progress, stop, audience);
    };
    remote::fit(&plan.scenario).map_err(|(problem, fix)| EngineError::Unfit { problem, fix })?;
    progress.phase("asking the hub");
    let tenancy = Tenancy::open(remote, &plan.scenario, &clock)
        .map_err(|error| stage::failed(format!("working on {remote}"), error))?;
    check_room(&tenancy, &plan.scenario)?;
    let tenancy = Arc::new(tenancy);
    let outcome = perform(plan, clock, Some(&tenancy), progress, stop, audience);
    match (tenancy.remove(progress), outcome) {
        (Ok(()), Ok(mut run)) => {
            run.outcome.notes.extend(remark_on_others(&tenancy));
            Ok(run)
        }
        (Ok(()), Err(error)) => Err(error),
        (Err(left), Ok(mut run)) => {
            run.outcome.notes.push(left.tell());
            Ok(run)
        }
        (Err(left), Err(error)) => Err(stage::failed(format!("{error}; and {}", left.tell()), error)),
    }
}

/// A hub has room for so many configurations.
const MOST_CONFIGURATIONS: usize = 100;

/// Checks that the scenario's configurations have room beside those that are there.
fn check_room(tenancy: &Tenancy, scenario: &Scenario) -> Result<(), EngineError> {
    let own = scenario.steps.iter().filter(|step| matches!(step.action, Action::Configure(_))).count();
    if tenancy.others() + own <= MOST_CONFIGURATIONS {
        return Ok(());
    }
    Err(EngineError::Unfit {
        problem: format!(
            "the scenario puts {own} configurations, the hub has {} and room for {MOST_CONFIGURATIONS}",
            tenancy.others()
        ),
        fix: "remove some there, or take another hub".to_owned(),
    })
}

/// What others have on the hub may reach the run's devices.
fn remark_on_others(tenancy: &Tenancy) -> Option<String> {
    let others = tenancy.others();
    (others > 0).then(|| {
        format!("{others} configurations of others were on the hub: those that are for all devices were for these, too")
    })
}

/// What remote fleets' keys are derived from: nobody knows it but this run.
fn random_key() -> Key {
    Key::from_bytes(rand::random::<[u8; 32]>())
}

/// The run itself, on what is there.
fn perform(
    plan: &RunPlan,
    clock: fleetwave_hub::Clock,
    tenancy: Option<&Arc<Tenancy>>,
    progress: &Progress,
    stop: &AtomicBool,
    audience: Audience,
) -> Result<LiveRun, EngineError> {
    let scenario = &plan.scenario;
    let floor = if audience.witness.is_none() {
        progress.phase("measuring what this machine can do");
        Some(floor::measure(plan.transport, scenario.fleet.devices.0))
    } else {
        None
    };
    let world = Arc::new(stage::world(plan));
    let memory = MemoryProbe::start();
    progress.phase("making the fleet");
    let elsewhere = match tenancy {
        None => None,
        Some(tenancy) => {
            let key = random_key();
            let go_on = || !stop.load(Ordering::Relaxed);
            let created = tenancy
                .create_fleet(&world, &key, progress, &go_on)
                .map_err(|error| stage::failed("creating the fleet's devices", error))?;
            if !created {
                return Err(EngineError::Interrupted);
            }
            Some((tenancy, key))
        }
    };
    let started = Clock::now();
    let recorder = audience.witness.as_ref().map(|witness| witness.recorder.clone());
    let stage = Stage::set(plan, world, clock, elsewhere, audience.stories, audience.witness.as_ref())?;
    let mut wishes = None;
    if let (Some(witness), Some(control)) = (audience.witness, stage.operator.control()) {
        (witness.ready)(control, stage.blobs.control());
        wishes = Some(witness.wishes);
    }
    let fleet = stage.world.fleet();
    let mut timeline =
        Timeline::new(scenario, |group| fleet.member_count(group.and_then(|name| fleet.group_named(name))));
    let at_once = limits::downloads_at_once(plan);
    let mut play = Play::new(&stage, scenario, at_once, wishes);
    let end = play.run(&mut timeline, progress, stop);
    if let Some(recorder) = recorder {
        recorder.stop();
    }
    let (duration, counts, own) = (play.now().since(Instant::ZERO), play.counts(), play.meter);
    let mut notes = timeline.notes().to_vec();
    let wall = started.elapsed();
    let memory = memory.finish();
    let threads = stage.threads();
    let world = stage.world.clone();
    let mut left = stage.strike();
    left.meter.merge(&own);
    notes.extend(remarks(plan, at_once));
    if scenario.releases.iter().any(|release| release.delta.is_some()) {
        notes.push("payloads were fetched whole: only virtual runs have deltas".to_owned());
    }
    let outcome = EngineOutcome {
        meter: left.meter,
        counts,
        end: end?,
        notes,
        violations: left.violations.sentences(world.fleet()),
        disturbances: left.casualties,
        duration,
        wall,
        event_hash: None,
        memory,
        threads,
        floor,
    };
    Ok(LiveRun { outcome, histories: left.histories, stories: left.stories })
}

/// What a reader of live figures has to know.
fn remarks(plan: &RunPlan, at_once: u64) -> Vec<String> {
    if let Target::Remote(remote) = &plan.target {
        return remarks_on(remote, plan, at_once);
    }
    let mut remarks = vec![format!(
        "live over {}: links are this machine's own, the scenario's latency, loss and bandwidth are not simulated; at \
         most {at_once} downloads at once",
        if plan.transport == Transport::Memory { "memory" } else { "loopback TCP" },
    )];
    let real = plan.real_agents();
    if real > 0 {
        remarks.push(format!(
            "{real} of the devices are real agents: they hash, install and check as fast as this machine does, and of their \
             payload bytes those of whole downloads are counted"
        ));
    }
    match plan.target {
        Target::Hub | Target::Remote(_) => {}
        Target::Rumqttd => remarks.push(
            "rumqttd: the first publish on a topic that nobody has published on costs the broker time that grows with \
             the fleet; it is part of these figures"
                .to_owned(),
        ),
        Target::Broker { .. } => remarks.push("the broker's own time is part of these figures".to_owned()),
    }
    remarks
}

/// The same for a hub that is not ours.
fn remarks_on(remote: &Remote, plan: &RunPlan, at_once: u64) -> Vec<String> {
    let (tier, units) = remote.limits(&plan.scenario);
    vec![
        format!(
            "live on {remote}, run {}: links are those between this machine and the hub, the scenario's latency, loss \
             and bandwidth are not simulated; at most {at_once} downloads at once, from this machine to itself",
            remote.run
        ),
        format!(
            "kept within the limits of {tier:?}, {units} units: what had to wait for its place is in the latencies of \
             connections, grants and convergence"
        ),
        "fan-out counts from when the request with the change was sent, so that the hub's own pause before it applies a \
         configuration is in it; a device counts as converged when it has the hub's answer to \
         its report"
            .to_owned(),
    ]
}
