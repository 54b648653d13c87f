//! A device: one connection to the hub, and the units that share it. The machines of the units ask and report as if
//! each were alone; what they say in one turn goes out together, and what comes is given to those that it is for.

mod inbox;
mod lead;
mod outbox;

use std::fs::{File, TryLockError};
use std::future::{Future, pending, poll_fn};
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleetwave_agent_core::grant;
use fleetwave_agent_core::twin::Progress;
use fleetwave_agent_core::{Effect, Event, ReleaseId, State, twin};
use fleetwave_protocol::{Instant, Now, WallTime, rng};

use self::lead::Lead;
use self::outbox::{Asked, Outbox, Who};
use crate::config::Config;
use crate::fetch::Fetcher;
use crate::install::Activated;
use crate::link::{Access, Arrival, Link};
use crate::target::Target;
use crate::unit::{Parked, Step, Unit};
use crate::watchdog::Guard;
use crate::{Ended, StateError};

/// How long a machine may take to go down before the agent goes on as if it never would.
const GOING_DOWN: Duration = Duration::from_secs(600);

/// How a life ended.
enum Death {
    /// What stands for a boot has happened.
    Anew,
    /// The machine is going down.
    GoingDown,
    /// The agent is to end.
    Ended(Ended),
}

/// What the device waited for.
enum Happened {
    Stop,
    Arrived(Arrival),
    Done(usize, Step),
    Time,
    Watchdog,
}

struct Device<'a> {
    access: &'a Arc<Access>,
    origin: tokio::time::Instant,
    lead: Lead,
    units: Vec<Unit>,
    fetcher: Rc<Fetcher>,
    link: Option<Link>,
    /// The hub has accepted the connection.
    connected: bool,
    subscribed: bool,
    outbox: Outbox,
    effects: Vec<Effect>,
}

/// Lives until `stop`, or (if `once`) until there is nothing left to do. Uses no signals and no globals: as many devices
/// as memory holds may live on one thread, in a `LocalSet`.
///
/// # Errors
/// If another agent uses the state directory. Everything else the agent lives with.
pub(crate) async fn live(
    config: &Config,
    access: Arc<Access>,
    once: bool,
    stop: impl Future<Output = ()>,
) -> Result<Ended, StateError> {
    let _lock = lock(&config.state)?;
    // One for all lives: what a download has cost is told after it was dropped.
    let fetcher = Fetcher::new(&config.download, &config.ledger, &config.state, access.tls_pool());
    let mut stop = std::pin::pin!(stop);
    let mut guard = Guard::new(config.watchdog.as_ref());
    let ended = loop {
        match Device::begin(config, &access, &fetcher).live(once, stop.as_mut(), &mut guard).await {
            Death::Anew => {}
            Death::Ended(ended) => break ended,
            Death::GoingDown => {
                tracing::warn!("the machine goes down");
                if stopped(stop.as_mut(), &mut guard).await {
                    break Ended::Stopped;
                }
                tracing::error!("the machine has not gone down: the agent goes on");
            }
        }
    };
    guard.close();
    Ok(ended)
}

/// Waits for the machine to go down, which stops the agent; false if it takes too long.
async fn stopped(mut stop: Pin<&mut impl Future<Output = ()>>, guard: &mut Guard<'_>) -> bool {
    let give_up = tokio::time::Instant::now() + GOING_DOWN;
    loop {
        tokio::select! {
            () = stop.as_mut() => return true,
            () = guard.due() => guard.keep_alive(),
            () = tokio::time::sleep_until(give_up) => return false,
        }
    }
}

/// Holds the state directory for as long as the agent lives. One that cannot be written to needs no lock.
fn lock(state: &Path) -> Result<Option<File>, StateError> {
    let made = std::fs::create_dir_all(state).and_then(|()| File::create(state.join("lock")));
    let file = match made {
        Ok(file) => file,
        Err(error) => {
            let dir = state.display();
            tracing::error!(%error, %dir, "the state directory cannot be written: there will be no updates");
            return Ok(None);
        }
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(StateError::InUse(state.to_owned())),
        Err(TryLockError::Error(source)) => Err(StateError::Io { path: state.join("lock"), source }),
    }
}

