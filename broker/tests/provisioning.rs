//! Device provisioning over MQTT, on the port of all devices.

mod support;

use fleetwave_hub::{DpsSettings, HubServer};
use fleetwave_protocol::WallTime;
use fleetwave_protocol::sas::{self, Key};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet, Publish, Subscribe};
use serde_json::Value;
use support::{Client, HOST, Way};

const SCOPE: &str = "0ne00000001";

fn hub() -> HubServer {
    let settings = DpsSettings {
        id_scope: SCOPE.into(),
        hub: HOST.into(),
        keys: [Key::from_bytes(*b"primary"), Key::from_bytes(*b"secondary")],
    };
    let loopback = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    HubServer::builder()
        .shards(2)
        .host_name(HOST)
        .tcp(loopback)
        .provisioning(settings)
        .start()
        .expect("a hub on loopback")
}

/// A device that shows a token of this key.
fn connect(hub: &HubServer, id: &str, key: &Key, clean: bool) -> (Client, ConnectReturnCode) {
    let now = hub.control().clock().now().wall;
    let later = WallTime::from_unix_millis(now.as_unix_millis() + 60_000);
    let token = sas::token(key, &format!("{SCOPE}/registrations/{id}"), later, Some("registration"));
    let mut connect = Connect::new(id);
    connect.clean_session = clean;
    connect
        .set_login(format!("{SCOPE}/registrations/{id}/api-version=2019-03-31&ClientVersion=tests"), token);
    let mut client = Client::open(hub, Way::Tcp, id);
    client.send(Packet::Connect(connect));
    let Some(Packet::ConnAck(ack)) = client.next() else { panic!("no CONNACK") };
    (client, ack.code)
}

fn ask(client: &mut Client, topic: &str, body: &str) -> (String, Value) {
    let mut publish = Publish::new(topic, QoS::AtLeastOnce, body);
    publish.pkid = 7;
    client.send(Packet::Publish(publish));
    assert!(matches!(client.next(), Some(Packet::PubAck(ack)) if ack.pkid == 7));
    let (topic, body) = client.message();
    (topic, serde_json::from_str(&body).expect("JSON"))
}

#[test]
fn a_device_registers_over_mqtt_and_is_in_the_hub_then() {
    let hub = hub();
    let key = Key::from_bytes(*b"a key of an individual enrollment");
    let enrollment = serde_json::json!({
        "registrationId": "reg-1",
        "deviceId": "dev-1",
        "attestation": { "type": "symmetricKey", "symmetricKey": { "primaryKey": key.to_base64() } },
    });
    hub.provisioning().expect("it provisions").put_enrollment("reg-1", &enrollment).expect("an enrollment");

    let (mut client, code) = connect(&hub, "reg-1", &key, false);
    assert_eq!(code, ConnectReturnCode::Success);
    let mut subscribe = Subscribe::new("$dps/registrations/res/#", QoS::AtLeastOnce);
    subscribe.pkid = 1;
    client.send(Packet::Subscribe(subscribe));
    assert!(matches!(client.next(), Some(Packet::SubAck(_))));
    let (topic, body) =
        ask(&mut client, "$dps/registrations/PUT/iotdps-register/?$rid=r1", r#"{"registrationId":"reg-1"}"#);
    assert_eq!(topic, "$dps/registrations/res/202/?$rid=r1&retry-after=1");
    let operation = body["operationId"].as_str().unwrap().to_owned();
    let state = loop {
        let topic =
            format!("$dps/registrations/GET/iotdps-get-operationstatus/?$rid=r2&operationId={operation}");
        let (topic, body) = ask(&mut client, &topic, " ");
        if topic == "$dps/registrations/res/200/?$rid=r2" {
            break body["registrationState"].clone();
        }
        assert_eq!(topic, "$dps/registrations/res/202/?$rid=r2&retry-after=1");
    };
    assert_eq!((&state["deviceId"], &state["assignedHub"]), (&"dev-1".into(), &HOST.into()));
    client.send(Packet::Disconnect);
    assert!(client.next().is_none());
    assert!(hub.control().twin("dev-1").is_ok());
}

#[test]
fn who_is_not_enrolled_stays_out_and_nobody_leaves_the_topics_of_registration() {
    let hub = hub();
    let key = Key::from_bytes(*b"a key of an individual enrollment");
    let (_, code) = connect(&hub, "stranger", &key, true);
    assert_eq!(code, ConnectReturnCode::NotAuthorized);
    let enrollment = serde_json::json!({
        "registrationId": "reg-1",
        "attestation": { "type": "symmetricKey", "symmetricKey": { "primaryKey": key.to_base64() } },
    });
    hub.provisioning().unwrap().put_enrollment("reg-1", &enrollment).unwrap();
    let (_, code) = connect(&hub, "reg-1", &Key::from_bytes(*b"another key, not of it at all"), true);
    assert_eq!(code, ConnectReturnCode::NotAuthorized);
    for topic in
        ["devices/reg-1/messages/events/", "$iothub/twin/GET/?$rid=1", "$dps/registrations/res/200/?$rid=1"]
    {
        let (mut client, code) = connect(&hub, "reg-1", &key, true);
        assert_eq!(code, ConnectReturnCode::Success);
        client.send(Packet::Publish(Publish::new(topic, QoS::AtMostOnce, "x")));
        assert!(client.next().is_none(), "{topic}");
    }
}
