//! Logs that a device uploads by way of the hub, to a stand-in for its storage account.

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use fleetwave_hub::StorageAccount;
use fleetwave_hub::pki::Pki;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;
use support::{World, runs};

/// What lies in the storage account, by path.
type Blobs = Arc<Mutex<BTreeMap<String, String>>>;

/// Takes blobs over TLS if their links are signed; answers `refusal`, if there is one, to each that is put.
fn storage(tls: Arc<ServerConfig>, refusal: Option<&'static str>) -> (u16, Blobs) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let blobs = Blobs::default();
    let kept = blobs.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = ServerConnection::new(tls.clone()).expect("TLS");
            let mut stream = BufReader::new(StreamOwned::new(connection, stream.expect("a connection")));
            let mut head = Vec::new();
            for line in stream.by_ref().lines().map_while(Result::ok) {
                if line.is_empty() {
                    break;
                }
                head.push(line.to_ascii_lowercase());
            }
            let Some((path, query)) = head.first().and_then(|line| line.split(' ').nth(1)?.split_once('?'))
            else {
                continue;
            };
            let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            let mut body = vec![0; length.unwrap_or(0)];
            stream.read_exact(&mut body).expect("the body comes");
            let mut blobs = kept.lock().expect("nobody panics");
            let answer = match (head[0].starts_with("put "), refusal) {
                (true, Some(refusal)) => refusal.to_owned(),
                (true, None) => {
                    let block = head.contains(&"x-ms-blob-type: blockblob".to_owned());
                    assert!(block && query.contains("sig="), "{head:?}");
                    blobs.insert(path.to_owned(), String::from_utf8(body).expect("text"));
                    "201 Created\r\nContent-Length: 0".to_owned()
                }
                (false, _) => match blobs.get(path) {
                    Some(blob) => {
                        let modified = "Last-Modified: Wed, 01 Jun 2016 21:22:41 GMT";
                        format!("200 OK\r\nContent-Length: {}\r\n{modified}", blob.len())
                    }
                    None => "404 Not Found\r\nContent-Length: 0".to_owned(),
                },
            };
            drop(blobs);
            let stream = stream.get_mut();
            let _ = write!(stream, "HTTP/1.1 {answer}\r\nConnection: close\r\n\r\n");
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    (port, blobs)
}

/// A device whose hub has a storage account, and what lies there.
fn world(refusal: Option<&'static str>) -> (World, Blobs) {
    let pki = Pki::load_or_create(None, &[]).expect("certificates");
    let (port, blobs) = storage(pki.server_config(), refusal);
    let account = format!("AccountName=a;AccountKey=c2VjcmV0;BlobEndpoint=https://localhost:{port}");
    let account = StorageAccount::parse(&account, "files").expect("an account");
    let account = account.trust(pki.ca_pem()).expect("an authority");
    let tls = pki.server_config();
    let world = World::at_hub(None, |hub| hub.https(([127, 0, 0, 1], 0).into(), Some(tls)).storage(account));
    let ca = world.dir.path().join("https.pem");
    std::fs::write(&ca, pki.ca_pem()).expect("written");
    let https = world.hub.https_address().expect("the hub serves HTTPS").port();
    let reach = format!("{}https_port = {https}\nca = {ca:?}\n", world.without_tls());
    world.configure(&[], &reach);
    world.add(&format!("[download]\nca = {ca:?}\n"));
    (world, blobs)
}

#[test]
fn a_log_goes_to_the_storage_account_and_the_answer_says_where() {
    let (world, blobs) = world(None);
    let _agent = world.start();
    world.reports_until(runs("fw-1"));
    let (status, said) = world.call("collect-logs", &json!({"upload": true}));
    assert_eq!((status, &said["container"]), (200, &json!("files")), "{said}; {}", world.log());
    let blob = said["blob"].as_str().expect("a name");
    assert!(blob.starts_with("dev-1/logs/") && blob.ends_with("-agent.log"), "{said}");
    let blobs = blobs.lock().expect("nobody panics");
    let text = &blobs[&format!("/files/{blob}")];
    assert!(text.contains("connected") && said["bytes"] == text.len(), "{said}: {text}");
    assert!(said["log"].is_null(), "no more of it than where it is: {said}");
    // The back end hears of it.
    let now = world.hub.control().clock().now().at;
    let told = world.hub.cloud_events().files.take(now, 10).expect("a notification");
    assert!(told.records[0].contains(blob), "{:?}", told.records);
    assert!(!world.log().contains("sig="), "{}", world.log());
}

#[test]
fn a_storage_that_takes_nothing_leaves_the_end_of_the_log_in_the_answer_with_the_cause() {
    let (world, _) = world(Some("403 Forbidden\r\nContent-Length: 0"));
    let _agent = world.start();
    world.reports_until(runs("fw-1"));
    let (status, said) = world.call("collect-logs", &json!({"upload": true}));
    assert_eq!((status, &said["upload"]["code"]), (200, &json!("storage_refused")), "{said}");
    assert!(said["log"].as_str().is_some_and(|log| log.contains("connected")), "{said}");
}

#[test]
fn a_hub_without_storage_or_without_https_is_told_apart() {
    let pki = Pki::load_or_create(None, &[]).expect("certificates");
    let tls = pki.server_config();
    let world = World::at_hub(None, |hub| hub.https(([127, 0, 0, 1], 0).into(), Some(tls)));
    let ca = world.dir.path().join("https.pem");
    std::fs::write(&ca, pki.ca_pem()).expect("written");
    let https = world.hub.https_address().expect("the hub serves HTTPS").port();
    for (port, code) in [(https, "refused"), (1, "unreachable")] {
        world.configure(&[], &format!("{}https_port = {port}\nca = {ca:?}\n", world.without_tls()));
        let agent = world.start();
        let (status, said) = world.call("collect-logs", &json!({"upload": true}));
        assert_eq!((status, &said["upload"]["code"]), (200, &json!(code)), "{said}");
        agent.kill();
    }
}
