//! Connections to the hub, over both transports: who comes in, who is thrown out.

mod support;

use std::time::Duration;

use fleetwave_hub::{HubServer, TwinChange};
use fleetwave_protocol::WallTime;
use proptest::prelude::*;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{
    Connect, ConnectReturnCode, LastWill, Packet, Publish, SubscribeFilter, SubscribeReasonCode, Unsubscribe,
};
use support::{Client, EVERY_WAY, HOST, Way, encode, filters, hub, login, user_name};

#[test]
fn a_device_connects_subscribes_and_reads_its_twin_in_one_breath() {
    let server = hub();
    for way in EVERY_WAY {
        let mut client = Client::open(&server, way, "d1");
        let mut bytes = encode(&Packet::Connect(login(&server.control(), "d1")));
        bytes.extend_from_slice(&encode(&Packet::Subscribe(filters("d1"))));
        let get = Publish::new("$iothub/twin/GET/?$rid=7", QoS::AtMostOnce, " ");
        bytes.extend_from_slice(&encode(&Packet::Publish(get)));
        client.send_bytes(&bytes);
        assert!(!client.connack().session_present, "every session here is a clean one");
        assert!(matches!(client.next(), Some(Packet::SubAck(_))));
        let (topic, body) = client.message();
        assert_eq!(topic, "$iothub/twin/res/200/?$rid=7");
        assert_eq!(body, r#"{"desired":{"$version":1},"reported":{"$version":1}}"#);
        client.send(Packet::Disconnect);
        client.expect_end();
    }
}

#[test]
fn packets_that_come_byte_by_byte_are_understood() {
    let server = hub();
    for way in EVERY_WAY {
        let mut client = Client::open(&server, way, "d1");
        let mut bytes = encode(&Packet::Connect(login(&server.control(), "d1")));
        bytes.extend_from_slice(&encode(&Packet::PingReq));
        for byte in &bytes {
            client.send_bytes(std::slice::from_ref(byte));
        }
        assert_eq!(client.connack().code, ConnectReturnCode::Success);
        assert_eq!(client.next(), Some(Packet::PingResp));
        assert_eq!(server.control().metrics().unwrap().buffered, 0, "an idle session owns no buffer");
    }
}

#[test]
fn each_refusal_has_its_return_code_and_ends_the_connection() {
    let server = hub();
    let control = server.control();
    let now = control.clock().now().wall;
    let good = login(&control, "d1").login.unwrap().password;
    let connect = |id: &str, user: &str, password: &str| {
        let mut connect = Connect::new(id);
        connect.set_login(user, password);
        connect
    };
    let of_d1 = user_name("d1");
    let of_nobody = control.device_token(HOST, "nobody", support::later(&control));
    let expired = control.device_token(HOST, "d1", WallTime::from_unix_millis(now.as_unix_millis() - 1000));
    let of_d2 = control.device_token(HOST, "d2", support::later(&control));
    for (case, packet, code) in [
        ("no user name", Connect::new("d1"), ConnectReturnCode::BadUserNamePassword),
        ("user name of no form", connect("d1", "d1", &good), ConnectReturnCode::BadUserNamePassword),
        ("client id", connect("d 1", &of_d1, &good), ConnectReturnCode::BadClientId),
        ("no token", connect("d1", &of_d1, ""), ConnectReturnCode::NotAuthorized),
        ("garbage token", connect("d1", &of_d1, "letmein"), ConnectReturnCode::NotAuthorized),
        ("expired token", connect("d1", &of_d1, &expired), ConnectReturnCode::NotAuthorized),
        ("another's token", connect("d1", &of_d1, &of_d2), ConnectReturnCode::NotAuthorized),
        ("unknown", connect("nobody", &user_name("nobody"), &of_nobody), ConnectReturnCode::NotAuthorized),
    ] {
        for way in EVERY_WAY {
            let mut client = Client::open(&server, way, "d1");
            client.send(Packet::Connect(packet.clone()));
            assert_eq!(client.connack().code, code, "{case}");
            client.expect_end();
        }
    }
    let metrics = control.metrics().unwrap();
    assert_eq!((metrics.accepted, metrics.refused, metrics.connections), (0, 32, 0));
}

#[test]
fn another_protocol_level_is_refused_as_such() {
    let server = hub();
    for way in EVERY_WAY {
        let mut client = Client::open(&server, way, "d1");
        client.send_bytes(b"\x10\x0f\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x02d1");
        assert_eq!(client.connack().code, ConnectReturnCode::RefusedProtocolVersion);
        client.expect_end();
    }
}

#[test]
fn whatever_breaks_the_rules_ends_the_connection_and_the_hub_lives_on() {
    let server = hub();
    let oversized = [&[0x30, 0x80, 0x80, 0x20, 0, 1, b'a'][..], &[b'x'; 4096]].concat();
    let at_2 = encode(&Packet::Publish(Publish {
        pkid: 1,
        ..Publish::new("devices/d1/messages/events/", QoS::ExactlyOnce, "x")
    }));
    let publish = |topic: &str| encode(&Packet::Publish(Publish::new(topic, QoS::AtMostOnce, "x"))).to_vec();
    for (case, bytes) in [
        ("an oversized packet", oversized),
        ("QoS 2", at_2.to_vec()),
        ("an unknown topic", publish("some/topic")),
        ("another device's topic", publish("devices/d2/messages/events/")),
        ("a wildcard", publish("devices/d1/messages/events/#")),
        ("a second CONNECT", encode(&Packet::Connect(login(&server.control(), "d1"))).to_vec()),
        ("a server's packet", vec![0xd0, 0]),
        ("bad flags", vec![0x83, 0]),
        ("an endless length", vec![0x30, 0xff, 0xff, 0xff, 0xff]),
    ] {
        for way in EVERY_WAY {
            let mut client = Client::open(&server, way, "d1");
            client.log_in(&server.control(), "d1");
            client.send_bytes(&bytes);
            client.expect_end();
            let mut next = Client::open(&server, way, "d1");
            next.log_in(&server.control(), "d1");
            next.send(Packet::PingReq);
            assert_eq!(next.next(), Some(Packet::PingResp), "after {case}");
        }
    }
    assert_eq!(server.control().metrics().unwrap().faulty, 36);
}

#[test]
fn subscriptions_are_granted_refused_and_taken_back() {
    let server = hub();
    for way in EVERY_WAY {
        let mut client = Client::open(&server, way, "d1");
        client.log_in(&server.control(), "d1");
        let mut subscribe = filters("d1");
        subscribe.filters[0].qos = QoS::ExactlyOnce;
        for path in ["#", "devices/d2/messages/devicebound/#", "$iothub/methods/POST/+"] {
            subscribe.filters.push(SubscribeFilter::new(path.into(), QoS::AtMostOnce));
        }
        client.send(Packet::Subscribe(subscribe));
        let Some(Packet::SubAck(ack)) = client.next() else { panic!("no SUBACK") };
        let (one, failure) = (SubscribeReasonCode::Success(QoS::AtLeastOnce), SubscribeReasonCode::Failure);
        assert_eq!(ack.return_codes, [one, one, one, one, failure, failure, failure]);
        let mut unsubscribe = Unsubscribe::new("$iothub/twin/PATCH/properties/desired/#");
        unsubscribe.pkid = 4;
        client.send(Packet::Unsubscribe(unsubscribe));
        assert!(matches!(client.next(), Some(Packet::UnsubAck(ack)) if ack.pkid == 4));
        let desired = TwinChange { desired: Some(br#"{"a":1}"#.to_vec()), ..TwinChange::default() };
        server.control().patch_twin("d1", desired).unwrap();
        assert!(client.twin().contains(r#""a":1"#), "the twin comes, a notification does not");
    }
}

#[test]
fn a_second_connection_of_a_device_ends_the_first() {
    let server = hub();
    for way in EVERY_WAY {
        let mut first = Client::open(&server, way, "d1");
        first.log_in(&server.control(), "d1");
        let mut second = Client::open(&server, way, "d1");
        second.log_in(&server.control(), "d1");
        first.expect_end();
        second.subscribe("d1");
        let change = format!(r#"{{"way":"{way:?}"}}"#);
        let desired = TwinChange { desired: Some(change.into_bytes()), ..TwinChange::default() };
        server.control().patch_twin("d1", desired).unwrap();
        let (topic, _) = second.message();
        assert!(topic.starts_with("$iothub/twin/PATCH/properties/desired/"), "{topic}");
        assert_eq!(server.control().metrics().unwrap().connections, 1);
    }
}

#[test]
fn silence_ends_a_connection_after_one_and_a_half_keep_alives() {
    let server = hub();
    let control = server.control();
    for way in EVERY_WAY {
        let mut quiet = Client::open(&server, way, "d1");
        quiet.log_in(&control, "d1");
        control.clock().advance(Duration::from_secs(60));
        let mut lively = Client::open(&server, way, "d2");
        lively.log_in(&control, "d2");
        control.clock().advance(Duration::from_secs(32));
        quiet.expect_end();
        lively.send(Packet::PingReq);
        assert_eq!(lively.next(), Some(Packet::PingResp));
    }
    assert_eq!(control.metrics().unwrap().expired, 4);
}

#[test]
fn a_connection_that_never_says_who_it_is_ends() {
    let server = hub();
    // WebSockets are given their time on another clock.
    for way in [Way::Tcp, Way::Tls, Way::Memory] {
        let mut client = Client::open(&server, way, "d1");
        client.send_bytes(&[0x10]);
        // The hub has seen the connection once it has answered another one over the same transport.
        let mut other = Client::open(&server, way, "d2");
        other.log_in(&server.control(), "d2");
        server.control().clock().advance(Duration::from_secs(31));
        client.expect_end();
    }
}

#[test]
fn a_connection_ends_with_its_token() {
    let server = hub();
    let control = server.control();
    for way in EVERY_WAY {
        let soon = WallTime::from_unix_millis(control.clock().now().wall.as_unix_millis() + 10_000);
        let mut connect = login(&control, "d1");
        connect.set_login(user_name("d1"), control.device_token(HOST, "d1", soon));
        let mut client = Client::open(&server, way, "d1");
        client.send(Packet::Connect(connect));
        assert_eq!(client.connack().code, ConnectReturnCode::Success);
        control.clock().advance(Duration::from_secs(12));
        client.expect_end();
    }
}

#[test]
fn a_client_that_does_not_read_is_dropped_before_it_fills_the_hub() {
    let server = hub();
    for (way, slow) in [(Way::Tcp, 1), (Way::Tls, 2)] {
        let mut client = Client::open(&server, way, "d1");
        client.log_in(&server.control(), "d1");
        client.subscribe("d1");
        let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(3000));
        let change = || TwinChange { desired: Some(large.clone().into_bytes()), ..TwinChange::default() };
        server.control().patch_twin("d1", change()).unwrap();
        let get = encode(&Packet::Publish(Publish::new("$iothub/twin/GET/?$rid=1", QoS::AtMostOnce, "")));
        let many = get.repeat(200);
        while server.control().metrics().unwrap().slow < slow {
            client.send_bytes(&many);
        }
        let metrics = server.control().metrics().unwrap();
        assert_eq!((metrics.slow, metrics.connections, metrics.buffered), (slow, 0, 0));
    }
}

#[test]
fn a_restart_drops_everyone_refuses_for_a_while_and_keeps_the_twins() {
    let server = hub();
    let control = server.control();
    let address = server.address().unwrap();
    let mut clients: Vec<Client> = EVERY_WAY
        .iter()
        .zip(["d1", "d2", "d3", "d4"])
        .map(|(way, device)| {
            let mut client = Client::open(&server, *way, device);
            client.log_in(&control, device);
            client.subscribe(device);
            client.publish_at_most_once("$iothub/twin/PATCH/properties/reported/?$rid=1", br#"{"a":1}"#);
            assert_eq!(client.message().0, "$iothub/twin/res/204/?$rid=1&$version=2");
            client
        })
        .collect();
    control.restart(Duration::from_secs(3600)).unwrap();
    clients.iter_mut().for_each(Client::expect_end);
    assert!(std::net::TcpStream::connect(address).is_err(), "nobody listens");
    Client::open(&server, Way::Memory, "d2").expect_end();
    control.clock().advance(Duration::from_secs(3600));
    control.metrics().expect("the hub is awake, and has looked at its clock");
    while std::net::TcpStream::connect(address).is_err() {
        std::thread::yield_now();
    }
    for (way, device) in EVERY_WAY.into_iter().zip(["d1", "d2", "d3", "d4"]) {
        let mut client = Client::open(&server, way, device);
        let ack = client.log_in(&control, device);
        assert!(!ack.session_present, "the connection before was a clean session");
        client.subscribe(device);
        assert!(client.twin().contains(r#""a":1"#));
    }
}

#[test]
fn a_will_is_telemetry_when_the_connection_is_lost_and_nothing_when_it_was_closed() {
    let (sender, heard) = std::sync::mpsc::channel();
    let server = support::hub_with(move |message| {
        sender.send((message.properties.to_owned(), message.body.to_vec())).unwrap();
    });
    for way in EVERY_WAY {
        let mut connect = login(&server.control(), "d1");
        connect.last_will =
            Some(LastWill::new("devices/d1/messages/events/k=v", "gone", QoS::AtLeastOnce, false));
        let mut polite = Client::open(&server, way, "d1");
        polite.send(Packet::Connect(connect.clone()));
        polite.connack();
        polite.send(Packet::Disconnect);
        polite.expect_end();
        let mut lost = Client::open(&server, way, "d1");
        lost.send(Packet::Connect(connect));
        lost.connack();
        lost.hang_up();
        let (properties, body) = heard.recv_timeout(support::PATIENCE).unwrap();
        assert_eq!((properties.as_str(), &body[..]), ("k=v&iothub-MessageType=Will", &b"gone"[..]));
    }
    assert!(heard.try_recv().is_err(), "one will a lost connection");
}

#[test]
fn telemetry_that_was_to_be_retained_says_so() {
    let (sender, heard) = std::sync::mpsc::channel();
    let server = support::hub_with(move |message| sender.send(message.properties.to_owned()).unwrap());
    let mut client = Client::open(&server, Way::Memory, "d1");
    client.log_in(&server.control(), "d1");
    for (topic, retain, properties) in [
        ("devices/d1/messages/events/k=v", true, "k=v&mqtt-retain=true"),
        ("devices/d1/messages/events/", true, "mqtt-retain=true"),
        ("devices/d1/messages/events/k=v", false, "k=v"),
    ] {
        let mut publish = Publish::new(topic, QoS::AtMostOnce, "x");
        publish.retain = retain;
        client.send(Packet::Publish(publish));
        assert_eq!(heard.recv_timeout(support::PATIENCE).unwrap(), properties);
    }
}

#[test]
fn with_several_shards_a_device_comes_in_wherever_it_arrives() {
    let server = HubServer::builder()
        .shards(3)
        .tcp(std::net::SocketAddr::from(([127, 0, 0, 1], 0)))
        .tls(std::net::SocketAddr::from(([127, 0, 0, 1], 0)), support::PKI.server_config())
        .https(std::net::SocketAddr::from(([127, 0, 0, 1], 0)), Some(support::PKI.server_config()))
        .start()
        .unwrap();
    let control = server.control();
    let ids: Vec<String> = (0..24).map(|i| format!("dev-{i:07}")).collect();
    control.create_devices(ids.iter().map(fleetwave_hub::NewDevice::new)).unwrap();
    for way in EVERY_WAY {
        let mut clients: Vec<Client> = ids
            .iter()
            .map(|id| {
                let mut client = Client::open(&server, way, id);
                client.log_in(&control, id);
                client.subscribe(id);
                client
            })
            .collect();
        clients.iter_mut().for_each(|client| assert!(client.twin().starts_with(r#"{"desired""#)));
        assert_eq!(control.metrics().unwrap().connections, 24);
    }
}

#[test]
fn a_client_thread_that_dies_takes_its_connections_along() {
    let server = hub();
    let mut client = Client::open(&server, Way::Memory, "d1");
    client.log_in(&server.control(), "d1");
    drop(client);
    while server.control().metrics().unwrap().connections > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn a_port_in_use_is_a_clear_error() {
    let server = hub();
    let address = server.address().unwrap();
    let Err(error) = HubServer::builder().tcp(address).start() else { panic!("two hubs on one port") };
    let expected = format!(
        "cannot listen on {address}: another process uses this port; choose another one, or 0 for any"
    );
    assert_eq!(error.to_string(), expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn garbage_never_takes_the_hub_down(
        before in prop::collection::vec(any::<u8>(), 0..64),
        after in prop::collection::vec(any::<u8>(), 0..256),
        header in prop::sample::select(vec![0x30u8, 0x32, 0x40, 0x82, 0xa2]),
    ) {
        static SERVER: std::sync::LazyLock<HubServer> = std::sync::LazyLock::new(hub);
        for way in EVERY_WAY {
            let mut stranger = Client::open(&SERVER, way, "d3");
            stranger.send_bytes(&before);
            let mut device = Client::open(&SERVER, way, "d1");
            device.log_in(&SERVER.control(), "d1");
            device.send_bytes(&[header, after.len() as u8 & 0x7f]);
            device.send_bytes(&after);
            let mut other = Client::open(&SERVER, way, "d2");
            other.log_in(&SERVER.control(), "d2");
            other.send(Packet::PingReq);
            prop_assert_eq!(other.next(), Some(Packet::PingResp));
            for client in [stranger, device, other] {
                client.hang_up();
            }
        }
    }
}
