use hyper::Method;
use serde_json::{Value, json};

use super::client::Rig;

/// The keys of an identity, primary and secondary.
fn keys(identity: &Value) -> [String; 2] {
    let keys = &identity["authentication"]["symmetricKey"];
    ["primaryKey", "secondaryKey"].map(|name| keys[name].as_str().expect("a key").to_owned())
}

#[test]
fn a_device_is_created_read_changed_and_deleted() {
    let rig = Rig::new();
    let created =
        rig.put("/devices/d1?api-version=2021-04-12", json!({ "deviceId": "d1", "status": "enabled" }));
    assert_eq!(created.status, 200);
    let mut identity = created.json();
    let [primary, secondary] = keys(&identity);
    assert!(primary.len() == 44 && primary != secondary, "the hub makes keys of 32 bytes");
    let generation = identity["generationId"].as_str().unwrap().to_owned();
    assert_eq!(generation.len(), 18);
    assert_eq!(created.header("etag").unwrap().trim_matches('"'), identity["etag"].as_str().unwrap());
    assert_eq!(rig.get("/devices/d1").json(), identity);

    // All members that SDKs look for are there, the empty ones too.
    let never = "0001-01-01T00:00:00";
    identity.as_object_mut().unwrap().remove("etag");
    assert_eq!(
        identity,
        json!({
            "deviceId": "d1", "generationId": generation, "connectionState": "Disconnected",
            "status": "enabled", "statusReason": null, "connectionStateUpdatedTime": never,
            "statusUpdatedTime": never, "lastActivityTime": never, "cloudToDeviceMessageCount": 0,
            "capabilities": { "iotEdge": false },
            "authentication": {
                "type": "sas",
                "symmetricKey": { "primaryKey": primary, "secondaryKey": secondary },
                "x509Thumbprint": { "primaryThumbprint": null, "secondaryThumbprint": null },
            },
        })
    );

    let changed = rig.ask_with(
        Method::PUT,
        "/devices/d1",
        &[("if-match", created.header("etag").unwrap())],
        Some(json!({ "deviceId": "d1", "status": "disabled", "statusReason": "lost", "etag": "whatever" })),
    );
    let now = changed.json();
    assert_eq!((&now["status"], &now["statusReason"]), (&json!("disabled"), &json!("lost")));
    assert_eq!(keys(&now), [primary, secondary], "keys that nobody mentions stay");
    assert_ne!(changed.header("etag"), created.header("etag"));
    assert_ne!(now["statusUpdatedTime"], never);

    let gone = rig.ask(Method::DELETE, "/devices/d1", None);
    assert_eq!((gone.status.as_u16(), gone.body.len()), (204, 0));
    rig.get("/devices/d1").refused(404, "DeviceNotFound");
    rig.ask(Method::DELETE, "/devices/d1", None).refused(404, "DeviceNotFound");
}

#[test]
fn etags_decide_whether_a_device_is_made_or_changed() {
    let rig = Rig::new();
    let body = json!({ "deviceId": "d" });
    let with =
        |etag: &str| rig.ask_with(Method::PUT, "/devices/d", &[("if-match", etag)], Some(body.clone()));
    with("*").refused(404, "DeviceNotFound");
    let first = rig.put("/devices/d", body.clone()).json()["etag"].as_str().unwrap().to_owned();
    rig.put("/devices/d", body.clone()).refused(409, "DeviceAlreadyExists");
    assert_eq!(with(&first).status, 200, "bare");
    with(&first).refused(412, "PreconditionFailed");
    for force in ["*", "\"*\""] {
        assert_eq!(with(force).status, 200, "{force}");
    }
    let delete = |etag: &str| rig.ask_with(Method::DELETE, "/devices/d", &[("if-match", etag)], None);
    delete(&format!("\"{first}\"")).refused(412, "PreconditionFailed");
    assert_eq!(delete("\"*\"").status, 204);
}

