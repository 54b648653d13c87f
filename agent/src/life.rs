//! One life of the agent: from a boot to the next one. It gives the machine its events and carries out its effects.
//! Everything in it is lost when it ends; what must not be lost is in the journal and in the slots.

mod inbox;

use std::collections::VecDeque;
use std::future::{Future, pending};
use std::pin::Pin;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleetwave_agent_core::twin::Progress;
use fleetwave_agent_core::{
    Agent, Boot, Context, Durable, Effect, Event, FetchError, HealthError, LockAnswer, Phase, Plan, Policy,
    ReleaseId, Releases, State, grant, twin,
};
use fleetwave_protocol::{Instant, Now, Up, WallTime, rng};
use hyper::Uri;
use tokio::process::Command;

use crate::config::Config;
use crate::files::storage_error;
use crate::journal::Journal;
use crate::link::{Arrival, Link};
use crate::payload;
use crate::slots::{StateError, Store};
use crate::{Ended, Stop};

/// How a life ended.
pub(crate) enum Death {
    /// The machine asked for a reboot.
    Reboot,
    /// The agent is to end.
    Ended(Ended),
}

type Work = Pin<Box<dyn Future<Output = Event>>>;

/// A grant that came, until the machine has said whether it waited for one.
struct Offer {
    url: Option<Uri>,
    /// The request id of the method that brought it.
    method: Option<String>,
}

pub(crate) struct Life<'a> {
    config: &'a Config,
    store: &'a mut Store,
    policy: Policy,
    journal: Journal,
    releases: Releases,
    agent: Agent,
    origin: tokio::time::Instant,
    events: VecDeque<Event>,
    wake: Option<Instant>,
    link: Option<Link>,
    twin_rid: u32,
    /// A report is on its way.
    reporting: bool,
    offer: Option<Offer>,
    url: Option<Uri>,
    /// The download or the comparison under way.
    work: Option<Work>,
    health: Option<Work>,
}

impl<'a> Life<'a> {
    /// Boots, and knows what is durable and nothing else.
    pub(crate) fn begin(config: &'a Config, store: &'a mut Store) -> Result<Self, StateError> {
        store.power_on()?;
        let mut releases = Releases::new(config.trust.0.clone());
        let (journal, records) =
            Journal::open(&config.state, &mut releases).map_err(StateError::io(&config.state))?;
        let committed = releases.intern(&store.committed()?);
        let running = store.reference(store.running()).map_or(committed, |running| releases.intern(&running));
        let mut durable = Durable::new(committed);
        records.into_iter().for_each(|record| durable.apply(record));
        let partial = match durable.pending {
            Some(pending) if matches!(pending.phase, Phase::Started { .. }) => {
                store.stored(&releases[pending.release])
            }
            _ => 0,
        };
        tracing::info!(
            slot = store.running().name(),
            running = &*releases[running].id,
            committed = &*releases[committed].id,
            partial,
            "booted"
        );
        let mut life = Self {
            policy: config.limits.policy(),
            agent: Agent::new(seed(&config.hub.connection_string.device), committed),
            config,
            store,
            journal,
            releases,
            origin: tokio::time::Instant::now(),
            events: VecDeque::new(),
            wake: None,
            link: None,
            twin_rid: 0,
            reporting: false,
            offer: None,
            url: None,
            work: None,
            health: None,
        };
        life.events.push_back(Event::Booted(Boot { durable, running, committed, partial }));
        Ok(life)
    }

    /// Lives until a reboot, until `stop`, or (if `once`) until there is nothing left to do.
    pub(crate) async fn live(mut self, once: bool, stop: &mut Stop) -> Death {
        let mut effects = Vec::new();
        loop {
            while let Some(event) = self.events.pop_front() {
                let cx = Context { policy: &self.policy, releases: &self.releases };
                self.agent.handle(&cx, now(self.origin), event, &mut effects);
                for effect in effects.drain(..) {
                    if !self.perform(effect) {
                        return Death::Reboot;
                    }
                }
            }
            if once && let Some(ended) = self.settled() {
                self.farewell().await;
                return Death::Ended(ended);
            }
            let wake = self.wake;
            let event = tokio::select! {
                () = stop.asked() => {
                    self.farewell().await;
                    return Death::Ended(Ended::Stopped);
                }
                arrival = next_arrival(&mut self.link) => self.arrived(arrival),
                event = next_event(&mut self.work) => Some(event),
                event = next_event(&mut self.health) => Some(event),
                () = at(self.origin, wake) => {
                    self.wake = None;
                    Some(Event::Timer)
                }
            };
            self.events.extend(event);
        }
    }

