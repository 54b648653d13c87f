//! Everything that a live run needs around its devices: blob endpoint, hub or broker, registry, shards, downloads.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Sender, unbounded};
use fleetwave_agent_core::State;
use fleetwave_hub::blob::{BlobServer, Content};
use fleetwave_hub::plain::{Broker, PlainHub};
use fleetwave_hub::recorder::Recorder;
use fleetwave_hub::{Clock, HubControl, HubServer, NewDevice};
use fleetwave_hub_core::{Cycle, Options};
use fleetwave_protocol::rng::mix;
use fleetwave_protocol::sas::Key;
use fleetwave_protocol::{Profile, WallTime};
use fleetwave_report::record::Transport as TransportName;
use mio::Waker;
use rustls::pki_types::ServerName;
use sha2::{Digest, Sha256};

use super::agents::{Agents, Setting};
use super::aim::Board;
use super::cloud::{CloudSide, Granter, blob_name};
use super::fetch::{Mailbox, Pool, Settings};
use super::login::Login;
use super::operator::Operator;
use super::shard::{Order, Outside, Parts, Remains, Shard};
use super::tally::Tally;
use super::transport::{Memory, Server, Tcp, Tls, Transport};
use super::{Witness, granting, limits, login};
use crate::device::{Violations, World};
use crate::measure::Meter;
use crate::remote::{Remote, Tenancy, client_config, limits_of};
use crate::run::{EngineError, RunPlan, Target};
use crate::scenario::model::{self, Release, Scenario};

const DAY: u64 = 86_400_000;

/// What devices reach.
enum Hub {
    Embedded(Box<HubServer>),
    Plain(PlainHub),
    Elsewhere(Server),
}

/// A device shard's thread, and the way to it.
struct Crew {
    orders: Sender<Order>,
    waker: Arc<Waker>,
    thread: JoinHandle<Remains>,
}

/// A set stage.
pub(super) struct Stage {
    pub(super) world: Arc<World>,
    pub(super) clock: Clock,
    pub(super) board: Arc<RwLock<Board>>,
    pub(super) tally: Arc<Tally>,
    pub(super) operator: Operator,
    pub(super) blobs: BlobServer,
    hub: Hub,
    crew: Vec<Crew>,
    agents: Option<Mutex<Agents>>,
    downloads: Pool,
}

/// What is left when the curtain has fallen.
pub(super) struct Left {
    pub(super) meter: Meter,
    pub(super) violations: Violations,
    pub(super) histories: Vec<u64>,
    pub(super) stories: Vec<Vec<State>>,
    /// Threads that ended badly.
    pub(super) casualties: Vec<String>,
}

pub(super) fn failed(
    what: impl Into<String>,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> EngineError {
    EngineError::Failed { what: what.into(), source: source.into() }
}

/// The bytes that a release stands for.
fn content(scenario: &Scenario, release: &Release, genuine: bool) -> Content {
    let seed = release.id.bytes().fold(mix(scenario.seed), |seed, byte| mix(seed ^ u64::from(byte)));
    Content::Generated { seed: if genuine { seed } else { mix(seed) }, size: release.size.bytes() }
}

fn digest(content: &Content) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut offset = 0;
    loop {
        let piece = content.read(offset, u64::MAX);
        if piece.is_empty() {
            return hash.finalize().into();
        }
        hash.update(&piece);
        offset += piece.len() as u64;
    }
}

