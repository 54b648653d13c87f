//! A unit: one target with its machine, its journal, the releases that it knows, and its installer. It gives the
//! machine its events and carries out the effects that concern this target alone; the rest is the device's.
//!
//! A unit lives from one start of what it updates to the next. Everything in it is lost when a life ends; what must not
//! be lost is in the journal, and where the installer keeps what it installs.

mod cause;
mod effects;
mod local;
mod told;
mod trial;
mod trouble;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use fleetwave_agent_core::{
    Agent, Boot, Context, Effect, Event, Phase, Plan, Policy, ReleaseId, Releases, ResultCode, State,
};
use fleetwave_protocol::{Instant, Now, rng};
use serde_json::Value;
use tokio::time::sleep;

use self::cause::Causes;
pub(crate) use self::cause::kept_cause;
pub(crate) use self::told::cost;
pub(crate) use self::trouble::kept_problem;
use self::trouble::{Trouble, Troubles};
use crate::config::{Config, TargetConfig};
use crate::fetch::{Fetcher, Links, Payload};
use crate::files::{remedy, storage_error};
use crate::install::{Activated, InstallError, Installer, Later, Site, Standing};
use crate::journal::Journal;
use crate::locks::Locks;
use crate::metrics::Counters;
use crate::target::Target;

/// The pause before a life that follows a failure, and the longest one.
const PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// What a step that took its time came to.
pub(crate) enum Step {
    /// What the target runs.
    Stood(Result<Standing, InstallError>),
    /// News for the machine; if something has failed, why.
    Event(Event, Option<String>),
    /// What was staged was made to run, or should have been.
    Activated(Result<Activated, InstallError>),
    /// What was committed was made to run again, or should have been.
    GoneBack(Result<Activated, InstallError>),
}

/// What waits for its turn among the units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parked {
    /// A download.
    Fetch { release: ReleaseId, offset: u64 },
    /// A start of what was staged.
    Activate,
}

/// A grant that came, until the machine has said whether it waited for one.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) links: Option<Links>,
    /// The request id of the method that brought it.
    pub(crate) method: Option<String>,
}

/// One target.
pub(crate) struct Unit {
    pub(crate) target: Target,
    pub(crate) releases: Releases,
    /// Counts the lives: what was asked in one is not answered in another.
    pub(crate) life: u32,
    pub(crate) parked: Option<Parked>,
    pub(crate) offer: Option<Offer>,
    /// What the rest of the download will cost, if the machine asked.
    pub(crate) plan: Option<Plan>,
    /// A report is on its way.
    pub(crate) reporting: bool,
    /// The direct methods that wait to hear whether the update was called off.
    pub(crate) cancelling: Vec<String>,
    /// Updates that have ended, not told yet.
    pub(crate) outcomes: Vec<Value>,
    dir: PathBuf,
    policy: Policy,
    /// The policy of updates that the hub asks for.
    base: Policy,
    /// What was asked for at the device itself.
    local: Option<local::Local>,
    seed: u64,
    trust: fleetwave_agent_core::TrustRoot,
    device_type: Option<String>,
    installer: Rc<dyn Installer>,
    fetcher: Rc<Fetcher>,
    payload: Rc<Payload>,
    locks: Locks,
    counters: Counters,
    /// What runs, as it was found, and how the last update ended.
    running: Option<ReleaseId>,
    last: Option<(ReleaseId, ResultCode)>,
    /// There is none while it is not known what runs.
    machine: Option<Machine>,
    events: VecDeque<Event>,
    links: Option<Links>,
    step: Option<Later<Step>>,
    fetching: bool,
    /// It was made to run something else, and has not said yet what came of it.
    unsettled: bool,
    health: Option<Later<Step>>,
    /// Steps in a row that failed.
    failures: u32,
    troubles: Troubles,
    causes: Causes,
    /// What is on trial has passed its checks.
    healthy: bool,
    /// Why there is no connection to the hub.
    pub(crate) offline: Option<String>,
}

struct Machine {
    agent: Agent,
    journal: Journal,
    wake: Option<Instant>,
}

impl Unit {
    /// The unit of a target, in its first life.
    pub(crate) fn new(
        config: &Config,
        target: &TargetConfig,
        fetcher: &Rc<Fetcher>,
        counters: Counters,
        seed: u64,
    ) -> Self {
        let dir = target.target.dir(&config.state);
        let site =
            Site { target: target.target.clone(), dir: dir.clone(), installed: target.installed.reference() };
        let installer = target.options.installer(site);
        let installer = target.hooks.around(installer, target.target.as_str(), dir.clone());
        let mut unit = Self {
            target: target.target.clone(),
            releases: Releases::default(),
            life: 0,
            parked: None,
            offer: None,
            plan: None,
            reporting: false,
            cancelling: Vec::new(),
            outcomes: Vec::new(),
            fetcher: Rc::clone(fetcher),
            payload: Payload::open(&dir),
            causes: Causes::recall(&dir),
            dir,
            policy: config.policy(),
            base: config.policy(),
            local: None,
            seed,
            trust: config.trust.0.clone(),
            device_type: config.device_type.clone(),
            installer,
            locks: config.locks.clone(),
            counters,
            running: None,
            last: None,
            machine: None,
            events: VecDeque::new(),
            links: None,
            step: None,
            fetching: false,
            unsettled: false,
            health: None,
            failures: 0,
            troubles: Troubles::default(),
            healthy: false,
            offline: None,
        };
        unit.recall_from_disk();
        unit.begin(Duration::ZERO);
        unit
    }

