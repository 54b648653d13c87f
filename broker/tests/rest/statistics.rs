use fleetwave_hub::NewDevice;
use hyper::Method;
use serde_json::json;

use super::client::Rig;

#[test]
fn statistics_count_devices() {
    let rig = Rig::new();
    let off = NewDevice { enabled: false, ..NewDevice::new("off") };
    rig.hub.control().create_devices([NewDevice::new("a"), NewDevice::new("b"), off]).unwrap();
    assert_eq!(
        rig.get("/statistics/devices?api-version=2021-04-12").json(),
        json!({ "totalDeviceCount": 3, "enabledDeviceCount": 2, "disabledDeviceCount": 1 })
    );
    assert_eq!(rig.get("/statistics/service").json(), json!({ "connectedDeviceCount": 0 }));
}

#[test]
fn who_may_not_is_told_so_and_what_is_not_there_has_a_name() {
    let rig = Rig::new();
    let path = "/statistics/devices";
    for token in ["", "nonsense", &rig.token("device"), &rig.token("service")] {
        rig.ask_with(Method::GET, path, &[("authorization", token)], None)
            .refused(401, "IotHubUnauthorizedAccess");
    }
    rig.ask_with(Method::GET, path, &[("authorization", &rig.token("registryRead"))], None);
    rig.get("/no/such/thing").refused(501, "NotModelled");
    let other = rig.ask(Method::POST, path, None);
    other.refused(405, "GenericMethodNotAllowed");
    assert_eq!(other.header("allow"), Some("GET"));
    for method in [Method::HEAD, Method::OPTIONS] {
        assert_eq!(rig.ask(method, "/twins/d", None).status, 405);
    }
}

#[test]
fn what_the_hub_lacks_is_refused_by_name() {
    let rig = Rig::new();
    let got = rig.ask(Method::POST, "/jobs/create?api-version=2021-04-12", Some(json!({ "type": "import" })));
    got.refused(501, "NotModelled");
    assert!(got.json()["Message"].as_str().unwrap().contains("import and export jobs"), "{got:?}");
}