    /// How things stand, if the hub knows it and wants nothing more.
    fn settled(&self) -> Option<Ended> {
        let resting = matches!(self.agent.state(), State::Idle | State::Failed);
        (self.agent.is_online() && resting && !self.reporting).then(|| match self.agent.status().progress {
            Progress::Failed(release, code) => {
                Ended::GivenUp { release: self.releases[release].id.to_string(), code }
            }
            Progress::Idle(_) | Progress::Updating(..) => {
                Ended::Settled { running: self.releases[self.agent.committed()].id.to_string() }
            }
        })
    }

    async fn farewell(&mut self) {
        if let Some(link) = self.link.take() {
            link.close().await;
        }
    }

    /// Carries out an effect; false if the device is down after it.
    fn perform(&mut self, effect: Effect) -> bool {
        match effect {
            Effect::Connect => {
                self.reporting = false;
                self.link = Some(Link::open(&self.config.hub.connection_string, now(self.origin).wall));
            }
            Effect::Disconnect => {
                self.reporting = false;
                self.link = None;
            }
            Effect::Subscribe => {
                if let Some(link) = &self.link {
                    link.subscribe();
                }
            }
            Effect::GetTwin { rid } => {
                self.twin_rid = rid;
                self.send(&Up::TwinGet { rid: &rid.to_string() });
            }
            Effect::Report { rid, status } => {
                self.reporting = true;
                let patch = twin::write_report(&status, &self.releases);
                tracing::info!(patch, "reports");
                self.send(&Up::Report { rid: &rid.to_string(), base: None, patch: patch.as_bytes() });
            }
            Effect::RequestGrant { release } => self.request_grant(release),
            Effect::AnswerGrant { accepted } => self.answer_grant(accepted),
            Effect::Fetch { release, offset } => self.fetch(release, offset),
            Effect::AbortFetch => self.work = None,
            Effect::PauseFetch => {
                self.work = None;
                let durable =
                    self.agent.in_flight().map_or(0, |release| self.store.stored(&self.releases[release]));
                self.events.push_back(Event::FetchFailed { error: FetchError::Stopped, durable });
            }
            Effect::Plan { release, offset } => {
                let plan = Plan::full(self.releases[release].size, offset);
                self.events.push_back(Event::Planned(Ok(plan)));
            }
            Effect::AskLocks => self.events.push_back(Event::Locks(LockAnswer::Free)),
            Effect::AnswerAbort { .. } => {}
            Effect::Discard => {
                self.work = None;
                if let Err(error) = self.store.discard() {
                    tracing::error!(%error, "the download cannot be removed");
                }
            }
            Effect::Verify(release) => {
                let release = self.releases[release].clone();
                self.work = Some(Box::pin(payload::verify(self.store.payload(&release), release)));
            }
            Effect::Stage(release) => {
                let staged = self.store.stage(&self.releases[release]);
                let staged = staged.inspect_err(|error| tracing::error!(%error, "the slot cannot be filled"));
                self.events.push_back(Event::Staged(staged.map_err(|error| storage_error(&error).into())));
            }
            Effect::Persist(record) => {
                let durable = self.journal.append(record, &self.releases);
                let durable =
                    durable.inspect_err(|error| tracing::error!(%error, "the journal cannot be written"));
                self.events.push_back(Event::Persisted(durable.map_err(|error| storage_error(&error))));
            }
            Effect::RebootIntoCandidate => {
                // Without it the old slot boots, and the machine sees that the new one did not.
                if let Err(error) = self.store.arm() {
                    tracing::error!(%error, "the other slot cannot be made to boot");
                }
                tracing::warn!("in place of a reboot the agent starts again, as if the new slot had booted");
                return false;
            }
            Effect::RebootIntoCommitted => {
                tracing::warn!("in place of a reboot the agent starts again, as if the old slot had booted");
                return false;
            }
            Effect::CheckHealth => self.health = Some(Box::pin(self.check_health())),
            Effect::CommitSlot => {
                let committed = self.store.commit();
                let committed =
                    committed.inspect_err(|error| tracing::error!(%error, "the slot cannot be committed"));
                self.events.push_back(Event::SlotCommitted(committed.map_err(|error| storage_error(&error))));
            }
            Effect::Wake(at) => self.wake = Some(at),
            Effect::Entered(state) => tracing::info!(state = state.name(), "entered"),
        }
        true
    }

