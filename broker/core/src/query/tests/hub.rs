//! Queries over the twins of a shard.

use std::sync::Arc;

use fleetwave_protocol::{Instant, Now, WallTime};
use serde_json::{Value as Json, json};

use super::*;
use crate::identity::split;
use crate::{Configuration, ConfigurationSpec, DeviceIx, DeviceSpec, Hub, Input, Options, Patch};

fn at(millis: u64) -> Now {
    Now {
        at: Instant::from_micros(millis * 1000),
        wall: WallTime::from_unix_millis(1_700_000_000_000 + millis),
    }
}

/// Ten devices of which every third is in Oslo; a configuration for those; one has reported. Three modules.
fn hub() -> Hub {
    let mut hub = Hub::new(Options::default());
    for number in 0..10 {
        let site = if number % 3 == 0 { "oslo" } else { "bonn" };
        let tags = format!(r#"{{"site":"{site}","floors":[1,{{"name":"roof"}}],"n":{number}}}"#);
        let spec =
            DeviceSpec { tags: Some(&tags), desired: Some(r#"{"rate":{"s":5}}"#), ..DeviceSpec::default() };
        hub.create_device(at(number), &format!("d{number}"), spec).unwrap();
    }
    let mut out = Vec::new();
    let configuration = Configuration::new(&ConfigurationSpec {
        id: "fw-2",
        target_condition: "tags.site = 'oslo'",
        device_content: r#"{"properties.desired.fw":"2"}"#,
        ..ConfigurationSpec::default()
    });
    let configuration = Arc::new(configuration.unwrap());
    hub.handle(at(50), Input::PutConfiguration { configuration, if_match: None }, &mut out);
    let device = DeviceIx::from_index(3);
    hub.handle(at(60), Input::Connect { device, session: 1, clean: true, model: Some("dtmi:a;1") }, &mut out);
    let report = Patch::Json(br#"{"fw":{"state":"done","at":[7]},"x\"y":1}"#);
    hub.handle(at(70), Input::Report { device, base: None, patch: report }, &mut out);
    for (id, site) in [("d1/m", "oslo"), ("d2/m", "bonn"), ("d2/n", "bonn")] {
        let tags = format!(r#"{{"site":"{site}"}}"#);
        let spec = DeviceSpec { tags: Some(&tags), ..DeviceSpec::default() };
        hub.create_device(at(80), id, spec).unwrap();
    }
    hub
}

fn page(hub: &Hub, text: &str, from: u32, rows: usize, twins: usize) -> (Vec<Json>, Option<usize>) {
    let mut out = b"[".to_vec();
    let limits = PageLimits { rows, twins };
    let page = hub.query_page(&query(text), DeviceIx::from_index(from), limits, &mut out);
    out.push(b']');
    let all: Vec<Json> = serde_json::from_slice(&out).unwrap();
    assert_eq!(all.len(), page.rows);
    (all, page.next.map(DeviceIx::index))
}

fn all(hub: &Hub, text: &str) -> Vec<Json> {
    let (rows, next) = page(hub, text, 0, 1000, 1000);
    assert_eq!(next, None);
    rows
}

fn ids(rows: &[Json]) -> Vec<&str> {
    rows.iter().map(|row| row["deviceId"].as_str().unwrap()).collect()
}

#[test]
fn every_path_gives_what_stands_in_the_twin_as_the_back_end_reads_it() {
    let hub = hub();
    let paths = [
        "DeviceId",
        "moduleId",
        "tags",
        "tags.site",
        "tags.floors",
        "tags.floors[0]",
        "tags.floors[1].name",
        "tags.floors[2]",
        "tags.site[0]",
        "properties",
        "properties.desired",
        "properties.desired.rate",
        "properties.desired.rate.s",
        "properties.reported",
        "properties.reported.fw.at[0]",
        "properties.reported.[[x\"y]]",
        "properties.reported.$version",
        "properties.desired.$version",
        "properties.reported.$metadata",
        "properties.reported.$metadata.$lastUpdated",
        "properties.reported.$metadata.fw.state.$lastUpdated",
        "properties.reported.$metadata.fw.state.$lastUpdatedVersion",
        "properties.reported.$metadata.none.$lastUpdated",
        "properties.desired.$metadata.fw.$lastUpdatedVersion",
        "configurations",
        "configurations.[[fw-2]]",
        "configurations.[[fw-2]].status",
        "configurations.[[fw-3]].status",
        "etag",
        "version",
        "status",
        "statusReason",
        "connectionState",
        "connectionState.x",
        "LASTACTIVITYTIME",
        "cloudToDeviceMessageCount",
        "authenticationType",
        "x509Thumbprint.primaryThumbprint",
        "capabilities.iotEdge",
        "deviceEtag",
        "modelId",
        "deviceScope",
        "statusUpdateTime",
    ];
    for ix in hub.devices().chain(hub.modules()) {
        let mut json = Vec::new();
        hub.write_service_twin(ix, &mut json);
        let json: Json = serde_json::from_slice(&json).unwrap();
        let scope = hub.scope(ix, hub.device(ix).unwrap());
        for path in paths {
            let query = query(&format!("SELECT {path} AS x FROM devices"));
            let Selection::Items(items) = &query.select.selection else { panic!() };
            let What::Path(place) = &items[0].what else { panic!() };
            assert_eq!(scope.value(place), JsonRow(&json).value(place), "{path}");
            let shown = scope.json(place).map(|json| serde_json::from_str::<Json>(&json).unwrap());
            let expected =
                JsonRow(&json).json(place).map(|json| serde_json::from_str::<Json>(&json).unwrap());
            assert_eq!(shown, expected, "{path}");
        }
        let (device, module) = split(hub.id(ix));
        let text = match module {
            None => format!("SELECT * FROM devices WHERE deviceId = '{device}'"),
            Some(module) => {
                format!("SELECT * FROM devices.modules WHERE deviceId = '{device}' AND moduleId = '{module}'")
            }
        };
        assert_eq!(all(&hub, &text), [json]);
    }
}

#[test]
fn rows_come_in_pages_and_the_last_page_has_no_next() {
    let hub = hub();
    let text = "SELECT deviceId FROM devices WHERE tags.site = 'oslo'";
    let (rows, next) = page(&hub, text, 0, 2, 1000);
    assert_eq!((ids(&rows), next), (vec!["d0", "d3"], Some(6)));
    let (rows, next) = page(&hub, text, 6, 2, 1000);
    assert_eq!((ids(&rows), next), (vec!["d6", "d9"], None));
    // Fewer twins looked at than rows wanted: a short page, and the way on.
    let (rows, next) = page(&hub, text, 1, 2, 2);
    assert_eq!((ids(&rows), next), (vec![], Some(3)));
    let rows =
        all(&hub, "SELECT deviceId, moduleId FROM devices.modules WHERE devices.modules.tags.site = 'bonn'");
    assert_eq!(
        rows,
        [json!({"deviceId": "d2", "moduleId": "m"}), json!({"deviceId": "d2", "moduleId": "n"})]
    );
    assert_eq!(all(&hub, "SELECT * FROM devices.jobs"), [] as [Json; 0]);
}

#[test]
fn filters_see_documents_state_and_configurations() {
    let hub = hub();
    for (filter, expected) in [
        ("connectionState = 'Connected'", vec!["d3"]),
        ("tags.n % 4 = 1 AND status = 'enabled'", vec!["d1", "d5", "d9"]),
        ("configurations.[[fw-2]].status = 'Applied'", vec!["d0", "d3", "d6", "d9"]),
        ("properties.reported.$version > 1", vec!["d3"]),
        ("properties.reported.fw.at[0] = tags.n + 4", vec!["d3"]),
        ("properties.reported.$metadata.fw.$lastUpdated > '2023-11-14'", vec!["d3"]),
        ("lastActivityTime >= '2023-11-14'", vec!["d3"]),
        ("devices.deviceId IN ['d1', 'd2', 'x']", vec!["d1", "d2"]),
    ] {
        assert_eq!(ids(&all(&hub, &format!("SELECT * FROM devices WHERE {filter}"))), expected, "{filter}");
        let query = query(&format!("SELECT * FROM devices WHERE {filter}"));
        assert_eq!(hub.count_where(&query), expected.len() as u64, "{filter}");
    }
}

#[test]
fn a_shard_aggregates_equal_twins_at_once_and_others_one_by_one() {
    let hub = hub();
    for (text, expected) in [
        ("SELECT COUNT() AS n FROM devices", json!([{"n": 10}])),
        ("SELECT COUNT() AS n FROM devices.modules", json!([{"n": 3}])),
        (
            "SELECT tags.site, COUNT() AS n, SUM(tags.n) AS s FROM devices GROUP BY tags.site",
            json!([{"site": "bonn", "n": 6, "s": 27}, {"site": "oslo", "n": 4, "s": 18}]),
        ),
        (
            "SELECT connectionState, COUNT() AS n FROM devices GROUP BY connectionState",
            json!([{"connectionState": "Connected", "n": 1}, {"connectionState": "Disconnected", "n": 9}]),
        ),
        (
            "SELECT TOP 1 properties.reported.fw.state AS s, COUNT() AS n FROM devices \
             GROUP BY properties.reported.fw.state",
            json!([{"n": 9}]),
        ),
        ("SELECT MAX(deviceId) AS last FROM devices WHERE status = 'enabled'", json!([{"last": "d9"}])),
    ] {
        let query = query(text);
        let mut out = b"[".to_vec();
        query.write_rows(hub.query_partial(&query), &mut out);
        out.push(b']');
        assert_eq!(serde_json::from_slice::<Json>(&out).unwrap(), expected, "{text}");
    }
}
