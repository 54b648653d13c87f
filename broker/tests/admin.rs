//! The admin port: what a supervisor, Prometheus, and somebody who needs the certificate see.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use fleetwave_hub::admin::{Admin, AdminError, AdminServer};
use fleetwave_hub::{HubServer, NewDevice};

const FREE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

fn admin(hub: &HubServer, ca_pem: Option<&str>) -> AdminServer {
    let control = hub.control();
    let instruments = control.instruments().clone();
    let admin = Admin { control, instruments, health: hub.health(), ca_pem: ca_pem.map(Into::into) };
    AdminServer::start(FREE, admin).expect("loopback has a free port")
}

/// The status and the body of an answer.
fn get(server: &AdminServer, path: &str) -> (u16, String) {
    request(server, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"))
}

fn request(server: &AdminServer, text: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(server.address()).expect("it listens");
    stream.write_all(text.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, body.to_owned())
}

#[test]
fn health_tells_of_each_part_and_changes_with_it() {
    let hub = HubServer::builder().shards(2).start().unwrap();
    let server = admin(&hub, None);
    let report =
        |status: &str, store: &str| format!(r#"{{"parts":{{"shards":"ok"{store}}},"status":"{status}"}}"#);
    assert_eq!(get(&server, "/healthz"), (200, report("ok", "") + "\n"));
    hub.health().bad("store", "no space left");
    assert_eq!(get(&server, "/healthz"), (503, report("failing", r#","store":"no space left""#) + "\n"));
    hub.health().good("store");
    assert_eq!(get(&server, "/healthz").0, 200);
    hub.health().drain();
    assert_eq!(get(&server, "/healthz"), (503, report("draining", r#","store":"ok""#) + "\n"));
    hub.stop();
    assert!(get(&server, "/healthz").1.contains(r#""shards":"stopped""#));
}

#[test]
fn metrics_say_what_the_hub_has() {
    let hub = HubServer::builder().shards(2).start().unwrap();
    let server = admin(&hub, None);
    hub.control().create_devices(["a", "b", "c"].map(NewDevice::new)).unwrap();
    for device in ["a", "c"] {
        hub.control().send_c2d(device, fleetwave_hub_core::C2dMessage::default()).unwrap();
    }
    let (status, text) = get(&server, "/metrics");
    assert_eq!(status, 200);
    assert!(text.contains("# TYPE fleetwave_hub_devices gauge\nfleetwave_hub_devices 3\n"), "{text}");
    assert!(text.contains("fleetwave_hub_queue_depth{queue=\"c2d\"} 2\n"), "{text}");
    assert!(text.contains("# TYPE fleetwave_hub_turn_duration_seconds histogram\n"), "{text}");
    hub.stop();
    assert_eq!(get(&server, "/metrics").0, 503);
}

#[test]
fn the_certificate_is_there_if_the_hub_has_one() {
    let hub = HubServer::builder().start().unwrap();
    assert_eq!(get(&admin(&hub, Some("PEM")), "/ca.pem"), (200, "PEM".into()));
    let server = admin(&hub, None);
    assert_eq!(get(&server, "/ca.pem").0, 404);
    assert_eq!(get(&server, "/").0, 404);
    assert_eq!(request(&server, "POST /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").0, 405);
}

#[test]
fn it_is_for_this_machine_alone() {
    let hub = HubServer::builder().start().unwrap();
    let control = hub.control();
    let instruments = control.instruments().clone();
    let admin = Admin { control, instruments, health: hub.health(), ca_pem: None };
    let error = AdminServer::start("0.0.0.0:0".parse().unwrap(), admin).unwrap_err();
    assert!(matches!(error, AdminError::NotLoopback(_)), "{error}");
    assert!(error.to_string().contains("loopback only"));
}

/// The rows of the table of metrics: name and type.
fn documented() -> Vec<(String, String)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/hub.md");
    let text = std::fs::read_to_string(path).expect("the page is there");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `fleetwave_hub_"));
    rows.map(|row| {
        let mut cells = row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned());
        let name = cells.next().expect("a row has cells");
        (format!("fleetwave_hub_{name}"), cells.next().expect("a name and a type"))
    })
    .collect()
}

#[test]
fn the_documentation_has_every_metric_with_its_type_and_no_other() {
    let hub = HubServer::builder().start().unwrap();
    let server = admin(&hub, None);
    // What has labels shows once it has been measured.
    hub.control().instruments().request("any", 200, std::time::Duration::ZERO);
    let (_, text) = get(&server, "/metrics");
    let served: Vec<(String, String)> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
        .collect();
    assert_eq!(documented(), served, "docs/hub.md and what is served differ, or are in another order");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let labels = line.split_once('{').map_or("", |(_, labels)| labels);
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/hub.md")).unwrap();
        for value in labels.split('"').skip(1).step_by(2).filter(|_| !line.contains("_bucket")) {
            let told = page.contains(&format!("`{value}`")) || ["any", "200"].contains(&value);
            assert!(told, "{line}: the page does not tell of {value}");
        }
    }
}
