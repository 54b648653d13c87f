//! The link to an embedded rumqttd: in its process, past its sockets.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Sender;
use fleetwave_protocol::QoS;
use rumqttd::local::{LinkError, LinkRx, LinkTx};
use rumqttd::{Config, ConnectionSettings, Notification, RouterConfig, ServerSettings};

use super::PlainError;
use super::link::{ATTACH_WITHIN, Attached, Heard, Link, LinkLost};
use crate::listen::{self, ListenError};

/// How often a link that hears nothing looks whether the hub is still there.
const LOOK_UP: Duration = Duration::from_millis(250);

struct Embedded {
    sender: LinkTx,
    subscribed: Sender<Result<(), String>>,
    detached: Arc<AtomicBool>,
}

/// Starts a broker on `address` and attaches to it.
pub(super) fn attach(
    address: SocketAddr,
    max_connections: usize,
    inbox: Sender<Heard>,
) -> Result<Attached, PlainError> {
    let (sender, receiver, address) = broker(address, max_connections, "fleetwave-hub")?;
    let detached = Arc::new(AtomicBool::new(false));
    let (subscribed, ready) = crossbeam_channel::bounded(1);
    let watch = detached.clone();
    std::thread::Builder::new().name("rumqttd-link".into()).spawn(move || hear(receiver, &inbox, &watch))?;
    let link = Box::new(Embedded { sender, subscribed, detached });
    Ok(Attached { link, host: address.ip().to_string(), port: address.port(), ready })
}

/// Starts a broker on `address`, or on a free port if its port is 0; gives a link to it, and where it listens. It
/// listens until the process ends.
pub(crate) fn broker(
    address: SocketAddr,
    max_connections: usize,
    client: &str,
) -> Result<(LinkTx, LinkRx, SocketAddr), PlainError> {
    let address = free(address)?;
    let mut broker = rumqttd::Broker::new(config(address, max_connections));
    let (sender, receiver) = broker.link(client).map_err(|error| PlainError::Embedded(error.to_string()))?;
    // It returns only if all its servers have ended.
    std::thread::Builder::new().name("rumqttd".into()).spawn(move || {
        if let Err(error) = broker.start() {
            tracing::error!(%error, "the embedded broker ended");
        }
    })?;
    await_listener(address)?;
    Ok((sender, receiver, address))
}

/// The address with a port that is free now. rumqttd binds it itself, and only logs it when it cannot.
fn free(address: SocketAddr) -> Result<SocketAddr, ListenError> {
    let probe = listen::bind(address)?;
    probe.local_addr().map_err(|error| ListenError::new(address, error))
}

fn await_listener(address: SocketAddr) -> Result<(), PlainError> {
    let give_up = Instant::now() + ATTACH_WITHIN;
    loop {
        match TcpStream::connect_timeout(&address, LOOK_UP) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > give_up => return Err(PlainError::Embedded(error.to_string())),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn config(listen: SocketAddr, max_connections: usize) -> Config {
    let server = ServerSettings {
        name: "devices".into(),
        listen,
        tls: None,
        next_connection_delay_ms: 0,
        connections: ConnectionSettings {
            connection_timeout_ms: 60_000,
            max_payload_size: 256 * 1024,
            max_inflight_count: 100,
            auth: None,
            external_auth: None,
            dynamic_filters: true,
        },
    };
    let router = RouterConfig {
        max_connections,
        max_outgoing_packet_count: 200,
        max_segment_size: 10 * 1024 * 1024,
        max_segment_count: 10,
        ..RouterConfig::default()
    };
    Config { router, v4: Some(HashMap::from([("devices".to_owned(), server)])), ..Config::default() }
}

fn hear(mut receiver: LinkRx, inbox: &Sender<Heard>, detached: &AtomicBool) {
    if inbox.send(Heard::Connected).is_err() {
        return;
    }
    while !detached.load(Ordering::Relaxed) {
        let heard = match receiver.recv_deadline(Instant::now() + LOOK_UP) {
            Ok(Some(Notification::Forward(forward))) => {
                Heard::Message { topic: forward.publish.topic, payload: forward.publish.payload }
            }
            // The router has filled the link and waits until it is told to go on.
            Ok(Some(Notification::Unschedule)) => match receiver.ready() {
                Ok(()) => continue,
                Err(_) => return,
            },
            Ok(_) | Err(LinkError::RecvTimeout(_)) => continue,
            Err(error) => return tracing::error!(%error, "the embedded broker is gone"),
        };
        if inbox.send(heard).is_err() {
            return;
        }
    }
}

impl Link for Embedded {
    fn subscribe(&mut self, filter: &str) -> Result<(), LinkLost> {
        self.sender.subscribe(filter).map_err(lost)?;
        // The router takes requests in order: whatever a client sends after it has connected comes later.
        let _ = self.subscribed.try_send(Ok(()));
        Ok(())
    }

    /// rumqttd's link has one quality only, at most once; in a process nothing gets lost on the way to the
    /// router.
    fn publish(&mut self, topic: &str, payload: &[u8], _qos: QoS) -> Result<(), LinkLost> {
        let topic = Bytes::copy_from_slice(topic.as_bytes());
        self.sender.publish(topic, Bytes::copy_from_slice(payload)).map(drop).map_err(lost)
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.detached.store(true, Ordering::Relaxed);
    }
}

fn lost(error: LinkError) -> LinkLost {
    LinkLost(error.to_string())
}
