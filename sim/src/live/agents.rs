//! Real agents among the fleet's devices: the production agent's library, with MQTT over TCP, downloads over HTTP and
//! files in a directory of the run's own. Many live on one thread. What they are measured by, they show to the shard
//! that counts for them.

mod config;
mod machine;
mod power;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Sender;
use fleetwave_agent::{Around, Calendar, RunError, Seen, StateError, TlsPool, Watch};
use fleetwave_agent_core::{ReleaseId, State};
use fleetwave_hub::Clock;
use fleetwave_protocol::Instant;
use serde_json::{Map, Value};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};

use self::machine::Machine;
use self::power::{Cut, Gone, Power};
use super::login::Login;
use super::shard::{Order, Victims};
use super::stage::failed;
use crate::device::{Violations, World, state_of};
use crate::run::EngineError;
use crate::scenario::dist::Dist;
use crate::scenario::fault::CutMoment;
use crate::scenario::fleet::Purpose;
use crate::scenario::model::Driver;
use crate::scenario::step::Arrival;

/// Agents that share a thread before another one helps.
const ON_ONE_THREAD: usize = 250;
/// Threads for each of those that wait for files.
const BLOCKING: usize = 4;

/// How long a state directory may seem to be in use by the agent that was there before.
const PATIENCE: Duration = Duration::from_secs(10);
const MOMENT: Duration = Duration::from_millis(20);

/// Something that a real agent has shown.
#[derive(Clone, Debug)]
pub(super) struct Sign {
    /// The device's place in its shard.
    pub(super) index: u32,
    pub(super) at: Instant,
    pub(super) what: Shown,
}

/// [`Seen`], to be taken to another thread.
#[derive(Clone, Debug)]
pub(super) enum Shown {
    Connecting,
    Connected,
    Lost,
    Wanted(Box<Map<String, Value>>),
    Asked,
    Granted,
    /// It boots this; nobody knows what, if there is none.
    Boots(Option<ReleaseId>),
    /// A download begins.
    Fetching,
    /// It is complete.
    Fetched,
}

impl Shown {
    /// What the shard is to know of.
    fn of(seen: Seen<'_>) -> Option<Self> {
        Some(match seen {
            Seen::Connecting => Self::Connecting,
            Seen::Connected => Self::Connected,
            Seen::Lost => Self::Lost,
            Seen::Wanted(reference) => Self::Wanted(Box::new(reference.clone())),
            Seen::Asked => Self::Asked,
            Seen::Granted => Self::Granted,
            Seen::Entered(State::Downloading) => Self::Fetching,
            Seen::Entered(State::Verifying) => Self::Fetched,
            Seen::Entered(_) | Seen::GoingDown => return None,
        })
    }
}

/// What all agents are made with.
pub(super) struct Setting {
    pub(super) world: Arc<World>,
    pub(super) clock: Clock,
    pub(super) login: Login,
    /// The hub, as `address:port`.
    pub(super) reach: String,
    /// The signs' way to each shard.
    pub(super) signs: Vec<Sender<Sign>>,
    /// Devices in each shard but the last.
    pub(super) share: u64,
    /// What the devices' calendar is ahead of the hub's, in milliseconds.
    pub(super) calendar_ahead: u64,
}

/// What an agent's thread is told.
#[derive(Clone, Debug)]
enum Call {
    /// An agent is to start then.
    Start { number: u64, at: Instant },
    /// A device's power is to go.
    Cut { number: u64, cut: Cut },
}

/// How a thread ended: what went wrong, and what was seen broken.
#[derive(Debug, Default)]
pub(super) struct Ended {
    pub(super) wrong: Vec<String>,
    pub(super) violations: Violations,
}

/// The threads of the real agents.
pub(super) struct Agents {
    setting: Arc<Setting>,
    numbers: Vec<u64>,
    called: HashSet<u64>,
    crews: Vec<(UnboundedSender<Call>, JoinHandle<Ended>)>,
    files: TempDir,
}

impl Agents {
    /// Makes ready for the scenario's real agents; each starts when it is to connect.
    ///
    /// # Errors
    /// If the machine gives no directory or no thread.
    pub(super) fn start(setting: Setting) -> Result<Self, EngineError> {
        let fleet = setting.world.fleet();
        let is_real = |number: &u64| fleet.groups()[fleet.group_of(*number)].spec.driver == Driver::Agent;
        let numbers: Vec<u64> = (0..fleet.devices()).filter(is_real).collect();
        let files = tempfile::Builder::new()
            .prefix("fleetwave-agents-")
            .tempdir()
            .map_err(|error| failed("making the agents' directories", error))?;
        let most = usize::from(setting.world.scenario().live.device_threads.max(1));
        let threads = numbers.len().div_ceil(ON_ONE_THREAD).min(most);
        let setting = Arc::new(setting);
        let mut crews = Vec::new();
        for index in 0..threads {
            let (calls, called) = unbounded_channel();
            let (setting, files) = (setting.clone(), files.path().to_owned());
            let thread = std::thread::Builder::new()
                .name(format!("agents-{index}"))
                .spawn(move || perform(&setting, &files, called))
                .map_err(|error| failed("starting the agents", error))?;
            crews.push((calls, thread));
        }
        Ok(Self { setting, numbers, called: HashSet::new(), crews, files })
    }

