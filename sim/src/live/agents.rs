//! Real agents among the fleet's devices: the production agent's library, with MQTT over TCP, downloads over HTTP and
//! files in a directory of the run's own. Many live on one thread. What they are measured by, they show to the shard
//! that counts for them.

use std::collections::HashSet;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::Sender;
use fleetwave_agent::{Config, Seen, TlsPool};
use fleetwave_hub::Clock;
use fleetwave_protocol::Instant;
use serde_json::{Map, Value};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};

use super::login::Login;
use super::shard::Order;
use super::stage::failed;
use crate::device::World;
use crate::rollout;
use crate::run::EngineError;
use crate::scenario::model::Driver;

/// Agents that share a thread before another one helps.
const ON_ONE_THREAD: usize = 250;
/// Threads for each of those that wait for files.
const BLOCKING: usize = 4;

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
}

impl From<Seen<'_>> for Shown {
    fn from(seen: Seen<'_>) -> Self {
        match seen {
            Seen::Connecting => Self::Connecting,
            Seen::Connected => Self::Connected,
            Seen::Lost => Self::Lost,
            Seen::Wanted(reference) => Self::Wanted(Box::new(reference.clone())),
            Seen::Asked => Self::Asked,
            Seen::Granted => Self::Granted,
        }
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
}

/// An agent is to start then.
#[derive(Clone, Copy, Debug)]
struct Call {
    number: u64,
    at: Instant,
}

/// The threads of the real agents.
pub(super) struct Agents {
    setting: Arc<Setting>,
    numbers: Vec<u64>,
    called: HashSet<u64>,
    crews: Vec<(UnboundedSender<Call>, JoinHandle<Vec<String>>)>,
    _files: TempDir,
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
        Ok(Self { setting, numbers, called: HashSet::new(), crews, _files: files })
    }

    /// Devices are told to connect, each at its time: the agents among them start.
    pub(super) fn tell(&mut self, order: &Order) {
        let Order::Connect { from, step, group, arrival } = order else { return };
        let fleet = self.setting.world.fleet();
        for (place, number) in self.numbers.iter().enumerate() {
            let Some(offset) = fleet.arrival(*number, *step, *group, *arrival) else { continue };
            if self.called.insert(*number) {
                let (calls, _) = &self.crews[place % self.crews.len()];
                // A thread that is gone shows when it is joined.
                let _ = calls.send(Call { number: *number, at: *from + offset });
            }
        }
    }

    /// How many threads there are.
    pub(super) fn threads(&self) -> u32 {
        self.crews.len() as u32
    }

    /// Ends them all in good order; gives what went wrong on the way.
    pub(super) fn finish(self) -> Vec<String> {
        let (calls, threads): (Vec<_>, Vec<_>) = self.crews.into_iter().unzip();
        drop(calls);
        let ended = threads.into_iter().map(JoinHandle::join);
        ended
            .flat_map(|ended| {
                ended.unwrap_or_else(|_| vec!["a thread of the real agents panicked".to_owned()])
            })
            .collect()
    }
}

/// One thread: starts agents as they are called, and ends them when nobody calls any more.
fn perform(setting: &Arc<Setting>, files: &Path, mut called: UnboundedReceiver<Call>) -> Vec<String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING).build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return vec![format!("the real agents cannot start: {error}")],
    };
    LocalSet::new().block_on(&runtime, async {
        let (stop, stopped) = watch::channel(());
        let pool = Rc::new(TlsPool::default());
        let mut agents = JoinSet::new();
        while let Some(call) = called.recv().await {
            let config = setting.config(call.number, files);
            agents.spawn_local(live(setting.clone(), pool.clone(), call, config, stopped.clone()));
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
        wrong
    })
}

/// One agent, from its start until the run ends.
async fn live(
    setting: Arc<Setting>,
    pool: Rc<TlsPool>,
    call: Call,
    config: Result<Config, String>,
    mut stopped: watch::Receiver<()>,
) -> Result<(), String> {
    let id = setting.world.fleet().id(call.number);
    let wrong = |why: String| format!("the real agent of {id}: {why}");
    let config = config.map_err(wrong)?;
    tokio::select! {
        _ = stopped.changed() => return Ok(()),
        () = tokio::time::sleep(call.at.since(setting.clock.now().at)) => {}
    }
    let shard = ((call.number / setting.share) as usize).min(setting.signs.len() - 1);
    let index = (call.number - shard as u64 * setting.share) as u32;
    let (signs, clock) = (setting.signs[shard].clone(), setting.clock.clone());
    let watch = move |seen: Seen<'_>| {
        // A shard that has ended looks no more.
        let _ = signs.send(Sign { index, at: clock.now().at, what: seen.into() });
    };
    let stop = async {
        // The other end says nothing: it is dropped.
        let _ = stopped.changed().await;
    };
    let ended = fleetwave_agent::live_watched(&config, &pool, false, stop, Some(Rc::new(watch))).await;
    ended.map(drop).map_err(|error| wrong(error.to_string()))
}

impl Setting {
    /// What an operator would write for this device.
    fn config(&self, number: u64, files: &Path) -> Result<Config, String> {
        let scenario = self.world.scenario();
        let (agent, installed) = (&scenario.agent, &scenario.fleet.release);
        let id = self.world.fleet().id(number);
        let state = files.join(&id);
        let text = format!(
            "state = {state:?}\n\
             [hub]\nplain = true\nkeep_alive_seconds = {keep_alive}\n\
             connection_string = \"HostName={reach};DeviceId={id};SharedAccessKey={key}\"\n\
             [trust]\nthreshold = {threshold}\n[trust.keys]\n{keys}\
             [firmware]\ninstaller = \"directory\"\ninstalled = {{ id = {release:?}, seq = {seq} }}\n\
             [limits]\nsplay_seconds = {splay}\nretry_seconds = {retry}\nreconnect_seconds = {reconnect}\n\
             probation_seconds = {probation}\n",
            state = state.display().to_string(),
            keep_alive = agent.keep_alive.duration().as_secs().clamp(5, 1177),
            reach = self.reach,
            key = self.login.group_key.derive(&id).to_base64(),
            threshold = rollout::THRESHOLD,
            keys = rollout::trusted_keys(),
            release = installed.id,
            seq = installed.seq,
            splay = agent.splay.duration().as_secs_f64(),
            retry = agent.backoff.first.duration().as_secs_f64(),
            reconnect = agent.reconnect.first.duration().as_secs_f64(),
            probation = agent.probation_timeout.duration().as_secs_f64(),
        );
        Config::parse(&text, Path::new("agent.toml")).map_err(|error| error.to_string())
    }
}
