use hyper::Method;
use serde_json::{Value, json};

use super::client::{Got, Rig};

fn page(rig: &Rig, query: &str, size: &str, continuation: &str) -> Got {
    let headers = [("x-ms-max-item-count", size), ("x-ms-continuation", continuation)];
    rig.ask_with(
        Method::POST,
        "/devices/query?api-version=2021-04-12",
        &headers,
        Some(json!({ "query": query })),
    )
}

/// All rows of a query, and the sizes of its pages.
fn pages(rig: &Rig, query: &str, size: &str) -> (Vec<Value>, Vec<usize>) {
    let (mut rows, mut sizes, mut continuation) = (Vec::new(), Vec::new(), String::new());
    loop {
        let got = page(rig, query, size, &continuation);
        assert_eq!(got.status, 200, "{got:?}");
        let Value::Array(found) = got.json() else { panic!("an array was expected, not {got:?}") };
        sizes.push(found.len());
        rows.extend(found);
        match got.header("x-ms-continuation") {
            Some(next) => continuation = next.to_owned(),
            None => return (rows, sizes),
        }
    }
}

fn rig_with(devices: usize) -> Rig {
    let rig = Rig::with(|builder| builder.shards(3));
    let items: Vec<_> = (0..devices)
        .map(|i| json!({ "id": format!("d{i:02}"), "importMode": "create", "tags": { "odd": i % 2 == 1, "n": i } }))
        .collect();
    assert_eq!(rig.ask(Method::POST, "/devices", Some(items.into())).status, 200);
    rig
}

