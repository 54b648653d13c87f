use fleetwave_hub::{DpsSettings, HubServerBuilder};
use fleetwave_protocol::sas::{self, Key};
use fleetwave_protocol::{WallTime, bag};
use hyper::Method;
use serde_json::{Value, json};

use super::client::{Got, HOST, Rig};

const SCOPE: &str = "0ne00000001";

fn owner() -> Key {
    Key::from_bytes(*b"the provisioning owner's own key")
}

struct Service(Rig);

impl Service {
    fn new() -> Self {
        Self::with(|builder| builder)
    }

    fn with(configure: impl FnOnce(HubServerBuilder) -> HubServerBuilder) -> Self {
        Self(Rig::with(|builder| {
            configure(builder).shards(2).provisioning(DpsSettings {
                id_scope: SCOPE.into(),
                hub: HOST.into(),
                keys: [owner(), Key::from_bytes(*b"the provisioning owner's other!!")],
            })
        }))
    }

    fn later(&self) -> WallTime {
        let now = self.0.hub.control().clock().now().wall;
        WallTime::from_unix_millis(now.as_unix_millis() + 3_600_000)
    }

    fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Option<Value>) -> Got {
        let token = sas::token(&owner(), HOST, self.later(), Some("provisioningserviceowner"));
        let mut headers = headers.to_vec();
        headers.push(("authorization", &token));
        self.0.ask_with(method, path, &headers, body)
    }

    fn put(&self, path: &str, body: Value) -> Got {
        self.ask(Method::PUT, path, &[], Some(body))
    }

    fn get(&self, path: &str) -> Got {
        self.ask(Method::GET, path, &[], None)
    }

    /// What a device asks, with a token of its own.
    fn device(&self, id: &str, key: &Key, method: Method, rest: &str, body: Option<Value>) -> Got {
        let token = sas::token(key, &format!("{SCOPE}/registrations/{id}"), self.later(), None);
        let path = format!("/{SCOPE}/registrations/{id}{rest}?api-version=2019-03-31");
        self.0.ask_with(method, &path, &[("authorization", &token)], body)
    }

    /// Registers a device, and asks until it knows.
    fn register(&self, id: &str, key: &Key) -> Value {
        let body = json!({ "registrationId": id, "payload": { "from": "tests" } });
        let taken = self.device(id, key, Method::PUT, "/register", Some(body));
        assert_eq!(taken.status, 202, "{taken:?}");
        assert!(taken.header("retry-after").is_some_and(|seconds| seconds.parse::<u32>().is_ok()));
        assert_eq!(taken.json()["status"], "assigning");
        let operation = taken.json()["operationId"].as_str().unwrap().to_owned();
        loop {
            let asked = self.device(id, key, Method::GET, &format!("/operations/{operation}"), None);
            if asked.status == 200 {
                return asked.json();
            }
            assert_eq!(asked.status, 202, "{asked:?}");
        }
    }
}

fn symmetric(id: &str) -> Value {
    json!({ "registrationId": id, "attestation": { "type": "symmetricKey" } })
}

#[test]
fn an_enrollment_is_written_read_and_deleted() {
    let service = Service::new();
    let path = "/enrollments/Dev-1?api-version=2021-10-01";
    let created = service.put(path, symmetric("Dev-1"));
    assert_eq!(created.status, 200, "{created:?}");
    let created = created.json();
    assert_eq!(created["provisioningStatus"], "enabled");
    let key = created["attestation"]["symmetricKey"]["primaryKey"].as_str().unwrap();

    let read = service.get(path).json();
    assert_eq!(read["registrationId"], "Dev-1");
    assert_eq!(read["etag"], created["etag"]);
    assert!(read["attestation"]["symmetricKey"].is_null(), "keys are not shown by the way");
    let keys = service.ask(Method::POST, "/enrollments/dev-1/attestationmechanism", &[], None).json();
    assert_eq!(keys["symmetricKey"]["primaryKey"], key);

    assert_eq!(service.put(path, symmetric("Dev-1")).status, 409);
    let with = |etag: &str| service.ask(Method::PUT, path, &[("if-match", etag)], Some(symmetric("Dev-1")));
    assert_eq!(with("\"another\"").status, 412);
    let changed = with(created["etag"].as_str().unwrap());
    assert_eq!(changed.status, 200);
    assert_eq!(changed.json()["attestation"], keys, "what was not given again stays");
    assert_eq!(service.ask(Method::DELETE, path, &[("if-match", "\"no\"")], None).status, 412);
    assert_eq!(service.ask(Method::DELETE, path, &[], None).status, 204);
    let gone = service.get(path);
    assert_eq!((gone.status.as_u16(), &gone.json()["errorCode"]), (404, &json!(404_204)));
}

