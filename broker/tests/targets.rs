//! One contract for every way to reach the hub: the embedded hub over TCP and memory, the hub core on an
//! embedded rumqttd, and on any broker over the network (here: another rumqttd, or the one that
//! `FLEETWAVE_TEST_BROKER` names).

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use bytes::Bytes;
use fleetwave_hub::plain::{Broker, PlainError, PlainHub};
use fleetwave_hub::{
    ControlError, Hooks, HubControl, HubServer, MethodCall, MethodOutcome, Replies, Reply, Telemetry,
    TwinChange,
};
use fleetwave_hub_core::throttle::Tier;
use fleetwave_hub_core::{C2dMessage, Configuration, ConfigurationSpec, ErrorCode};
use fleetwave_protocol::profile::plain;
use fleetwave_protocol::{Down, Now, Profile, Up, bag};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Packet, PubAck, Publish};
use support::{Client, PATIENCE, Way, create};

/// What the hub's hooks saw.
#[derive(Debug, PartialEq)]
enum Seen {
    Telemetry(String, String, Vec<u8>),
    Report(String, u64, Vec<u8>),
    Method(String, i32),
}

/// Tells the test what it sees; answers what asks for a grant as the cloud side would.
struct Watcher(Sender<Seen>);

impl Hooks for Watcher {
    fn telemetry(&mut self, _: Now, message: Telemetry<'_>, replies: &mut Replies) {
        if bag::get(message.properties, "kind").as_deref() == Some("grant") {
            let (payload, timeout) = (Bytes::from_static(br#"{"url":"u"}"#), Duration::from_secs(60));
            replies.send_after(
                Duration::from_millis(1),
                Reply::Method { name: "grant".into(), payload, timeout },
            );
            replies.send(Reply::CloudToDevice {
                properties: "kind=grant".into(),
                body: Bytes::from_static(b"u"),
            });
        }
        let (device, properties) = (message.device.to_owned(), message.properties.to_owned());
        let _ = self.0.send(Seen::Telemetry(device, properties, message.body.to_vec()));
    }

    fn reported(&mut self, _: Now, device: &str, version: u64, patch: &[u8]) {
        let _ = self.0.send(Seen::Report(device.to_owned(), version, patch.to_vec()));
    }

    fn method_result(&mut self, _: Now, device: &str, outcome: &MethodOutcome) {
        let status = outcome.as_ref().map_or(-1, |answer| answer.status);
        let _ = self.0.send(Seen::Method(device.to_owned(), status));
    }
}

/// A device that speaks in messages, whatever carries them.
enum Device {
    Raw {
        client: Box<Client>,
        id: String,
    },
    OnBroker {
        client: rumqttc::Client,
        packets: Receiver<rumqttc::Packet>,
        alive: Arc<AtomicBool>,
        id: String,
    },
}

/// What came down, owned.
#[derive(Debug, PartialEq)]
enum Came {
    Answer(String, u16, Option<u64>, String),
    Desired(u64, String),
    Method(String, String, String),
    C2d(String, String),
}

impl Came {
    fn of(down: &Down<'_>) -> Self {
        let text = |body: &[u8]| String::from_utf8(body.to_vec()).expect("text");
        match down {
            Down::TwinAnswer { rid, status, version, body } => {
                Self::Answer((*rid).to_owned(), *status, *version, text(body))
            }
            Down::Desired { version, body } => Self::Desired(*version, text(body)),
            Down::Method { name, rid, body } => Self::Method(name.to_string(), (*rid).to_owned(), text(body)),
            Down::CloudToDevice { properties, body } => Self::C2d((*properties).to_owned(), text(body)),
        }
    }
}

impl Device {
    fn raw(server: &HubServer, way: Way, id: &str) -> Self {
        let mut client = Box::new(Client::open(server, way, id));
        client.log_in(&server.control(), id);
        client.subscribe(id);
        Self::Raw { client, id: id.to_owned() }
    }

    fn on_broker(host: &str, port: u16, id: &str) -> Self {
        let mut options = rumqttc::MqttOptions::new(id, host, port);
        options.set_last_will(rumqttc::LastWill::new(
            plain::bye_topic(id),
            "",
            rumqttc::QoS::AtLeastOnce,
            false,
        ));
        let (client, mut connection) = rumqttc::Client::new(options, 64);
        let (sender, packets) = mpsc::channel();
        let alive = Arc::new(AtomicBool::new(true));
        let lives = alive.clone();
        // rumqttc's client sends and receives only while somebody polls it.
        std::thread::spawn(move || {
            while lives.load(Ordering::Relaxed) {
                match connection.recv_timeout(Duration::from_millis(20)) {
                    Ok(Ok(rumqttc::Event::Incoming(packet))) => drop(sender.send(packet)),
                    Ok(Err(_)) => return,
                    Ok(Ok(_)) | Err(_) => {}
                }
            }
        });
        for (filter, _) in Profile::Plain.filters(id) {
            client.subscribe(filter, rumqttc::QoS::AtLeastOnce).expect("queued");
        }
        let packet = || packets.recv_timeout(PATIENCE).expect("the broker answers");
        while !matches!(packet(), rumqttc::Packet::SubAck(_)) {}
        client.publish(plain::hello_topic(id), rumqttc::QoS::AtMostOnce, false, "").expect("queued");
        Self::OnBroker { client, packets, alive, id: id.to_owned() }
    }

    fn up(&mut self, message: &Up<'_>) {
        let mut topic = String::new();
        match self {
            Self::Raw { client, id } => {
                let packet = Profile::IotHub.encode_up(id, message, &mut topic);
                let mut publish = Publish::new(topic, QoS::AtLeastOnce, packet.payload);
                publish.pkid = 77;
                client.send(Packet::Publish(publish));
            }
            Self::OnBroker { client, id, .. } => {
                let packet = Profile::Plain.encode_up(id, message, &mut topic);
                client.publish(topic, rumqttc::QoS::AtLeastOnce, false, packet.payload).expect("queued");
            }
        }
    }

    fn down(&mut self) -> Came {
        loop {
            match self {
                Self::Raw { client, id } => match client.next() {
                    Some(Packet::Publish(publish)) => {
                        if publish.qos == QoS::AtLeastOnce {
                            client.send(Packet::PubAck(PubAck { pkid: publish.pkid }));
                        }
                        let decoded = Profile::IotHub.decode_down(id, &publish.topic, &publish.payload);
                        return Came::of(&decoded.expect("a topic of the profile"));
                    }
                    Some(Packet::PubAck(ack)) => assert_eq!(ack.pkid, 77),
                    other => panic!("unexpected {other:?}"),
                },
                Self::OnBroker { packets, id, .. } => {
                    let packet = packets.recv_timeout(PATIENCE).expect("a message comes");
                    if let rumqttc::Packet::Publish(publish) = packet {
                        let decoded = Profile::Plain.decode_down(id, &publish.topic, &publish.payload);
                        return Came::of(&decoded.expect("a topic of the profile"));
                    }
                }
            }
        }
    }

    fn twin(&mut self) -> String {
        self.up(&Up::TwinGet { rid: "get" });
        match self.down() {
            Came::Answer(rid, 200, None, body) if rid == "get" => body,
            other => panic!("a twin was expected, not {other:?}"),
        }
    }
}

impl Drop for Device {
    /// It dies: no DISCONNECT.
    fn drop(&mut self) {
        if let Self::OnBroker { alive, .. } = self {
            alive.store(false, Ordering::Relaxed);
        }
    }
}

fn configuration(content: &str) -> Configuration {
    let content = format!(r#"{{"properties.desired.firmware":{content}}}"#);
    Configuration::new(&ConfigurationSpec {
        id: "fw",
        target_condition: "*",
        device_content: &content,
        ..ConfigurationSpec::default()
    })
    .expect("a good configuration")
}

/// What every target does.
fn contract(control: &HubControl, seen: &Receiver<Seen>, device: &mut Device) {
    // The twin, and a report with its hook.
    assert_eq!(device.twin(), r#"{"desired":{"$version":1},"reported":{"$version":1}}"#);
    device.up(&Up::Report { rid: "r1", base: None, patch: br#"{"state":"idle"}"# });
    assert_eq!(device.down(), Came::Answer("r1".into(), 204, Some(2), String::new()));
    let report = Seen::Report("d1".into(), 2, br#"{"state":"idle"}"#.to_vec());
    assert_eq!(seen.recv_timeout(PATIENCE).expect("a report"), report);
    device.up(&Up::Report { rid: "r2", base: None, patch: b"[not json" });
    let Came::Answer(rid, 400, None, body) = device.down() else { panic!("400 was expected") };
    assert!(rid == "r2" && body.contains("\"errorCode\":400"), "{body}");

    // A configuration comes, and goes.
    let before = control.clock().now().at;
    let accepted = control.put_configuration(configuration(r#"{"id":"fw-2"}"#)).expect("accepted");
    assert!(before <= accepted.at && accepted.at <= control.clock().now().at);
    assert_eq!(device.down(), Came::Desired(2, r#"{"firmware":{"id":"fw-2"},"$version":2}"#.into()));
    let counts = control.counts("fw").expect("running").expect("it exists");
    assert_eq!((counts.targeted, counts.applied), (4, 4));
    control.delete_configuration("fw").expect("it exists");
    assert_eq!(device.down(), Came::Desired(3, r#"{"firmware":null,"$version":3}"#.into()));
    let Err(ControlError::Refused(error)) = control.delete_configuration("fw") else {
        panic!("deleted twice")
    };
    assert_eq!(error.code, ErrorCode::ConfigurationNotFound);

    // A direct method, from the operator.
    let call = || MethodCall {
        name: "reboot now".into(),
        payload: Bytes::from_static(b"{\"in\":1}"),
        connect_timeout: Duration::ZERO,
        response_timeout: Duration::from_secs(60),
    };
    let pending = control.invoke_method("d1", call()).expect("running");
    let Came::Method(name, rid, body) = device.down() else { panic!("a method was expected") };
    assert_eq!((name.as_str(), body.as_str()), ("reboot now", "{\"in\":1}"));
    device.up(&Up::MethodResponse { rid: &rid, status: 202, body: b"{\"ok\":true}" });
    let answer = pending.wait().expect("an answer");
    assert_eq!((answer.status, &answer.payload[..]), (202, &b"{\"ok\":true}"[..]));
    let Err(ControlError::Refused(error)) = control.invoke_method("d2", call()).expect("running").wait()
    else {
        panic!("d2 is not there")
    };
    assert_eq!(error.code, ErrorCode::DeviceNotOnline);

    // C2D and telemetry; a hook answers.
    let message = C2dMessage { properties: "a=1".into(), body: (*b"hi").into(), ..C2dMessage::default() };
    control.send_c2d("d1", message).expect("queued");
    assert_eq!(device.down(), Came::C2d("a=1".into(), "hi".into()));
    device.up(&Up::Telemetry { properties: "kind=grant", body: b"please" });
    let telemetry = Seen::Telemetry("d1".into(), "kind=grant".into(), b"please".to_vec());
    assert_eq!(seen.recv_timeout(PATIENCE).expect("telemetry"), telemetry);
    assert_eq!(device.down(), Came::C2d("kind=grant".into(), "u".into()));
    let Came::Method(name, rid, body) = device.down() else { panic!("a grant was expected") };
    assert_eq!((name.as_str(), body.as_str()), ("grant", r#"{"url":"u"}"#));
    device.up(&Up::MethodResponse { rid: &rid, status: 200, body: b"null" });
    assert_eq!(seen.recv_timeout(PATIENCE).expect("an outcome"), Seen::Method("d1".into(), 200));

    // The service's side of the twin.
    let change = TwinChange { tags: Some(br#"{"ring":1}"#.to_vec()), ..TwinChange::default() };
    control.patch_twin("d1", change).expect("accepted");
    let twin = String::from_utf8(control.twin("d1").expect("it exists")).expect("text");
    assert!(twin.contains(r#""ring":1"#) && twin.contains(r#""connectionState":"Connected""#), "{twin}");
    let stale = TwinChange { if_match: Some("stale".into()), tags: Some(b"{}".to_vec()), desired: None };
    let Err(ControlError::Refused(error)) = control.patch_twin("d1", stale) else { panic!("a stale etag") };
    assert_eq!(error.code, ErrorCode::PreconditionFailed);
    let Err(ControlError::Refused(error)) = control.twin("nobody") else { panic!("no such device") };
    assert_eq!(error.code, ErrorCode::DeviceNotFound);
    let metrics = control.metrics().expect("running");
    assert_eq!((metrics.devices, metrics.connections, metrics.accepted), (4, 1, 1));
}

fn watched() -> (Box<dyn Hooks>, Receiver<Seen>) {
    let (sender, seen) = mpsc::channel();
    (Box::new(Watcher(sender)), seen)
}

fn embedded_hub(hooks: Box<dyn Hooks>) -> HubServer {
    let mut hooks = Some(hooks);
    let server = HubServer::builder()
        .tcp(SocketAddr::from(([127, 0, 0, 1], 0)))
        .hooks(move |_| hooks.take().expect("one shard"))
        .start()
        .expect("a hub on a free port");
    create(&server.control());
    server
}

#[test]
fn the_embedded_hub_over_tcp_keeps_the_contract() {
    let (hooks, seen) = watched();
    let server = embedded_hub(hooks);
    contract(&server.control(), &seen, &mut Device::raw(&server, Way::Tcp, "d1"));
}

#[test]
fn the_embedded_hub_over_memory_keeps_the_contract() {
    let (hooks, seen) = watched();
    let server = embedded_hub(hooks);
    contract(&server.control(), &seen, &mut Device::raw(&server, Way::Memory, "d1"));
}

#[test]
fn the_hub_on_an_embedded_rumqttd_keeps_the_contract() {
    let (hooks, seen) = watched();
    let hub = PlainHub::builder(Broker::rumqttd()).hooks(hooks).start().expect("rumqttd comes up");
    create(&hub.control());
    let (host, port) = hub.broker();
    contract(&hub.control(), &seen, &mut Device::on_broker(host, port, "d1"));
}

#[test]
fn the_hub_on_a_broker_over_the_network_keeps_the_contract() {
    let own = PlainHub::builder(Broker::rumqttd()).start().expect("rumqttd comes up");
    let (host, port) = own.broker();
    let url = std::env::var("FLEETWAVE_TEST_BROKER").unwrap_or_else(|_| format!("mqtt://{host}:{port}"));
    let (hooks, seen) = watched();
    let hub = PlainHub::builder(Broker::Remote { url, credentials: None })
        .hooks(hooks)
        .start()
        .expect("the broker is there");
    create(&hub.control());
    let (host, port) = hub.broker();
    contract(&hub.control(), &seen, &mut Device::on_broker(host, port, "d1"));
}

#[test]
fn a_device_that_dies_is_not_connected_on_a_plain_broker_either() {
    let hub = PlainHub::builder(Broker::rumqttd()).start().expect("rumqttd comes up");
    create(&hub.control());
    let (host, port) = hub.broker();
    let mut device = Device::on_broker(host, port, "d1");
    device.twin();
    assert_eq!(hub.control().metrics().expect("running").connections, 1);
    drop(device);
    while hub.control().metrics().expect("running").connections > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn a_hub_that_was_away_from_its_broker_does_what_was_asked_meanwhile() {
    let hub = PlainHub::builder(Broker::rumqttd()).start().expect("rumqttd comes up");
    create(&hub.control());
    let (host, port) = hub.broker();
    let mut device = Device::on_broker(host, port, "d1");
    device.twin();
    hub.control().restart(Duration::from_millis(100)).expect("running");
    let accepted = hub.control().put_configuration(configuration("1")).expect("accepted when it is back");
    assert!(accepted.at.as_micros() > 100_000);
    assert_eq!(device.down(), Came::Desired(2, r#"{"firmware":1,"$version":2}"#.into()));
}

#[test]
fn brokers_that_are_not_there_are_clear_errors() {
    let attach = |url: &str| {
        let broker = Broker::Remote { url: url.to_owned(), credentials: None };
        PlainHub::builder(broker).start().err().map(|error| error.to_string()).expect("an error")
    };
    assert_eq!(
        attach("http://broker"),
        "\"http://broker\" is not a broker's URL: `mqtt://HOST[:PORT]` was expected"
    );
    let nobody =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("its address");
    let refused = attach(&format!("mqtt://{nobody}"));
    assert!(refused.starts_with(&format!("cannot attach to the broker at {nobody}: ")), "{refused}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let listen = taken.local_addr().expect("its address");
    let broker = Broker::Rumqttd { listen, max_connections: 10 };
    assert!(matches!(PlainHub::builder(broker).start(), Err(PlainError::Listen(_))));
}

#[test]
fn a_tiers_limits_delay_then_refuse_with_429() {
    let server = HubServer::builder().tier(Tier::S1, 1).start().expect("a hub");
    let control = server.control();
    create(&control);
    let mut device = Device::raw(&server, Way::Memory, "d1");
    // S1 reads 100 twins a second; a minute's worth passes at once and one more waits before 429 comes.
    for _ in 0..12_100 {
        device.up(&Up::TwinGet { rid: "r" });
    }
    let mut answers = Vec::new();
    while !answers.contains(&429) {
        if let Came::Answer(_, status, _, body) = device.down() {
            assert!(status == 200 || body.contains("\"errorCode\":429001"), "{body}");
            answers.push(status);
        }
    }
    assert!(answers.iter().filter(|status| **status == 200).count() >= 6000);
    let metrics = control.metrics().expect("running");
    assert!(metrics.delayed >= 5900 && metrics.throttled > 0, "{metrics:?}");
    // What waits is done when its time has come.
    control.clock().advance(Duration::from_secs(120));
    while !matches!(device.down(), Came::Answer(_, 200, ..)) {}
}
