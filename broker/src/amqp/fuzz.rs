//! What the fuzz target reaches of the AMQP endpoint.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fleetwave_protocol::{Instant, Now, WallTime};

use super::access::Grant;
use super::desk::{Desk, Shared};
use super::readers::Readers;
use crate::clock::Clock;
use crate::events::{CloudEvents, Event, EventOptions, Source};
use crate::exposition::Instruments;
use crate::policy::{HostNames, Policies};

/// What a client that has shown a token sends, in pieces of a size; an `AMQP` header and more is up to the bytes.
///
/// # Panics
/// If the endpoint does.
pub fn amqp(bytes: &[u8], piece: usize) {
    let options = EventOptions { partitions: 1, ..EventOptions::default() };
    let cloud = CloudEvents::new(options, &Clock::new());
    for body in ["a", "b", "c"] {
        let event = Event {
            id: "d".into(),
            generation: "1".into(),
            authentication: "sas",
            model: None,
            source: Source::Telemetry,
            properties: "%24.mid=1&a=b".into(),
            body: Bytes::from_static(body.as_bytes()),
        };
        cloud.log.append(event, WallTime::default());
    }
    cloud.feedback.push("{}");
    let shared = Arc::new(Shared {
        policies: Arc::new(Policies::new(HostNames::default(), Vec::new())),
        cloud: Arc::new(cloud),
        readers: Arc::new(Readers::default()),
        instruments: Instruments::new(),
        port: 5671,
    });
    let mut now = Now { at: Instant::ZERO, wall: WallTime::default() };
    let mut desk = Desk::new(shared, now.at);
    desk.authorise(Grant::whole_hub());
    for piece in bytes.chunks(piece.max(1)) {
        desk.receive(now, piece);
        while let Some(work) = desk.take_work() {
            desk.done(now, work.link, work.delivery, Ok(()));
        }
        desk.take_output(now);
    }
    while !desk.is_closed() {
        now.at = now.at + Duration::from_secs(100);
        desk.tick(now);
    }
}