    /// What concerns the real agents among the devices.
    pub(super) fn tell(&mut self, order: &Order) {
        match order {
            Order::Connect { from, step, group, arrival } => self.start_those(*from, *step, *group, *arrival),
            Order::PowerCut { victims, during, off_for } => self.cut_those(victims, *during, off_for),
            Order::Free => {
                let files = std::fs::read_dir(self.files.path()).into_iter().flatten().flatten();
                for file in files.map(|entry| entry.path()).filter(|path| config::is_lock(path)) {
                    // What cannot be removed holds updates up, which shows.
                    let _ = std::fs::remove_file(file);
                }
            }
            _ => {}
        }
    }

    /// Devices are told to connect, each at its time: they start.
    fn start_those(&mut self, from: Instant, step: usize, group: Option<usize>, arrival: Arrival) {
        for place in 0..self.numbers.len() {
            let number = self.numbers[place];
            let offset = self.setting.world.fleet().arrival(number, step, group, arrival);
            if let Some(offset) = offset
                && self.called.insert(number)
            {
                self.call(place, Call::Start { number, at: from + offset });
            }
        }
    }

    fn cut_those(&self, victims: &Victims, during: CutMoment, off_for: &Dist) {
        let fleet = self.setting.world.fleet();
        for (place, number) in self.numbers.iter().enumerate() {
            if fleet.is_hit(*number, victims.step, victims.group, victims.share) {
                let (moment, through) = fleet.power_cut(*number, victims.step, during);
                let mut rng = fleet.rng(*number, Purpose::PowerCut);
                let cut = Cut { state: state_of(moment), through, off: off_for.sample(&mut rng) };
                self.call(place, Call::Cut { number: *number, cut });
            }
        }
    }

    /// To the thread of the agent in this place. One that is gone shows when it is joined.
    fn call(&self, place: usize, call: Call) {
        let (calls, _) = &self.crews[place % self.crews.len()];
        let _ = calls.send(call);
    }

    /// How many threads there are.
    pub(super) fn threads(&self) -> u32 {
        self.crews.len() as u32
    }

    /// Ends them all in good order; gives what went wrong on the way.
    pub(super) fn finish(self) -> Ended {
        let (calls, threads): (Vec<_>, Vec<_>) = self.crews.into_iter().unzip();
        drop(calls);
        let mut all = Ended::default();
        for thread in threads {
            match thread.join() {
                Ok(ended) => {
                    all.wrong.extend(ended.wrong);
                    all.violations.merge(&ended.violations);
                }
                Err(_) => all.wrong.push("a thread of the real agents panicked".to_owned()),
            }
        }
        all
    }
}

/// One thread: starts agents as they are called, and ends them when nobody calls any more.
fn perform(setting: &Arc<Setting>, files: &Path, mut called: UnboundedReceiver<Call>) -> Ended {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING).build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            let wrong = vec![format!("the real agents cannot start: {error}")];
            return Ended { wrong, ..Ended::default() };
        }
    };
    LocalSet::new().block_on(&runtime, async {
        let (stop, stopped) = watch::channel(());
        let pool = Rc::new(TlsPool::default());
        let mut agents = JoinSet::new();
        let mut powers: HashMap<u64, Rc<Power>> = HashMap::new();
        let violations = Rc::new(RefCell::new(Violations::default()));
        while let Some(call) = called.recv().await {
            match call {
                Call::Start { number, at } => {
                    let life = Life {
                        setting: setting.clone(),
                        number,
                        power: powers.entry(number).or_default().clone(),
                        violations: violations.clone(),
                    };
                    agents.spawn_local(life.lead(files.to_owned(), pool.clone(), at, stopped.clone()));
                }
                Call::Cut { number, cut } => {
                    if let Some(power) = powers.get(&number) {
                        power.is_to_go(cut);
                    }
                }
            }
        }
        drop(stop);
        let mut wrong = Vec::new();
        while let Some(ended) = agents.join_next().await {
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(why)) => wrong.push(why),
                Err(error) => wrong.push(format!("a real agent panicked: {error}")),
            }
        }
        Ended { wrong, violations: violations.take() }
    })
}

