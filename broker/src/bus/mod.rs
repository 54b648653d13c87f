//! The event bus: everything that happens in the hub, as MQTT topics of an embedded rumqttd.
//!
//! A topic is `fleetwave/events/{telemetry|twin|lifecycle|connection}/{device}[/{module}]`, a message is a CloudEvent in
//! its JSON form (see [`envelope`]), so that whatever subscribes to MQTT can read it, Dapr's `pubsub.mqtt3` among them.
//! Shards hand events to a bounded queue and never wait: what does not fit is counted and lost.

mod envelope;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use fleetwave_protocol::{Now, WallTime};
use rumqttd::local::{LinkRx, LinkTx};

use crate::events::{Event, EventSink, HubEvent, routed};
use crate::exposition::Instruments;
use crate::plain::{PlainError, broker};
use envelope::Envelope;

/// Events that wait for the broker at most.
const QUEUE: usize = 65_536;
/// Connections of subscribers.
const SUBSCRIBERS: usize = 1024;
/// How often the threads look whether the bus has ended.
const LOOK_UP: Duration = Duration::from_millis(250);
/// Lost events are logged at most this often.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// An event, and when it happened.
type Item = (WallTime, Event);

/// A bus that runs. Its broker listens until the process ends: rumqttd cannot be told to stop.
pub(crate) struct Bus {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    sink: Arc<BusSink>,
}

/// What the shards know of the bus.
pub(crate) struct BusSink {
    hub: String,
    queue: Sender<Item>,
    instruments: Instruments,
}

impl Bus {
    /// Starts the broker on `address`, for events of the hub called `hub`.
    pub(crate) fn start(
        address: SocketAddr,
        hub: &str,
        instruments: &Instruments,
    ) -> Result<Self, PlainError> {
        let (sender, receiver, address) = broker(address, SUBSCRIBERS, "fleetwave-events")?;
        let (queue, events) = crossbeam_channel::bounded(QUEUE);
        let ended = Arc::new(AtomicBool::new(false));
        let sink = BusSink { hub: hub.to_owned(), queue, instruments: instruments.clone() };
        let (over, measures, name) = (ended.clone(), instruments.clone(), hub.to_owned());
        let publisher = std::thread::Builder::new()
            .name("bus".into())
            .spawn(move || publish(&events, sender, &Envelope::new(&name), &measures, &over))?;
        let over = ended.clone();
        let listener =
            std::thread::Builder::new().name("bus-link".into()).spawn(move || idle(receiver, &over))?;
        Ok(Self { address, ended, threads: vec![publisher, listener], sink: Arc::new(sink) })
    }

    /// Where subscribers connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the shards tell.
    pub(crate) fn sink(&self) -> Arc<dyn EventSink> {
        self.sink.clone()
    }
}

impl Drop for Bus {
    /// What is in the queue still goes out.
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the event bus panicked");
            }
        }
    }
}

impl EventSink for BusSink {
    fn event(&self, now: Now, event: &HubEvent<'_>) {
        // Who comes too late needs no JSON written.
        if self.queue.is_full() {
            self.instruments.bus_dropped();
            return;
        }
        if let Some(event) = routed(&self.hub, now, event)
            && self.queue.try_send((now.wall, event)).is_err()
        {
            self.instruments.bus_dropped();
        }
    }
}

/// Publishes until the bus has ended and its queue is empty.
fn publish(
    events: &Receiver<Item>,
    mut link: LinkTx,
    envelope: &Envelope,
    instruments: &Instruments,
    ended: &AtomicBool,
) {
    let (mut told, mut complained) = (0, None::<Instant>);
    let mut number = 0;
    loop {
        let lost = instruments.bus_lost();
        if lost > told && complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
            tracing::warn!(lost = lost - told, "the event bus loses events: its broker does not keep up");
            (told, complained) = (lost, Some(Instant::now()));
        }
        let (at, event) = match events.recv_timeout(LOOK_UP) {
            Ok(item) => item,
            Err(RecvTimeoutError::Timeout) if !ended.load(Ordering::Relaxed) => continue,
            Err(_) => return,
        };
        number += 1;
        let message = envelope.write(number, at, &event);
        if let Err(error) = link.publish(envelope::topic(&event), message) {
            return tracing::error!(%error, "the event bus has lost its broker");
        }
        instruments.bus_published();
    }
}

/// The link hears nothing, and has to be there.
fn idle(mut link: LinkRx, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        let _ = link.recv_deadline(Instant::now() + LOOK_UP);
    }
}
