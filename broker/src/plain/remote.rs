//! The link to a broker over the network, by rumqttc's client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::Sender;
use fleetwave_protocol::QoS;
use rumqttc::{Client, Connection, Event, MqttOptions, Packet};

use super::PlainError;
use super::link::{Attached, Heard, Link, LinkLost};

/// Requests that wait for the client's thread; a hub that is faster than its broker waits, too.
const PENDING: usize = 1024;
/// How long to wait before the next attempt to reach a broker that was lost.
const RECONNECT_AFTER: Duration = Duration::from_millis(250);
const DEFAULT_PORT: u16 = 1883;
const MAX_PACKET: usize = 512 * 1024;

struct Remote {
    client: Client,
    detached: Arc<AtomicBool>,
}

/// Attaches to the broker at `url`.
pub(super) fn attach(
    url: &str,
    credentials: Option<(String, String)>,
    inbox: Sender<Heard>,
) -> Result<Attached, PlainError> {
    let (host, port) = parse(url).ok_or_else(|| PlainError::Url(url.to_owned()))?;
    let mut options = MqttOptions::new(format!("fleetwave-hub-{}", std::process::id()), &host, port);
    options.set_keep_alive(Duration::from_secs(30));
    options.set_max_packet_size(MAX_PACKET, MAX_PACKET);
    options.set_inflight(100);
    if let Some((user, password)) = credentials {
        options.set_credentials(user, password);
    }
    let (client, connection) = Client::new(options, PENDING);
    let detached = Arc::new(AtomicBool::new(false));
    let (subscribed, ready) = crossbeam_channel::bounded(1);
    let watch = detached.clone();
    std::thread::Builder::new()
        .name("mqtt-link".into())
        .spawn(move || hear(connection, &inbox, &subscribed, &watch))?;
    Ok(Attached { link: Box::new(Remote { client, detached }), host, port, ready })
}

/// Host and port of `mqtt://HOST[:PORT]`.
fn parse(url: &str) -> Option<(String, u16)> {
    let rest = url.strip_prefix("mqtt://")?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = match rest.strip_prefix('[') {
        Some(bracketed) => {
            let (host, rest) = bracketed.split_once(']')?;
            (host, rest.strip_prefix(':').or(rest.is_empty().then_some(""))?)
        }
        None => rest.split_once(':').unwrap_or((rest, "")),
    };
    let port = if port.is_empty() { DEFAULT_PORT } else { port.parse().ok()? };
    let plain = !host.is_empty() && !host.contains(['/', '@', '?', '#', ' ']);
    plain.then(|| (host.to_owned(), port))
}

fn hear(
    mut connection: Connection,
    inbox: &Sender<Heard>,
    subscribed: &Sender<Result<(), String>>,
    detached: &AtomicBool,
) {
    let mut attached = false;
    for event in connection.iter() {
        let heard = match event {
            Ok(Event::Incoming(Packet::Publish(publish))) => {
                Heard::Message { topic: Bytes::from(publish.topic), payload: publish.payload }
            }
            Ok(Event::Incoming(Packet::ConnAck(_))) => Heard::Connected,
            Ok(Event::Incoming(Packet::SubAck(_))) => {
                attached = true;
                let _ = subscribed.try_send(Ok(()));
                continue;
            }
            Ok(_) => continue,
            Err(_) if detached.load(Ordering::Relaxed) => return,
            Err(error) if !attached => {
                let _ = subscribed.try_send(Err(error.to_string()));
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "the broker is out of reach");
                std::thread::sleep(RECONNECT_AFTER);
                continue;
            }
        };
        if inbox.send(heard).is_err() {
            return;
        }
    }
}

impl Link for Remote {
    fn subscribe(&mut self, filter: &str) -> Result<(), LinkLost> {
        self.client.subscribe(filter, rumqttc::QoS::AtLeastOnce).map_err(|error| LinkLost(error.to_string()))
    }

    fn publish(&mut self, topic: &str, payload: &[u8], qos: QoS) -> Result<(), LinkLost> {
        let qos = match qos {
            QoS::AtMostOnce => rumqttc::QoS::AtMostOnce,
            QoS::AtLeastOnce => rumqttc::QoS::AtLeastOnce,
        };
        self.client.publish(topic, qos, false, payload).map_err(|error| LinkLost(error.to_string()))
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.detached.store(true, Ordering::Relaxed);
        // If even this has no room, the thread ends with the connection.
        let _ = self.client.try_disconnect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_host_and_perhaps_a_port() {
        let parsed = |url| parse(url).map(|(host, port)| format!("{host} {port}"));
        assert_eq!(parsed("mqtt://broker").as_deref(), Some("broker 1883"));
        assert_eq!(parsed("mqtt://127.0.0.1:1884/").as_deref(), Some("127.0.0.1 1884"));
        assert_eq!(parsed("mqtt://[::1]:9").as_deref(), Some("::1 9"));
        assert_eq!(parsed("mqtt://[::1]").as_deref(), Some("::1 1883"));
        for url in
            ["", "broker:1883", "http://broker", "mqtt://", "mqtt://b:x", "mqtt://u@b", "mqtt://b:99999"]
        {
            assert_eq!(parsed(url), None, "{url}");
        }
    }
}
