//! Desks with a client that speaks AMQP by hand, frame by frame, in time that the test moves.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fleetwave_hub_core::{ErrorCode, HubError};
use fleetwave_protocol::sas::{self, Key};
use fleetwave_protocol::{Instant, Now, WallTime};
use proptest::prelude::*;

use super::desk::{Desk, Shared};
use super::frame::{self, Kind};
use super::message::{Body, Message};
use super::performative::*;
use super::readers::Readers;
use super::value::Value;
use crate::clock::Clock;
use crate::events::{CloudEvents, Event, EventOptions, Source as EventSource};
use crate::exposition::Instruments;
use crate::policy::{HostNames, Policies, Policy, Rights};

const START: WallTime = WallTime::from_unix_millis(1_600_000_000_000);
const AMQP: &[u8] = b"AMQP\x00\x01\x00\x00";
const SASL: &[u8] = b"AMQP\x03\x01\x00\x00";

fn key() -> Key {
    Key::from_bytes("service-key")
}

fn shared() -> Arc<Shared> {
    let policy = Policy {
        name: "service".into(),
        primary: key(),
        secondary: Key::from_bytes("other"),
        rights: Rights::SERVICE_CONNECT,
    };
    let options = EventOptions { partitions: 1, name: Some("hub".into()), ..EventOptions::default() };
    Arc::new(Shared {
        policies: Arc::new(Policies::new(HostNames::new(["localhost".to_owned()]), vec![policy])),
        cloud: Arc::new(CloudEvents::new(options, &Clock::new())),
        readers: Arc::new(Readers::default()),
        instruments: Instruments::new(),
        port: 5671,
    })
}

/// What the hub sent.
#[derive(Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there are few of them")]
enum Got {
    Header([u8; 8]),
    Sasl(Value),
    Heartbeat,
    Amqp(u16, Performative),
}

struct Client {
    desk: Desk,
    now: Now,
    input: BytesMut,
}

impl Client {
    fn new(shared: &Arc<Shared>) -> Self {
        let now = Now { at: Instant::ZERO, wall: START };
        Self { desk: Desk::new(shared.clone(), now.at), now, input: BytesMut::new() }
    }

    /// A client that has opened, with a session on channel 1.
    fn open(shared: &Arc<Shared>) -> Self {
        let mut client = Self::new(shared);
        client.bytes(AMQP);
        client.put(0, &Open { container_id: "c".into(), ..Open::default() });
        client.put(1, &Begin { incoming_window: 1000, outgoing_window: 1000, ..Begin::default() });
        let got = client.got();
        assert!(
            matches!(
                got[..],
                [Got::Header(_), Got::Amqp(0, Performative::Open(_)), Got::Amqp(1, Performative::Begin(_))]
            ),
            "{got:?}"
        );
        client
    }

    /// A client that has shown a token for the hub, too.
    fn authorised(shared: &Arc<Shared>) -> Self {
        let mut client = Self::open(shared);
        assert_eq!(client.put_token(&token("localhost")), 200);
        client
    }

