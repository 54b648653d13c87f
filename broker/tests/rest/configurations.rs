use hyper::Method;
use serde_json::{Value, json};

use super::client::{Got, Rig};

fn change(rig: &Rig, id: &str, etag: &str, body: Value) -> Got {
    rig.ask_with(Method::PUT, &format!("/configurations/{id}"), &[("if-match", etag)], Some(body))
}

fn body(id: &str) -> Value {
    json!({
        "id": id, "schemaVersion": "1.0", "labels": { "team": "x" }, "priority": 10,
        "content": { "deviceContent": { "properties.desired.firmware": { "id": "fw-2" } } },
        "targetCondition": "tags.ring = 1",
        "metrics": { "queries": { "done": "SELECT deviceId FROM devices WHERE properties.reported.done = true" } },
    })
}

fn devices(rig: &Rig) {
    let items: Vec<_> = (0..10)
        .map(|i| json!({ "id": format!("d{i}"), "importMode": "create", "tags": { "ring": i % 2 } }))
        .collect();
    assert_eq!(rig.ask(Method::POST, "/devices", Some(items.into())).status, 200);
}

#[test]
fn a_configuration_is_created_read_changed_and_deleted() {
    let rig = Rig::new();
    devices(&rig);
    let created = rig.put("/configurations/fw", body("fw"));
    assert_eq!(created.status, 200, "{created:?}");
    let json = created.json();
    assert_eq!(created.header("etag").unwrap().trim_matches('"'), json["etag"].as_str().unwrap());
    for (name, value) in body("fw").as_object().unwrap().iter().filter(|(name, _)| *name != "metrics") {
        assert_eq!(&json[name], value, "{name}");
    }
    assert_eq!(json["metrics"]["queries"], body("fw")["metrics"]["queries"]);
    assert_eq!(json["createdTimeUtc"], json["lastUpdatedTimeUtc"]);
    assert_eq!(rig.get("/configurations/fw").json(), json);
    assert_eq!(rig.get("/twins/d1").json()["properties"]["desired"]["firmware"], json!({ "id": "fw-2" }));

    rig.put("/configurations/fw", body("fw")).refused(409, "ConfigurationAlreadyExists");
    change(&rig, "other", "*", body("other")).refused(404, "ConfigurationNotFound");
    let mut next = body("fw");
    next["priority"] = json!(20);
    next["targetCondition"] = json!("tags.ring = 0");
    let changed = change(&rig, "fw", created.header("etag").unwrap(), next.clone());
    assert_eq!((changed.status.as_u16(), &changed.json()["priority"]), (200, &json!(20)));
    assert_eq!(rig.get("/twins/d1").json()["properties"]["desired"].get("firmware"), None);
    change(&rig, "fw", json["etag"].as_str().unwrap(), next.clone()).refused(412, "PreconditionFailed");

    // The content is for ever; empty members beside it, as Java writes them, are no change.
    next["content"]["moduleContent"] = json!({});
    next["content"]["modulesContent"] = json!({});
    assert_eq!(change(&rig, "fw", "\"*\"", next.clone()).status, 200);
    next["content"]["deviceContent"]["properties.desired.firmware"] = json!({ "id": "fw-3" });
    change(&rig, "fw", "*", next.clone()).refused(400, "CannotModifyImmutableConfigurationContent");
    next.as_object_mut().unwrap().remove("content");
    assert_eq!(change(&rig, "fw", "*", next).json()["content"], body("fw")["content"]);

    rig.put("/configurations/second", body("second"));
    let list = |query: &str| -> Vec<Value> {
        let list = rig.get(&format!("/configurations?{query}")).json();
        list.as_array().unwrap().iter().map(|one| one["id"].clone()).collect()
    };
    assert_eq!((list(""), list("top=1")), (vec![json!("fw"), json!("second")], vec![json!("fw")]));
    rig.get("/configurations?top=0").refused(400, "ArgumentInvalid");

    let delete = |etag: &str| rig.ask_with(Method::DELETE, "/configurations/fw", &[("if-match", etag)], None);
    delete("stale").refused(412, "PreconditionFailed");
    assert_eq!(delete("").status, 204);
    rig.get("/configurations/fw").refused(404, "ConfigurationNotFound");
    delete("").refused(404, "ConfigurationNotFound");
}

#[test]
fn metrics_count_what_a_configuration_reached() {
    let rig = Rig::with(|builder| builder.shards(3));
    devices(&rig);
    let mut low = body("low");
    low["targetCondition"] = json!("*");
    low["metrics"] = json!({ "queries": {
        "mine": "SELECT deviceId FROM devices WHERE configurations.[[low]].status = 'Applied'",
        "ring": "SELECT deviceId FROM devices WHERE tags.ring = 1",
    } });
    rig.put("/configurations/low", low);
    let mut high = body("high");
    high["priority"] = json!(100);
    rig.put("/configurations/high", high);
    let low = rig.get("/configurations/low").json();
    assert_eq!(low["systemMetrics"]["results"], json!({ "targetedCount": 10, "appliedCount": 5 }));
    assert_eq!(low["metrics"]["results"], json!({ "mine": 5, "ring": 5 }));
    let high = rig.get("/configurations/high").json();
    assert_eq!(high["systemMetrics"]["results"], json!({ "targetedCount": 5, "appliedCount": 5 }));
    assert_eq!(rig.get("/configurations").json(), json!([low, high]));
    // The queries that the counts say they are from give as many rows.
    for configuration in [&low, &high] {
        for (name, query) in configuration["systemMetrics"]["queries"].as_object().unwrap() {
            let rows = rig.ask(Method::POST, "/devices/query", Some(json!({ "query": query }))).json();
            let count = rows.as_array().unwrap().len();
            assert_eq!(configuration["systemMetrics"]["results"][name], json!(count), "{query}");
        }
    }
}

