//! A device: one connection to the hub, and the units that share it. The machines of the units ask and report as if
//! each were alone; what they say in one turn goes out together, and what comes is given to those that it is for.

mod effects;
mod host;
mod inbox;
mod lead;
mod local;
mod methods;
mod outbox;
mod wait;
mod zone;

use std::fs::{File, TryLockError};
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleetwave_agent_core::twin::Progress;
use fleetwave_agent_core::{Effect, State};
use fleetwave_protocol::{Instant, Now, WallTime, rng};

pub(crate) use self::host::Host;
use self::lead::Lead;
pub use self::methods::Reboot;
use self::methods::Reply;
use self::outbox::Outbox;
use self::wait::{at, next_arrival, next_reply, next_step, next_zone, until};
pub use self::zone::utc_offset;
use crate::config::Config;
use crate::fetch::Fetcher;
use crate::files::{remedy, storage_error};
use crate::install::{Activated, Later};
use crate::link::{Access, Arrival, Link};
use crate::local::Desk;
use crate::target::Target;
use crate::telemetry::News;
use crate::unit::{Step, Unit};
use crate::watch::Seen;
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
    Replied(Reply),
    Zone(i32),
    Time,
    Watchdog,
    Beat,
    Heartbeat,
    Desk,
}

struct Device<'a> {
    config: &'a Config,
    access: &'a Arc<Access>,
    host: &'a mut Host,
    desk: &'a mut Desk,
    origin: tokio::time::Instant,
    lead: Lead,
    units: Vec<Unit>,
    fetcher: Rc<Fetcher>,
    link: Option<Link>,
    /// The hub has accepted the connection.
    connected: bool,
    subscribed: bool,
    /// Something has come by way of the subscriptions in this life: they are in force. A life before may have ended
    /// between CONNECT and SUBSCRIBE, and then the session that the hub remembers is deaf.
    heard: bool,
    outbox: Outbox,
    effects: Vec<Effect>,
    /// A direct method asked for it.
    reboot: bool,
    /// Answers to methods that take their time.
    chores: Vec<Later<Reply>>,
    /// The next word about local time, if that matters.
    zone: Option<Later<i32>>,
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
    host: &mut Host,
    stop: impl Future<Output = ()>,
) -> Result<Ended, StateError> {
    let lock = lock(&config.state)?;
    let mut desk = if host.owns_process { Desk::open(&config.state) } else { Desk::default() };
    Ok(live_locked(config, access, once, host, &mut desk, stop, lock).await)
}

/// The same in a state directory that is locked, as long as `_lock` is there.
pub(crate) async fn live_locked(
    config: &Config,
    access: Arc<Access>,
    once: bool,
    host: &mut Host,
    desk: &mut Desk,
    stop: impl Future<Output = ()>,
    _lock: Option<File>,
) -> Ended {
    // One for all lives: what a download has cost is told after it was dropped.
    let counters = host.counters.clone();
    host.news = Some(News::new(config.telemetry, seed(access.name()), tokio::time::Instant::now()));
    let fetcher = Fetcher::new(&config.download, &config.ledger, &config.state, access.tls_pool(), counters);
    let mut stop = std::pin::pin!(stop);
    let mut guard = Guard::new(config.watchdog.as_ref().filter(|_| !desk.is_alone()));
    let ended = loop {
        let device = Device::begin(config, &access, &fetcher, host, desk);
        match device.live(once, stop.as_mut(), &mut guard).await {
            Death::Anew => host.life_ends(),
            Death::Ended(ended) => break ended,
            Death::GoingDown if desk.is_alone() => break Ended::Stopped,
            Death::GoingDown => {
                tracing::warn!("the machine goes down");
                host.watched(Seen::GoingDown);
                if stopped(stop.as_mut(), &mut guard, host).await {
                    break Ended::Stopped;
                }
                tracing::error!("the machine has not gone down: the agent goes on");
            }
        }
    };
    host.supervisor.stopping(Duration::ZERO);
    guard.close();
    ended
}

/// Waits for the machine to go down, which stops the agent; false if it takes too long. Both watchdogs are kept content
/// meanwhile: an agent that is started anew before the machine went down would take back what is to boot.
async fn stopped(
    mut stop: Pin<&mut impl Future<Output = ()>>,
    guard: &mut Guard<'_>,
    host: &mut Host,
) -> bool {
    let give_up = tokio::time::Instant::now() + GOING_DOWN;
    loop {
        tokio::select! {
            () = stop.as_mut() => return true,
            () = guard.due() => guard.keep_alive(),
            () = host.beat() => host.supervisor.alive(),
            () = tokio::time::sleep_until(give_up) => return false,
        }
    }
}

/// Holds the state directory for as long as the agent lives. One that cannot be written to needs no lock.
pub(crate) fn lock(state: &Path) -> Result<Option<File>, StateError> {
    let made = std::fs::create_dir_all(state).and_then(|()| File::create(state.join("lock")));
    let file = match made {
        Ok(file) => file,
        Err(error) => {
            let dir = state.display();
            let remedy = remedy(storage_error(&error));
            tracing::error!(%error, %dir, remedy, "the state directory cannot be written: there will be no updates");
            return Ok(None);
        }
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(StateError::InUse(state.to_owned())),
        Err(TryLockError::Error(source)) => Err(StateError::Io { path: state.join("lock"), source }),
    }
}