    fn put_token(&mut self, token: &str) -> i64 {
        self.sender(100, "$cbs");
        self.receiver(101, "$cbs", 10);
        self.got();
        let request = Message {
            properties: Properties { message_id: Value::Ulong(0), ..Properties::default() },
            application: vec![
                (Value::string("operation"), Value::string("put-token")),
                (Value::string("type"), Value::string("servicebus.windows.net:sastoken")),
                (Value::string("name"), Value::string("https://localhost")),
            ],
            body: Body::Value(Value::string(token)),
            ..Message::default()
        };
        self.transfer(100, 0, &request.to_bytes());
        let answers = self.messages();
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].properties.correlation_id, Value::Ulong(0));
        answers[0].property("status-code").unwrap().integer().unwrap()
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.desk.receive(self.now, bytes);
    }

    fn put(&mut self, channel: u16, composite: &impl Composite) {
        let mut out = Vec::new();
        frame::put(Kind::Amqp, channel, &composite.to_value(), &mut out);
        self.bytes(&out);
    }

    fn sender(&mut self, handle: u32, address: &str) {
        let target = Target { address: Value::string(address), ..Target::default() };
        self.put(
            1,
            &Attach {
                name: format!("{address}-{handle}"),
                handle,
                target: target.to_value(),
                initial_delivery_count: Some(0),
                ..Attach::default()
            },
        );
    }

    fn receiver(&mut self, handle: u32, address: &str, credit: u32) {
        self.receiver_with(handle, address, credit, |_| {});
    }

    fn receiver_with(&mut self, handle: u32, address: &str, credit: u32, with: impl FnOnce(&mut Attach)) {
        let mut attach = Attach {
            name: format!("{address}-{handle}"),
            handle,
            role: true,
            source: Some(Source { address: Value::string(address), ..Source::default() }),
            ..Attach::default()
        };
        with(&mut attach);
        self.put(1, &attach);
        self.flow(handle, 0, credit, false);
    }

    fn flow(&mut self, handle: u32, delivery_count: u32, credit: u32, drain: bool) {
        self.put(
            1,
            &Flow {
                next_incoming_id: Some(0),
                incoming_window: 10_000,
                outgoing_window: 1000,
                handle: Some(handle),
                delivery_count: Some(delivery_count),
                link_credit: Some(credit),
                drain,
                ..Flow::default()
            },
        );
    }

    fn transfer(&mut self, handle: u32, delivery: u32, payload: &[u8]) {
        self.part(handle, Some(delivery), payload, false);
    }

    fn part(&mut self, handle: u32, delivery: Option<u32>, payload: &[u8], more: bool) {
        let transfer = Transfer {
            handle,
            delivery_id: delivery,
            delivery_tag: delivery.map(|id| Bytes::copy_from_slice(&id.to_be_bytes())),
            more,
            ..Transfer::default()
        };
        let mut out = Vec::new();
        // Written by hand, as `put_transfer` would decide about `more` itself.
        frame::put(Kind::Amqp, 1, &transfer.to_value(), &mut out);
        out.extend_from_slice(payload);
        let size = out.len() as u32;
        out[..4].copy_from_slice(&size.to_be_bytes());
        self.bytes(&out);
    }

    fn settle(&mut self, first: u32, last: u32, outcome: &Outcome) {
        let disposition = Disposition {
            role: true,
            first,
            last: Some(last),
            settled: true,
            state: outcome.to_value(),
            ..Disposition::default()
        };
        self.put(1, &disposition);
    }

    fn got(&mut self) -> Vec<Got> {
        let output = self.desk.take_output(self.now);
        self.input.extend_from_slice(&output);
        let mut got = Vec::new();
        loop {
            if self.input.starts_with(b"AMQP") {
                got.push(Got::Header(self.input.split_to(8)[..].try_into().unwrap()));
                continue;
            }
            let Some(mut frame) = frame::take(&mut self.input, 1 << 20).unwrap() else { return got };
            got.push(match frame.kind {
                Kind::Sasl => Got::Sasl(Value::read(&mut frame.body).unwrap()),
                Kind::Amqp if frame.body.is_empty() => Got::Heartbeat,
                Kind::Amqp => Got::Amqp(frame.channel, Performative::read(&mut frame.body).unwrap()),
            });
        }
    }

    /// The messages that came, put together.
    fn messages(&mut self) -> Vec<Message> {
        let mut payload = Vec::new();
        let mut messages = Vec::new();
        for got in self.got() {
            if let Got::Amqp(_, Performative::Transfer(transfer, part)) = got {
                payload.extend_from_slice(&part);
                if !transfer.more {
                    messages.push(Message::read(std::mem::take(&mut payload).into()).unwrap());
                }
            }
        }
        messages
    }

    fn bodies(&mut self) -> Vec<String> {
        let text = |message: Message| match message.body {
            Body::Data(data) => String::from_utf8_lossy(&data).into_owned(),
            other => panic!("{other:?}"),
        };
        self.messages().into_iter().map(text).collect()
    }

    /// The condition with which a link was detached.
    fn detached(&mut self) -> Option<String> {
        self.got().into_iter().find_map(|got| match got {
            Got::Amqp(_, Performative::Detach(detach)) => detach.error.map(|error| error.condition.0),
            _ => None,
        })
    }

    /// The condition with which the connection was closed.
    fn closed(&mut self) -> Option<String> {
        self.got().into_iter().find_map(|got| match got {
            Got::Amqp(_, Performative::Close(close)) => close.error.map(|error| error.condition.0),
            _ => None,
        })
    }

    /// The outcomes of what the client sent.
    fn outcomes(&mut self) -> Vec<(u32, Outcome)> {
        self.got()
            .into_iter()
            .filter_map(|got| match got {
                Got::Amqp(_, Performative::Disposition(disposition)) => {
                    Some((disposition.first, Outcome::of(&disposition.state).unwrap()))
                }
                _ => None,
            })
            .collect()
    }

    fn pass(&mut self, time: Duration) {
        self.now.at = self.now.at + time;
        self.now.wall = WallTime::from_unix_millis(self.now.wall.as_unix_millis() + time.as_millis() as u64);
        self.desk.tick(self.now);
    }
}

