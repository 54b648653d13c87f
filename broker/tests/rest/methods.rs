use fleetwave_hub::NewDevice;
use hyper::Method;
use serde_json::{Value, json};

use super::client::{Got, Rig};
use crate::support::{Client, Way};

fn call(rig: &Rig, path: &str, body: Value) -> Got {
    rig.ask(Method::POST, path, Some(body))
}

/// A device that answers methods, one with each of these statuses and bodies, and gives back what it was sent.
pub(super) fn device(
    rig: &Rig,
    id: &'static str,
    answers: Vec<(u16, Vec<u8>)>,
) -> std::thread::JoinHandle<Vec<(String, String)>> {
    let mut device = Client::open(&rig.hub, Way::Memory, id);
    device.log_in(&rig.hub.control(), id);
    device.subscribe(id);
    std::thread::spawn(move || {
        let mut heard = Vec::new();
        for (status, body) in answers {
            let (topic, payload) = device.message();
            let (name, rid) =
                topic.strip_prefix("$iothub/methods/POST/").unwrap().split_once("/?$rid=").unwrap();
            device.publish_at_most_once(&format!("$iothub/methods/res/{status}/?$rid={rid}"), &body);
            heard.push((name.to_owned(), payload));
        }
        heard
    })
}

#[test]
fn a_method_is_answered_by_its_device() {
    let rig = Rig::new();
    rig.hub.control().create_devices([NewDevice::new("d")]).unwrap();
    let answers = vec![
        (200, br#"{"done":true}"#.to_vec()),
        (0, Vec::new()),
        (404, b" 7 ".to_vec()),
        (200, b"null".to_vec()),
        (200, b"broken".to_vec()),
    ];
    let device = device(&rig, "d", answers);
    let path = "/twins/d/methods?api-version=2021-04-12";
    let got = call(&rig, path, json!({ "methodName": "go", "payload": { "far": [1] } }));
    assert_eq!(
        (got.status.as_u16(), got.json()),
        (200, json!({ "status": 200, "payload": { "done": true } }))
    );
    let got = call(&rig, path, json!({ "methodName": "go", "responseTimeoutInSeconds": 300 }));
    assert_eq!(got.json(), json!({ "status": 0, "payload": null }));
    let body = json!({ "methodName": "go", "payload": null, "connectTimeoutInSeconds": 0 });
    assert_eq!(call(&rig, path, body).json(), json!({ "status": 404, "payload": 7 }));
    let got = call(&rig, path, json!({ "methodName": "go", "payload": "" }));
    assert_eq!(got.json(), json!({ "status": 200, "payload": null }));
    call(&rig, path, json!({ "methodName": "go", "payload": "x" })).refused(502, "BadDeviceResponse");
    let payloads: Vec<_> = device.join().unwrap().into_iter().map(|(_, payload)| payload).collect();
    assert_eq!(payloads, [r#"{"far":[1]}"#, "null", "null", r#""""#, r#""x""#]);
}

#[test]
fn a_method_that_can_not_be_called_says_why() {
    let rig = Rig::new();
    rig.put("/devices/d", json!({ "deviceId": "d" }));
    let path = "/twins/d/methods";
    let offline = call(&rig, path, json!({ "methodName": "go" }));
    offline.refused(404, "DeviceNotOnline");
    let body = offline.json();
    assert_eq!(body["ExceptionMessage"], "", "SDKs read the inner document only then");
    let inner: Value = serde_json::from_str(body["Message"].as_str().unwrap()).unwrap();
    assert_eq!(inner["errorCode"], 404_103);
    call(&rig, "/twins/nobody/methods", json!({ "methodName": "go" })).refused(404, "DeviceNotFound");
    call(&rig, "/twins/d/modules/m/methods", json!({ "methodName": "go" })).refused(404, "ModuleNotFound");
    call(&rig, path, json!({ "payload": 1 })).refused(400, "ArgumentNull");
    for (name, value) in [
        ("responseTimeoutInSeconds", 4),
        ("responseTimeoutInSeconds", 301),
        ("connectTimeoutInSeconds", -1),
        ("connectTimeoutInSeconds", 301),
    ] {
        let mut body = json!({ "methodName": "go" });
        body[name] = value.into();
        call(&rig, path, body).refused(400, "ArgumentInvalid");
    }
}