impl<'a> Device<'a> {
    fn begin(config: &Config, access: &'a Arc<Access>, fetcher: &Rc<Fetcher>) -> Self {
        let seed = seed(access.name());
        let units = config.targets.iter().enumerate();
        let units =
            units.map(|(index, target)| Unit::new(config, target, fetcher, rng::mix(seed + index as u64)));
        Self {
            lead: Lead::new(config.limits.policy(), seed),
            units: units.collect(),
            access,
            fetcher: Rc::clone(fetcher),
            origin: tokio::time::Instant::now(),
            link: None,
            connected: false,
            subscribed: false,
            outbox: Outbox::default(),
            effects: Vec::new(),
        }
    }

    async fn live(
        mut self,
        once: bool,
        mut stop: Pin<&mut impl Future<Output = ()>>,
        guard: &mut Guard<'_>,
    ) -> Death {
        loop {
            self.turn();
            let on_trial = |unit: &Unit| unit.target == Target::firmware() && unit.on_trial();
            guard.attend(self.units.iter().any(on_trial)).await;
            if once && let Some(ended) = self.settled() {
                self.farewell().await;
                return Death::Ended(ended);
            }
            let wake = self.units.iter().filter_map(Unit::wake).chain(self.lead.wake()).min();
            let happened = tokio::select! {
                () = stop.as_mut() => Happened::Stop,
                arrival = next_arrival(&mut self.link) => Happened::Arrived(arrival),
                (index, step) = next_step(&mut self.units) => Happened::Done(index, step),
                () = at(self.origin, wake) => Happened::Time,
                () = guard.due() => Happened::Watchdog,
            };
            match happened {
                Happened::Stop => {
                    self.farewell().await;
                    return Death::Ended(Ended::Stopped);
                }
                Happened::Watchdog => guard.keep_alive(),
                Happened::Arrived(arrival) => self.arrived(arrival),
                Happened::Done(index, step) => match self.units[index].done(step) {
                    None | Some(Activated::Running) => {}
                    Some(Activated::Anew) => return Death::Anew,
                    Some(Activated::GoingDown) => {
                        self.farewell().await;
                        return Death::GoingDown;
                    }
                },
                Happened::Time => {
                    let now = self.now().at;
                    self.lead.ring(now);
                    self.units.iter_mut().for_each(|unit| unit.ring(now));
                }
            }
        }
    }

    /// Lets every machine take what has come, and carries out what they ask for.
    fn turn(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        loop {
            let mut quiet = true;
            let now = self.now();
            while self.lead.turn(now, &mut effects) {
                quiet = false;
                effects.drain(..).for_each(|effect| self.lead_performs(effect));
            }
            for index in 0..self.units.len() {
                while self.units[index].turn(now, &mut effects) {
                    quiet = false;
                    for effect in effects.drain(..) {
                        if let Some(effect) = self.units[index].perform(effect) {
                            self.perform(index, effect);
                        }
                    }
                }
            }
            self.let_on();
            if quiet {
                break;
            }
        }
        self.effects = effects;
        match &mut self.link {
            Some(link) if self.connected => self.outbox.flush(link),
            _ => self.outbox.clear(),
        }
    }

    /// Lets units go on with what only one of them may do at a time: a download, and running what is not committed.
    fn let_on(&mut self) {
        let fetches = |unit: &Unit| matches!(unit.parked, Some(Parked::Fetch { .. }));
        if !self.units.iter().any(Unit::is_fetching)
            && let Some(unit) = self.units.iter_mut().find(|unit| fetches(unit))
        {
            unit.unpark();
        }
        if !self.units.iter().any(Unit::on_trial)
            && let Some(unit) = self.units.iter_mut().find(|unit| unit.parked == Some(Parked::Activate))
        {
            unit.unpark();
        }
    }

    /// The connection is led by a machine of the device's own: no unit's life or death changes it.
    fn lead_performs(&mut self, effect: Effect) {
        match effect {
            Effect::Connect => {
                self.link = Some(Link::open(self.access));
            }
            Effect::Disconnect => self.disconnected(),
            Effect::Subscribe => self.subscribe(),
            Effect::GetTwin { rid } => self.outbox.get_twin(Asked { who: Who::Lead, rid }),
            _ => {}
        }
    }

