//! Devices that subscribe once in their life.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use bytes::BytesMut;
use fleetwave_protocol::WallTime;
use fleetwave_protocol::sas::{self, Key};
use rumqttc::mqttbytes::v4::{
    Connect, ConnectReturnCode, Packet, PubAck, Publish, Subscribe, SubscribeFilter,
};
use rumqttc::mqttbytes::{Error, QoS};
use serde_json::Value;

use crate::Register;
use crate::operator::{Operator, QUEUE, Queued};

const HOST: &str = "hub.example";
const MAX_PACKET: usize = 64 * 1024;
/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// The year 2100.
const EXPIRES: WallTime = WallTime::from_unix_millis(4_102_444_800_000);

/// A connection. Everything gives `None` once the hub is dead.
struct Line {
    stream: TcpStream,
    input: BytesMut,
}

impl Line {
    /// Connects with CleanSession 0, and says whether the hub knew the session.
    fn open(port: u16, device: &str) -> Option<(Self, bool)> {
        let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut line = Self { stream, input: BytesMut::new() };
        let mut connect = Connect::new(device);
        connect.clean_session = false;
        connect.keep_alive = 60;
        let key = Key::from_bytes(*b"fleetwave-local-hub").derive(device);
        let token = sas::token(&key, &format!("{HOST}/devices/{device}"), EXPIRES, None);
        connect.set_login(format!("{HOST}/{device}/?api-version=2021-04-12"), token);
        line.send(&Packet::Connect(connect))?;
        match line.next()? {
            Packet::ConnAck(ack) => {
                assert_eq!(ack.code, ConnectReturnCode::Success);
                Some((line, ack.session_present))
            }
            other => panic!("a CONNACK was expected, not {other:?}"),
        }
    }

    fn send(&mut self, packet: &Packet) -> Option<()> {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, MAX_PACKET).unwrap();
        self.stream.write_all(&bytes).ok()
    }

    fn next(&mut self) -> Option<Packet> {
        loop {
            match Packet::read(&mut self.input, MAX_PACKET) {
                Ok(packet) => return Some(packet),
                Err(Error::InsufficientBytes(_)) => {}
                Err(error) => panic!("the hub sent garbage: {error}"),
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(length) => self.input.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("nothing came"),
                Err(_) => return None,
            }
        }
    }

    /// Subscribes, unless it was acknowledged before that the session has.
    fn subscribe(&mut self, filter: &str, present: bool, subscribed: &mut bool) -> Option<()> {
        if *subscribed {
            assert!(present, "a session that lasts is gone");
            return Some(());
        }
        let mut subscribe = Subscribe::new_many([SubscribeFilter::new(filter.into(), QoS::AtLeastOnce)]);
        subscribe.pkid = 1;
        self.send(&Packet::Subscribe(subscribe))?;
        loop {
            if let Packet::SubAck(_) = self.next()? {
                *subscribed = true;
                return Some(());
            }
        }
    }
}

/// A device that reports.
#[derive(Debug)]
pub(crate) struct Reporter {
    id: String,
    subscribed: bool,
    reported: Register,
}

