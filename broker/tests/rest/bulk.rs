use hyper::Method;
use serde_json::{Value, json};

use super::client::{Got, Rig};

fn bulk(rig: &Rig, items: Value) -> Got {
    rig.ask(Method::POST, "/devices?api-version=2021-04-12", Some(items))
}

/// The devices and names of the errors of a refused request.
fn errors(got: &Got) -> Vec<(String, String)> {
    assert_eq!(got.status, 400);
    let result = got.json();
    assert_eq!(result["isSuccessful"], false);
    let text = |error: &Value, name: &str| error[name].as_str().unwrap().to_owned();
    let errors = result["errors"].as_array().unwrap();
    errors.iter().map(|error| (text(error, "deviceId"), text(error, "errorCode"))).collect()
}

#[test]
fn many_devices_are_made_changed_and_deleted_at_once() {
    let rig = Rig::new();
    let made: Vec<_> = (0..100)
        .map(|i| {
            json!({
                "id": format!("d{i}"), "importMode": "create", "status": "enabled",
                "tags": { "place": i }, "properties": { "desired": { "wanted": true } },
            })
        })
        .collect();
    let got = bulk(&rig, made.into());
    assert_eq!(got.status, 200);
    assert_eq!(got.json(), json!({ "isSuccessful": true, "errors": [], "warnings": [] }));
    let twin = rig.get("/twins/d42").json();
    assert_eq!(
        (&twin["tags"], &twin["properties"]["desired"]["wanted"]),
        (&json!({ "place": 42 }), &json!(true))
    );

    let etag = rig.get("/devices/d1").json()["etag"].clone();
    let got = bulk(
        &rig,
        json!([
            { "id": "d0", "importMode": "Update", "status": "disabled", "tags": { "place": "new" } },
            { "id": "d1", "importMode": "UpdateIfMatchETag", "eTag": etag, "status": "disabled" },
            { "id": "d2", "importMode": "Delete" },
            { "id": "d3", "moduleId": "m", "importMode": "create" },
            { "id": "d4", "importMode": "updateTwin", "tags": {} },
        ]),
    );
    assert_eq!(got.status, 200, "{got:?}");
    assert_eq!(rig.get("/devices/d0").json()["status"], "disabled");
    assert_eq!(rig.get("/twins/d0").json()["tags"], json!({ "place": "new" }));
    assert_eq!(rig.get("/devices/d1").json()["status"], "disabled");
    rig.get("/devices/d2").refused(404, "DeviceNotFound");
    assert_eq!(rig.get("/devices/d3/modules/m").json()["moduleId"], "m");
    assert_eq!(rig.get("/twins/d4").json()["tags"], json!({}));

    // Node's SDK passes on a device's description, with the etag as it is called there.
    let etag = rig.get("/devices/d1").json()["etag"].clone();
    let item = json!([{ "id": "d1", "importMode": "UpdateIfMatchETag", "etag": etag, "status": "enabled" }]);
    assert_eq!(bulk(&rig, item).status, 200);
}

#[test]
fn items_that_fail_are_told_by_name_and_the_others_are_done() {
    let rig = Rig::new();
    rig.put("/devices/there", json!({ "deviceId": "there" }));
    let got = bulk(
        &rig,
        json!([
            { "id": "there", "importMode": "create" },
            { "id": "new", "importMode": "create" },
            { "id": "new", "importMode": "create" },
            { "id": "absent", "importMode": "delete" },
            { "id": "odd", "importMode": "polish" },
            { "id": "a/b", "importMode": "create" },
        ]),
    );
    let mut errors = errors(&got);
    errors.sort();
    let expected = [
        ("a/b", "ArgumentInvalid"),
        ("absent", "DeviceNotFound"),
        ("new", "DeviceDefinedMultipleTimes"),
        ("odd", "ArgumentInvalid"),
        ("there", "DeviceAlreadyExists"),
    ];
    assert_eq!(errors, expected.map(|(id, code)| (id.to_owned(), code.to_owned())));
    assert_eq!(rig.get("/devices/new").status, 200);
    let stale = json!([
        { "id": "new", "importMode": "deleteIfMatchETag", "eTag": "c3RhbGU=" },
        { "id": "there", "importMode": "updateIfMatchETag" },
    ]);
    let got = bulk(&rig, stale);
    assert!(got.json()["errors"].as_array().unwrap().len() == 2, "{got:?}");
}

#[test]
fn a_request_has_at_most_a_hundred_items() {
    let rig = Rig::new();
    let items: Vec<_> = (0..101).map(|i| json!({ "id": format!("d{i}"), "importMode": "create" })).collect();
    bulk(&rig, items.into()).refused(413, "TooManyDevices");
    bulk(&rig, json!([])).refused(413, "TooManyDevices");
    bulk(&rig, json!({ "id": "d" })).refused(400, "IotHubFormatError");
    rig.get("/devices/d0").refused(404, "DeviceNotFound");
}
