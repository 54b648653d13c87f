//! What the agent tells beside the twin, as a back end reads it from the hub's events.

mod support;

use std::time::Duration;

use fleetwave_hub::HubServerBuilder;
use rumqttc::{Client, Connection, Event, MqttOptions, Packet, QoS};
use serde_json::{Value, json};
use support::{DEVICE, PATIENCE, SIZE, World, agent, content, runs};

fn with_bus(hub: HubServerBuilder) -> HubServerBuilder {
    hub.bus(([127, 0, 0, 1], 0).into())
}

/// Who reads the device's messages from the event bus.
struct Reader {
    _client: Client,
    connection: Connection,
}

impl Reader {
    fn new(world: &World) -> Self {
        let bus = world.hub.bus_address().expect("the hub has a bus");
        let mut options = MqttOptions::new("reader", bus.ip().to_string(), bus.port());
        options.set_keep_alive(Duration::from_secs(30));
        let (client, mut connection) = Client::new(options, 64);
        client.subscribe(format!("fleetwave/events/telemetry/{DEVICE}"), QoS::AtLeastOnce).expect("it runs");
        for event in connection.iter() {
            if let Event::Incoming(Packet::SubAck(_)) = event.expect("the broker answers") {
                return Self { _client: client, connection };
            }
        }
        unreachable!("the iteration ends by an error");
    }

    /// The body of the next message of a kind.
    fn next(&mut self, kind: &str) -> Value {
        loop {
            let event =
                self.connection.recv_timeout(PATIENCE).expect("an event comes").expect("the broker is there");
            let Event::Incoming(Packet::Publish(publish)) = event else { continue };
            let event: Value = serde_json::from_slice(&publish.payload).expect("JSON");
            if event["data"]["properties"]["kind"] == kind {
                // It is JSON to the hub, too: the properties say so.
                assert!(event["data"]["body"].is_object(), "{event}");
                return event["data"]["body"].clone();
            }
        }
    }
}

#[test]
fn each_update_is_told_with_its_end_and_what_it_took() {
    let world = World::at_hub(None, with_bus);
    world.configure(&[], &world.without_tls());
    world.add("[telemetry]\noutcomes = true\n");
    let mut reader = Reader::new(&world);
    let _agent = world.start();
    world.release("fw-2", 2, &content(2), content(2));
    let outcome = reader.next("outcome");
    let told = (&outcome["target"], &outcome["release"], &outcome["seq"], &outcome["code"]);
    assert_eq!(told, (&json!("firmware"), &json!("fw-2"), &json!(2), &json!("ok")), "{outcome}");
    let bytes = outcome["bytes"].as_u64().expect("a number");
    assert!((SIZE..SIZE + 10_000).contains(&bytes), "{outcome}");
    assert_eq!((&outcome["requests"], &outcome["attempts"]), (&json!(1), &json!(1)), "{outcome}");
    assert!(outcome["seconds"].is_u64() && outcome["dropped"].is_null(), "{outcome}");
    // Not what was signed.
    world.release("fw-3", 3, &content(3), content(4));
    let outcome = reader.next("outcome");
    assert_eq!((&outcome["release"], &outcome["code"]), (&json!("fw-3"), &json!("digest_mismatch")));
    assert_eq!(outcome["attempts"], 2, "{outcome}");
}

#[test]
fn what_ends_without_a_connection_is_told_later() {
    let world = World::at_hub(None, with_bus);
    // The end of a release that fails its trial comes in the life after it, before there is a connection.
    world.configure(&["false"], &world.without_tls());
    world.add("[telemetry]\noutcomes = true\n");
    let mut reader = Reader::new(&world);
    let _agent = world.start();
    world.release("fw-2", 2, &content(2), content(2));
    let outcome = reader.next("outcome");
    assert_eq!(outcome["code"], "unhealthy", "{outcome}");
}

#[test]
fn a_device_says_nothing_that_it_was_not_asked_to() {
    let world = World::at_hub(None, with_bus);
    let mut reader = Reader::new(&world);
    let _agent = world.start();
    world.release("fw-2", 2, &content(2), content(2));
    world.reports_until(runs("fw-2"));
    // Whatever it said before is there when this is.
    world.release("fw-3", 3, &content(3), content(3));
    world.reports_until(runs("fw-3"));
    let mut kinds = Vec::new();
    while kinds.len() < 2 {
        let event =
            reader.connection.recv_timeout(PATIENCE).expect("an event comes").expect("the broker is there");
        if let Event::Incoming(Packet::Publish(publish)) = event {
            let event: Value = serde_json::from_slice(&publish.payload).expect("JSON");
            kinds.push(event["data"]["properties"]["kind"].clone());
        }
    }
    assert_eq!(kinds, ["grant", "grant"]);
}

#[test]
fn status_as_json_says_what_the_method_says() {
    let world = World::new(None, &[]);
    let json = |world: &World| -> Value {
        let output = agent(&["status", "--json", "--config"], &world.config());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    assert_eq!(json(&world)["targets"], json!({"firmware": null}), "no agent has run yet");
    let running = world.start();
    world.release("fw-2", 2, &content(2), content(2));
    world.reports_until(runs("fw-2"));
    let (_, asked) = world.call("status", &json!(null));
    running.kill();
    let found = json(&world);
    for member in ["running", "committed", "updating", "last"] {
        let (found, asked) = (&found["targets"]["firmware"][member], &asked["targets"]["firmware"][member]);
        assert_eq!(found, asked, "{member}");
    }
    assert_eq!((&found["downloads"], &found["version"]), (&asked["downloads"], &asked["version"]));
    assert_eq!(found["downloads"]["total"]["requests"], 1);
}