fn ids(rows: &[Value]) -> Vec<String> {
    let mut ids: Vec<_> = rows.iter().map(|row| row["deviceId"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    ids
}

#[test]
fn a_query_comes_in_pages_that_survive_changes() {
    let rig = rig_with(20);
    let all: Vec<_> = (0..20).map(|i| format!("d{i:02}")).collect();
    for size in ["1", "3", "7", "19", "20", "1000", "5000"] {
        let (rows, sizes) = pages(&rig, "SELECT * FROM devices", size);
        assert_eq!(ids(&rows), all);
        let size: usize = size.parse().unwrap();
        let (last, full) = sizes.split_last().unwrap();
        assert!(full.iter().all(|&rows| rows == size) && (1..=size).contains(last), "{sizes:?}");
    }
    // Devices go and come between two pages: what stays comes once.
    let query = "SELECT deviceId FROM devices";
    let first = page(&rig, query, "10", "");
    let seen = ids(first.json().as_array().unwrap());
    for id in [&seen[0], all.iter().find(|id| !seen.contains(id)).unwrap()] {
        assert_eq!(rig.ask(Method::DELETE, &format!("/devices/{id}"), None).status, 204);
    }
    rig.put("/devices/late", json!({ "deviceId": "late" }));
    let rest = page(&rig, query, "1000", first.header("x-ms-continuation").unwrap());
    let rest = ids(rest.json().as_array().unwrap());
    assert!(rest.iter().all(|id| !seen.contains(id)), "{rest:?}");
    let old: Vec<_> = rest.iter().filter(|id| *id != "late").collect();
    assert_eq!(old.len(), 9);
}

#[test]
fn no_page_is_empty_but_the_only_one() {
    let rig = rig_with(20);
    let (rows, sizes) = pages(&rig, "SELECT deviceId FROM devices WHERE tags.odd = true", "5");
    assert_eq!((rows.len(), sizes), (10, vec![5, 5]));
    let (rows, sizes) = pages(&rig, "SELECT deviceId FROM devices WHERE tags.n = 77", "5");
    assert_eq!((rows.len(), sizes), (0, vec![0]));
    let (rows, sizes) = pages(&rig, "SELECT TOP 7 deviceId FROM devices", "3");
    assert_eq!((rows.len(), sizes), (7, vec![3, 3, 1]));
    let (rows, sizes) = pages(&rig, "SELECT TOP 6 * FROM devices", "3");
    assert_eq!((rows.len(), sizes), (6, vec![3, 3]));
    let (_, sizes) = pages(&rig, "SELECT tags.n, COUNT() AS many FROM devices GROUP BY tags.n", "8");
    assert_eq!(sizes, [8, 8, 4]);
    // A hundred, if nobody says how many.
    assert_eq!(
        rig_with(100)
            .ask(Method::POST, "/devices/query", Some(json!({ "query": "SELECT * FROM devices" })))
            .header("x-ms-continuation"),
        None
    );
}

#[test]
fn rows_say_what_they_are() {
    let rig = rig_with(3);
    rig.put("/devices/d00/modules/m", json!({ "deviceId": "d00", "moduleId": "m" }));
    let kind = |query: &str| {
        let got = page(&rig, query, "", "");
        (got.header("x-ms-item-type").unwrap().to_owned(), got.json())
    };
    let (twin, rows) = kind("SELECT * FROM devices WHERE deviceId = 'd01'");
    assert_eq!((twin.as_str(), &rows), ("Twin", &json!([rig.get("/twins/d01").json()])));
    let (twin, rows) = kind("SELECT * FROM devices.modules");
    assert_eq!((twin.as_str(), &rows), ("Twin", &json!([rig.get("/twins/d00/modules/m").json()])));
    let (raw, rows) = kind("SELECT COUNT() AS many FROM devices WHERE tags.odd = false");
    assert_eq!((raw.as_str(), rows), ("Raw", json!([{ "many": 2 }])));
    let (jobs, rows) = kind("SELECT * FROM devices.jobs");
    assert_eq!((jobs.as_str(), rows), ("DeviceJob", json!([])));
}

#[test]
fn jobs_are_queried_like_twins() {
    let rig = rig_with(4);
    let job = json!({
        "jobId": "j", "type": "scheduleUpdateTwin", "queryCondition": "tags.odd = true",
        "updateTwin": { "etag": "*", "tags": { "seen": true } }, "startTime": "", "maxExecutionTimeInSeconds": 60,
    });
    assert_eq!(rig.put("/jobs/v2/j", job).status, 200);
    let start = std::time::Instant::now();
    while rig.get("/jobs/v2/j").json()["status"] != "completed" {
        assert!(start.elapsed() < crate::support::PATIENCE, "{:?}", rig.get("/jobs/v2/j"));
    }
    let (rows, sizes) = pages(&rig, "SELECT * FROM devices.jobs WHERE devices.jobs.jobId = 'j'", "1");
    assert_eq!((ids(&rows), sizes), (vec!["d01".to_owned(), "d03".to_owned()], vec![1, 1]));
    assert_eq!(rows[0]["status"], "completed");
    // A projection of jobs is not in the language.
    page(&rig, "SELECT COUNT() AS n FROM devices.jobs", "", "").refused(400, "ArgumentInvalid");
}

#[test]
fn what_is_no_query_or_no_continuation_is_refused() {
    let rig = rig_with(5);
    let got = page(&rig, "SELECT * FROM devices WHERE tags.odd =", "", "");
    got.refused(400, "ArgumentInvalid");
    assert!(got.json()["Message"].as_str().unwrap().contains("at byte 38"), "{got:?}");
    rig.ask(Method::POST, "/devices/query", Some(json!({}))).refused(400, "IotHubFormatError");
    for size in ["0", "-1", "many"] {
        page(&rig, "SELECT * FROM devices", size, "").refused(400, "ArgumentInvalid");
    }
    let first = page(&rig, "SELECT * FROM devices", "2", "");
    let continuation = first.header("x-ms-continuation").unwrap();
    page(&rig, "SELECT deviceId FROM devices", "2", continuation).refused(400, "ArgumentInvalid");
    for bad in ["x", "AAAA", "%7B%7D", &continuation[2..]] {
        page(&rig, "SELECT * FROM devices", "2", bad).refused(400, "ArgumentInvalid");
    }
}