#[test]
fn authentication_can_be_keys_thumbprints_or_an_authority() {
    let rig = Rig::new();
    let digits = "0".repeat(40);
    let own = json!({ "primaryKey": "MTIzNDU2Nzg5MHF3ZXJ0eQ==", "secondaryKey": "eXRyZXdxMDk4NzY1NDMyMQ==" });
    for (id, authentication, kind) in [
        ("keys", json!({ "symmetricKey": own }), "sas"),
        ("thumbs", json!({ "x509Thumbprint": { "primaryThumbprint": digits } }), "selfSigned"),
        ("ca", json!({ "type": "certificateAuthority" }), "certificateAuthority"),
    ] {
        rig.put(&format!("/devices/{id}"), json!({ "deviceId": id, "authentication": authentication }));
        let stored = rig.get(&format!("/devices/{id}")).json()["authentication"].clone();
        assert_eq!(stored["type"], kind);
        let expected =
            if id == "keys" { own.clone() } else { json!({ "primaryKey": null, "secondaryKey": null }) };
        assert_eq!(stored["symmetricKey"], expected);
        let thumbprint = if id == "thumbs" { json!(digits) } else { Value::Null };
        assert_eq!(stored["x509Thumbprint"]["primaryThumbprint"], thumbprint);
    }
    // Node sends empty keys when it is told nothing: for a device without keys that means new ones.
    let empty = json!({ "type": "sas", "symmetricKey": { "primaryKey": "", "secondaryKey": "" } });
    let body = json!({ "deviceId": "ca", "authentication": empty });
    let changed = rig.ask_with(Method::PUT, "/devices/ca", &[("if-match", "*")], Some(body));
    assert_eq!(keys(&changed.json())[0].len(), 44);
}

#[test]
fn what_can_not_be_an_identity_is_refused_with_its_reason() {
    let rig = Rig::new();
    for (path, body) in [
        ("/devices/a", json!({ "deviceId": "b" })),
        ("/devices/a", json!({ "deviceId": "a", "moduleId": "m" })),
        ("/devices/a%20b", json!({ "deviceId": "a b" })),
        ("/devices/a%2Fb", json!({ "deviceId": "a/b" })),
        ("/devices/a%2Fb", json!({})),
        ("/devices/a", json!({ "deviceId": "a", "status": "asleep" })),
        (
            "/devices/a",
            json!({ "deviceId": "a", "authentication": { "symmetricKey": { "primaryKey": "AA==" } } }),
        ),
    ] {
        rig.put(path, body.clone()).refused(400, "ArgumentInvalid");
    }
    let got = rig.raw(Method::PUT, "/devices/a", &[], "{\n  \"deviceId\": }".into());
    got.refused(400, "IotHubFormatError");
    assert!(got.json()["Message"].as_str().unwrap().contains("line 2 column 15"), "{got:?}");
    rig.get("/devices/a").refused(404, "DeviceNotFound");
}

#[test]
fn an_edge_device_has_a_scope_and_its_own_modules() {
    let rig = Rig::new();
    let edge =
        rig.put("/devices/edge", json!({ "deviceId": "edge", "capabilities": { "iotEdge": true } })).json();
    let scope = edge["deviceScope"].as_str().expect("a scope").to_owned();
    assert_eq!(edge["parentScopes"], json!([]));
    let modules = rig.get("/devices/edge/modules").json();
    let names: Vec<_> = modules.as_array().unwrap().iter().map(|module| &module["moduleId"]).collect();
    assert_eq!(names, ["$edgeAgent", "$edgeHub"]);
    let leaf = rig.put("/devices/leaf", json!({ "deviceId": "leaf", "deviceScope": scope })).json();
    assert_eq!((&leaf["deviceScope"], &leaf["parentScopes"]), (&json!(scope), &json!([scope])));
    for wrong in ["somewhere", "ms-azure-iot-edge://edge-1", "ms-azure-iot-edge://nobody-1"] {
        let body = json!({ "deviceId": "leaf", "deviceScope": wrong });
        let got = rig.ask_with(Method::PUT, "/devices/leaf", &[("if-match", "*")], Some(body));
        got.refused(400, "InvalidDeviceScope");
    }
}

#[test]
fn devices_are_listed_up_to_a_number() {
    let rig = Rig::new();
    for id in ["a", "b", "c", "d", "e"] {
        rig.put(&format!("/devices/{id}"), json!({ "deviceId": id }));
    }
    rig.put("/devices/a/modules/m", json!({ "deviceId": "a", "moduleId": "m" }));
    let list = |query: &str| -> Vec<String> {
        let list = rig.get(&format!("/devices/?api-version=2021-04-12{query}")).json();
        let id = |device: &Value| device["deviceId"].as_str().unwrap().to_owned();
        let mut ids: Vec<_> = list.as_array().unwrap().iter().map(id).collect();
        ids.sort();
        ids
    };
    assert_eq!(list(""), ["a", "b", "c", "d", "e"]);
    assert_eq!(list("&top=3").len(), 3);
    for top in ["0", "1001", "-1", "many", ""] {
        rig.get(&format!("/devices?top={top}")).refused(400, "ArgumentInvalid");
    }
}