impl Reporter {
    pub(crate) fn new(id: &str) -> Self {
        Self { id: id.to_owned(), subscribed: false, reported: Register::default() }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn check(&mut self, twin: &Value) {
        let reported = &twin["properties"]["reported"];
        self.reported.check(&self.id, reported["n"].as_u64().unwrap_or_default());
        let version = reported["$version"].as_u64().unwrap();
        assert_eq!(version, self.reported.acknowledged + 1, "{}: each report is one version", self.id);
        // What was lost on the way is tried anew.
        self.reported.tried = self.reported.acknowledged;
    }

    /// Reports until the hub is dead.
    pub(crate) fn run(&mut self, port: u16, ack: &Sender<&'static str>) -> Option<()> {
        let (mut line, present) = Line::open(port, &self.id)?;
        line.subscribe("$iothub/twin/res/#", present, &mut self.subscribed)?;
        loop {
            let number = self.reported.next();
            let topic = format!("$iothub/twin/PATCH/properties/reported/?$rid={number}");
            let body = format!("{{\"n\":{number}}}");
            line.send(&Packet::Publish(Publish::new(topic, QoS::AtMostOnce, body)))?;
            match line.next()? {
                Packet::Publish(answer) => {
                    let version = number + 1;
                    assert_eq!(
                        answer.topic,
                        format!("$iothub/twin/res/204/?$rid={number}&$version={version}")
                    );
                    self.reported.acknowledge(number);
                    let _ = ack.send("report");
                }
                other => panic!("an answer was expected, not {other:?}"),
            }
        }
    }
}

/// A device that takes messages.
#[derive(Debug, Default)]
pub(crate) struct Consumer {
    subscribed: bool,
    /// Certainly taken.
    taken: BTreeSet<u64>,
    /// Acknowledged to the hub, which may not have heard of it.
    perhaps: BTreeSet<u64>,
    /// Certainly queued, in order.
    queued: Vec<u64>,
}

impl Consumer {
    /// Takes messages until the hub is dead.
    pub(crate) fn run(&mut self, port: u16, ack: &Sender<&'static str>, queued: &Receiver<Queued>) {
        self.take(port, ack, |_| false);
        // The back end has ended, too: all that it had acknowledged is known now.
        self.queued.extend(queued.iter().map(|Queued(number)| number));
    }

    fn take(&mut self, port: u16, ack: &Sender<&'static str>, enough: impl Fn(u64) -> bool) -> Option<()> {
        let (mut line, present) = Line::open(port, QUEUE)?;
        let filter = format!("devices/{QUEUE}/messages/devicebound/#");
        line.subscribe(&filter, present, &mut self.subscribed)?;
        let mut last = 0;
        loop {
            let Packet::Publish(publish) = line.next()? else { continue };
            let number: u64 = std::str::from_utf8(&publish.payload).unwrap().parse().unwrap();
            assert!(number > last, "messages come in order, not {number} after {last}");
            assert!(!self.taken.contains(&number), "{number} was completed");
            let missed = self.queued.iter().find(|queued| {
                (last + 1..number).contains(*queued)
                    && !self.taken.contains(queued)
                    && !self.perhaps.contains(queued)
            });
            assert_eq!(missed, None, "a message that was queued is missing before {number}");
            last = number;
            self.perhaps.insert(number);
            line.send(&Packet::PubAck(PubAck::new(publish.pkid)))?;
            line.send(&Packet::PingReq)?;
            // The answer to what came after it leaves the hub only when it is durable. Others may be on their way.
            let mut others = Vec::new();
            loop {
                match line.next()? {
                    Packet::PingResp => break,
                    other => others.push(other),
                }
            }
            self.taken.insert(number);
            let _ = ack.send("complete");
            for other in others.iter().rev() {
                let mut bytes = BytesMut::new();
                other.write(&mut bytes, MAX_PACKET).unwrap();
                bytes.extend_from_slice(&line.input);
                line.input = bytes;
            }
            if enough(number) {
                return Some(());
            }
        }
    }

    /// Takes all that is left, and finds nothing missing.
    pub(crate) fn drain(&mut self, port: u16, operator: &Operator) {
        let (ack, _acks) = std::sync::mpsc::channel();
        let open = |consumer: &Self| {
            let is_open =
                |number: &&u64| !consumer.taken.contains(number) && !consumer.perhaps.contains(number);
            consumer.queued.iter().filter(is_open).count()
        };
        if open(self) == 0 {
            return;
        }
        let last = operator.last_queued();
        self.take(port, &ack, |number| number >= last).expect("the hub lives");
        assert_eq!(open(self), 0, "all that was queued was taken; uncertain were {:?}", operator.uncertain);
    }
}