/// One agent, from its start until the run ends, and what happens to the device around it.
struct Life {
    setting: Arc<Setting>,
    number: u64,
    power: Rc<Power>,
    violations: Rc<RefCell<Violations>>,
}

impl Life {
    async fn lead(
        self,
        files: PathBuf,
        pool: Rc<TlsPool>,
        at: Instant,
        mut stopped: watch::Receiver<()>,
    ) -> Result<(), String> {
        let Self { setting, number, power, .. } = &self;
        let id = setting.world.fleet().id(*number);
        let wrong = |why: String| format!("the real agent of {id}: {why}");
        tokio::select! {
            _ = stopped.changed() => return Ok(()),
            () = tokio::time::sleep(at.since(setting.clock.now().at)) => {}
        }
        let machine = Machine::make(&setting.world, *number, &files.join(&id));
        let machine = machine.map_err(|error| wrong(format!("making its machine: {error}")))?;
        let config = setting.config(*number, &machine, &files).map_err(wrong)?;
        let machine = Rc::new(RefCell::new(machine));
        let shard = ((number / setting.share) as usize).min(setting.signs.len() - 1);
        let index = (number - shard as u64 * setting.share) as u32;
        let (signs, clock) = (setting.signs[shard].clone(), setting.clock.clone());
        let show = move |what| {
            // A shard that has ended looks no more.
            let _ = signs.send(Sign { index, at: clock.now().at, what });
        };
        let watch = watch(power.clone(), machine.clone(), show.clone());
        let calendar = Calendar {
            ahead: Duration::from_millis(setting.calendar_ahead),
            utc_offset: setting.world.group(setting.world.who(*number)).utc_offset_minutes * 60,
        };
        let (mut trial, mut held) = (false, Duration::ZERO);
        loop {
            let booted = machine.borrow_mut().boot(trial, &mut self.violations.borrow_mut());
            let (release, in_vain) = booted.map_err(|error| wrong(format!("booting: {error}")))?;
            show(Shown::Boots(release));
            if in_vain {
                // The loader has waited for the slot on trial, and boots the other one.
                let more = machine.borrow_mut().boot_time();
                if over(&mut stopped, more).await {
                    return Ok(());
                }
            }
            let mut stop = stopped.clone();
            let stop = async {
                // The other end says nothing: it is dropped.
                let _ = stop.changed().await;
            };
            let around = Around { watch: Some(watch.clone()), calendar: Some(calendar) };
            let agent = fleetwave_agent::live_within(&config, &pool, false, stop, around);
            let gone = tokio::select! {
                biased;
                // What the agent was in the middle of is dropped, and its connection with it.
                gone = power.goes() => gone,
                ended = agent => match ended {
                    // A program that another agent just starts has, until it runs, all that this process had open.
                    Err(RunError::State(StateError::InUse(_))) if held < PATIENCE => {
                        held += MOMENT;
                        if over(&mut stopped, MOMENT).await {
                            return Ok(());
                        }
                        continue;
                    }
                    ended => return ended.map(drop).map_err(|error| wrong(error.to_string())),
                },
            };
            held = Duration::ZERO;
            show(Shown::Lost);
            let asked = machine.borrow().takes_trial();
            let asked = asked.map_err(|error| wrong(format!("going down: {error}")))?;
            let mut away = machine.borrow_mut().boot_time();
            match gone {
                Gone::Down => trial = asked,
                Gone::Cut(off) => {
                    trial = false;
                    away += off;
                }
            }
            if let Some(cut) = power.in_boot().filter(|_| gone == Gone::Down) {
                // What was to be tried once has had its turn.
                trial = false;
                away = away.mul_f64(cut.through) + cut.off + machine.borrow_mut().boot_time();
            }
            if over(&mut stopped, away).await {
                return Ok(());
            }
        }
    }
}

/// What follows from what the agent shows.
fn watch(power: Rc<Power>, machine: Rc<RefCell<Machine>>, show: impl Fn(Shown) + 'static) -> Watch {
    Rc::new(move |seen: Seen<'_>| {
        match seen {
            Seen::Entered(state) => {
                power.enters(state);
                if state == State::Staging
                    && let Err(error) = machine.borrow().stages()
                {
                    tracing::error!(%error, "what the medium is to lose is still there");
                }
            }
            Seen::GoingDown => power.goes_down(),
            _ => {}
        }
        if let Some(what) = Shown::of(seen) {
            show(what);
        }
    })
}

/// Waits so long; true if the run ends before.
async fn over(stopped: &mut watch::Receiver<()>, span: Duration) -> bool {
    tokio::select! {
        _ = stopped.changed() => true,
        () = tokio::time::sleep(span) => false,
    }
}
