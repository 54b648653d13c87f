//! The way to the hub: MQTT over TLS, by a connection that is replaced before its token ends.
//!
//! * [`Access`]: what outlives connections: where the hub is, what the device shows, what provisioning said.
//! * [`Link`]: a connection from the machine's point of view. A renewed token is another [`Arrival::Connected`].

mod access;
mod assignment;
mod carry;
mod dial;
mod error;
mod https;
mod register;
mod settings;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use fleetwave_protocol::profile::UnknownTopic;
use fleetwave_protocol::{Down, Profile, Up};
use rumqttc::{Publish, QoS};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinSet;

pub(crate) use access::Access;
pub(crate) use error::{LinkError, plain};
pub(crate) use settings::is_loopback;
pub use settings::{Address, ConnectionString, Hub, ProfileName, Provisioning, SecretKey};
pub use tls::TlsPool;
#[cfg(feature = "kubernetes")]
pub(crate) use tls::{authorities, client_config};

use carry::Request;
use dial::QUEUE;

/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// What comes over a connection.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// The hub has accepted a connection: the first one, or one that takes the place of the one there was without a
    /// gap. What had been asked on that may stay unanswered.
    Connected {
        /// The device's id, which provisioning may just have given it.
        device: Arc<str>,
        /// The hub still knows the subscriptions.
        session_present: bool,
    },
    Message(Publish),
    /// The connection has ended, or never came to be; nothing follows.
    Lost(LinkError),
}

/// A connection. Dropping it cuts it off, as a power cut would.
#[derive(Debug)]
pub(crate) struct Link {
    requests: Sender<Request>,
    arrivals: Receiver<Arrival>,
    profile: Profile,
    device: Arc<str>,
    topic: String,
    task: JoinSet<()>,
}

impl Link {
    /// Begins to connect.
    pub(crate) fn open(access: &Arc<Access>) -> Self {
        let (requests, asked) = mpsc::channel(QUEUE);
        let (sender, arrivals) = mpsc::channel(QUEUE);
        let mut task = JoinSet::new();
        task.spawn(carry::run(access.clone(), asked, sender));
        let (profile, device) = (access.profile(), access.name().into());
        Self { requests, arrivals, profile, device, topic: String::new(), task }
    }

    /// What comes next. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Arrival {
        let Some(arrival) = self.arrivals.recv().await else {
            let why = "the connection's task has ended".to_owned();
            return Arrival::Lost(LinkError::Broken { host: "the agent".to_owned(), why });
        };
        if let Arrival::Connected { device, .. } = &arrival {
            self.device = device.clone();
        }
        arrival
    }

    /// Reads a message that came over it.
    ///
    /// # Errors
    /// If its topic is none of the profile's.
    pub(crate) fn decode<'m>(&self, message: &'m Publish) -> Result<Down<'m>, UnknownTopic> {
        self.profile.decode_down(&self.device, &message.topic, &message.payload)
    }

    /// Subscribes to all that the profile lists, in one packet.
    pub(crate) fn subscribe(&self) {
        self.queue(Request::Subscribe);
    }

    /// Queues a message. One that finds no place is lost, as it can be on its way, too: the machine asks again.
    pub(crate) fn send(&mut self, message: &Up<'_>) {
        let packet = self.profile.encode_up(&self.device, message, &mut self.topic);
        let (qos, payload) = (quality(packet.qos), packet.payload.to_vec());
        self.queue(Request::Publish { topic: self.topic.clone(), qos, payload });
    }

    fn queue(&self, request: Request) {
        if self.requests.try_send(request).is_err() {
            tracing::warn!("a message could not be queued");
        }
    }

    /// Says farewell after all that is queued.
    pub(crate) async fn close(mut self) {
        // The task must not wait for anyone to read what it has for us.
        self.arrivals.close();
        if self.requests.try_send(Request::Farewell).is_ok() {
            let _ = tokio::time::timeout(FAREWELL, self.task.join_next()).await;
        }
    }
}

const fn quality(qos: fleetwave_protocol::QoS) -> QoS {
    match qos {
        fleetwave_protocol::QoS::AtMostOnce => QoS::AtMostOnce,
        fleetwave_protocol::QoS::AtLeastOnce => QoS::AtLeastOnce,
    }
}
