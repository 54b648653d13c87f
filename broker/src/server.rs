//! The local hub: shards, listeners, and the handles to them.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use fleetwave_hub_core::Options;
use fleetwave_hub_core::throttle::{Throttles, Tier};
use fleetwave_protocol::sas::Key;
use mio::{Poll, Waker};
use rustls::ServerConfig;
use tokio::sync::watch;

use crate::Assign;
use crate::admin::Health;
use crate::amqp::{AmqpService, Readers, Shared};
use crate::auth::Gate;
use crate::bus::Bus;
use crate::clock::Clock;
use crate::control::{HubControl, Shard as ShardHandle};
use crate::dps::{Dps, DpsSettings, Provisioning};
use crate::engine::{Engine, EngineParts, Journal};
use crate::events::{CloudEvents, EventOptions, EventSink};
use crate::exposition::Instruments;
use crate::front::{Bound, Front, Service};
use crate::hooks::Hooks;
use crate::inbox::{Inbox, Message};
use crate::jobs::Jobs;
use crate::listen::{ListenError, Port};
use crate::memory::MemoryConnector;
use crate::plain::PlainError;
use crate::policy::{HostNames, Policies, Policy};
use crate::reactor::{Door, Parts, Shard, WAKER};
use crate::recorder::{Recorder, Tap};
use crate::rest::{Api, RestServer};
use crate::session::Sessions;
use crate::store::{OpenError, Restored, Store, TableError};
use crate::transport::Transports;
use crate::transport::memory::Memory;
use crate::transport::tcp::Tcp;
use crate::transport::tls::Tls;
use crate::upload::{StorageAccount, Uploads};
use crate::websocket::Bridge;
use crate::x509::{Authorities, NotAnAuthority};

