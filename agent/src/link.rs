//! One MQTT connection to the hub, from CONNECT to its end; the next one is made anew, with a fresh token.

use std::time::Duration;

use fleetwave_protocol::sas;
use fleetwave_protocol::{Profile, Up, WallTime};
use rumqttc::{
    AsyncClient, EventLoop, MqttOptions, Outgoing, Packet, Publish, QoS, SubscribeFilter, SubscribeReasonCode,
};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinSet;

use crate::config::ConnectionString;

const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// How long a token is good. The hub ends the connection with it.
const TOKEN_LIFE_MILLIS: u64 = 3_600_000;
/// A twin is at most 32 KiB in each of its parts, a queued message 64 KiB.
const MAX_PACKET: usize = 256 * 1024;
/// Packets that wait to be sent: more than the machine ever has under way.
const QUEUE: usize = 32;
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// What comes over a connection.
#[derive(Debug)]
pub(crate) enum Arrival {
    Connected {
        session_present: bool,
    },
    Message(Publish),
    /// The connection has ended, or never came to be; nothing follows.
    Lost(String),
}

/// A connection. Dropping it cuts it off, as a power cut would.
#[derive(Debug)]
pub(crate) struct Link {
    client: AsyncClient,
    arrivals: Receiver<Arrival>,
    device: String,
    topic: String,
    task: JoinSet<()>,
}

impl Link {
    /// Begins to connect.
    pub(crate) fn open(hub: &ConnectionString, wall: WallTime) -> Self {
        let ConnectionString { host, port, device, key } = hub;
        let expires = WallTime::from_unix_millis(wall.as_unix_millis() + TOKEN_LIFE_MILLIS);
        let token = sas::token(key, &format!("{host}/devices/{device}"), expires, None);
        let mut options = MqttOptions::new(device, host, *port);
        options
            .set_keep_alive(KEEP_ALIVE)
            .set_clean_session(false)
            .set_credentials(format!("{host}/{device}/?api-version=2021-04-12"), token)
            .set_max_packet_size(MAX_PACKET, MAX_PACKET);
        let (client, events) = AsyncClient::new(options, QUEUE);
        let (sender, arrivals) = mpsc::channel(QUEUE);
        let mut task = JoinSet::new();
        task.spawn(run(events, sender));
        Self { client, arrivals, device: device.clone(), topic: String::new(), task }
    }

    /// What comes next. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Arrival {
        self.arrivals
            .recv()
            .await
            .unwrap_or_else(|| Arrival::Lost("the connection's task has ended".to_owned()))
    }

    /// Subscribes to all that the profile lists, in one packet.
    pub(crate) fn subscribe(&self) {
        let filters = Profile::IotHub.filters(&self.device).into_iter();
        let filters = filters.map(|(filter, qos)| SubscribeFilter::new(filter, quality(qos)));
        if self.client.try_subscribe_many(filters).is_err() {
            tracing::warn!("the subscriptions could not be queued");
        }
    }

    /// Queues a message. One that finds no place is lost, as it can be on its way, too: the machine asks again.
    pub(crate) fn send(&mut self, message: &Up<'_>) {
        let packet = Profile::IotHub.encode_up(&self.device, message, &mut self.topic);
        let sent = self.client.try_publish(self.topic.as_str(), quality(packet.qos), false, packet.payload);
        if sent.is_err() {
            tracing::warn!("a message could not be queued");
        }
    }

    /// Says farewell after all that is queued.
    pub(crate) async fn close(mut self) {
        // The task must not wait for anyone to read what it has for us.
        self.arrivals.close();
        if self.client.try_disconnect().is_ok() {
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

async fn run(mut events: EventLoop, sender: Sender<Arrival>) {
    loop {
        let arrival = match events.poll().await {
            Ok(rumqttc::Event::Incoming(Packet::ConnAck(ack))) => {
                Arrival::Connected { session_present: ack.session_present }
            }
            Ok(rumqttc::Event::Incoming(Packet::Publish(message))) => Arrival::Message(message),
            Ok(rumqttc::Event::Incoming(Packet::SubAck(ack)))
                if ack.return_codes.contains(&SubscribeReasonCode::Failure) =>
            {
                Arrival::Lost("the hub refused a subscription".to_owned())
            }
            Ok(rumqttc::Event::Outgoing(Outgoing::Disconnect)) => return,
            Ok(_) => continue,
            Err(error) => Arrival::Lost(error.to_string()),
        };
        let lost = matches!(arrival, Arrival::Lost(_));
        // Nobody listens any more after `close`: the farewell is still to be sent.
        let _ = sender.send(arrival).await;
        if lost {
            return;
        }
    }
}