/// The world of a plan, with the digests of the payloads that the blob endpoint will serve.
pub(super) fn world(plan: &RunPlan) -> World {
    let mut scenario = plan.scenario.clone();
    // Nobody makes archives of payloads that stand for others.
    scenario.releases.iter_mut().for_each(|release| release.delta = None);
    let world = World::new(scenario.clone(), |release| digest(&content(&scenario, release, true)));
    match &plan.target {
        Target::Remote(remote) => world.with_prefix(&remote.prefix()),
        Target::Hub | Target::Rumqttd | Target::Broker { .. } => world,
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

impl Stage {
    /// Sets everything up, the fleet's twins included; those on a hub elsewhere are there already, with keys derived
    /// from `group_key`. A `witness` is shown what embedded hub and blob endpoint see.
    ///
    /// # Errors
    /// What could not be had: a port, a broker, a thread.
    pub(super) fn set(
        plan: &RunPlan,
        world: Arc<World>,
        clock: Clock,
        elsewhere: Option<(&Arc<Tenancy>, Key)>,
        tell_stories: bool,
        witness: Option<&Witness>,
    ) -> Result<Self, EngineError> {
        let scenario = &plan.scenario;
        let recorder = witness.map(|witness| &witness.recorder);
        let ahead = witness.map_or(0, |witness| witness.ahead.as_millis() as u64);
        let calendar_ahead = calendar_ahead(scenario, &clock) + ahead;
        let blobs = serve_blobs(scenario, &clock, recorder)?;
        let board = Arc::new(RwLock::new(Board::default()));
        let tally = Arc::new(Tally::default());

        let devices = world.fleet().devices();
        let shards = u64::from(scenario.live.device_threads.max(1)).min(devices.max(1));
        let share = devices.div_ceil(shards).max(1);
        let shards = devices.div_ceil(share).max(1);
        let (ears, heard): (Vec<_>, Vec<_>) = (0..shards).map(|_| unbounded()).unzip();
        let (signs, seen): (Vec<_>, Vec<_>) = (0..shards).map(|_| unbounded()).unzip();

        let granter = {
            let (world, board, blobs) = (world.clone(), board.clone(), blobs.control());
            move || Granter::new(world.clone(), board.clone(), blobs.clone())
        };
        let expires = end_of_tokens(scenario, &clock);
        let (hub, operator, reach, login, grants) = match elsewhere {
            Some((tenancy, group_key)) => {
                let server = find_server(tenancy.remote())?;
                let reach = server.address;
                let grants = granting::start(tenancy, world.clone(), granter(), clock.clone());
                let operator = Operator::Elsewhere(tenancy.clone());
                let host = tenancy.remote().access.host().to_owned();
                let pacer = tenancy.service().pacer();
                let login = Login { host, group_key, expires };
                (Hub::Elsewhere(server), operator, reach, Some(login), Some((pacer, grants)))
            }
            None => {
                let group_key = Key::from_bytes(mix(scenario.seed).to_le_bytes());
                let cloud = move || CloudSide::new(granter(), ears.clone(), share);
                let (hub, control, reach) = open_hub(plan, &clock, &group_key, cloud, recorder)?;
                create_fleet(&control, &world)?;
                let login = Login { host: login::EMBEDDED.to_owned(), group_key, expires };
                let login = matches!(hub, Hub::Embedded(_)).then_some(login);
                (hub, Operator::Ours(control), reach, login, None)
            }
        };
        let agents = match &login {
            Some(login) if plan.real_agents() > 0 => Some(Agents::start(Setting {
                world: world.clone(),
                clock: clock.clone(),
                login: login.clone(),
                reach: reach.to_string(),
                signs,
                share,
                calendar_ahead,
            })?),
            _ => None,
        };
        let plain = matches!(hub, Hub::Plain(_));
        let mut transports: Vec<Box<dyn Transport>> = Vec::new();
        for _ in 0..shards {
            let no_shard = |error| failed("starting a shard", error);
            transports.push(match &hub {
                Hub::Embedded(server) if plan.transport == TransportName::Memory => {
                    Box::new(Memory::new(&server.memory()).map_err(no_shard)?)
                }
                Hub::Elsewhere(server) => Box::new(Tls::new(server.clone()).map_err(no_shard)?),
                Hub::Embedded(_) | Hub::Plain(_) => Box::new(Tcp::new(reach).map_err(no_shard)?),
            });
        }
        let (results, fetched): (Vec<_>, Vec<_>) = (0..shards).map(|_| unbounded()).unzip();
        let mailboxes = results
            .into_iter()
            .zip(&transports)
            .map(|(results, transport)| Mailbox { results, waker: transport.waker() })
            .collect();
        let settings = Settings {
            at_once: usize::try_from(limits::downloads_at_once(plan)).unwrap_or(usize::MAX),
            checkpoint: scenario.agent.checkpoint.bytes(),
            patience: scenario.agent.request_timeout.duration(),
        };
        let downloads = Pool::start(settings, clock.clone(), mailboxes, tally.clone())
            .map_err(|error| failed("starting the downloads", error))?;

        let mut crew = Vec::new();
        let parts = transports.into_iter().zip(heard).zip(fetched).zip(seen).enumerate();
        for (index, (((transport, heard), fetched), signs)) in parts {
            let first = index as u64 * share;
            let (orders, inbox) = unbounded();
            let waker = transport.waker();
            let parts = Parts {
                index: index as u16,
                first,
                devices: share.min(devices - first) as u32,
                world: world.clone(),
                clock: clock.clone(),
                calendar_ahead,
                profile: if plain { Profile::Plain } else { Profile::IotHub },
                login: login.clone(),
                transport,
                orders: inbox,
                heard,
                signs,
                fetched,
                downloads: downloads.handle(),
                tally: tally.clone(),
                outside: grants.clone().map(|(pacer, grants)| Outside::new(pacer, grants)),
                tell_stories,
            };
            let thread = std::thread::Builder::new()
                .name(format!("devices-{index}"))
                .spawn(move || Shard::new(parts).run())
                .map_err(|error| failed("starting a shard", error))?;
            crew.push(Crew { orders, waker, thread });
        }
        let agents = agents.map(Mutex::new);
        Ok(Self { world, clock, board, tally, operator, blobs, hub, crew, agents, downloads })
    }

    /// Whether devices reach the hub by way of a broker, which goes on when the hub is away.
    pub(super) fn behind_broker(&self) -> bool {
        matches!(self.hub, Hub::Plain(_))
    }

    /// Tells every shard.
    pub(super) fn tell(&self, order: &Order) {
        (0..self.crew.len()).for_each(|shard| self.tell_one(shard, order.clone()));
        if let Some(agents) = &self.agents {
            agents.lock().expect("nothing panics under this lock").tell(order);
        }
    }

    /// Tells one shard.
    pub(super) fn tell_one(&self, shard: usize, order: Order) {
        let crew = &self.crew[shard];
        // A shard that is gone shows when it is joined.
        if crew.orders.send(order).is_ok()
            && let Err(error) = crew.waker.wake()
        {
            tracing::debug!(%error, "a shard could not be woken");
        }
    }

    /// Threads that run devices, hub, blobs and downloads.
    pub(super) fn threads(&self) -> u32 {
        let live = &self.world.scenario().live;
        let hub_threads = match self.hub {
            Hub::Embedded(_) | Hub::Plain(_) => live.hub_threads.max(1),
            // The service side's.
            Hub::Elsewhere(_) => 1,
        };
        let agents = self.agents.as_ref().map(|agents| agents.lock().map_or(0, |agents| agents.threads()));
        self.crew.len() as u32
            + agents.unwrap_or(0)
            + u32::from(hub_threads)
            + u32::from(live.blob_threads.max(1))
            + 1
    }

    /// Ends everything, devices first.
    pub(super) fn strike(self) -> Left {
        self.tell(&Order::Finish);
        let agents = self.agents.and_then(|agents| agents.into_inner().ok());
        let real = agents.is_some();
        let ended = agents.map(Agents::finish).unwrap_or_default();
        let mut left = Left {
            meter: Meter::default(),
            violations: ended.violations,
            histories: Vec::new(),
            stories: Vec::new(),
            casualties: ended.wrong,
        };
        for (index, crew) in self.crew.into_iter().enumerate() {
            match crew.thread.join() {
                Ok(remains) => {
                    left.meter.merge(&remains.meter);
                    left.violations.merge(&remains.violations);
                    left.histories.extend(remains.histories);
                    left.stories.extend(remains.stories);
                }
                Err(_) => left.casualties.push(format!("the thread of device shard {index} panicked")),
            }
        }
        match self.downloads.finish() {
            Some(meter) => left.meter.merge(&meter),
            None => left.casualties.push("the thread of the downloads panicked".to_owned()),
        }
        match self.hub {
            Hub::Embedded(server) => {
                if real && let Ok(hub) = server.control().metrics() {
                    // What the hub saw beyond the simulated devices is the real ones'.
                    let own = left.meter.traffic_totals();
                    left.meter.traffic(
                        hub.packets_in.saturating_sub(own.messages_up),
                        hub.bytes_in.saturating_sub(own.bytes_up),
                        hub.packets_out.saturating_sub(own.messages_down),
                        hub.bytes_out.saturating_sub(own.bytes_down),
                    );
                }
                server.stop();
            }
            Hub::Plain(hub) => hub.stop(),
            Hub::Elsewhere(_) => {}
        }
        self.blobs.stop();
        left
    }
}

fn serve_blobs(
    scenario: &Scenario,
    clock: &Clock,
    recorder: Option<&Arc<Recorder>>,
) -> Result<BlobServer, EngineError> {
    let mut builder = BlobServer::builder();
    if let Some(recorder) = recorder {
        builder = builder.recorder(recorder.clone());
    }
    let server = builder
        .listen(loopback(scenario.live.blob_port))
        .clock(clock.clone())
        .seed(scenario.seed)
        .bandwidth(scenario.blob.bandwidth.bytes_per_second() as u64)
        .threads(usize::from(scenario.live.blob_threads))
        .start()
        .map_err(|error| failed("starting the blob endpoint", error))?;
    for (spec, release) in scenario.releases.iter().enumerate() {
        let blob = content(scenario, release, !release.corrupt);
        server
            .control()
            .put(&blob_name(spec), blob)
            .map_err(|error| failed(format!("storing release {}", release.id), error))?;
    }
    Ok(server)
}

/// Starts or reaches the hub; gives where devices connect.
fn open_hub(
    plan: &RunPlan,
    clock: &Clock,
    group_key: &Key,
    cloud: impl Fn() -> CloudSide + Send + 'static,
    recorder: Option<&Arc<Recorder>>,
) -> Result<(Hub, HubControl, SocketAddr), EngineError> {
    let scenario = &plan.scenario;
    let options = Options {
        cycle: match scenario.hub.configuration_cycle {
            model::Cycle::Immediate => Cycle::Immediate,
            model::Cycle::Every(span) => Cycle::Every(span.duration()),
        },
        ..Options::default()
    };
    let tier = limits_of(scenario.hub.tier);
    let address = loopback(scenario.live.port);
    let broker = match &plan.target {
        Target::Hub => {
            let mut builder = HubServer::builder()
                .shards(usize::from(scenario.live.hub_threads))
                .clock(clock.clone())
                .group_key(group_key.clone())
                .options(options)
                .tier(tier, scenario.hub.units)
                .hooks(move |_| Box::new(cloud()));
            if let Some(recorder) = recorder {
                builder = builder.recorder(recorder.clone());
            }
            if plan.transport != TransportName::Memory {
                builder = builder.tcp(address);
            }
            let server = builder.start().map_err(|error| failed("starting the hub", error))?;
            let reach = server.address().unwrap_or(address);
            let control = server.control();
            return Ok((Hub::Embedded(Box::new(server)), control, reach));
        }
        _ if plan.transport == TransportName::Memory => {
            return Err(EngineError::Unfit {
                problem: format!("{} is not reached over the memory transport", plan.target),
                fix: "use --transport tcp".to_owned(),
            });
        }
        Target::Rumqttd => {
            let max_connections = usize::try_from(scenario.fleet.devices.0).unwrap_or(usize::MAX);
            // Devices that come back find their old connection still there for a while.
            Broker::Rumqttd { listen: address, max_connections: max_connections.saturating_mul(2) + 16 }
        }
        Target::Remote(_) => unreachable!("a hub elsewhere is not opened here"),
        Target::Broker { .. } => Broker::Remote { url: plan.target.to_string(), credentials: None },
    };
    let hub = PlainHub::builder(broker)
        .clock(clock.clone())
        .options(options)
        .tier(tier, scenario.hub.units)
        .hooks(Box::new(cloud()))
        .start()
        .map_err(|error| failed(format!("attaching to {}", plan.target), error))?;
    let (host, port) = hub.broker();
    let reach = (host, port)
        .to_socket_addrs()
        .map_err(|error| failed(format!("finding {host}"), error))?
        .next()
        .ok_or_else(|| failed(format!("finding {host}"), "it has no address"))?;
    let control = hub.control();
    Ok((Hub::Plain(hub), control, reach))
}

/// When devices' tokens end: when the run is over for certain.
fn end_of_tokens(scenario: &Scenario, clock: &Clock) -> WallTime {
    let lasts = scenario.harness.max_duration.duration() + Duration::from_secs(3600);
    WallTime::from_unix_millis(clock.now().wall.as_unix_millis().saturating_add(lasts.as_millis() as u64))
}

/// How long an address may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Finds the address by which devices reach a hub elsewhere: the first one of its name that answers.
fn find_server(remote: &Remote) -> Result<Server, EngineError> {
    let host = remote.access.reach();
    let what = || format!("reaching {host}, port {}, for MQTT over TLS", remote.mqtt_port);
    let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(what(), error))?;
    let config = client_config(remote.ca.as_deref()).map_err(|error| failed(what(), error))?;
    let addresses = (host, remote.mqtt_port).to_socket_addrs().map_err(|error| failed(what(), error))?;
    let mut outcome = Err(failed(what(), "it has no address"));
    for address in addresses {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(_) => return Ok(Server { address, name, config }),
            Err(error) => outcome = Err(failed(what(), error)),
        }
    }
    outcome
}

fn create_fleet(control: &HubControl, world: &World) -> Result<(), EngineError> {
    let fleet = world.fleet();
    let tags: Vec<Arc<str>> = fleet.groups().iter().map(|group| group.tags.as_str().into()).collect();
    let devices = (0..fleet.devices()).map(|number| NewDevice {
        tags: Some(tags[fleet.group_of(number)].clone()),
        ..NewDevice::new(fleet.id(number))
    });
    control.create_devices(devices).map_err(|error| failed("making the fleet's twins", error))?;
    Ok(())
}

/// What the devices' calendar is ahead of the hub's: the run starts at the scenario's time of the day.
fn calendar_ahead(scenario: &Scenario, clock: &Clock) -> u64 {
    (DAY + scenario.clock.millis() - clock.now().wall.millis_of_day()) % DAY
}
