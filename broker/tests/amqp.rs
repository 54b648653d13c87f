//! The AMQP endpoint of a running hub: what a service sends reaches a device, and what becomes of it comes back.
//!
//! The client is a few lines that write AMQP by hand, and know nothing of the hub's own codec.

mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use fleetwave_hub::policy::{DEFAULT_POLICIES, Policy};
use fleetwave_hub::{HubServer, NewDevice};
use fleetwave_protocol::sas::{self, Key};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Packet, PubAck};
use support::{Client, HOST, PATIENCE, Way, later};

const NULL: &[u8] = &[0x40];
const TRUE: &[u8] = &[0x41];
const FALSE: &[u8] = &[0x42];
const ATTACH: u8 = 0x12;
const FLOW: u8 = 0x13;
const TRANSFER: u8 = 0x14;
const DISPOSITION: u8 = 0x15;
const DETACH: u8 = 0x16;
const CLOSE: u8 = 0x18;

fn key() -> Key {
    Key::from_bytes("the service's key")
}

fn hub() -> HubServer {
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let builder = HubServer::builder().shards(2).tcp(local).host_name(HOST).amqps(local, None);
    let (name, rights) = DEFAULT_POLICIES[1];
    let policy =
        Policy { name: name.to_owned(), primary: key(), secondary: Key::from_bytes("other"), rights };
    let server = builder.policy(policy).start().expect("a hub");
    server.control().create_devices([NewDevice::new("d1")]).expect("a device");
    server
}