/// Why a hub could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// What was given as a devices' authority is none.
    #[error(transparent)]
    DeviceCa(#[from] NotAnAuthority),
    /// What the hub is to keep on disk cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// What others than the shards keep there cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The event bus did not start.
    #[error("the event bus: {0}")]
    Bus(#[source] PlainError),
    /// A shard's thread, or what it waits with, could not be made.
    #[error("the hub could not start a shard: {0}")]
    Shard(#[source] io::Error),
}

/// Where AMQP over TLS is, by its registration.
const AMQPS_PORT: u16 = 5671;

/// Makes the hooks of each shard, by its number.
pub(crate) type MakeHooks = Box<dyn FnMut(usize) -> Box<dyn Hooks> + Send>;

/// Settings of a hub.
pub struct HubServerBuilder {
    shards: usize,
    tcp: Option<SocketAddr>,
    tls: Option<(SocketAddr, Arc<ServerConfig>)>,
    hosts: Vec<String>,
    group_key: Key,
    policies: Vec<Policy>,
    device_cas: Vec<String>,
    tier: Tier,
    units: u32,
    options: Options,
    clock: Clock,
    assign: Assign,
    hooks: MakeHooks,
    sinks: Vec<Arc<dyn EventSink>>,
    https: Option<(SocketAddr, Option<Arc<ServerConfig>>)>,
    amqps: Option<(SocketAddr, Option<Arc<ServerConfig>>)>,
    event_options: EventOptions,
    dps: Option<DpsSettings>,
    storage: Option<StorageAccount>,
    data: Option<PathBuf>,
    bus: Option<SocketAddr>,
    recorder: Option<Arc<Recorder>>,
}

impl HubServerBuilder {
    /// How many threads serve, each with its share of the devices; one if not set.
    #[must_use]
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = shards.clamp(1, usize::from(u16::MAX));
        self
    }

    /// Listens for MQTT on this address, too; port 0 takes a free one.
    #[must_use]
    pub fn tcp(mut self, address: SocketAddr) -> Self {
        self.tcp = Some(address);
        self
    }

    /// Listens for MQTT over TLS on this address, too; port 0 takes a free one. [`Pki`](crate::pki::Pki) makes the
    /// configuration.
    #[must_use]
    pub fn tls(mut self, address: SocketAddr, config: Arc<ServerConfig>) -> Self {
        self.tls = Some((address, config));
        self
    }

    /// A name that the hub answers to. It answers to any if none is set.
    #[must_use]
    pub fn host_name(mut self, name: &str) -> Self {
        self.hosts.push(name.to_owned());
        self
    }

    /// The key that devices' keys are derived from.
    #[must_use]
    pub fn group_key(mut self, key: Key) -> Self {
        self.group_key = key;
        self
    }

    /// An authority that vouches for devices which are registered with it: a certificate in PEM form.
    #[must_use]
    pub fn device_ca(mut self, pem: &str) -> Self {
        self.device_cas.push(pem.to_owned());
        self
    }

    /// A shared access policy.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policies.push(policy);
        self
    }

    /// Serves the back end's REST operations on this address, too; port 0 takes a free one. Without TLS only for
    /// tests: tokens could be read on the way.
    #[must_use]
    pub fn https(mut self, address: SocketAddr, tls: Option<Arc<ServerConfig>>) -> Self {
        self.https = Some((address, tls));
        self
    }

    /// Serves C2D sending, feedback and events by AMQP on this address, too; port 0 takes a free one. Without TLS only
    /// for tests: tokens could be read on the way.
    #[must_use]
    pub fn amqps(mut self, address: SocketAddr, tls: Option<Arc<ServerConfig>>) -> Self {
        self.amqps = Some((address, tls));
        self
    }

    /// What the Event-Hub-compatible endpoint keeps and is called.
    #[must_use]
    pub fn event_options(mut self, options: EventOptions) -> Self {
        self.event_options = options;
        self
    }

    /// Publishes what happens on an embedded MQTT broker that listens on this address; port 0 takes a free one. The
    /// broker lives as long as the process.
    #[must_use]
    pub fn bus(mut self, address: SocketAddr) -> Self {
        self.bus = Some(address);
        self
    }

    /// Provisions devices for this hub, over MQTT and HTTPS.
    #[must_use]
    pub fn provisioning(mut self, settings: DpsSettings) -> Self {
        self.dps = Some(settings);
        self
    }

    /// Keeps the hub in this folder, which is made if it is not there: what was acknowledged outlives the hub. In memory
    /// only if not set.
    #[must_use]
    pub fn data(mut self, folder: impl AsRef<Path>) -> Self {
        self.data = Some(folder.as_ref().to_owned());
        self
    }

    /// Where devices' files go. Without it uploads are refused.
    #[must_use]
    pub fn storage(mut self, account: StorageAccount) -> Self {
        self.storage = Some(account);
        self
    }

    /// The tier and units whose limits the hub keeps; none if not set.
    #[must_use]
    pub fn tier(mut self, tier: Tier, units: u32) -> Self {
        (self.tier, self.units) = (tier, units);
        self
    }

    /// Options of the hub core.
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// The clock of the hub's instants and tokens.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Which shard a device belongs to; by a hash of its id if not set.
    #[must_use]
    pub fn assign(mut self, assign: Assign) -> Self {
        self.assign = assign;
        self
    }

    /// The hooks of each shard, by the shard's number.
    #[must_use]
    pub fn hooks(mut self, hooks: impl FnMut(usize) -> Box<dyn Hooks> + Send + 'static) -> Self {
        self.hooks = Box::new(hooks);
        self
    }

    /// Somebody who follows what happens.
    #[must_use]
    pub fn events(mut self, sink: Arc<dyn EventSink>) -> Self {
        self.sinks.push(sink);
        self
    }

    /// Keeps every MQTT message.
    #[must_use]
    pub fn recorder(mut self, recorder: Arc<Recorder>) -> Self {
        self.recorder = Some(recorder);
        self
    }

    /// Listens and serves.
    ///
    /// # Errors
    /// If the address is taken or not of this machine, the folder cannot be used, or threads or descriptors are out.
    pub fn start(self) -> Result<HubServer, StartError> {
        let store = self.data.as_deref().map_or_else(|| Ok(Store::none()), Store::open)?;
        self.start_with(store)
    }

    pub(crate) fn start_with(mut self, store: Store) -> Result<HubServer, StartError> {
        let tcp = self.tcp.map(Port::bind).transpose()?.map(Arc::new);
        let tls = match self.tls {
            Some((address, config)) => Some((Arc::new(Port::bind(address)?), config)),
            None => None,
        };
        let throttles =
            (self.tier != Tier::None).then(|| Arc::new(Mutex::new(Throttles::new(self.tier, self.units))));
        let https =
            self.https.map(|(address, tls)| Bound::bind(address).map(|bound| (bound, tls))).transpose()?;
        let amqps =
            self.amqps.map(|(address, tls)| Bound::bind(address).map(|bound| (bound, tls))).transpose()?;
        let mut event_options = self.event_options;
        event_options.name = event_options.name.or_else(|| first_label(&self.hosts));
        let policies = Arc::new(Policies::new(HostNames::new(self.hosts), self.policies));
        let gate = Arc::new(Gate {
            policies: policies.clone(),
            group_key: self.group_key.clone(),
            authorities: Authorities::from_pem(self.device_cas.iter().map(String::as_str))?,
        });
        let restored = store.restore(self.shards, self.options, &self.assign, self.clock.now())?;
        let health = Health::default();
        if store.is_durable() {
            health.good("store");
            let health = health.clone();
            store.on_failure(move |error| health.bad("store", error.to_string()));
        }
        let instruments = Instruments::new();
        store.measure(&instruments);
        let mut polls = Vec::with_capacity(self.shards);
        let mut inboxes = Vec::with_capacity(self.shards);
        for _ in 0..self.shards {
            let poll = Poll::new().map_err(StartError::Shard)?;
            let waker = Waker::new(poll.registry(), WAKER).map_err(StartError::Shard)?;
            let (inbox, messages) = Inbox::new(waker);
            inboxes.push(inbox);
            polls.push((poll, messages));
        }
        let shards: Arc<[Inbox]> = inboxes.into();
        let handles: Vec<ShardHandle> = shards.iter().map(handle).collect();
        let control = HubControl::new(
            handles.into(),
            self.assign.clone(),
            self.clock.clone(),
            self.group_key,
            throttles.clone(),
            instruments.clone(),
        );
        // From here on an early return stops the threads that run.
        let dps = self.dps.take().map(|settings| Dps::load(settings, control.clone(), &store)).transpose()?;
        let https_address = https.as_ref().map(|(bound, _)| bound.address());
        let amqps_address = amqps.as_ref().map(|(bound, _)| bound.address());
        let cloud = Arc::new(CloudEvents::new(event_options, &self.clock));
        if https.is_some() || amqps.is_some() {
            self.sinks.push(cloud.clone());
        }
        let bus = self.bus.map(|address| Bus::start(address, cloud.name(), &instruments)).transpose();
        let bus = bus.map_err(|error| match error {
            PlainError::Listen(error) => StartError::Listen(error),
            other => StartError::Bus(other),
        })?;
        if let Some(bus) = &bus {
            self.sinks.push(bus.sink());
        }
        let mut services: Vec<(Bound, Service)> = Vec::new();
        let (stopping, stopped) = watch::channel(false);
        let amqp = AmqpService {
            control: control.clone(),
            shared: Arc::new(Shared {
                policies: policies.clone(),
                cloud: cloud.clone(),
                readers: Arc::new(Readers::default()),
                instruments: control.instruments().clone(),
                port: amqps_address.map_or(AMQPS_PORT, |address| address.port()),
            }),
            tls: amqps.as_ref().and_then(|(_, tls)| tls.clone()),
            stopping: stopped,
        };
        if let Some((bound, _)) = amqps {
            let amqp = amqp.clone();
            services.push((bound, Box::new(|listener, stop| Box::pin(amqp.serve(listener, stop)))));
        }
        let connector = MemoryConnector::new(shards.clone(), self.assign.clone());
        let mut websockets = None;
        let takes_uploads = https.is_some() && self.storage.is_some();
        if let Some((bound, tls)) = https {
            let jobs = Arc::new(Jobs::load(self.tier, &store, self.clock.now().wall)?);
            let uploads = self.storage.take().map(|account| Arc::new(Uploads::new(account)));
            let (cloud, dps) = (cloud.clone(), dps.clone());
            let api = Arc::new(Api::new(control.clone(), gate.clone(), jobs, dps, cloud, uploads));
            let bridge = Bridge::new(&connector).map_err(StartError::Shard)?;
            websockets = Some(bridge.clone());
            let rest = RestServer { api, tls, upgrades: vec![Arc::new(bridge), Arc::new(amqp)] };
            services.push((bound, Box::new(|listener, stop| Box::pin(rest.serve(listener, stop)))));
        }
        let server = HubServer {
            control,
            health,
            store: store.clone(),
            https_address,
            amqps_address,
            takes_uploads,
            cloud,
            dps: dps.clone(),
            bus_address: bus.as_ref().map(Bus::address),
            bus: Mutex::new(bus),
            front: Mutex::new(None),
            connector,
            websockets,
            stopping,
            address: tcp.as_ref().map(|port| port.address()),
            tls_address: tls.as_ref().map(|(port, _)| port.address()),
            threads: Mutex::new(Vec::with_capacity(self.shards)),
        };
        let sinks: Arc<[Arc<dyn EventSink>]> = std::mem::take(&mut self.sinks).into();
        for (index, ((poll, inbox), restored)) in polls.into_iter().zip(restored).enumerate() {
            let Restored { hub, outputs } = restored;
            let registry = poll.registry().try_clone().map_err(StartError::Shard)?;
            let second = registry.try_clone().map_err(StartError::Shard)?;
            let transports =
                Transports { tcp: Tcp::new(registry), tls: Tls::new(second), memory: Memory::default() };
            let plain = tcp.iter().map(|port| Door::new(port.clone(), None));
            let secure = tls.iter().map(|(port, config)| Door::new(port.clone(), Some(config.clone())));
            let doors = plain.chain(secure).collect();
            let hooks = (self.hooks)(index);
            let engine = Engine::new(EngineParts {
                hub,
                clock: self.clock.clone(),
                hooks,
                throttles: throttles.clone(),
                sinks: sinks.clone(),
                journal: store.journal().map(|journal| Box::new(journal) as Box<dyn Journal>),
                instruments: instruments.clone(),
            });
            engine.tell_restored(outputs);
            let mut sessions = Sessions::new(transports, engine.is_durable());
            sessions.tap = self.recorder.clone().map(Tap::new);
            let shard = Shard::new(Parts {
                index,
                shards: shards.clone(),
                assign: self.assign.clone(),
                gate: gate.clone(),
                sessions,
                dps: dps.clone(),
                engine,
                poll,
                inbox,
                doors,
            });
            let thread = std::thread::Builder::new()
                .name(format!("hub-{index}"))
                .spawn(move || shard.run())
                .map_err(StartError::Shard)?;
            server.threads.lock().expect("nothing panics under this lock").push(thread);
        }
        if !services.is_empty() {
            let front = Front::start(services).map_err(StartError::Shard)?;
            *server.front.lock().expect("nothing panics under this lock") = Some(front);
        }
        Ok(server)
    }
}

