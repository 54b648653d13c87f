//! Tokens that are renewed while things happen, and a broker that is no hub.

use std::time::Duration;

use fleetwave_hub::blob::Content;
use fleetwave_hub::plain::{Broker, PlainHub};
use fleetwave_hub::{MethodCall, NewDevice, TwinChange};

use super::support::{DEVICE, World, eventually, runs};

/// A token that is renewed soon; what is left of its life when that begins is a second or two, on whatever machine.
const LIFE: &str = "token_seconds = 10\n";
const RENEWALS: usize = 2;

fn renewals(world: &World) -> usize {
    world.log().matches("the token is renewed").count()
}

#[test]
fn while_tokens_are_renewed_no_change_of_the_desired_properties_is_missed() {
    let world = World::new(None, &[]);
    world.configure(&[], &super::by_key(&world, "HostName=localhost:PORT", LIFE));
    let agent = world.start();
    world.reports_until(runs("fw-1"));
    let control = world.hub.control();
    // Each of these is a patch; the agent has missed one if the twin that it read last is not the newest.
    let mut marks = 0;
    while renewals(&world) < RENEWALS {
        marks += 1;
        let desired = format!("{{\"mark\":{marks}}}").into_bytes();
        control
            .patch_twin(DEVICE, TwinChange { desired: Some(desired), ..TwinChange::default() })
            .expect("accepted");
        std::thread::sleep(Duration::from_millis(5));
    }
    let content = Content::Generated { seed: 2, size: 200_000 };
    world.release("fw-2", 2, &content, content.clone());
    assert_eq!(world.reports_until(runs("fw-2")), ["fw-1 updating -", "fw-2 idle ok"]);
    assert!(!world.log().contains("not connected"), "{}", world.log());
    assert!(agent.terminate().success());
}

#[test]
fn while_tokens_are_renewed_the_device_is_never_away_for_methods() {
    let world = World::new(None, &[]);
    world.configure(&[], &super::by_key(&world, "HostName=localhost:PORT", LIFE));
    let _agent = world.start();
    world.reports_until(runs("fw-1"));
    let control = world.hub.control();
    let mut outcomes = Vec::new();
    while renewals(&world) < RENEWALS {
        let call = MethodCall {
            name: "no-such-method".into(),
            payload: b"{}"[..].into(),
            connect_timeout: Duration::ZERO,
            response_timeout: Duration::from_secs(5),
        };
        let pending = control.invoke_method(DEVICE, call).expect("the hub runs");
        outcomes.push(pending.wait().map(|answer| answer.status));
    }
    // One that the hub put on the old connection in the instant in which it closed that may get lost, and no other one.
    let lost: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert!(lost.iter().all(|error| error.to_string().contains("did not answer in time")), "{lost:?}");
    assert!(lost.len() <= RENEWALS, "{} of {}: {lost:?}", lost.len(), outcomes.len());
}

#[test]
fn a_broker_that_is_no_hub_serves_with_the_plain_profile() {
    let world = World::new(None, &[]);
    let hub = PlainHub::builder(Broker::rumqttd()).start().expect("a broker");
    hub.control().create_devices([NewDevice::new(DEVICE)]).expect("a device");
    let (host, port) = hub.broker();
    world.configure(
        &[],
        &format!(
            "[hub]\nhost = \"{host}:{port}\"\ndevice_id = \"{DEVICE}\"\nprofile = \"plain\"\nplain = true\n"
        ),
    );
    let agent = world.start();
    let twin = || String::from_utf8(hub.control().twin(DEVICE).expect("a device")).expect("JSON");
    eventually("it reports", || twin().contains("\"id\":\"fw-1\""));
    let connections = || hub.control().metrics().expect("the hub runs").connections;
    assert_eq!(connections(), 1);
    // It says farewell itself: a broker publishes no will after that.
    assert!(agent.terminate().success());
    eventually("the hub knows that it is gone", || connections() == 0);
}