#[test]
fn a_bad_enrollment_and_a_bad_token_are_told_what_is_wrong() {
    let service = Service::new();
    for (body, expected) in [
        (json!({}), "registrationId is missing"),
        (json!({ "registrationId": "other" }), "the path says"),
        (json!({ "registrationId": "d", "attestation": { "type": "x" } }), "symmetricKey or x509"),
        (
            json!({ "registrationId": "d", "attestation": { "type": "x509", "x509": {} } }),
            "clientCertificates",
        ),
        (
            json!({ "registrationId": "d", "attestation":
                { "type": "symmetricKey", "symmetricKey": { "primaryKey": "short" } } }),
            "primaryKey",
        ),
    ] {
        let got = service.put("/enrollments/d", body);
        assert_eq!(got.status, 400, "{got:?}");
        assert!(got.json()["message"].as_str().unwrap().contains(expected), "{got:?}");
    }
    let tpm = json!({ "registrationId": "d", "attestation": { "type": "tpm" } });
    assert_eq!(service.put("/enrollments/d", tpm).status, 501);
    // The hub's owner is not the provisioning service's.
    assert_eq!(service.0.get("/enrollments/d").status, 401);
    let nobody = service.device("d", &owner(), Method::PUT, "/register", Some(json!({})));
    assert_eq!((nobody.status.as_u16(), &nobody.json()["errorCode"]), (401, &json!(401_002)));
}

#[test]
fn a_device_of_a_group_comes_with_a_derived_key() {
    let service = Service::new();
    let group = json!({
        "enrollmentGroupId": "ring",
        "attestation": { "type": "symmetricKey" },
        "initialTwin": { "tags": { "ring": 1 }, "properties": { "desired": { "interval": 5 } } },
    });
    let created = service.put("/enrollmentGroups/ring", group).json();
    let key = created["attestation"]["symmetricKey"]["primaryKey"].as_str().unwrap();
    let key = Key::from_base64(key).unwrap().derive("dev-1");

    let done = service.register("dev-1", &key);
    assert_eq!(done["status"], "assigned");
    let state = &done["registrationState"];
    assert_eq!((&state["assignedHub"], &state["deviceId"]), (&json!(HOST), &json!("dev-1")));
    assert_eq!((&state["substatus"], &state["status"]), (&json!("initialAssignment"), &json!("assigned")));
    let twin: Value = serde_json::from_slice(&service.0.hub.control().twin("dev-1").unwrap()).unwrap();
    assert_eq!((&twin["tags"]["ring"], &twin["properties"]["desired"]["interval"]), (&json!(1), &json!(5)));

    // It is there; a second registration keeps its twin.
    assert_eq!(service.register("dev-1", &key)["registrationState"]["substatus"], "deviceDataMigrated");
    let own = service.device("dev-1", &key, Method::POST, "", Some(json!({}))).json();
    assert_eq!(own["deviceId"], "dev-1");
    assert_eq!(service.get("/registrations/dev-1").json()["deviceId"], "dev-1");
    let all = service.ask(Method::POST, "/registrations/ring/query", &[], Some(json!({})));
    assert_eq!(all.json().as_array().map(Vec::len), Some(1));
    // Another device's key is no good.
    let other = service.device("dev-2", &key, Method::PUT, "/register", Some(json!({})));
    assert_eq!(other.status, 401);
    assert_eq!(service.ask(Method::DELETE, "/registrations/dev-1", &[], None).status, 204);
    assert_eq!(service.get("/registrations/dev-1").status, 404);
    assert_eq!(service.ask(Method::DELETE, "/enrollmentGroups/ring", &[], None).status, 204);
    assert_eq!(service.get("/enrollmentGroups/ring").status, 404);
}