    fn perform(&mut self, index: usize, effect: Effect) {
        let unit = &mut self.units[index];
        let asked = |rid| Asked { who: Who::Unit { index, life: unit.life }, rid };
        match effect {
            // To a unit that begins its life later than the connection; the others hear of it when it comes.
            Effect::Connect if self.connected => unit.hear(Event::Connected { session_present: true }),
            Effect::Subscribe => self.subscribe(),
            Effect::GetTwin { rid } => self.outbox.get_twin(asked(rid)),
            Effect::Report { rid, status } => {
                let asked = asked(rid);
                unit.reporting = true;
                let section = unit.target.as_str();
                let report = twin::write_section(&status, unit.plan.as_ref(), section, &unit.releases);
                tracing::info!(report = %serde_json::Value::Object(report.clone()), "reports");
                self.outbox.report(asked, report);
            }
            Effect::RequestGrant { release } => self.request_grant(index, release),
            Effect::AnswerGrant { accepted } => {
                if let Some(rid) = unit.take_offer(accepted) {
                    self.outbox.answer(rid, if accepted { 200 } else { 409 }, b"null".to_vec());
                }
            }
            _ => {}
        }
    }

    fn subscribe(&mut self) {
        if !self.subscribed {
            self.subscribed = true;
            self.outbox.subscribe();
        }
    }

    fn request_grant(&mut self, index: usize, release: ReleaseId) {
        let unit = &self.units[index];
        let release = &unit.releases[release];
        let target = (unit.target != Target::firmware()).then(|| unit.target.to_string());
        let request = grant::Request { id: release.id.to_string(), seq: release.sequence, target };
        let body = serde_json::to_vec(&request).expect("a request is JSON");
        self.outbox.telemetry(grant::PROPERTIES, body);
    }

    fn connected(&mut self, session_present: bool) {
        self.connected = true;
        self.subscribed = false;
        // What was on its way on a connection that this one takes the place of stays unanswered.
        self.outbox.forget();
        self.units.iter_mut().for_each(|unit| unit.reporting = false);
        self.tell_all(Event::Connected { session_present });
    }

    fn disconnected(&mut self) {
        self.connected = false;
        self.link = None;
        self.outbox.forget();
        self.units.iter_mut().for_each(|unit| unit.reporting = false);
        self.tell_all(Event::Disconnected);
    }

    fn tell_all(&mut self, event: Event) {
        self.lead.hear(event);
        self.units.iter_mut().for_each(|unit| unit.hear(event));
    }

    /// How things stand, if the hub knows it and wants nothing more of any unit.
    fn settled(&self) -> Option<Ended> {
        let mut running = Vec::new();
        for unit in &self.units {
            let agent = unit.agent()?;
            let resting = matches!(agent.state(), State::Idle | State::Failed);
            if !agent.is_online() || !resting || unit.reporting {
                return None;
            }
            if let Progress::Failed(release, code) = agent.status().progress {
                let release = unit.releases[release].id.to_string();
                return Some(Ended::GivenUp { release, code });
            }
            running.push(unit.releases[agent.committed()].id.to_string());
        }
        Some(Ended::Settled { running: running.join(", ") })
    }

    async fn farewell(&mut self) {
        if let Some(link) = self.link.take() {
            link.close().await;
        }
    }

    fn now(&self) -> Now {
        let wall = WallTime::from_unix_millis(u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX));
        Now { at: Instant::ZERO + self.origin.elapsed(), wall }
    }
}

async fn next_arrival(link: &mut Option<Link>) -> Arrival {
    match link {
        Some(link) => link.next().await,
        None => pending().await,
    }
}

/// A few units share one task: each is asked when any of them is woken.
async fn next_step(units: &mut [Unit]) -> (usize, Step) {
    poll_fn(|cx| {
        for (index, unit) in units.iter_mut().enumerate() {
            if let Poll::Ready(step) = unit.poll(cx) {
                return Poll::Ready((index, step));
            }
        }
        Poll::Pending
    })
    .await
}

async fn at(origin: tokio::time::Instant, wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(origin + Duration::from_micros(wake.as_micros())).await,
        None => pending().await,
    }
}

/// A system clock before 1970 counts as 1970.
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Another one for each device and each life, so that delays differ between both.
fn seed(device: &str) -> u64 {
    device.bytes().fold(since_epoch().as_nanos() as u64, |seed, byte| rng::mix(seed ^ u64::from(byte)))
}
