//! The event bus, as a subscriber sees it that knows MQTT and nothing of this hub.

use std::net::SocketAddr;
use std::time::Duration;

use fleetwave_hub::{HubControl, HubServer, NewDevice, TwinChange};
use rumqttc::{Client, Connection, Event, MqttOptions, Packet, QoS};
use serde_json::Value;

/// A subscriber to everything.
fn subscriber(address: SocketAddr) -> (Client, Connection) {
    let mut options = MqttOptions::new("reader", address.ip().to_string(), address.port());
    options.set_keep_alive(Duration::from_secs(30));
    let (client, mut connection) = Client::new(options, 64);
    client.subscribe("fleetwave/events/#", QoS::AtLeastOnce).expect("the client runs");
    for event in connection.iter() {
        if let Event::Incoming(Packet::SubAck(_)) = event.expect("the broker answers") {
            return (client, connection);
        }
    }
    unreachable!("the iteration ends by an error");
}

/// The next event: its topic, its type, and its data.
fn next(connection: &mut Connection) -> (String, String, Value) {
    loop {
        let event = connection.recv_timeout(Duration::from_secs(20)).expect("an event comes");
        if let Event::Incoming(Packet::Publish(publish)) = event.expect("the broker is there") {
            let event: Value = serde_json::from_slice(&publish.payload).expect("it is JSON");
            assert_eq!(event["specversion"], "1.0");
            let kind = event["type"].as_str().expect("it has a type").to_owned();
            return (publish.topic, kind, event["data"].clone());
        }
    }
}

fn delete(control: &HubControl, id: &str) {
    let name = id.to_owned();
    control
        .with_device_blocking(id, move |shard| {
            let device = shard.find(&name).expect("it exists");
            shard.apply(fleetwave_hub_core::Input::DeleteDevice { device, if_match: None }).map(drop)
        })
        .expect("the hub runs")
        .expect("nothing speaks against it");
}

#[test]
fn what_happens_is_published_in_its_order() {
    let hub = HubServer::builder().shards(2).bus("127.0.0.1:0".parse().unwrap()).start().unwrap();
    let (_client, mut connection) = subscriber(hub.bus_address().expect("it has a bus"));
    let control = hub.control();
    control.create_devices([NewDevice::new("a#1")]).unwrap();
    let (topic, kind, data) = next(&mut connection);
    assert_eq!(
        (topic.as_str(), kind.as_str()),
        ("fleetwave/events/lifecycle/a%231", "Microsoft.Devices.DeviceCreated")
    );
    assert_eq!((&data["deviceId"], &data["twin"]["deviceId"]), (&"a#1".into(), &"a#1".into()));

    let desired = Some(br#"{"colour":"red"}"#.to_vec());
    control.patch_twin("a#1", TwinChange { desired, ..TwinChange::default() }).unwrap();
    let (topic, kind, data) = next(&mut connection);
    assert_eq!(
        (topic.as_str(), kind.as_str()),
        ("fleetwave/events/twin/a%231", "Fleetwave.Devices.TwinChanged")
    );
    assert_eq!(data["change"]["properties"]["desired"]["colour"], "red");

    delete(&control, "a#1");
    let (topic, kind, _) = next(&mut connection);
    assert_eq!(
        (topic.as_str(), kind.as_str()),
        ("fleetwave/events/lifecycle/a%231", "Microsoft.Devices.DeviceDeleted")
    );
}
