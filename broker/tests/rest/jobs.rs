use fleetwave_hub::NewDevice;
use hyper::Method;
use serde_json::{Value, json};

use super::client::Rig;

fn update(condition: &str) -> Value {
    json!({
        "type": "scheduleUpdateTwin",
        "updateTwin": { "etag": "*", "tags": { "seen": true }, "properties": { "desired": { "interval": 5 } } },
        "queryCondition": condition,
        "maxExecutionTimeInSeconds": 60,
    })
}

fn fleet() -> Rig {
    let rig = Rig::new();
    let device = |number: u32| NewDevice {
        tags: Some(format!(r#"{{"ring":{}}}"#, number % 3).into()),
        ..NewDevice::new(format!("d{number}"))
    };
    rig.hub.control().create_devices((0..9).map(device)).unwrap();
    rig
}

/// Asks until the job has ended.
fn ended(rig: &Rig, id: &str) -> Value {
    loop {
        let job = rig.get(&format!("/jobs/v2/{id}")).json();
        if ["completed", "failed", "cancelled"].contains(&job["status"].as_str().unwrap()) {
            return job;
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_job_writes_the_twins_that_its_condition_selects() {
    let rig = fleet();
    let taken = rig.put("/jobs/v2/job-1?api-version=2021-04-12", update("tags.ring = 1"));
    assert_eq!(taken.status, 200, "{taken:?}");
    assert_eq!(taken.json()["type"], "scheduleUpdateTwin");
    let job = ended(&rig, "job-1");
    assert_eq!(job["status"], "completed");
    assert_eq!(
        job["deviceJobStatistics"],
        json!({ "deviceCount": 3, "failedCount": 0, "succeededCount": 3, "runningCount": 0, "pendingCount": 0 })
    );
    for (device, seen) in [("d1", true), ("d2", false), ("d4", true), ("d7", true)] {
        let twin: Value = serde_json::from_slice(&rig.hub.control().twin(device).unwrap()).unwrap();
        assert_eq!(twin["tags"]["seen"] == true, seen, "{device}");
        assert_eq!(twin["properties"]["desired"]["interval"] == 5, seen, "{device}");
    }
    rig.put("/jobs/v2/job-1", update("*")).refused(409, "JobAlreadyExists");
    rig.get("/jobs/v2/other").refused(404, "JobNotFound");
    rig.put("/jobs/v2/job-2", update("tags.ring =")).refused(400, "ArgumentInvalid");
}

#[test]
fn a_method_job_says_of_each_device_how_it_ended() {
    let rig = fleet();
    let body = json!({
        "type": "scheduleDeviceMethod",
        "cloudToDeviceMethod": { "methodName": "reboot", "payload": null, "responseTimeoutInSeconds": 5 },
        "queryCondition": "deviceId IN ['d1', 'd2', 'nobody']",
    });
    rig.put("/jobs/v2/calls", body);
    let job = ended(&rig, "calls");
    // Nobody is connected.
    assert_eq!(job["deviceJobStatistics"]["failedCount"], 2);
    assert_eq!(job["cloudToDeviceMethod"]["methodName"], "reboot");
}

#[test]
fn a_job_that_has_not_begun_is_cancelled() {
    let rig = fleet();
    let mut later = update("*");
    later["startTime"] = json!("2100-01-01T00:00:00.000Z");
    assert_eq!(rig.put("/jobs/v2/later", later).json()["status"], "queued");
    for status in ["queued", "scheduled", "enqueued"] {
        let page = rig.get(&format!("/jobs/v2/query?jobStatus={status}")).json();
        assert_eq!(page[0]["jobId"], "later", "{status}");
    }
    let cancelled = rig.ask(Method::POST, "/jobs/v2/later/cancel", None);
    assert_eq!((cancelled.status.as_u16(), &cancelled.json()["status"]), (200, &json!("cancelled")));
    let twin: Value = serde_json::from_slice(&rig.hub.control().twin("d1").unwrap()).unwrap();
    assert!(twin["tags"]["seen"].is_null());
    rig.ask(Method::POST, "/jobs/v2/none/cancel", None).refused(404, "JobNotFound");
}

#[test]
fn jobs_come_by_pages_type_and_status() {
    let rig = fleet();
    for id in ["a", "b", "c"] {
        rig.put(&format!("/jobs/v2/{id}"), update("tags.ring = 2"));
        ended(&rig, id);
    }
    let list = |query: &str, headers: &[(&str, &str)]| {
        rig.ask_with(Method::GET, &format!("/jobs/v2/query?{query}"), headers, None)
    };
    let first = list("api-version=2021-04-12&jobStatus=completed", &[("x-ms-max-item-count", "2")]);
    let ids = |page: &Value| -> Vec<String> {
        page.as_array().unwrap().iter().map(|job| job["jobId"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&first.json()), ["a", "b"]);
    let next = first.header("x-ms-continuation").unwrap();
    let second = list("jobType=scheduleUpdateTwin", &[("x-ms-continuation", next)]);
    assert_eq!(ids(&second.json()), ["c"]);
    assert_eq!(second.header("x-ms-continuation"), None);
    assert_eq!(list("jobType=scheduleDeviceMethod", &[]).json(), json!([]));
    rig.ask(Method::POST, "/jobs/create", Some(json!({}))).refused(501, "NotModelled");
}

#[test]
fn jobs_and_what_they_did_are_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let start = || Rig::with(|builder| builder.shards(2).data(folder.path()));
    let rig = start();
    rig.hub.control().create_devices(["d1", "d2"].map(NewDevice::new)).unwrap();
    rig.put("/jobs/v2/done", update("*"));
    let before = ended(&rig, "done");
    let mut later = update("*");
    later["startTime"] = json!("2100-01-01T00:00:00Z");
    rig.put("/jobs/v2/later", later);
    drop(rig);

    let rig = start();
    assert_eq!(rig.get("/jobs/v2/done").json(), before);
    assert_eq!(rig.get("/jobs/v2/later").json()["status"], "queued");
    rig.put("/jobs/v2/done", update("*")).refused(409, "JobAlreadyExists");
    let rows = json!({ "query": "SELECT * FROM devices.jobs WHERE devices.jobs.jobId = 'done'" });
    let rows = rig.ask(Method::POST, "/devices/query", Some(rows)).json();
    assert_eq!(rows.as_array().map(Vec::len), Some(2), "{rows}");
    assert_eq!(rows[0]["status"], "completed");
}
