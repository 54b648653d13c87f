//! File upload, with a stand-in for the storage account. The suites with the vendor's SDKs have a real one.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;

use fleetwave_hub::{NewDevice, StorageAccount};
use fleetwave_protocol::bag;
use hyper::Method;
use serde_json::{Value, json};

use super::client::{Got, Rig};
use super::device::token;

/// Answers requests for the head of `/files/d/here%20it%20is.txt`, if they are signed for reading.
fn storage() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let lines: Vec<String> = BufReader::new(stream.try_clone().unwrap())
                .lines()
                .map_while(Result::ok)
                .take_while(|line| !line.is_empty())
                .collect();
            let target = lines[0].split(' ').nth(1).unwrap();
            let (path, query) = target.split_once('?').unwrap();
            let signed = bag::get(query, "sp").as_deref() == Some("r") && bag::get(query, "sig").is_some();
            let answer = match path {
                _ if !lines[0].starts_with("HEAD ") || !signed => "403 Forbidden\r\nContent-Length: 0",
                "/files/d/here%20it%20is.txt" => {
                    "200 OK\r\nContent-Length: 1234\r\nLast-Modified: Wed, 01 Jun 2016 21:22:41 GMT"
                }
                "/files/d/busy" => "503 Busy\r\nContent-Length: 0",
                _ => "404 Not Found\r\nContent-Length: 0",
            };
            let _ = write!(stream, "HTTP/1.1 {answer}\r\n\r\n");
        }
    });
    format!("AccountName=a;AccountKey=c2VjcmV0;BlobEndpoint=http://{address}")
}

fn rig() -> Rig {
    let account = StorageAccount::parse(&storage(), "files").unwrap();
    let rig = Rig::with(|builder| builder.storage(account));
    rig.hub.control().create_devices([NewDevice::new("d"), NewDevice::new("e")]).unwrap();
    rig
}

fn ask(rig: &Rig, id: &str, method: Method, path: &str, body: Value) -> Got {
    let path = format!("/devices/{id}/{path}?api-version=2019-10-01");
    rig.ask_with(method, &path, &[("authorization", &token(rig, id))], Some(body))
}

fn begin(rig: &Rig, id: &str, name: &str) -> Value {
    ask(rig, id, Method::POST, "files", json!({ "blobName": name })).json()
}

fn end(rig: &Rig, id: &str, correlation: &Value, success: bool) -> Got {
    let body = json!({ "correlationId": correlation, "isSuccess": success, "statusCode": 200 });
    ask(rig, id, Method::POST, "files/notifications", body)
}

#[test]
fn a_device_uploads_a_file_and_the_service_is_told() {
    let rig = rig();
    let begun = begin(&rig, "d", "here it is.txt");
    let endpoint = begun["hostName"].as_str().unwrap();
    assert_eq!((&begun["containerName"], &begun["blobName"]), (&json!("files"), &json!("d/here it is.txt")));
    let query = begun["sasToken"].as_str().unwrap().strip_prefix('?').unwrap();
    for (key, value) in [("sr", "b"), ("sp", "rw"), ("sv", "2021-06-08")] {
        assert_eq!(bag::get(query, key).as_deref(), Some(value));
    }
    let ended = end(&rig, "d", &begun["correlationId"], true);
    assert_eq!(ended.status, 204, "{ended:?}");

    let cloud = rig.hub.cloud_events();
    let now = rig.hub.control().clock().now().at;
    let told = cloud.files.take(now, 10).unwrap();
    let told: Vec<Value> = told.records.iter().map(|json| serde_json::from_str(json).unwrap()).collect();
    assert_eq!(told.len(), 1);
    let enqueued = told[0]["enqueuedTimeUtc"].clone();
    assert_eq!(
        told[0],
        json!({
            "deviceId": "d",
            "blobUri": format!("http://{endpoint}/files/d/here%20it%20is.txt"),
            "blobName": "d/here it is.txt",
            "lastUpdatedTime": "2016-06-01T21:22:41+00:00",
            "blobSizeInBytes": 1234,
            "enqueuedTimeUtc": enqueued,
        })
    );
    end(&rig, "d", &begun["correlationId"], true).refused(400, "InvalidFileUploadCorrelationId");
}

#[test]
fn an_upload_that_failed_or_never_came_is_told_to_nobody() {
    let rig = rig();
    let failed = begin(&rig, "d", "here it is.txt");
    assert_eq!(end(&rig, "d", &failed["correlationId"], false).status, 204);
    let missing = begin(&rig, "d", "missing");
    end(&rig, "d", &missing["correlationId"], true).refused(400, "InvalidFileUploadCompletionStatus");
    assert_eq!(end(&rig, "d", &missing["correlationId"], false).status, 204, "it can still be given up");
    let busy = begin(&rig, "d", "busy");
    end(&rig, "d", &busy["correlationId"], true).refused(503, "ServiceUnavailable");
    assert_eq!(rig.hub.cloud_events().files.take(rig.hub.control().clock().now().at, 9), None);
}

#[test]
fn an_upload_is_its_devices_own_and_what_is_wrong_is_told() {
    let rig = rig();
    let begun = begin(&rig, "d", "f");
    end(&rig, "e", &begun["correlationId"], false).refused(400, "InvalidFileUploadCorrelationId");
    let correlation = begun["correlationId"].as_str().unwrap();
    let path = format!("files/notifications/{}", bag::encode(correlation));
    let told = |body| ask(&rig, "d", Method::POST, &path, body);
    told(json!({})).refused(400, "InvalidFileUploadCompletionStatus");
    assert_eq!(told(json!({ "isSuccess": false })).status, 204);
    ask(&rig, "d", Method::POST, "files", json!({})).refused(400, "ArgumentNull");
    ask(&rig, "d", Method::POST, "files/notifications", json!({ "isSuccess": true }))
        .refused(400, "InvalidFileUploadCorrelationId");
    for n in 0..10 {
        begin(&rig, "d", &n.to_string());
    }
    ask(&rig, "d", Method::POST, "files", json!({ "blobName": "more" }))
        .refused(403, "DeviceMaximumActiveFileUploadLimitExceeded");
}

#[test]
fn an_upload_begins_in_the_old_way_too() {
    let rig = rig();
    let got = ask(&rig, "d", Method::GET, "files/a%2Fb.txt", Value::Null);
    assert_eq!(got.json()["blobName"], "d/a/b.txt");
}

#[test]
fn without_a_storage_account_uploads_are_refused_with_the_way_out() {
    let rig = Rig::new();
    rig.hub.control().create_devices([NewDevice::new("d")]).unwrap();
    let got = ask(&rig, "d", Method::POST, "files", json!({ "blobName": "f" }));
    got.refused(400, "DefaultStorageEndpointNotConfigured");
    assert!(got.json()["Message"].as_str().unwrap().contains("--storage"));
}
