use fleetwave_hub::NewDevice;
use hyper::Method;
use serde_json::json;

use super::client::Rig;
use super::methods::device;

#[test]
fn a_digital_twin_shows_components_and_what_was_acknowledged() {
    let rig = Rig::new();
    let reported = r#"{"serial":"x","t":{"__t":"c","target":{"value":20,"ac":200,"av":1}}}"#;
    let desired = r#"{"t":{"__t":"c","target":20}}"#;
    let new =
        NewDevice { reported: Some(reported.into()), desired: Some(desired.into()), ..NewDevice::new("d") };
    rig.hub.control().create_devices([new]).unwrap();
    let got = rig.get("/digitaltwins/d?api-version=2020-09-30");
    assert_eq!(got.status, 200, "{got:?}");
    assert_eq!(got.header("etag"), rig.get("/twins/d").header("etag"));
    let twin = got.json();
    assert_eq!((&twin["$dtId"], &twin["$metadata"]["$model"]), (&json!("d"), &json!("")));
    assert_eq!((&twin["serial"], &twin["t"]["target"]), (&json!("x"), &json!(20)));
    let target = &twin["t"]["$metadata"]["target"];
    assert_eq!(
        (&target["desiredValue"], &target["ackCode"], &target["ackVersion"]),
        (&json!(20), &json!(200), &json!(1))
    );
    rig.get("/digitaltwins/nobody").refused(404, "DeviceNotFound");
}

#[test]
fn a_digital_twin_is_changed_by_a_json_patch() {
    let rig = Rig::new();
    rig.put("/devices/d", json!({ "deviceId": "d" }));
    let patch =
        |etag: &str, body| rig.ask_with(Method::PATCH, "/digitaltwins/d", &[("if-match", etag)], Some(body));
    let changed = patch("", json!([{ "op": "add", "path": "/t/target", "value": 21 }]));
    assert_eq!((changed.status.as_u16(), changed.body.len()), (202, 0));
    assert!(changed.header("location").unwrap().ends_with("/digitaltwins/d"));
    let twin = rig.get("/twins/d");
    assert_eq!(changed.header("etag"), twin.header("etag"));
    assert_eq!(twin.json()["properties"]["desired"]["t"], json!({ "__t": "c", "target": 21 }));
    let etag = changed.header("etag").unwrap();
    assert_eq!(patch(etag, json!([{ "op": "remove", "path": "/t/target" }])).status, 202);
    patch(etag, json!([{ "op": "remove", "path": "/t" }])).refused(412, "PreconditionFailed");
    assert_eq!(rig.get("/twins/d").json()["properties"]["desired"]["t"], json!({ "__t": "c" }));
    patch("", json!([{ "op": "test", "path": "/t" }])).refused(400, "InvalidDigitalTwinPatch");
    patch("", json!({})).refused(400, "InvalidDigitalTwinJsonPatch");
}

#[test]
fn commands_are_methods_of_the_device() {
    let rig = Rig::new();
    rig.hub.control().create_devices([NewDevice::new("d")]).unwrap();
    let path = "/digitaltwins/d/commands/reboot?responseTimeoutInSeconds=30&connectTimeoutInSeconds=0";
    rig.ask(Method::POST, path, None).refused(404, "DeviceNotOnline");
    let device = device(&rig, "d", vec![(200, b"{\"ok\":1}".to_vec()), (404, Vec::new())]);
    let got = rig.ask(Method::POST, path, Some(json!(3)));
    assert_eq!((got.status.as_u16(), got.json()), (200, json!({ "ok": 1 })));
    assert_eq!(got.header("x-ms-command-statuscode"), Some("200"));
    let got = rig.ask(Method::POST, "/digitaltwins/d/components/t/commands/getMax", None);
    assert_eq!((got.json(), got.header("x-ms-command-statuscode")), (json!(null), Some("404")));
    let heard = device.join().unwrap();
    let heard: Vec<_> = heard.iter().map(|(name, payload)| (name.as_str(), payload.as_str())).collect();
    assert!(matches!(heard[..], [("reboot", "3"), ("t*getMax" | "t%2AgetMax", "null")]), "{heard:?}");
    let slow = "/digitaltwins/d/commands/reboot?responseTimeoutInSeconds=301";
    rig.ask(Method::POST, slow, None).refused(400, "ArgumentInvalid");
}