fn token(resource: &str) -> String {
    let end = WallTime::from_unix_millis(START.as_unix_millis() + 3_600_000);
    sas::token(&key(), resource, end, Some("service"))
}

fn c2d(body: &[u8]) -> Bytes {
    let message = Message {
        properties: Properties {
            to: Value::string("/devices/d/messages/devicebound"),
            ..Properties::default()
        },
        body: Body::Data(Bytes::copy_from_slice(body)),
        ..Message::default()
    };
    message.to_bytes()
}

fn log(shared: &Shared, bodies: &[&str]) {
    for body in bodies {
        let event = Event {
            id: "d".into(),
            generation: "1".into(),
            authentication: "sas",
            model: None,
            source: EventSource::Telemetry,
            properties: "".into(),
            body: Bytes::copy_from_slice(body.as_bytes()),
        };
        shared.cloud.log.append(event, START);
    }
}

const PARTITION: &str = "amqps://localhost/hub/ConsumerGroups/$Default/Partitions/0";
const FEEDBACK: &str = "/messages/serviceBound/feedback";

#[test]
fn sasl_offers_its_mechanisms_and_says_how_it_went() {
    let shared = shared();
    let sign_in = |init: SaslInit| {
        let mut client = Client::new(&shared);
        client.bytes(SASL);
        let got = client.got();
        let Got::Sasl(offer) = &got[1] else { panic!("{got:?}") };
        let offer = SaslMechanisms::from_value(offer.clone()).unwrap();
        assert!(offer.mechanisms.contains(&Symbol("MSSBCBS".into())));
        let mut out = Vec::new();
        frame::put(Kind::Sasl, 0, &init.to_value(), &mut out);
        out.extend_from_slice(AMQP);
        client.bytes(&out);
        let got = client.got();
        let Got::Sasl(outcome) = &got[0] else { panic!("{got:?}") };
        let outcome = SaslOutcome::from_value(outcome.clone()).unwrap();
        (outcome.code, got.len() == 2, client)
    };
    let init = |mechanism: &str, response: String| SaslInit {
        mechanism: Symbol(mechanism.into()),
        initial_response: Some(response.into()),
        hostname: None,
    };
    let (code, goes_on, _) = sign_in(init("MSSBCBS", String::new()));
    assert_eq!((code, goes_on), (0, true));
    let plain = |token: &str| init("PLAIN", format!("\0service@sas.root.localhost\0{token}"));
    let (code, goes_on, mut client) = sign_in(plain(&token("localhost")));
    assert_eq!((code, goes_on), (0, true));
    client.put(0, &Open { container_id: "c".into(), ..Open::default() });
    client.put(1, &Begin { incoming_window: 10, outgoing_window: 10, ..Begin::default() });
    client.receiver(0, FEEDBACK, 1);
    assert_eq!(client.detached(), None, "its token opens the links, without $cbs");
    let (code, goes_on, client) = sign_in(plain("SharedAccessSignature sr=localhost&sig=x&se=9&skn=service"));
    assert_eq!((code, goes_on, client.desk.is_closed()), (1, false, true));
    let (code, ..) = sign_in(init("NTLM", String::new()));
    assert_eq!(code, 1);
}

