//! The back end's side of C2D messages and uploads.

use fleetwave_hub::NewDevice;
use fleetwave_hub_core::{C2dMessage, Feedback};
use hyper::Method;
use serde_json::json;

use super::client::{Got, Rig};

const FEEDBACK: &str = "/messages/serviceBound/feedback";
const FILES: &str = "/messages/servicebound/filenotifications";

/// A hub with the device `d`, in whose queue some messages wait.
fn rig(messages: &[&str]) -> Rig {
    let rig = Rig::new();
    let control = rig.hub.control();
    control.create_devices([NewDevice::new("d")]).unwrap();
    for id in messages {
        let message =
            C2dMessage { message_id: Some((*id).into()), feedback: Feedback::Full, ..C2dMessage::default() };
        control.send_c2d("d", message).unwrap();
    }
    rig
}

fn purge(rig: &Rig, id: &str) -> Got {
    rig.ask(Method::DELETE, &format!("/devices/{id}/commands?api-version=2021-04-12"), None)
}

fn lock(got: &Got) -> &str {
    let etag = got.header("etag").expect("a lock token");
    etag.strip_prefix('"').and_then(|etag| etag.strip_suffix('"')).expect("in quotes")
}

#[test]
fn a_queue_is_purged() {
    let rig = rig(&["1", "2"]);
    let expected = |purged| json!({ "totalMessagesPurged": purged, "deviceId": "d", "moduleId": null });
    assert_eq!(purge(&rig, "d").json(), expected(2));
    assert_eq!(purge(&rig, "d").json(), expected(0));
    purge(&rig, "e").refused(404, "DeviceNotFound");
}

#[test]
fn feedback_is_read_locked_and_completed() {
    let rig = rig(&["1", "2"]);
    let read = rig.get(FEEDBACK);
    assert_eq!((read.status.as_u16(), read.body.len()), (204, 0), "nothing has happened yet");
    purge(&rig, "d");
    let read = rig.get(FEEDBACK);
    let told = read.json();
    let ids = |told: &serde_json::Value| -> Vec<String> {
        let records = told.as_array().expect("an array");
        records.iter().map(|record| record["originalMessageId"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&told), ["1", "2"]);
    assert_eq!((&told[0]["statusCode"], &told[0]["deviceId"]), (&json!("Purged"), &json!("d")));
    assert_eq!(rig.get(FEEDBACK).status, 204, "it is locked");

    let abandon = format!("{FEEDBACK}/{}/abandon", lock(&read));
    assert_eq!(rig.ask(Method::POST, &abandon, None).status, 204);
    rig.ask(Method::POST, &abandon, None).refused(412, "DeviceMessageLockLost");
    let again = rig.get(FEEDBACK);
    assert_eq!(ids(&again.json()), ["1", "2"]);
    let complete = format!("{FEEDBACK}/{}", lock(&again));
    assert_eq!(rig.ask(Method::DELETE, &complete, None).status, 204);
    rig.ask(Method::DELETE, &complete, None).refused(412, "DeviceMessageLockLost");
    rig.ask(Method::DELETE, &format!("{FEEDBACK}/nonsense"), None).refused(412, "DeviceMessageLockLost");
    assert_eq!(rig.get(FEEDBACK).status, 204);
}

#[test]
fn file_notifications_are_read_locked_and_completed() {
    let rig = rig(&[]);
    assert_eq!(rig.get(FILES).status, 204);
    for name in ["a", "b"] {
        rig.hub.cloud_events().files.push(json!({ "blobName": name }).to_string());
    }
    let (first, second) = (rig.get(FILES), rig.get(FILES));
    assert_eq!(first.json(), json!({ "blobName": "a" }));
    assert_eq!(second.json(), json!({ "blobName": "b" }));
    assert_eq!(rig.ask(Method::DELETE, &format!("{FILES}/{}", lock(&first)), None).status, 204);
    assert_eq!(rig.ask(Method::POST, &format!("{FILES}/{}/abandon", lock(&second)), None).status, 204);
    assert_eq!(rig.get(FILES).json(), json!({ "blobName": "b" }));
}