#[test]
fn a_disabled_enrollment_and_another_device_id_are_respected() {
    let service = Service::new();
    let mut enrollment = symmetric("reg");
    enrollment["deviceId"] = json!("the-device");
    let created = service.put("/enrollments/reg", enrollment.clone()).json();
    let key = created["attestation"]["symmetricKey"]["secondaryKey"].as_str().unwrap();
    let key = Key::from_base64(key).unwrap();
    let done = service.register("reg", &key);
    assert_eq!(done["registrationState"]["deviceId"], "the-device");
    assert!(service.0.hub.control().twin("the-device").is_ok());
    enrollment["provisioningStatus"] = json!("disabled");
    service.ask(Method::PUT, "/enrollments/reg", &[("if-match", "*")], Some(enrollment));
    assert_eq!(service.register("reg", &key)["status"], "disabled");
}

#[test]
fn enrollments_come_by_pages_and_in_bulk() {
    let service = Service::new();
    let bulk = |mode: &str, ids: &[&str]| {
        let enrollments: Vec<Value> = ids.iter().map(|id| symmetric(id)).collect();
        let body = json!({ "mode": mode, "enrollments": enrollments });
        service.ask(Method::POST, "/enrollments/?api-version=2021-10-01", &[], Some(body)).json()
    };
    assert_eq!(bulk("create", &["a", "b", "c"]), json!({ "isSuccessful": true, "errors": [] }));
    let failed = bulk("create", &["c", "d"]);
    assert_eq!(
        (&failed["isSuccessful"], &failed["errors"][0]["registrationId"]),
        (&json!(false), &json!("c"))
    );

    let mut seen = Vec::new();
    let mut continuation = String::new();
    loop {
        let headers = [("x-ms-max-item-count", "3"), ("x-ms-continuation", continuation.as_str())];
        let query = json!({ "query": "SELECT * FROM enrollments" });
        let page = service.ask(Method::POST, "/enrollments/query", &headers, Some(query));
        seen.extend(page.json().as_array().unwrap().iter().map(|e| e["registrationId"].clone()));
        match page.header("x-ms-continuation") {
            Some(token) => continuation = bag::decode(token).unwrap().into_owned(),
            None => break,
        }
    }
    assert_eq!(seen, ["a", "b", "c", "d"]);
    assert_eq!(bulk("delete", &["a", "b"])["isSuccessful"], true);
    // The vendor's samples ask for `*` alone.
    let star = Some(json!({ "query": "*" }));
    let everything = service.ask(Method::POST, "/enrollmentGroups/query", &[], star);
    assert_eq!(everything.status, 200, "{everything:?}");
    let query = json!({ "query": "select * from enrollmentGroups" });
    assert_eq!(service.ask(Method::POST, "/enrollmentGroups/query", &[], Some(query)).json(), json!([]));
    let query = json!({ "query": "select * from enrollments where etag = 'x'" });
    assert_eq!(service.ask(Method::POST, "/enrollments/query", &[], Some(query)).status, 501);
}

#[test]
fn what_was_enrolled_and_registered_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let start = || Service::with(|builder| builder.data(folder.path()));
    let service = start();
    let created = service.put("/enrollments/reg", symmetric("reg")).json();
    let key = created["attestation"]["symmetricKey"]["primaryKey"].as_str().unwrap();
    let key = Key::from_base64(key).unwrap();
    service.register("reg", &key);
    service.put("/enrollments/gone", symmetric("gone"));
    service.ask(Method::DELETE, "/enrollments/gone", &[], None);
    let before = service.get("/enrollments/reg").json();
    drop(service);

    let service = start();
    assert_eq!(service.get("/enrollments/reg").json(), before);
    assert_eq!(service.get("/enrollments/gone").status, 404);
    assert_eq!(service.register("reg", &key)["registrationState"]["substatus"], "deviceDataMigrated");
    let other = service.put("/enrollments/new", symmetric("new")).json();
    assert_ne!(other["etag"], before["etag"], "etags are not given twice");
}