#[test]
fn a_wrong_protocol_header_is_answered_with_the_right_one() {
    let shared = shared();
    for header in [&b"AMQP\x00\x00\x09\x01"[..], b"GET / HTTP/1.1\r\n", b"AMQP\x02\x01\x00\x00"] {
        let mut client = Client::new(&shared);
        client.bytes(header);
        assert_eq!(client.got(), [Got::Header(SASL.try_into().unwrap())]);
        assert!(client.desk.is_closed());
    }
}

#[test]
fn a_c2d_message_is_accepted_once_the_hub_has_it() {
    let mut client = Client::authorised(&shared());
    client.sender(0, "amqps://localhost/messages/deviceBound");
    client.transfer(0, 0, &c2d(b"hello"));
    client.transfer(0, 1, &c2d(b"again"));
    assert_eq!(client.outcomes(), []);
    let first = client.desk.take_work().unwrap();
    let second = client.desk.take_work().unwrap();
    assert_eq!((&*first.send.device, &*first.send.message.body), ("d", &b"hello"[..]));
    assert_eq!(&*second.send.message.body, b"again");
    client.desk.done(client.now, first.link, first.delivery, Ok(()));
    assert_eq!(client.outcomes(), [(0, Outcome::Accepted)]);
    let error = HubError { code: ErrorCode::DeviceNotFound, message: "no device".into() };
    client.desk.done(client.now, second.link, second.delivery, Err(Box::new(error)));
    let expected = Error::new("amqp:not-found", "ErrorCode:DeviceNotFound;no device");
    assert_eq!(client.outcomes(), [(1, Outcome::Rejected(Some(expected)))]);
}

#[test]
fn a_message_may_come_in_parts_and_not_be_endless() {
    let mut client = Client::authorised(&shared());
    client.sender(0, "/messages/devicebound");
    let message = c2d(&[b'x'; 50_000]);
    client.part(0, Some(0), &message[..20_000], true);
    client.part(0, None, &message[20_000..40_000], true);
    client.part(0, None, &message[40_000..], false);
    assert_eq!(client.desk.take_work().unwrap().send.message.body.len(), 50_000);
    client.got();
    for part in 0..30 {
        client.part(0, (part == 0).then_some(1), &[0; 60_000], part < 29);
    }
    let outcomes = client.outcomes();
    let [(1, Outcome::Rejected(Some(error)))] = &outcomes[..] else { panic!("{outcomes:?}") };
    assert_eq!(error.condition.0, "amqp:link:message-size-exceeded");
}

#[test]
fn credit_is_given_and_kept_to() {
    let mut client = Client::authorised(&shared());
    client.sender(0, "/messages/devicebound");
    let credit = client.got().into_iter().find_map(|got| match got {
        Got::Amqp(_, Performative::Flow(flow)) => flow.link_credit,
        _ => None,
    });
    assert_eq!(credit, Some(200));
    for delivery in 0..200 {
        client.transfer(0, delivery, &c2d(b""));
    }
    assert_eq!(client.detached(), None);
    client.transfer(0, 200, &c2d(b""));
    assert_eq!(client.detached().as_deref(), Some("amqp:link:transfer-limit-exceeded"));
}

#[test]
fn credit_comes_back_as_messages_are_settled() {
    let mut client = Client::authorised(&shared());
    client.sender(0, "/messages/devicebound");
    for delivery in 0..1000 {
        client.transfer(0, delivery, &c2d(b""));
        let work = client.desk.take_work().unwrap();
        client.desk.done(client.now, work.link, work.delivery, Ok(()));
    }
    assert_eq!(client.outcomes().len(), 1000);
}