    /// Begins a life: finds out what runs, and knows what is durable and nothing else.
    fn begin(&mut self, pause: Duration) {
        self.life += 1;
        self.machine = None;
        self.parked = None;
        self.offer = None;
        self.plan = None;
        self.reporting = false;
        self.cancelling.clear();
        self.events.clear();
        self.links = None;
        self.fetching = false;
        self.health = None;
        self.healthy = false;
        let installer = Rc::clone(&self.installer);
        self.step = Some(Box::pin(async move {
            if !pause.is_zero() {
                sleep(pause).await;
            }
            Step::Stood(installer.standing().await)
        }));
    }

    /// Begins a life after something failed.
    fn begin_later(&mut self) {
        let pause = PAUSE.saturating_mul(1 << self.failures.min(16)).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        self.begin(pause);
    }

    fn stood(&mut self, standing: &Standing) {
        if !self.unsettled {
            self.failures = 0;
        }
        self.unsettled = false;
        self.troubles.standing = None;
        self.keep_problem();
        if standing.running == standing.committed {
            self.troubles.leaving = None;
        }
        self.stands(standing);
        let releases = Releases::new(self.trust.clone());
        self.releases = releases.fitting(self.target.as_str(), self.device_type.as_deref());
        self.recall();
        let journal = Journal::open(&self.dir, &mut self.releases, &standing.committed);
        let durable = journal.durable();
        self.troubles.damage = journal.is_damaged().then(|| {
            let detail =
                "records that had been durable were lost: suspect the medium that the state directory is on";
            Trouble::new("journal_damaged", detail)
        });
        let committed = self.releases.intern(&standing.committed);
        let running = self.releases.intern(&standing.running);
        let partial = match durable.pending {
            Some(pending) if matches!(pending.phase, Phase::Started { .. }) => self.durable(pending.release),
            _ => 0,
        };
        tracing::info!(
            target = %self.target,
            running = &*self.releases[running].id,
            committed = &*self.releases[committed].id,
            partial,
            "begins"
        );
        let boot = durable.pending.and_then(|pending| match pending.phase {
            Phase::Staged { boots } if running != committed => Some(boots),
            _ => None,
        });
        let lasts = match boot {
            Some(boot) => trial::lasts(&self.dir, &self.releases[running], boot),
            None => {
                trial::ends(&self.dir);
                Duration::ZERO
            }
        };
        self.policy.probation_timeout = self.base.probation_timeout.saturating_sub(lasts);
        let agent = Agent::new(rng::mix(self.seed ^ u64::from(self.life)), committed);
        self.running = Some(running);
        self.last = durable.last;
        self.machine = Some(Machine { agent, journal, wake: None });
        self.events.push_back(Event::Booted(Boot { durable, running, committed, partial }));
    }

    /// Keeps for `fleetwave-agent status` what runs.
    fn stands(&self, standing: &Standing) {
        if let Err(error) = standing.write(&self.dir) {
            let remedy = remedy(storage_error(&error));
            tracing::error!(target = %self.target, %error, remedy, "`status` will not know what runs");
        }
    }

    /// How much of a payload is durable.
    fn durable(&self, release: ReleaseId) -> u64 {
        let release = &self.releases[release];
        self.installer.place(release).map_or(0, |place| self.payload.durable(release, &place))
    }

    /// The machine, if it is known what runs.
    pub(crate) fn agent(&self) -> Option<&Agent> {
        self.machine.as_ref().map(|machine| &machine.agent)
    }

    pub(crate) fn state(&self) -> Option<State> {
        self.agent().map(Agent::state)
    }

    /// Something for the machine. Without one it is lost, as it would be on a device that is off.
    pub(crate) fn hear(&mut self, event: Event) {
        if self.machine.is_some() {
            self.events.push_back(event);
        }
    }

    /// How far local time is ahead of UTC; a window may open or close by it.
    pub(crate) fn set_utc_offset(&mut self, seconds: i32) {
        if self.policy.utc_offset != seconds {
            self.policy.utc_offset = seconds;
            self.base.utc_offset = seconds;
            self.hear(Event::Timer);
        }
    }

    /// When the machine wants to be woken.
    pub(crate) fn wake(&self) -> Option<Instant> {
        let machine = self.machine.as_ref().and_then(|machine| machine.wake);
        machine.into_iter().chain(self.complaint_due()).min()
    }

    /// Wakes it if it is time.
    pub(crate) fn ring(&mut self, now: Instant) {
        self.ring_complaint(now);
        if let Some(machine) = &mut self.machine
            && machine.wake.is_some_and(|wake| wake <= now)
        {
            machine.wake = None;
            self.events.push_back(Event::Timer);
        }
    }

    /// Gives the machine its next event; false if there is none.
    pub(crate) fn turn(&mut self, now: Now, effects: &mut Vec<Effect>) -> bool {
        let Some(machine) = &mut self.machine else { return false };
        let Some(event) = self.events.pop_front() else { return false };
        let cx = Context { policy: &self.policy, releases: &self.releases };
        machine.agent.handle(&cx, now, event, effects);
        true
    }
}