/// The first part of a hub's name.
fn first_label(hosts: &[String]) -> Option<String> {
    let host = hosts.iter().find(|host| !host.eq_ignore_ascii_case("localhost")).or(hosts.first())?;
    host.split('.').next().map(str::to_owned)
}

fn handle(inbox: &Inbox) -> ShardHandle {
    let inbox = inbox.clone();
    Arc::new(move |command| inbox.send(Message::Command(command)))
}

/// A running hub. It stops when it is dropped.
pub struct HubServer {
    control: HubControl,
    health: Health,
    store: Store,
    connector: MemoryConnector,
    websockets: Option<Bridge>,
    stopping: watch::Sender<bool>,
    address: Option<SocketAddr>,
    https_address: Option<SocketAddr>,
    amqps_address: Option<SocketAddr>,
    takes_uploads: bool,
    cloud: Arc<CloudEvents>,
    dps: Option<Arc<Dps>>,
    bus: Mutex<Option<Bus>>,
    bus_address: Option<SocketAddr>,
    front: Mutex<Option<Front>>,
    tls_address: Option<SocketAddr>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl HubServer {
    /// Settings to start with: one shard, the memory transport only, no limits.
    #[must_use]
    pub fn builder() -> HubServerBuilder {
        HubServerBuilder {
            shards: 1,
            tcp: None,
            tls: None,
            hosts: Vec::new(),
            group_key: Key::from_bytes(*b"fleetwave-local-hub"),
            policies: Vec::new(),
            device_cas: Vec::new(),
            tier: Tier::None,
            units: 1,
            options: Options::default(),
            clock: Clock::new(),
            assign: Assign::by_hash(),
            hooks: Box::new(|_| Box::new(())),
            sinks: Vec::new(),
            https: None,
            amqps: None,
            event_options: EventOptions::default(),
            dps: None,
            storage: None,
            data: None,
            bus: None,
            recorder: None,
        }
    }

    /// The operator's handle.
    #[must_use]
    pub fn control(&self) -> HubControl {
        self.control.clone()
    }

    /// What the hub keeps on disk, for those who have tables of their own in it.
    #[must_use]
    pub fn store(&self) -> Store {
        self.store.clone()
    }

    /// How its parts are.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// The way in over the memory transport.
    #[must_use]
    pub fn memory(&self) -> MemoryConnector {
        self.connector.clone()
    }

    /// The address that it listens on without TLS, if it does.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The address of the REST operations, if they are served.
    #[must_use]
    pub fn https_address(&self) -> Option<SocketAddr> {
        self.https_address
    }

    /// The address of the AMQP endpoint, if it is served.
    #[must_use]
    pub fn amqps_address(&self) -> Option<SocketAddr> {
        self.amqps_address
    }

    /// Whether devices can upload files: the REST operations are served, and there is a storage account.
    #[must_use]
    pub fn takes_uploads(&self) -> bool {
        self.takes_uploads
    }

    /// What the back end can read of the hub: events, if AMQP is served; feedback, if AMQP or REST is.
    #[must_use]
    pub fn cloud_events(&self) -> Arc<CloudEvents> {
        self.cloud.clone()
    }

    /// The address that it listens on for TLS, if it does.
    #[must_use]
    pub fn tls_address(&self) -> Option<SocketAddr> {
        self.tls_address
    }

    /// Where the event bus listens, if there is one.
    #[must_use]
    pub fn bus_address(&self) -> Option<SocketAddr> {
        self.bus_address
    }

    /// The provisioning service, if the hub has one.
    #[must_use]
    pub fn provisioning(&self) -> Option<Provisioning> {
        self.dps.clone().map(Provisioning)
    }

    /// Closes all connections and waits for the threads. Doing it twice does nothing.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
        if let Some(websockets) = &self.websockets {
            websockets.stop();
        }
        drop(self.front.lock().expect("nothing panics under this lock").take());
        self.control.stop();
        let threads = std::mem::take(&mut *self.threads.lock().expect("nothing panics under this lock"));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a shard of the hub panicked");
            }
        }
        // Last: what the shards told at their end goes out, too.
        drop(self.bus.lock().expect("nothing panics under this lock").take());
    }
}

impl Drop for HubServer {
    fn drop(&mut self) {
        self.stop();
    }
}