    fn send(&mut self, message: &Up<'_>) {
        if let Some(link) = &mut self.link {
            link.send(message);
        }
    }

    fn request_grant(&mut self, release: ReleaseId) {
        let release = &self.releases[release];
        let request = grant::Request { id: release.id.to_string(), seq: release.sequence, target: None };
        let body = serde_json::to_vec(&request).expect("a request is JSON");
        self.send(&Up::Telemetry { properties: grant::PROPERTIES, body: &body });
    }

    fn answer_grant(&mut self, accepted: bool) {
        let Some(Offer { url, method }) = self.offer.take() else { return };
        if accepted {
            self.url = url;
        }
        if let Some(rid) = method {
            let status = if accepted { 200 } else { 409 };
            self.send(&Up::MethodResponse { rid: &rid, status, body: b"null" });
        }
    }

    fn fetch(&mut self, release: ReleaseId, offset: u64) {
        let Some(url) = self.url.clone() else {
            // The machine fetches only while a grant is good that it has taken; this asks for a new one.
            let error = FetchError::Forbidden;
            self.events.push_back(Event::FetchFailed { error, durable: offset });
            return;
        };
        let release = &self.releases[release];
        tracing::info!(release = &*release.id, offset, size = release.size, "fetches");
        self.work = Some(Box::pin(payload::fetch(url, self.store.download(), offset, release.size)));
    }

    /// Runs the operator's command. The program is killed if nobody waits for it any more.
    fn check_health(&self) -> impl Future<Output = Event> + use<> {
        let mut words = self.config.health.command.iter();
        let command = words.next().map(|program| {
            let mut command = Command::new(program);
            let slot = self.config.state.join(self.store.running().name());
            command.args(words).env("FLEETWAVE_SLOT", slot).stdin(Stdio::null()).kill_on_drop(true);
            command
        });
        async move {
            let healthy = match command {
                None => true,
                Some(mut command) => match command.status().await {
                    Ok(status) => {
                        tracing::info!(%status, "the health command ended");
                        status.success()
                    }
                    Err(error) => {
                        tracing::error!(%error, "the health command cannot be run");
                        false
                    }
                },
            };
            Event::Health(if healthy { Ok(()) } else { Err(HealthError) })
        }
    }
}

async fn next_arrival(link: &mut Option<Link>) -> Arrival {
    match link {
        Some(link) => link.next().await,
        None => pending().await,
    }
}

async fn next_event(work: &mut Option<Work>) -> Event {
    match work {
        Some(running) => {
            let event = running.await;
            *work = None;
            event
        }
        None => pending().await,
    }
}

async fn at(origin: tokio::time::Instant, wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(origin + Duration::from_micros(wake.as_micros())).await,
        None => pending().await,
    }
}

fn now(origin: tokio::time::Instant) -> Now {
    Now { at: Instant::ZERO + origin.elapsed(), wall: wall() }
}

fn wall() -> WallTime {
    WallTime::from_unix_millis(u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX))
}

/// A system clock before 1970 counts as 1970.
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Another one for each device and each life, so that delays differ between both.
fn seed(device: &str) -> u64 {
    device.bytes().fold(since_epoch().as_nanos() as u64, |seed, byte| rng::mix(seed ^ u64::from(byte)))
}