fn string(text: &str) -> Vec<u8> {
    [&[0xb1][..], &(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

fn symbol(text: &str) -> Vec<u8> {
    [&[0xb3][..], &(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

fn binary(bytes: &[u8]) -> Vec<u8> {
    [&[0xb0][..], &(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

fn uint(number: u32) -> Vec<u8> {
    [&[0x70][..], &number.to_be_bytes()].concat()
}

fn compound(code: u8, items: &[&[u8]]) -> Vec<u8> {
    let content = items.concat();
    let size = content.len() as u32 + 4;
    [&[code][..], &size.to_be_bytes(), &(items.len() as u32).to_be_bytes(), &content].concat()
}

fn list(items: &[&[u8]]) -> Vec<u8> {
    compound(0xd0, items)
}

fn described(code: u8, value: &[u8]) -> Vec<u8> {
    [&[0, 0x53, code][..], value].concat()
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

struct Amqp {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Amqp {
    /// A client that has signed in with a token by SASL PLAIN, opened, and begun a session.
    fn sign_in(server: &HubServer) -> Self {
        let stream = TcpStream::connect(server.amqps_address().expect("an endpoint")).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let mut client = Self { stream, input: Vec::new() };
        let token = sas::token(&key(), HOST, later(&server.control()), Some("service"));
        client.write(b"AMQP\x03\x01\x00\x00");
        let name = HOST.split('.').next().expect("a name");
        let response = format!("\0service@sas.root.{name}\0{token}");
        client.frame(1, 0, &described(0x41, &list(&[&symbol("PLAIN"), &binary(response.as_bytes()), NULL])));
        client.write(b"AMQP\x00\x01\x00\x00");
        client.send(0x10, &[&string("client"), &string(HOST)]);
        client.send(0x11, &[NULL, &uint(0), &uint(1000), &uint(1000)]);
        assert_eq!(client.take(8), b"AMQP\x03\x01\x00\x00");
        assert!(contains(&client.body(), b"MSSBCBS"));
        assert!(contains(&client.body(), &[0, 0x53, 0x44]), "an outcome");
        assert_eq!(client.take(8), b"AMQP\x00\x01\x00\x00");
        client.expect(0x10);
        client.expect(0x11);
        client
    }

    fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the hub takes it");
    }

    fn frame(&mut self, kind: u8, channel: u16, body: &[u8]) {
        let size = body.len() as u32 + 8;
        let [high, low] = channel.to_be_bytes();
        self.write(&[&size.to_be_bytes()[..], &[2, kind, high, low], body].concat());
    }

    fn send(&mut self, performative: u8, fields: &[&[u8]]) {
        self.frame(0, 0, &described(performative, &list(fields)));
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        while self.input.len() < count {
            let mut buffer = [0; 65_536];
            let read = self.stream.read(&mut buffer).expect("something comes");
            assert!(read > 0, "the hub closed the connection");
            self.input.extend_from_slice(&buffer[..read]);
        }
        self.input.drain(..count).collect()
    }

    /// The body of the next frame.
    fn body(&mut self) -> Vec<u8> {
        let size = u32::from_be_bytes(self.take(4).try_into().expect("four bytes")) as usize;
        self.take(size - 4).split_off(4)
    }

    /// The body of the next frame of a kind; others before it are passed over.
    fn expect(&mut self, performative: u8) -> Vec<u8> {
        loop {
            let body = self.body();
            if body.starts_with(&[0, 0x53, performative]) {
                return body;
            }
        }
    }

    fn attach(&mut self, handle: u32, receives: bool, address: &str) {
        let [source, target] = if receives {
            [described(0x28, &list(&[&string(address)])), described(0x29, &list(&[]))]
        } else {
            [described(0x28, &list(&[])), described(0x29, &list(&[&string(address)]))]
        };
        let role = if receives { TRUE } else { FALSE };
        let name = string(&format!("{handle}"));
        let count = if receives { NULL.to_vec() } else { uint(0) };
        self.send(ATTACH, &[&name, &uint(handle), role, NULL, NULL, &source, &target, NULL, NULL, &count]);
        if receives {
            self.send(FLOW, &[NULL, &uint(1000), &uint(0), &uint(1000), &uint(handle), &uint(0), &uint(10)]);
        }
        self.expect(ATTACH);
    }

    /// Sends a C2D message, and gives the disposition that answers it.
    fn c2d(&mut self, delivery: u32, device: &str, body: &str) -> Vec<u8> {
        let to = string(&format!("/devices/{device}/messages/devicebound"));
        let id = string(&format!("m-{delivery}"));
        let message = [
            described(0x73, &list(&[&id, NULL, &to])),
            described(0x74, &compound(0xd1, &[&string("iothub-ack"), &string("full")])),
            described(0x75, &binary(body.as_bytes())),
        ]
        .concat();
        let fields =
            list(&[&uint(0), &uint(delivery), &binary(&delivery.to_be_bytes()), &uint(0), FALSE, FALSE]);
        self.frame(0, 0, &[described(TRANSFER, &fields), message].concat());
        self.expect(DISPOSITION)
    }
}

#[test]
fn a_message_reaches_its_device_and_its_feedback_comes_back() {
    let server = hub();
    let mut device = Client::open(&server, Way::Tcp, "d1");
    device.log_in(&server.control(), "d1");
    device.subscribe("d1");
    let mut service = Amqp::sign_in(&server);
    service.attach(0, false, "amqps://hub.example/messages/devicebound");
    service.attach(1, true, "/messages/serviceBound/feedback");
    let outcome = service.c2d(0, "d1", "hello");
    assert!(contains(&outcome, &[0, 0x53, 0x24]), "accepted: {outcome:?}");
    let message = device.publish();
    assert_eq!(
        message.topic,
        "devices/d1/messages/devicebound/%24.mid=m-0&%24.to=%2Fdevices%2Fd1%2Fmessages%2Fdevicebound&iothub-ack=full"
    );
    assert_eq!((&message.payload[..], message.qos), (&b"hello"[..], QoS::AtLeastOnce));
    device.send(Packet::PubAck(PubAck::new(message.pkid)));
    let feedback = service.expect(TRANSFER);
    for part in [r#""originalMessageId":"m-0""#, r#""statusCode":"Success""#, r#""deviceId":"d1""#] {
        assert!(contains(&feedback, part.as_bytes()), "{part} in {}", String::from_utf8_lossy(&feedback));
    }
    let outcome = service.c2d(1, "nobody", "x");
    assert!(contains(&outcome, b"amqp:not-found"), "rejected: {outcome:?}");
}

#[test]
fn what_devices_send_is_read_from_the_event_log() {
    let server = hub();
    let partition = server.cloud_events().log.partition_of("d1");
    let mut service = Amqp::sign_in(&server);
    let name = server.cloud_events().name().to_owned();
    service.attach(0, true, &format!("{name}/ConsumerGroups/$Default/Partitions/{partition}"));
    let created = service.expect(TRANSFER);
    assert!(contains(&created, b"createDeviceIdentity"));
    let mut device = Client::open(&server, Way::Tcp, "d1");
    device.log_in(&server.control(), "d1");
    assert!(contains(&service.expect(TRANSFER), b"deviceConnected"));
    device.publish_at_most_once("devices/d1/messages/events/%24.mid=t-1&level=high", b"telemetry");
    let event = service.expect(TRANSFER);
    let id = server
        .control()
        .with_device_blocking("d1", |shard| {
            let device = shard.find("d1")?;
            Ok::<_, Box<fleetwave_hub_core::HubError>>(shard.hub().generation_id(device).to_string())
        })
        .expect("the hub runs")
        .expect("the device is there");
    for part in ["telemetry", "t-1", "level", "high", "iothub-connection-device-id", "Telemetry", &id] {
        assert!(contains(&event, part.as_bytes()), "{part} in {}", String::from_utf8_lossy(&event));
    }
}

#[test]
fn devices_are_told_that_amqp_is_not_for_them() {
    let server = hub();
    let mut device = Amqp::sign_in(&server);
    device.attach(0, true, "/devices/d1/messages/devicebound");
    assert!(contains(&device.expect(DETACH), b"amqp:not-implemented"));
}

#[test]
fn a_hub_that_stops_says_so() {
    let server = hub();
    let mut service = Amqp::sign_in(&server);
    let waiting = std::thread::spawn(move || {
        let close = service.expect(CLOSE);
        service.send(CLOSE, &[NULL]);
        close
    });
    server.stop();
    assert!(contains(&waiting.join().expect("a close came"), b"amqp:connection:forced"));
}
#[test]
fn links_are_counted_while_they_are_attached() {
    let server = hub();
    let links = || {
        let control = server.control();
        let page = control.instruments().render(&control.metrics().expect("the hub runs"));
        let line = page.lines().find(|line| line.starts_with("fleetwave_hub_amqp_links ")).expect("a gauge");
        line.rsplit(' ').next().expect("a value").to_owned()
    };
    let mut service = Amqp::sign_in(&server);
    service.attach(0, false, "/messages/devicebound");
    service.attach(1, true, "/messages/serviceBound/feedback");
    assert_eq!(links(), "2");
    service.send(DETACH, &[&uint(1), TRUE]);
    service.expect(DETACH);
    assert_eq!(links(), "1");
}
