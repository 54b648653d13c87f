use std::time::Duration;

use fleetwave_hub::{HubControl, HubServer, MethodCall, TwinChange};
use serde_json::Value;

use super::*;
use crate::scenario;

/// A fleet of the quickstart that is there at once and answers at once.
fn fleet(hub: &HubServer, more: &[&str]) -> ScriptedFleet {
    let sets = ["fleet.devices=8", "script.answer=0ms", "script.away=0ms"];
    let sets: Vec<String> = sets.iter().chain(more).map(|set| (*set).to_owned()).collect();
    let mut scenario = scenario::load("quickstart", &sets).expect("it is shipped").scenario;
    scenario.steps.clear();
    ScriptedFleet::start(&scenario, hub, "localhost").expect("the hub runs")
}

fn hub() -> HubServer {
    HubServer::builder().host_name("localhost").start().expect("a hub over memory starts")
}

/// Calls a method; waits for the device to connect.
fn call(control: &HubControl, device: &str) -> Result<(i32, Value), ControlError> {
    call_within(control, device, Duration::from_secs(20))
}

fn call_within(
    control: &HubControl,
    device: &str,
    response_timeout: Duration,
) -> Result<(i32, Value), ControlError> {
    let call = MethodCall {
        name: "reboot".into(),
        payload: Bytes::from_static(br#"{"delay":5}"#),
        connect_timeout: Duration::from_secs(20),
        response_timeout,
    };
    let answer = control.invoke_method(device, call)?.wait()?;
    Ok((answer.status, serde_json::from_slice(&answer.payload).unwrap_or_default()))
}

/// Looks at a twin until it is as wanted.
fn until(control: &HubControl, device: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    loop {
        let twin = serde_json::from_slice(&control.twin(device).expect("it exists")).expect("twins are JSON");
        if wanted(&twin) {
            return twin;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn desire(control: &HubControl, device: &str, patch: &str) {
    let desired = Some(patch.as_bytes().to_vec());
    control.patch_twin(device, TwinChange { desired, ..TwinChange::default() }).expect("the patch is good");
}

#[test]
fn devices_answer_methods_and_take_desired_properties_over() {
    let hub = hub();
    let fleet = fleet(&hub, &[]);
    let control = hub.control();
    let (status, body) = call(&control, fleet.first()).expect("it answers");
    assert_eq!((status, &body["method"], &body["payload"]["delay"]), (200, &"reboot".into(), &5.into()));
    desire(&control, fleet.first(), r#"{"colour":"red"}"#);
    let twin = until(&control, fleet.first(), |twin| twin["properties"]["reported"]["colour"] == "red");
    let reported = &twin["properties"]["reported"];
    assert_eq!(reported["script"]["desiredVersion"], twin["properties"]["desired"]["$version"]);
    desire(&control, fleet.first(), r#"{"colour":null}"#);
    until(&control, fleet.first(), |twin| twin["properties"]["reported"]["colour"].is_null());
}

#[test]
fn what_was_desired_before_a_device_came_is_taken_over_when_it_comes() {
    let hub = hub();
    drop(fleet(&hub, &[]));
    desire(&hub.control(), "dev-0000003", r#"{"mode":{"a":1}}"#);
    let _fleet = fleet(&hub, &[]);
    until(&hub.control(), "dev-0000003", |twin| twin["properties"]["reported"]["mode"]["a"] == 1);
}

#[test]
fn devices_refuse_and_vanish_as_the_script_says() {
    let hub = hub();
    let control = hub.control();
    let refusing = fleet(&hub, &["script.refuse=100%"]);
    let (status, body) = call(&control, refusing.first()).expect("it answers");
    assert_eq!((status, &body["error"]), (500, &"refused by its script".into()));
    desire(&control, refusing.first(), r#"{"colour":"red"}"#);
    let refused = |twin: &Value| !twin["properties"]["reported"]["script"]["refusedVersion"].is_null();
    let twin = until(&control, refusing.first(), refused);
    assert!(twin["properties"]["reported"]["colour"].is_null());
    drop(refusing);

    let vanishing = fleet(&hub, &["script.vanish=100%"]);
    // It comes back, and vanishes again.
    for _ in 0..2 {
        let answer = call_within(&control, vanishing.first(), Duration::from_millis(200));
        let ControlError::Refused(error) = answer.expect_err("it is gone") else { panic!("the hub runs") };
        assert!(matches!(error.code, ErrorCode::DeviceNotOnline | ErrorCode::GatewayTimeout), "{error}");
    }
}

#[test]
fn telemetry_comes_at_its_pace() {
    let hub = hub();
    let _fleet = fleet(&hub, &["script.telemetry=10ms"]);
    while hub.control().metrics().expect("it runs").telemetry < 20 {
        std::thread::sleep(Duration::from_millis(5));
    }
}
