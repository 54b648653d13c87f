use hyper::Method;
use serde_json::{Value, json};

use super::client::Rig;

/// A section of properties without what the hub adds.
fn plain(section: &Value) -> Value {
    let mut section = section.clone();
    section.as_object_mut().unwrap().retain(|key, _| !key.starts_with('$'));
    section
}

#[test]
fn a_post_may_say_that_it_is_a_patch() {
    let rig = Rig::new();
    rig.put("/devices/d", json!({ "deviceId": "d" }));
    let body = || Some(json!({ "tags": { "a": 1 } }));
    let patch = [("X-HTTP-Method-Override", "PATCH")];
    let patched = rig.ask_with(Method::POST, "/twins/d", &patch, body());
    assert_eq!((patched.status.as_u16(), &patched.json()["tags"]), (200, &json!({ "a": 1 })));
    let delete = [("X-HTTP-Method-Override", "DELETE")];
    assert_eq!(rig.ask_with(Method::POST, "/twins/d", &delete, body()).status, 405);
}

#[test]
fn a_twin_is_read_merged_and_replaced() {
    let rig = Rig::new();
    rig.put("/devices/d", json!({ "deviceId": "d" }));
    rig.put("/devices/d/modules/m", json!({ "deviceId": "d", "moduleId": "m" }));
    for (path, module) in [("/twins/d", None), ("/twins/d/modules/m", Some("m"))] {
        let first = rig.get(path);
        let twin = first.json();
        assert_eq!(twin.get("moduleId").and_then(Value::as_str), module);
        assert_eq!((&twin["deviceId"], &twin["authenticationType"]), (&json!("d"), &json!("sas")));
        assert_eq!(first.header("etag").unwrap().trim_matches('"'), twin["etag"].as_str().unwrap());
        assert_eq!(twin["properties"]["desired"]["$version"], 1);

        // What SDKs send back of a twin that they read is not theirs to change.
        let mut patch = twin.clone();
        patch["tags"] = json!({ "site": { "floor": 2, "room": "b" } });
        patch["properties"]["desired"]["wanted"] = json!({ "x": 1, "y": [1, 2] });
        patch["properties"]["reported"]["forged"] = json!(true);
        patch["status"] = json!("disabled");
        let merged = rig.ask(Method::PATCH, path, Some(patch));
        assert_eq!(merged.status, 200);
        let twin = merged.json();
        assert_eq!(twin, rig.get(path).json());
        assert_eq!(twin["status"], "enabled");
        assert_eq!(plain(&twin["properties"]["reported"]), json!({}));
        assert_eq!(plain(&twin["properties"]["desired"]), json!({ "wanted": { "x": 1, "y": [1, 2] } }));
        assert_eq!(twin["properties"]["desired"]["$version"], 2);
        assert_ne!(merged.header("etag"), first.header("etag"));

        let patch = json!({ "tags": { "site": { "floor": null } }, "properties": { "desired": { "wanted": { "x": null } } } });
        let twin = rig.ask(Method::PATCH, path, Some(patch)).json();
        assert_eq!(twin["tags"], json!({ "site": { "room": "b" } }));
        assert_eq!(plain(&twin["properties"]["desired"]), json!({ "wanted": { "y": [1, 2] } }));

        let twin =
            rig.put(path, json!({ "tags": { "a": 1 }, "properties": { "desired": { "b": 2 } } })).json();
        assert_eq!(twin["tags"], json!({ "a": 1 }));
        assert_eq!(plain(&twin["properties"]["desired"]), json!({ "b": 2 }));
    }
}

#[test]
fn a_null_empties_a_section_and_what_is_absent_stays() {
    let rig = Rig::new();
    rig.put("/devices/d", json!({ "deviceId": "d" }));
    let full = json!({ "tags": { "a": 1, "b": { "c": 2 } }, "properties": { "desired": { "x": 1, "y": { "z": 2 } } } });
    for method in [Method::PATCH, Method::PUT] {
        rig.ask(Method::PATCH, "/twins/d", Some(full.clone()));
        let nothing = json!({ "properties": {} });
        let twin = rig.ask(method.clone(), "/twins/d", Some(nothing)).json();
        assert_eq!((&twin["tags"], &twin["properties"]["desired"]["x"]), (&full["tags"], &json!(1)));
        let twin = rig.ask(method.clone(), "/twins/d", Some(json!({ "tags": null }))).json();
        assert_eq!((&twin["tags"], &twin["properties"]["desired"]["x"]), (&json!({}), &json!(1)));
        let twin = rig.ask(method, "/twins/d", Some(json!({ "properties": { "desired": null } }))).json();
        assert_eq!(plain(&twin["properties"]["desired"]), json!({}));
    }
}

#[test]
fn a_stale_etag_leaves_the_twin_alone() {
    let rig = Rig::new();
    rig.put("/devices/d", json!({ "deviceId": "d" }));
    let etag = rig.get("/twins/d").header("etag").unwrap().to_owned();
    let patch = |etag: &str, value: u32| {
        let body = json!({ "tags": { "v": value } });
        rig.ask_with(Method::PATCH, "/twins/d", &[("if-match", etag)], Some(body))
    };
    assert_eq!(patch(&etag, 1).status, 200);
    patch(&etag, 2).refused(412, "PreconditionFailed");
    patch(etag.trim_matches('"'), 2).refused(412, "PreconditionFailed");
    assert_eq!(rig.get("/twins/d").json()["tags"], json!({ "v": 1 }));
    for force in ["*", "\"*\"", ""] {
        assert_eq!(patch(force, 3).status, 200, "{force:?}");
    }
}

#[test]
fn what_can_not_stand_in_a_twin_is_refused() {
    let rig = Rig::new();
    rig.put("/devices/d", json!({ "deviceId": "d" }));
    for (body, status, name) in [
        (json!({ "tags": { "a.b": 1 } }), 400, "ArgumentInvalid"),
        (json!({ "tags": 7 }), 400, "IotHubFormatError"),
        (json!([]), 400, "IotHubFormatError"),
        (json!({ "properties": { "desired": { "x": "y".repeat(5000) } } }), 400, "ArgumentInvalid"),
        (
            json!({ "tags": { "x": ["y".repeat(4000), "y".repeat(4000), "y".repeat(4000)] } }),
            413,
            "MessageTooLarge",
        ),
    ] {
        rig.ask(Method::PATCH, "/twins/d", Some(body)).refused(status, name);
    }
    rig.raw(Method::PATCH, "/twins/d", &[], "{".into()).refused(400, "IotHubFormatError");
    rig.ask(Method::PATCH, "/twins/nobody", Some(json!({}))).refused(404, "DeviceNotFound");
    rig.get("/twins/d/modules/m").refused(404, "ModuleNotFound");
    assert_eq!(rig.get("/twins/d").json()["version"], 1);
}