#[test]
fn links_need_a_token_that_covers_them() {
    let shared = shared();
    let mut client = Client::open(&shared);
    client.sender(0, "/messages/devicebound");
    assert_eq!(client.detached().as_deref(), Some("amqp:unauthorized-access"));
    assert_eq!(client.put_token("SharedAccessSignature sr=localhost&sig=x&se=9&skn=service"), 401);
    let mut client = Client::open(&shared);
    assert_eq!(client.put_token(&token("localhost/messages/servicebound")), 200);
    client.receiver(0, FEEDBACK, 1);
    assert_eq!(client.detached(), None);
    client.sender(1, "/messages/devicebound");
    assert_eq!(client.detached().as_deref(), Some("amqp:unauthorized-access"));
}

#[test]
fn what_is_not_there_or_not_modelled_is_refused_by_name() {
    let mut client = Client::authorised(&shared());
    for (handle, address, condition) in [
        (0, "/devices/d/messages/devicebound", "amqp:not-implemented"),
        (1, "nothing/of/this", "amqp:not-found"),
        (2, "other/ConsumerGroups/$Default/Partitions/0", "amqp:not-found"),
        (3, "hub/ConsumerGroups/$Default/Partitions/7", "com.microsoft:argument-out-of-range"),
        (4, "/messages/devicebound", "amqp:not-allowed"),
    ] {
        client.receiver(handle, address, 1);
        assert_eq!(client.detached().as_deref(), Some(condition), "{address}");
    }
    client.sender(5, "hub");
    assert_eq!(client.detached().as_deref(), Some("amqp:unauthorized-access"));
    client.receiver_with(6, PARTITION, 1, |attach| {
        let filter = Value::Map(vec![(
            Value::symbol("apache.org:selector-filter:string"),
            Value::string("amqp.annotation.x-opt-offset < '4'"),
        )]);
        attach.source.as_mut().unwrap().filter = filter;
    });
    assert_eq!(client.detached().as_deref(), Some("amqp:invalid-field"));
}

#[test]
fn the_hubs_own_name_of_its_events_leads_to_the_event_hub_compatible_one() {
    let mut client = Client::new(&shared());
    client.bytes(AMQP);
    let host = Some("localhost:5671".into());
    client.put(0, &Open { container_id: "c".into(), hostname: host, ..Open::default() });
    client.put(1, &Begin { incoming_window: 10, outgoing_window: 10, ..Begin::default() });
    client.put_token(&token("localhost/messages/events"));
    client.receiver(0, "amqps://localhost/messages/events/$management", 1);
    let error = client
        .got()
        .into_iter()
        .find_map(|got| match got {
            Got::Amqp(_, Performative::Detach(detach)) => detach.error,
            _ => None,
        })
        .unwrap();
    assert_eq!(error.condition.0, "amqp:link:redirect");
    assert_eq!(error.info.get("hostname"), Some(&Value::string("localhost")));
    assert_eq!(error.info.get("address"), Some(&Value::string("amqps://localhost:5671/hub/$management")));
}

#[test]
fn events_come_as_far_as_credit_goes_and_as_they_happen() {
    let shared = shared();
    log(&shared, &["a", "b", "c"]);
    let mut client = Client::authorised(&shared);
    client.receiver(0, PARTITION, 2);
    assert_eq!(client.bodies(), ["a", "b"]);
    client.flow(0, 2, 5, false);
    assert_eq!(client.bodies(), ["c"]);
    log(&shared, &["d"]);
    client.pass(Duration::ZERO);
    assert_eq!(client.bodies(), ["d"]);
}

#[test]
fn a_drained_link_gives_its_credit_back() {
    let shared = shared();
    log(&shared, &["a"]);
    let mut client = Client::authorised(&shared);
    client.receiver(0, PARTITION, 0);
    client.got();
    client.flow(0, 0, 10, true);
    let got = client.got();
    let flow = got.iter().find_map(|got| match got {
        Got::Amqp(_, Performative::Flow(flow)) => Some((flow.delivery_count, flow.link_credit, flow.drain)),
        _ => None,
    });
    assert_eq!(flow, Some((Some(10), Some(0), true)), "{got:?}");
}

