//! The hub core on a plain MQTT broker, by the [plain profile](fleetwave_protocol::profile::plain).
//!
//! The hub is one more client of the broker: it hears all devices and writes to each device's own topics. The
//! broker is either an embedded, stock rumqttd, or any other that is reached over the network. What it cannot
//! do that [`HubServer`](crate::HubServer) does: it sees presence only by what devices say (hello, and bye by
//! their will), it cannot end a connection, and it takes a C2D message for delivered once the broker has it.
//! Who may connect is the broker's business.

mod embedded;
mod link;
mod remote;
mod worker;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use fleetwave_hub_core::throttle::{Throttles, Tier};
use fleetwave_hub_core::{Hub, Options};
use fleetwave_protocol::sas::Key;

use crate::Assign;
use crate::clock::Clock;
use crate::control::HubControl;
use crate::engine::{Engine, EngineParts};
use crate::exposition::Instruments;
use crate::hooks::Hooks;
use crate::listen::ListenError;
pub(crate) use embedded::broker;
use link::{Attached, Heard};
use worker::Worker;

/// Which broker a hub is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broker {
    /// An embedded rumqttd, which listens on this address; port 0 takes a free one.
    ///
    /// rumqttd offers no way to stop it: its threads and its port live as long as the process.
    Rumqttd {
        /// Where devices connect.
        listen: SocketAddr,
        /// The most clients that it takes; the hub is one of them.
        max_connections: usize,
    },
    /// Any broker, at a URL `mqtt://HOST[:PORT]`.
    Remote {
        /// Where it is.
        url: String,
        /// User name and password, if it wants any.
        credentials: Option<(String, String)>,
    },
}

impl Broker {
    /// An embedded rumqttd on a free port of the loopback interface.
    #[must_use]
    pub fn rumqttd() -> Self {
        Self::Rumqttd { listen: SocketAddr::from(([127, 0, 0, 1], 0)), max_connections: 20_000 }
    }
}

/// Why a hub could not be attached to a broker.
#[derive(Debug, thiserror::Error)]
pub enum PlainError {
    /// The embedded broker's address cannot be listened on.
    #[error("the embedded broker: {0}")]
    Listen(#[from] ListenError),
    /// The embedded broker did not come up.
    #[error("the embedded broker did not start: {0}")]
    Embedded(String),
    /// Not the URL of a broker.
    #[error("{0:?} is not a broker's URL: `mqtt://HOST[:PORT]` was expected")]
    Url(String),
    /// The broker cannot be used.
    #[error("cannot attach to the broker at {host}:{port}: {why}")]
    Attach {
        /// Its host.
        host: String,
        /// Its port.
        port: u16,
        /// What went wrong.
        why: String,
    },
    /// No thread could be had.
    #[error("the hub could not start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Settings of a hub on a broker.
pub struct PlainHubBuilder {
    broker: Broker,
    tier: Tier,
    units: u32,
    options: Options,
    clock: Clock,
    hooks: Box<dyn Hooks>,
}

impl PlainHubBuilder {
    /// The tier and units whose limits the hub keeps; none if not set. Connections are the broker's and not
    /// limited.
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

    /// The clock of the hub's instants.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// The hub's hooks.
    #[must_use]
    pub fn hooks(mut self, hooks: Box<dyn Hooks>) -> Self {
        self.hooks = hooks;
        self
    }

    /// Attaches to the broker. When it returns, the hub hears every device.
    ///
    /// # Errors
    /// If the broker cannot be started or reached.
    pub fn start(self) -> Result<PlainHub, PlainError> {
        let (inbox, heard) = crossbeam_channel::unbounded();
        let attached = match self.broker {
            Broker::Rumqttd { listen, max_connections } => {
                embedded::attach(listen, max_connections, inbox.clone())?
            }
            Broker::Remote { url, credentials } => remote::attach(&url, credentials, inbox.clone())?,
        };
        let Attached { link, host, port, ready } = attached;
        let throttles =
            (self.tier != Tier::None).then(|| Arc::new(Mutex::new(Throttles::new(self.tier, self.units))));
        let instruments = Instruments::new();
        let engine = Engine::new(EngineParts {
            hub: Hub::new(self.options),
            clock: self.clock.clone(),
            hooks: self.hooks,
            throttles: throttles.clone(),
            sinks: Arc::default(),
            journal: None,
            instruments: instruments.clone(),
        });
        let worker = Worker::new(engine, link, heard);
        let thread = std::thread::Builder::new().name("plain-hub".into()).spawn(move || worker.run())?;
        let handle = move |command| inbox.send(Heard::Command(command)).is_ok();
        let control = HubControl::new(
            Arc::from([Arc::new(handle) as crate::control::Shard]),
            Assign::by_hash(),
            self.clock,
            Key::from_bytes(*b"fleetwave-plain-hub"),
            throttles,
            instruments,
        );
        let hub = PlainHub { control, host, port, thread: Mutex::new(Some(thread)) };
        match ready.recv_timeout(link::ATTACH_WITHIN) {
            Ok(Ok(())) => Ok(hub),
            Ok(Err(why)) => Err(PlainError::Attach { host: hub.host.clone(), port: hub.port, why }),
            Err(_) => {
                let why = "no answer in time".to_owned();
                Err(PlainError::Attach { host: hub.host.clone(), port: hub.port, why })
            }
        }
    }
}

/// A hub that is attached to a broker. It leaves the broker when it is dropped.
pub struct PlainHub {
    control: HubControl,
    host: String,
    port: u16,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl PlainHub {
    /// Settings to start with: no limits, no hooks.
    #[must_use]
    pub fn builder(broker: Broker) -> PlainHubBuilder {
        PlainHubBuilder {
            broker,
            tier: Tier::None,
            units: 1,
            options: Options::default(),
            clock: Clock::new(),
            hooks: Box::new(()),
        }
    }

    /// The operator's handle.
    ///
    /// [`HubControl::restart`] plays a hub that is away while its broker stays up: what devices send meanwhile
    /// is lost, what operators ask for waits.
    #[must_use]
    pub fn control(&self) -> HubControl {
        self.control.clone()
    }

    /// Host and port at which devices reach the broker.
    #[must_use]
    pub fn broker(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// Leaves the broker and waits for the thread. Doing it twice does nothing.
    pub fn stop(&self) {
        self.control.stop();
        let thread = self.thread.lock().expect("nothing panics under this lock").take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the hub's thread panicked");
        }
    }
}

impl Drop for PlainHub {
    fn drop(&mut self) {
        self.stop();
    }
}
