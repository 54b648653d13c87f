//! A unit: one target with its machine, its journal, the releases that it knows, and its installer. It gives the
//! machine its events and carries out the effects that concern this target alone; the rest is the device's.
//!
//! A unit lives from one start of what it updates to the next. Everything in it is lost when a life ends; what must not
//! be lost is in the journal, and where the installer keeps what it installs.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::task;
use std::time::Duration;

use fleetwave_agent_core::{
    Agent, Boot, Context, Durable, Effect, Event, FetchError, HealthError, LockAnswer, Phase, Plan, Policy,
    Record, ReleaseId, Releases, ResultCode, State, VerifyError,
};
use fleetwave_protocol::{Instant, Now, rng};
use hyper::Uri;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::command::About;
use crate::config::{Config, TargetConfig};
use crate::crash;
use crate::fetch::{Fetcher, Payload};
use crate::files::storage_error;
use crate::install::{Activated, InstallError, Installer, Later, Reference, Site, Standing};
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
    /// News for the machine.
    Event(Event),
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
    pub(crate) url: Option<Uri>,
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
    dir: PathBuf,
    policy: Policy,
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
    url: Option<Uri>,
    step: Option<Later<Step>>,
    fetching: bool,
    /// It was made to run something else, and has not said yet what came of it.
    unsettled: bool,
    health: Option<Later<Step>>,
    /// Steps in a row that failed.
    failures: u32,
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
            fetcher: Rc::clone(fetcher),
            payload: Payload::open(&dir),
            dir,
            policy: config.policy(),
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
            url: None,
            step: None,
            fetching: false,
            unsettled: false,
            health: None,
            failures: 0,
        };
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
        self.url = None;
        self.fetching = false;
        self.health = None;
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
        self.stands(standing);
        let releases = Releases::new(self.trust.clone());
        self.releases = releases.fitting(self.target.as_str(), self.device_type.as_deref());
        let (journal, records) = Journal::open(&self.dir, &mut self.releases);
        let committed = self.releases.intern(&standing.committed);
        let running = self.releases.intern(&standing.running);
        let mut durable = Durable::new(committed);
        records.into_iter().for_each(|record| durable.apply(record));
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
        let agent = Agent::new(rng::mix(self.seed ^ u64::from(self.life)), committed);
        self.running = Some(running);
        self.last = durable.last;
        self.machine = Some(Machine { agent, journal, wake: None });
        self.events.push_back(Event::Booted(Boot { durable, running, committed, partial }));
    }

    /// Keeps for `fleetwave-agent status` what runs.
    fn stands(&self, standing: &Standing) {
        if let Err(error) = standing.write(&self.dir) {
            tracing::error!(target = %self.target, %error, "`status` will not know what runs");
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

    /// What the programs of the operator are told.
    fn about(&self) -> About {
        let release =
            self.agent().and_then(Agent::in_flight).map(|release| self.releases[release].reference());
        About::reference(self.target.as_str(), release.unwrap_or(&Reference::new()))
    }

    /// For the service manager: what it does, if anything.
    pub(crate) fn doing(&self) -> Option<String> {
        let Some(agent) = self.agent() else { return Some(format!("{}: starting", self.target)) };
        let release = agent.in_flight()?;
        Some(format!("{}: {} {}", self.target, agent.state().name(), self.releases[release].id))
    }

    /// For people, and for programs of the back end.
    pub(crate) fn status(&self) -> Value {
        let Some(agent) = self.agent() else { return json!({"state": "starting"}) };
        let name = |release: ReleaseId| {
            let release = &self.releases[release];
            json!({"id": &*release.id, "seq": release.sequence})
        };
        let updating = agent.in_flight().map(|release| {
            let bytes = self.durable(release);
            let release = &self.releases[release];
            json!({"id": &*release.id, "seq": release.sequence, "bytes": bytes, "size": release.size})
        });
        let last = self.last.map(|(release, code)| {
            let release = &self.releases[release];
            json!({"id": &*release.id, "seq": release.sequence, "code": code.name()})
        });
        json!({
            "state": agent.state().name(),
            "online": agent.is_online(),
            "running": self.running.map(name),
            "committed": name(agent.committed()),
            "updating": updating,
            "last": last,
        })
    }

    /// Whether a download of this unit is under way.
    pub(crate) fn is_fetching(&self) -> bool {
        self.fetching
    }

    /// Whether something runs, or is about to, that is not committed.
    pub(crate) fn on_trial(&self) -> bool {
        match self.state() {
            None => self.unsettled,
            Some(State::Rebooting) => self.parked != Some(Parked::Activate),
            Some(state) => matches!(state, State::Probation | State::Committing | State::RollingBack),
        }
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
            self.hear(Event::Timer);
        }
    }

    /// When the machine wants to be woken.
    pub(crate) fn wake(&self) -> Option<Instant> {
        self.machine.as_ref()?.wake
    }

    /// Wakes it if it is time.
    pub(crate) fn ring(&mut self, now: Instant) {
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

    /// Carries out an effect; gives it back if it is for the device to carry out.
    pub(crate) fn perform(&mut self, effect: Effect) -> Option<Effect> {
        crash::point(named(effect));
        match effect {
            Effect::Fetch { release, offset } => self.parked = Some(Parked::Fetch { release, offset }),
            Effect::RebootIntoCandidate => self.parked = Some(Parked::Activate),
            Effect::RebootIntoCommitted => {
                let installer = Rc::clone(&self.installer);
                self.go(async move { Step::GoneBack(installer.go_back().await) });
                self.unsettled = true;
            }
            Effect::AbortFetch => self.stop(),
            // What has come is kept, and the download itself says how much that is.
            Effect::PauseFetch if self.fetching => self.payload.pause(),
            Effect::PauseFetch => {
                self.stop();
                let durable =
                    self.agent().and_then(Agent::in_flight).map_or(0, |release| self.durable(release));
                self.events.push_back(Event::FetchFailed { error: FetchError::Stopped, durable });
            }
            Effect::Plan { release, offset } => {
                let plan = self.fetcher.plan(&self.releases[release], offset);
                self.plan = Some(plan);
                self.events.push_back(Event::Planned(Ok(plan)));
            }
            Effect::AskLocks => {
                let asking = self.locks.held(self.about());
                let target = self.target.clone();
                self.go(async move {
                    let held = asking.await;
                    if let Some(reason) = &held {
                        tracing::info!(%target, %reason, "waits: a lock is held");
                    }
                    Step::Event(Event::Locks(if held.is_some() {
                        LockAnswer::Held
                    } else {
                        LockAnswer::Free
                    }))
                });
            }
            Effect::Discard => {
                self.stop();
                // First what says that there is something.
                let discarded = self.payload.discard().and_then(|()| self.installer.discard());
                if let Err(error) = discarded {
                    tracing::error!(target = %self.target, %error, "what was fetched cannot be removed");
                }
            }
            Effect::Verify(release) => self.verify(release),
            Effect::Stage(release) => {
                let staging = Rc::clone(&self.installer).stage(self.releases[release].clone());
                self.go(async move {
                    let staged = staging.await;
                    let staged = staged.inspect_err(|error| tracing::error!(%error, "not staged"));
                    Step::Event(Event::Staged(staged.map_err(|error| error.told())))
                });
            }
            Effect::Persist(record) => {
                let Some(machine) = &mut self.machine else { return None };
                let durable = machine.journal.append(record, &self.releases);
                let durable = durable.inspect_err(
                    |error| tracing::error!(target = %self.target, %error, "the journal cannot be written"),
                );
                if durable.is_err() {
                    self.counters.journal_failed(self.target.as_str());
                }
                if let Record::Ended(release, code) = record {
                    self.last = Some((release, code));
                    self.counters.ended(self.target.as_str(), code);
                }
                if let (Ok(()), Record::Ended(release, _)) = (&durable, record) {
                    self.fetcher.ledger().ended(&self.releases[release]);
                }
                if let (Ok(()), Record::Ended(release, ResultCode::Ok)) = (&durable, record) {
                    let reference = self.releases[release].reference();
                    self.stands(&Standing { running: reference.clone(), committed: reference.clone() });
                }
                self.events.push_back(Event::Persisted(durable.map_err(|error| storage_error(&error))));
            }
            Effect::CheckHealth => {
                let checking = Rc::clone(&self.installer).healthy();
                self.health = Some(Box::pin(async move {
                    let healthy = checking.await;
                    let healthy = healthy.inspect_err(|error| tracing::error!(%error, "not healthy"));
                    Step::Event(Event::Health(healthy.map_err(|_| HealthError)))
                }));
            }
            Effect::CommitSlot => {
                let committing = Rc::clone(&self.installer).commit();
                self.go(async move {
                    let committed = committing.await;
                    let committed = committed.inspect_err(|error| tracing::error!(%error, "not committed"));
                    Step::Event(Event::SlotCommitted(committed.map_err(|error| error.storage())))
                });
            }
            Effect::Wake(at) => {
                if let Some(machine) = &mut self.machine {
                    machine.wake = Some(at);
                }
            }
            Effect::Entered(state) => {
                self.counters.entered(self.target.as_str(), state.name());
                tracing::info!(target = %self.target, state = state.name(), "entered");
            }
            _ => return Some(effect),
        }
        None
    }

    fn go(&mut self, step: impl Future<Output = Step> + 'static) {
        self.fetching = false;
        self.step = Some(Box::pin(step));
    }

    /// Stops what is under way with the payload.
    fn stop(&mut self) {
        self.step = None;
        self.fetching = false;
        self.parked = None;
    }

    /// Takes the grant that was offered, or not; gives back the method that is to be answered.
    pub(crate) fn take_offer(&mut self, accepted: bool) -> Option<String> {
        let Offer { url, method } = self.offer.take()?;
        if accepted {
            self.url = url;
        }
        method
    }

    /// Begins what was parked: its turn has come.
    pub(crate) fn unpark(&mut self) {
        match self.parked.take() {
            None => {}
            Some(Parked::Fetch { release, offset }) => self.fetch(release, offset),
            Some(Parked::Activate) => {
                let activating = Rc::clone(&self.installer).activate();
                self.go(async move { Step::Activated(activating.await) });
                self.unsettled = true;
            }
        }
    }

    fn fetch(&mut self, release: ReleaseId, offset: u64) {
        let release = &self.releases[release];
        // The machine fetches only while a grant is good that it has taken; without a link it asks for a new one.
        let place = self.installer.place(release).map_err(|error| FetchError::Storage(storage_error(&error)));
        let (url, place) = match (self.url.clone().ok_or(FetchError::Forbidden), place) {
            (Ok(url), Ok(place)) => (url, place),
            (Err(error), _) | (_, Err(error)) => {
                self.events.push_back(Event::FetchFailed { error, durable: offset });
                return;
            }
        };
        tracing::info!(target = %self.target, release = &*release.id, offset, size = release.size, "fetches");
        let fetching = self.payload.fetch(&self.fetcher, url, place, release.clone(), offset);
        self.go(async move { Step::Event(fetching.await) });
        self.fetching = true;
    }

    fn verify(&mut self, release: ReleaseId) {
        let release = self.releases[release].clone();
        match self.installer.place(&release) {
            Ok(place) => {
                let verifying = self.payload.verify(place, release);
                self.go(async move { Step::Event(verifying.await) });
            }
            Err(error) => {
                tracing::error!(target = %self.target, %error, "the payload has no place");
                self.events.push_back(Event::Verified(Err(VerifyError::Digest)));
            }
        }
    }

    /// The step that has come to its end.
    pub(crate) fn poll(&mut self, cx: &mut task::Context<'_>) -> task::Poll<Step> {
        for slot in [&mut self.step, &mut self.health] {
            if let Some(step) = slot
                && let task::Poll::Ready(done) = Pin::new(step).poll(cx)
            {
                *slot = None;
                return task::Poll::Ready(done);
            }
        }
        task::Poll::Pending
    }

    /// Goes on after a step; says so if that concerns the device.
    pub(crate) fn done(&mut self, step: Step) -> Option<Activated> {
        match step {
            Step::Stood(Ok(standing)) => self.stood(&standing),
            Step::Stood(Err(error)) => {
                tracing::error!(target = %self.target, %error, "it cannot be told what runs: tried again later");
                self.begin_later();
            }
            Step::Event(event) => {
                if matches!(event, Event::Health(Err(_))) {
                    self.counters.unhealthy(self.target.as_str());
                }
                if matches!(event, Event::Fetched | Event::FetchFailed { .. }) {
                    self.fetching = false;
                }
                self.events.push_back(event);
            }
            Step::Activated(Ok(Activated::Running)) | Step::GoneBack(Ok(Activated::Running)) => {
                self.failures = 0;
                self.begin(Duration::ZERO);
            }
            Step::Activated(Ok(whole)) | Step::GoneBack(Ok(whole)) => return Some(whole),
            Step::Activated(Err(error)) => {
                tracing::error!(target = %self.target, %error, "not started");
                self.unsettled = false;
                self.events.push_back(Event::NotActivated(error.told()));
            }
            // What failed its trial must not stay because one try to get rid of it failed.
            Step::GoneBack(Err(error)) => {
                tracing::error!(target = %self.target, %error, "not gone back");
                self.begin_later();
            }
        }
        None
    }
}

/// An effect as a point at which the power may go.
const fn named(effect: Effect) -> &'static str {
    match effect {
        Effect::Connect => "effect: connect",
        Effect::Subscribe => "effect: subscribe",
        Effect::GetTwin { .. } => "effect: get the twin",
        Effect::Report { .. } => "effect: report",
        Effect::RequestGrant { .. } => "effect: request a grant",
        Effect::AnswerGrant { .. } => "effect: answer a grant",
        Effect::Fetch { .. } => "effect: fetch",
        Effect::Verify(_) => "effect: verify",
        Effect::Stage(_) => "effect: stage",
        Effect::Persist(_) => "effect: persist",
        Effect::RebootIntoCandidate => "effect: reboot into the candidate",
        Effect::RebootIntoCommitted => "effect: reboot into the committed",
        Effect::CheckHealth => "effect: check health",
        Effect::CommitSlot => "effect: commit",
        Effect::Discard => "effect: discard",
        _ => "effect",
    }
}
