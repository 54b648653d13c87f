use hyper::Method;
use serde_json::json;

use super::client::Rig;

#[test]
fn a_module_is_created_read_changed_and_deleted() {
    let rig = Rig::new();
    let path = "/devices/d/modules/m";
    let body = json!({ "deviceId": "d", "moduleId": "m", "managedBy": "me" });
    rig.put(path, body.clone()).refused(404, "DeviceNotFound");
    rig.put("/devices/d", json!({ "deviceId": "d" }));
    rig.get(path).refused(404, "ModuleNotFound");
    let created = rig.put(path, body.clone()).json();
    assert_eq!((&created["deviceId"], &created["moduleId"]), (&json!("d"), &json!("m")));
    assert_eq!(created["managedBy"], "me");
    assert_eq!(created["authentication"]["type"], "sas");
    assert_eq!(created.get("status"), None, "modules have none");
    assert_eq!(rig.get(path).json(), created);
    rig.put(path, body.clone()).refused(409, "ModuleAlreadyExistsOnDevice");

    let digits = "a".repeat(40);
    let shown = json!({ "type": "selfSigned", "x509Thumbprint": { "primaryThumbprint": digits } });
    let body = json!({ "deviceId": "d", "moduleId": "m", "authentication": shown });
    let stale = rig.ask_with(Method::PUT, path, &[("if-match", "\"c3RhbGU=\"")], Some(body.clone()));
    stale.refused(412, "PreconditionFailed");
    let changed = rig.ask_with(Method::PUT, path, &[("if-match", "*")], Some(body)).json();
    assert_eq!(changed["authentication"]["type"], "selfSigned");
    assert_eq!(changed["managedBy"], json!(null));

    rig.put("/devices/d/modules/n", json!({ "deviceId": "d", "moduleId": "n" }));
    let list = rig.get("/devices/d/modules").json();
    let ids: Vec<_> = list.as_array().unwrap().iter().map(|module| &module["moduleId"]).collect();
    assert_eq!(ids, ["m", "n"]);

    assert_eq!(rig.ask(Method::DELETE, path, None).status, 204);
    rig.get(path).refused(404, "ModuleNotFound");
    rig.ask(Method::DELETE, "/devices/d", None);
    rig.get("/devices/d/modules/n").refused(404, "DeviceNotFound");
    rig.get("/devices/d/modules").refused(404, "DeviceNotFound");
}