#[test]
fn modules_and_edge_devices_have_configurations_too() {
    let rig = Rig::new();
    rig.put("/devices/e", json!({ "deviceId": "e", "capabilities": { "iotEdge": true } }));
    rig.put("/devices/e/modules/m", json!({ "deviceId": "e", "moduleId": "m" }));
    // As the vendor's own tests write it: the whole of the desired properties.
    let content = json!({ "moduleContent": { "properties.desired": { "prop1": "foo" } } });
    let module = json!({
        "id": "mod", "content": content, "priority": 20,
        "targetCondition": "FROM devices.modules WHERE moduleId = 'm'",
    });
    let created = rig.put("/configurations/mod", module).json();
    assert_eq!(created["content"], content);
    assert_eq!(created["metrics"], json!({ "results": {}, "queries": {} }));
    assert_eq!(created["systemMetrics"]["results"]["targetedCount"], 1);
    assert_eq!(rig.get("/twins/e/modules/m").json()["properties"]["desired"]["prop1"], "foo");

    let agent = json!({ "$edgeAgent": { "properties.desired": { "schemaVersion": "1.1" } } });
    let edge = json!({ "id": "edge", "content": { "modulesContent": agent }, "targetCondition": "*" });
    let created = rig.put("/configurations/edge", edge);
    assert_eq!(created.status, 200, "{created:?}");
    let results = &created.json()["systemMetrics"]["results"];
    assert_eq!(results["reportedSuccessfulCount"], 0);
    assert_eq!(results["targetedCount"], 1);
    assert_eq!(
        rig.get("/twins/e/modules/$edgeAgent").json()["properties"]["desired"]["schemaVersion"],
        "1.1"
    );
}

#[test]
fn what_can_not_be_a_configuration_is_refused() {
    let rig = Rig::new();
    let with = |name: &str, value: Value| {
        let mut body = body("c");
        body[name] = value;
        rig.put("/configurations/c", body)
    };
    with("targetCondition", json!("tags.ring =")).refused(400, "InvalidConfigurationTargetCondition");
    with("content", json!({ "deviceContent": { "tags.x": 1 } })).refused(400, "InvalidConfigurationContent");
    with("metrics", json!({ "queries": { "n": "nonsense" } }))
        .refused(400, "InvalidConfigurationCustomMetricsQuery");
    with("priority", json!(-1)).refused(400, "ArgumentInvalid");
    with("id", json!("other")).refused(400, "ArgumentInvalid");
    with("labels", json!({ "a": 1 })).refused(400, "ArgumentInvalid");
    rig.put("/configurations/Upper", body("Upper")).refused(400, "ArgumentInvalid");
    rig.get("/configurations/c").refused(404, "ConfigurationNotFound");
    for i in 0..100 {
        let id = format!("c{i}");
        assert_eq!(rig.put(&format!("/configurations/{id}"), body(&id)).status, 200);
    }
    rig.put("/configurations/more", body("more")).refused(413, "ConfigurationCountLimitExceeded");
}

#[test]
fn conditions_and_metrics_are_tried_without_a_configuration() {
    let rig = Rig::new();
    let test = |body: Value| {
        let got = rig.ask(Method::POST, "/configurations/testQueries?api-version=2021-04-12", Some(body));
        assert_eq!(got.status, 200, "{got:?}");
        got.json()
    };
    let good = "SELECT deviceId FROM devices WHERE properties.reported.x = 1";
    assert_eq!(
        test(json!({ "targetCondition": "tags.a = 1", "customMetricQueries": { "m": good } })),
        json!({ "targetConditionError": null, "customMetricQueryErrors": {} })
    );
    let tried =
        test(json!({ "targetCondition": "tags.a = ", "customMetricQueries": { "m": good, "n": "SELECT" } }));
    assert!(tried["targetConditionError"].as_str().unwrap().contains("at byte 9"), "{tried}");
    let errors = tried["customMetricQueryErrors"].as_object().unwrap();
    assert!(errors.len() == 1 && errors["n"].is_string(), "{tried}");
    assert_eq!(test(json!({}))["targetConditionError"], json!(null));
}

#[test]
fn content_is_applied_to_a_device_and_its_modules() {
    let rig = Rig::new();
    rig.put("/devices/e", json!({ "deviceId": "e", "capabilities": { "iotEdge": true } }));
    let path = "/devices/e/applyConfigurationContent";
    let content = json!({
        "deviceContent": {}, "moduleContent": {},
        "modulesContent": {
            "$edgeAgent": { "properties.desired": { "schemaVersion": "1.1" } },
            "sensor": { "properties.desired.rate": 5 },
        },
    });
    let applied = rig.ask(Method::POST, path, Some(content));
    assert_eq!((applied.status.as_u16(), applied.body.len()), (204, 0), "{applied:?}");
    assert_eq!(
        rig.get("/twins/e/modules/$edgeAgent").json()["properties"]["desired"]["schemaVersion"],
        "1.1"
    );
    assert_eq!(rig.get("/twins/e/modules/sensor").json()["properties"]["desired"]["rate"], 5);
    let bad = json!({ "deviceContent": { "tags.a": 1 } });
    rig.ask(Method::POST, path, Some(bad)).refused(400, "InvalidConfigurationContent");
    rig.ask(Method::POST, "/devices/x/applyConfigurationContent", Some(json!({})))
        .refused(404, "DeviceNotFound");
}