#[test]
fn large_events_come_in_parts_that_the_peer_takes_and_its_window_is_kept_to() {
    let shared = shared();
    let body = "x".repeat(3000);
    log(&shared, &[&body]);
    let mut client = Client::new(&shared);
    client.bytes(AMQP);
    client.put(0, &Open { container_id: "c".into(), max_frame_size: Some(600), ..Open::default() });
    client.put(1, &Begin { incoming_window: 10, outgoing_window: 10, ..Begin::default() });
    client.put_token(&token("localhost"));
    // One transfer was the token's answer.
    client.receiver_with(0, PARTITION, 0, |_| {});
    client.got();
    client.put(
        1,
        &Flow {
            next_incoming_id: Some(1),
            incoming_window: 2,
            handle: Some(0),
            link_credit: Some(1),
            ..Flow::default()
        },
    );
    let parts = |got: Vec<Got>| {
        got.into_iter()
            .filter_map(|got| match got {
                Got::Amqp(_, Performative::Transfer(transfer, part)) => {
                    assert!(part.len() < 600);
                    Some((transfer.more, part))
                }
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    let mut all = parts(client.got());
    assert_eq!(all.len(), 2, "the window is for two transfers");
    client.put(1, &Flow { next_incoming_id: Some(3), incoming_window: 100, ..Flow::default() });
    all.extend(parts(client.got()));
    assert_eq!(all.iter().filter(|(more, _)| !more).count(), 1);
    let payload: Vec<u8> = all.iter().flat_map(|(_, part)| part.to_vec()).collect();
    assert_eq!(Message::read(payload.into()).unwrap().body, Body::Data(body.into()));
}

#[test]
fn a_reader_with_an_epoch_pushes_another_off_its_link() {
    let shared = shared();
    let with_epoch = |epoch: i64| {
        move |attach: &mut Attach| {
            attach.properties = Value::Map(vec![(Value::symbol("com.microsoft:epoch"), Value::Long(epoch))]);
        }
    };
    let mut first = Client::authorised(&shared);
    first.receiver_with(0, PARTITION, 1, with_epoch(1));
    let mut second = Client::authorised(&shared);
    second.receiver_with(0, PARTITION, 1, with_epoch(2));
    assert_eq!(second.detached(), None);
    first.pass(Duration::ZERO);
    assert_eq!(first.detached().as_deref(), Some("amqp:link:stolen"));
    first.receiver_with(1, PARTITION, 1, with_epoch(1));
    assert_eq!(first.detached().as_deref(), Some("amqp:link:stolen"));
}

#[test]
fn feedback_comes_in_batches_until_it_is_accepted() {
    let shared = shared();
    let mut client = Client::authorised(&shared);
    client.receiver(0, FEEDBACK, 10);
    client.got();
    shared.cloud.feedback.push("{\"a\":1}");
    shared.cloud.feedback.push("{\"b\":2}");
    client.pass(Duration::ZERO);
    assert_eq!(client.bodies(), [r#"[{"a":1},{"b":2}]"#]);
    // Delivery 0 was the token's answer.
    client.settle(1, 1, &Outcome::Released);
    assert_eq!(client.bodies(), [r#"[{"a":1},{"b":2}]"#]);
    client.settle(2, 2, &Outcome::Accepted);
    client.pass(Duration::ZERO);
    assert!(client.bodies().is_empty());
}

#[test]
fn what_a_receiver_leaves_unsettled_comes_to_the_next() {
    let shared = shared();
    shared.cloud.files.push("{\"blobName\":\"x\"}");
    let mut first = Client::authorised(&shared);
    first.receiver(0, "/messages/serviceBound/filenotifications", 10);
    assert_eq!(first.bodies(), [r#"{"blobName":"x"}"#]);
    drop(first);
    let mut second = Client::authorised(&shared);
    second.receiver_with(0, "/messages/servicebound/filenotifications", 10, |attach| {
        attach.snd_settle_mode = Some(1);
    });
    assert_eq!(second.bodies(), [r#"{"blobName":"x"}"#]);
    drop(second);
    let taken = shared.cloud.files.take(Instant::from_micros(u64::MAX / 2), 1);
    assert_eq!(taken, None, "sent settled, it is done with");
}

#[test]
fn a_silent_peer_is_closed_and_gets_heartbeats_before() {
    let mut client = Client::new(&shared());
    client.bytes(AMQP);
    let idle = Some(60_000);
    client.put(0, &Open { container_id: "c".into(), idle_time_out: idle, ..Open::default() });
    client.put(1, &Begin { incoming_window: 1000, outgoing_window: 1000, ..Begin::default() });
    client.put_token(&token("localhost"));
    client.got();
    let due = client.desk.deadline(client.now).unwrap();
    assert_eq!(due.since(client.now.at), Duration::from_secs(30));
    client.pass(Duration::from_secs(30));
    assert_eq!(client.got(), [Got::Heartbeat]);
    client.pass(Duration::from_secs(211));
    assert_eq!(client.closed().as_deref(), Some("amqp:resource-limit-exceeded"));
    client.pass(Duration::from_secs(6));
    assert!(client.desk.is_closed(), "whether or not the peer answers");
}

#[test]
fn a_connection_ends_with_its_token_and_never_lasts_without_one() {
    let shared = shared();
    let mut client = Client::authorised(&shared);
    for _ in 0..35 {
        client.pass(Duration::from_secs(100));
        client.bytes(&[0, 0, 0, 8, 2, 0, 0, 0]);
    }
    assert_eq!(client.closed(), None);
    client.pass(Duration::from_secs(101));
    assert_eq!(client.closed().as_deref(), Some("amqp:unauthorized-access"));
    let mut client = Client::open(&shared);
    client.pass(Duration::from_secs(60));
    assert_eq!(client.closed().as_deref(), Some("amqp:unauthorized-access"));
    let mut client = Client::new(&shared);
    client.bytes(&AMQP[..4]);
    client.pass(Duration::from_secs(30));
    assert!(client.desk.is_closed(), "nobody may take for ever to open");
}

/// Whoever drives a desk sleeps until its deadline: one that has passed and stays would keep it busy.
#[test]
fn a_deadline_that_was_kept_has_gone() {
    let shared = shared();
    let ahead = |client: &Client| client.desk.deadline(client.now).unwrap() > client.now.at;
    // Somebody else's lock expires, and this client has no credit.
    shared.cloud.feedback.push("{}");
    assert!(shared.cloud.feedback.take(Instant::ZERO, 1).is_some());
    let mut client = Client::authorised(&shared);
    client.receiver(0, FEEDBACK, 0);
    client.pass(Duration::from_secs(61));
    assert!(ahead(&client));
    client.flow(0, 0, 1, false);
    assert_eq!(client.bodies(), ["[{}]"]);
    // Its token ends, and it does not answer the close.
    for _ in 0..36 {
        client.pass(Duration::from_secs(100));
        client.bytes(&[0, 0, 0, 8, 2, 0, 0, 0]);
    }
    assert!(!client.desk.is_closed() && ahead(&client));
    // A heartbeat is due, and cannot be sent.
    let mut client = Client::new(&shared);
    client.bytes(AMQP);
    client.put(0, &Open { container_id: "c".into(), idle_time_out: Some(2000), ..Open::default() });
    client.got();
    client.pass(Duration::from_secs(1));
    assert!(ahead(&client));
    client.pass(Duration::from_secs(1));
    assert_eq!(client.got(), [Got::Heartbeat], "and one is enough");
}

#[test]
fn a_breach_of_the_protocol_closes_the_connection_and_says_why() {
    let shared = shared();
    let breach = |act: &dyn Fn(&mut Client)| {
        let mut client = Client::authorised(&shared);
        act(&mut client);
        client.closed().unwrap_or_default()
    };
    assert_eq!(breach(&|client| client.bytes(&[0xff; 8])), "amqp:connection:framing-error");
    assert_eq!(breach(&|client| client.bytes(&[0, 0, 0, 9, 2, 0, 0, 0, 0x3f])), "amqp:decode-error");
    assert_eq!(breach(&|client| client.transfer(77, 0, b"")), "amqp:session:unattached-handle");
    assert_eq!(breach(&|client| client.put(9, &End::default())), "amqp:not-allowed");
    assert_eq!(
        breach(&|client| {
            client.sender(0, "$cbs");
            client.sender(0, "$cbs");
        }),
        "amqp:session:handle-in-use"
    );
}

#[test]
fn sessions_and_connections_end_both_ways() {
    let shared = shared();
    let mut client = Client::authorised(&shared);
    client.receiver(0, FEEDBACK, 1);
    client.got();
    client.put(1, &End::default());
    assert_eq!(client.got(), [Got::Amqp(1, Performative::End(End::default()))]);
    shared.cloud.feedback.push("{}");
    client.pass(Duration::ZERO);
    assert_eq!(client.got(), []);
    client.put(0, &Close::default());
    assert_eq!(client.got(), [Got::Amqp(0, Performative::Close(Close::default()))]);
    assert!(client.desk.is_closed());
    let mut client = Client::authorised(&shared);
    client.desk.close(client.now);
    assert_eq!(client.closed().as_deref(), Some("amqp:connection:forced"));
    client.put(0, &Close::default());
    assert!(client.desk.is_closed());
}

/// The bytes of a client that does one of each.
fn conversation() -> Vec<u8> {
    let mut out = AMQP.to_vec();
    let mut put = |channel, value: Value| frame::put(Kind::Amqp, channel, &value, &mut out);
    put(0, Open { container_id: "c".into(), ..Open::default() }.to_value());
    put(1, Begin { incoming_window: 9, outgoing_window: 9, ..Begin::default() }.to_value());
    let target = Target { address: Value::string("$cbs"), ..Target::default() }.to_value();
    put(1, Attach { name: "s".into(), target, ..Attach::default() }.to_value());
    let source = Some(Source { address: Value::string("$cbs"), ..Source::default() });
    put(1, Attach { name: "r".into(), handle: 1, role: true, source, ..Attach::default() }.to_value());
    put(1, Flow { handle: Some(1), link_credit: Some(9), incoming_window: 9, ..Flow::default() }.to_value());
    let mut transfer = Transfer { delivery_id: Some(0), ..Transfer::default() };
    frame::put_transfer(1, &mut transfer, &c2d(b"hello"), 4096, &mut out);
    let mut put = |channel, value: Value| frame::put(Kind::Amqp, channel, &value, &mut out);
    put(
        1,
        Disposition { role: true, state: Outcome::Accepted.to_value(), ..Disposition::default() }.to_value(),
    );
    put(1, Detach { handle: 1, closed: true, error: None }.to_value());
    put(1, End::default().to_value());
    put(0, Close::default().to_value());
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever a client sends, and however it is cut: no panic, and what comes back is frames.
    #[test]
    fn damaged_conversations_never_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in 1_usize..200,
    ) {
        let mut bytes = conversation();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let mut client = Client::new(&shared());
        for part in bytes.chunks(cut) {
            client.bytes(part);
            client.got();
        }
        client.pass(Duration::from_secs(1000));
        client.pass(Duration::from_secs(1000));
        client.got();
        prop_assert!(client.desk.is_closed());
    }

    #[test]
    fn noise_after_an_opening_never_panics(noise in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut client = Client::authorised(&shared());
        let size = (noise.len() + 8) as u32;
        let mut frame = [&size.to_be_bytes()[..], &[2, 0, 0, 1]].concat();
        frame.extend_from_slice(&noise);
        client.bytes(&frame);
        client.got();
    }
}