/// Whether an agent runs on the state directory. Nothing is made there.
pub(crate) fn is_locked(state: &Path) -> bool {
    File::open(state.join("lock")).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

impl<'a> Device<'a> {
    fn begin(
        config: &'a Config,
        access: &'a Arc<Access>,
        fetcher: &Rc<Fetcher>,
        host: &'a mut Host,
        desk: &'a mut Desk,
    ) -> Self {
        let seed = seed(access.name());
        let units = config.targets.iter().enumerate();
        let units = units.map(|(index, target)| {
            let seed = rng::mix(seed.wrapping_add(index as u64));
            Unit::new(config, target, fetcher, host.counters.clone(), seed)
        });
        let mut units: Vec<Unit> = units.collect();
        if let Some(calendar) = host.calendar {
            units.iter_mut().for_each(|unit| unit.set_utc_offset(calendar.utc_offset));
        }
        let zone = (config.windows.any() && host.calendar.is_none()).then(|| zone::ask(true));
        Self {
            lead: Lead::new(config.limits.policy(), seed),
            units,
            config,
            access,
            fetcher: Rc::clone(fetcher),
            host,
            desk,
            origin: tokio::time::Instant::now(),
            link: None,
            connected: false,
            subscribed: false,
            heard: false,
            outbox: Outbox::default(),
            effects: Vec::new(),
            reboot: false,
            chores: Vec::new(),
            zone,
        }
    }

    async fn live(
        mut self,
        once: bool,
        mut stop: Pin<&mut impl Future<Output = ()>>,
        guard: &mut Guard<'_>,
    ) -> Death {
        self.host.supervisor.ready();
        loop {
            self.turn();
            let on_trial = |unit: &Unit| unit.target == Target::firmware() && unit.on_trial();
            guard.attend(self.units.iter().any(on_trial)).await;
            self.host.show(&self.units, self.connected);
            self.host.give_way().await;
            if std::mem::take(&mut self.reboot) {
                match self.go_down(stop.as_mut(), guard).await {
                    Some(death) => return death,
                    None => continue,
                }
            }
            if self.desk.verdict().is_some() {
                return Death::Ended(Ended::Stopped);
            }
            if once && let Some(ended) = self.settled() {
                self.farewell().await;
                return Death::Ended(ended);
            }
            let wake = self.units.iter().filter_map(Unit::wake).chain(self.lead.wake()).min();
            let happened = tokio::select! {
                () = stop.as_mut() => Happened::Stop,
                arrival = next_arrival(&mut self.link) => Happened::Arrived(arrival),
                (index, step) = next_step(&mut self.units) => Happened::Done(index, step),
                reply = next_reply(&mut self.chores) => Happened::Replied(reply),
                offset = next_zone(&mut self.zone) => Happened::Zone(offset),
                () = at(self.origin, wake) => Happened::Time,
                () = guard.due() => Happened::Watchdog,
                () = until(self.host.news.as_ref().and_then(News::due)) => Happened::Heartbeat,
                () = self.host.beat() => Happened::Beat,
                () = self.desk.next() => Happened::Desk,
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
                    // As a machine that goes down in good order would.
                    Some(Activated::Anew) => {
                        self.farewell().await;
                        return Death::Anew;
                    }
                    Some(Activated::GoingDown) => {
                        self.tell_of_going_down(index);
                        self.farewell().await;
                        return Death::GoingDown;
                    }
                },
                Happened::Replied(Reply { rid, status, body }) => {
                    self.outbox.answer(rid, status, body.to_string().into_bytes());
                }
                Happened::Zone(offset) => {
                    self.zone = Some(zone::ask(false));
                    self.units.iter_mut().for_each(|unit| unit.set_utc_offset(offset));
                }
                Happened::Desk => {}
                Happened::Beat => self.host.supervisor.alive(),
                Happened::Heartbeat => self.heartbeat(),
                Happened::Time => {
                    let now = self.now().at;
                    self.lead.ring(now);
                    self.units.iter_mut().for_each(|unit| unit.ring(now));
                }
            }
        }
    }

    /// How things stand, if the hub knows it and wants nothing more of any unit.
    fn settled(&self) -> Option<Ended> {
        let mut running = Vec::new();
        for unit in &self.units {
            let agent = unit.agent().filter(|_| !unit.is_local())?;
            let resting = matches!(agent.state(), State::Idle | State::Failed);
            if !agent.is_online() || !resting || unit.reporting || unit.is_complaining() {
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

    /// Runs the operator's command for a reboot, after what was said has reached the hub; `None` if it fails.
    async fn go_down(
        &mut self,
        mut stop: Pin<&mut impl Future<Output = ()>>,
        guard: &mut Guard<'_>,
    ) -> Option<Death> {
        self.farewell().await;
        let mut rebooting = std::pin::pin!(self.config.reboot.command.program().succeed());
        let rebooted = loop {
            tokio::select! {
                () = stop.as_mut() => return Some(Death::Ended(Ended::Stopped)),
                rebooted = &mut rebooting => break rebooted,
                () = guard.due() => guard.keep_alive(),
                () = self.host.beat() => self.host.supervisor.alive(),
            }
        };
        match rebooted {
            Ok(_) => Some(Death::GoingDown),
            Err(error) => {
                tracing::error!(%error, "the device is not rebooted");
                self.disconnected();
                None
            }
        }
    }

    async fn farewell(&mut self) {
        if let Some(link) = self.link.take() {
            link.close().await;
        }
    }

    fn now(&self) -> Now {
        let wall = since_epoch().saturating_add(self.host.ahead());
        let wall = WallTime::from_unix_millis(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX));
        Now { at: Instant::ZERO + self.origin.elapsed(), wall }
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
