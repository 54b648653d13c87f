//! Devices that a provisioning service puts where they belong.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use fleetwave_hub::DpsSettings;
use fleetwave_protocol::sas::Key;
use rcgen::KeyPair;
use serde_json::{Value, json};

use super::certificates::{authority, params};
use super::support::{PATIENCE, World, eventually, runs};

const SCOPE: &str = "0ne00000001";

fn world() -> World {
    let settings = DpsSettings {
        id_scope: SCOPE.into(),
        hub: "localhost".into(),
        keys: [Key::from_bytes(*b"primary"), Key::from_bytes(*b"secondary")],
    };
    World::at_hub(None, |hub| hub.provisioning(settings))
}

fn key() -> Key {
    Key::from_bytes(*b"a key of an enrollment")
}

fn symmetric() -> Value {
    json!({ "type": "symmetricKey", "symmetricKey": { "primaryKey": key().to_base64() } })
}

/// The sections of a device that shows `shown`.
fn reach(world: &World, registration: &str, shown: &str) -> String {
    let (port, ca) = (world.tls_port(), world.ca());
    format!(
        "[hub]\nport = {port}\nca = {ca:?}\n\
         [provisioning]\nendpoint = \"localhost:{port}\"\nid_scope = \"{SCOPE}\"\nregistration_id = \"{registration}\"\n\
         {shown}\n"
    )
}

fn assignment(world: &World) -> Value {
    let text = fs::read(world.state().join("assignment.json")).expect("an assignment");
    serde_json::from_slice(&text).expect("JSON")
}

#[test]
fn a_device_with_a_key_is_put_where_it_belongs_and_does_not_ask_again() {
    let world = world();
    let service = world.hub.provisioning().expect("it provisions");
    let enrollment = json!({ "registrationId": "reg-1", "deviceId": "dev-7", "attestation": symmetric() });
    service.put_enrollment("reg-1", &enrollment).expect("an enrollment");
    world.configure(&[], &reach(&world, "reg-1", &format!("key = \"{}\"", key().to_base64())));
    let agent = world.start();
    world.reports_until(runs("fw-1"));
    assert_eq!(
        (&assignment(&world)["hub"], &assignment(&world)["device_id"]),
        (&"localhost".into(), &"dev-7".into())
    );
    assert!(agent.terminate().success());

    assert!(world.run_once().success(), "{}", world.log());
    assert_eq!(world.log().matches("provisioned").count(), 1, "{}", world.log());
}

#[test]
fn a_device_of_a_group_derives_its_key() {
    let world = world();
    let service = world.hub.provisioning().expect("it provisions");
    service
        .put_group("g", &json!({ "enrollmentGroupId": "g", "attestation": symmetric() }))
        .expect("a group");
    let file = world.dir.path().join("group.key");
    fs::write(&file, key().to_base64()).expect("written");
    world.configure(&[], &reach(&world, "dev-8", &format!("group_key_file = {file:?}")));
    let _agent = world.start();
    world.reports_until(runs("fw-1"));
    assert_eq!(assignment(&world)["device_id"], "dev-8");
}

#[test]
fn a_device_with_a_certificate_is_put_where_it_belongs() {
    let world = world();
    let (pem, issuer) = authority();
    let service = world.hub.provisioning().expect("it provisions");
    let signing =
        json!({ "type": "x509", "x509": { "signingCertificates": { "primary": { "certificate": pem } } } });
    service.put_group("g", &json!({ "enrollmentGroupId": "g", "attestation": signing })).expect("a group");
    let key = KeyPair::generate().expect("a key");
    let certificate = params("dev-9").signed_by(&key, &issuer).expect("a certificate");
    let place = |name: &str| world.dir.path().join(name);
    fs::write(place("device.pem"), certificate.pem()).expect("written");
    fs::write(place("device.key"), key.serialize_pem()).expect("written");
    let identity =
        format!("[identity]\ncertificate = {:?}\nkey = {:?}", place("device.pem"), place("device.key"));
    world.configure(&[], &reach(&world, "dev-9", &identity));
    let _agent = world.start();
    world.reports_until(runs("fw-1"));
    assert_eq!(assignment(&world)["device_id"], "dev-9");
}

#[test]
fn a_device_that_is_not_enrolled_is_told_so_and_connects_once_it_is() {
    let world = world();
    world.configure(&[], &reach(&world, "reg-1", &format!("key = \"{}\"", key().to_base64())));
    let _agent = world.start();
    eventually("the log says so", || world.log().contains("localhost refused the device (not authorized)"));
    let service = world.hub.provisioning().expect("it provisions");
    let enrollment = json!({ "registrationId": "reg-1", "attestation": symmetric() });
    service.put_enrollment("reg-1", &enrollment).expect("an enrollment");
    world.reports_until(runs("fw-1"));
}

#[test]
fn a_device_that_its_hub_does_not_know_any_more_is_provisioned_again() {
    let world = world();
    let service = world.hub.provisioning().expect("it provisions");
    let enrollment = json!({ "registrationId": "reg-1", "attestation": symmetric() });
    service.put_enrollment("reg-1", &enrollment).expect("an enrollment");
    let shown = format!("key = \"{}\"\nreprovision_seconds = 1", key().to_base64());
    world.configure(&[], &reach(&world, "reg-1", &shown));
    // The kept assignment is of a device that was deleted since.
    fs::create_dir_all(world.state()).expect("a directory");
    let kept = json!({
        "endpoint": format!("localhost:{}", world.tls_port()), "id_scope": SCOPE, "registration_id": "reg-1",
        "hub": "localhost", "device_id": "deleted",
    });
    fs::write(world.state().join("assignment.json"), kept.to_string()).expect("written");
    let _agent = world.start();
    world.reports_until(runs("fw-1"));
    assert!(world.log().contains("the provisioning service is asked again"), "{}", world.log());
    assert_eq!(assignment(&world)["device_id"], "reg-1");
}

#[test]
fn an_assignment_that_cannot_be_kept_is_used_and_asked_for_again_at_the_next_start() {
    if !super::real::have_loop_devices() {
        return;
    }
    let world = world();
    let service = world.hub.provisioning().expect("it provisions");
    let enrollment = json!({ "registrationId": "reg-1", "deviceId": "dev-7", "attestation": symmetric() });
    service.put_enrollment("reg-1", &enrollment).expect("an enrollment");
    world.configure(&[], &reach(&world, "reg-1", &format!("key = \"{}\"", key().to_base64())));
    fs::create_dir(world.state()).expect("a directory");
    let mount = |program: &str, arguments: &[&str]| {
        let done = Command::new(program).args(arguments).arg(world.state()).status().expect("it runs");
        assert!(done.success(), "{program}");
    };
    mount("mount", &["-t", "tmpfs", "-o", "ro", "none"]);
    let agent = world.start();
    let reports = world.reports.recv_timeout(PATIENCE);
    let ended = agent.terminate();
    mount("umount", &[]);
    assert!(reports.is_ok() && ended.success(), "{}", world.log());
    let log = world.log();
    assert!(log.contains("the assignment cannot be kept") && log.contains("mount it read-write"), "{log}");
    assert!(world.run_once().success(), "{}", world.log());
    assert_eq!(world.log().matches("provisioned").count(), 2, "{}", world.log());
    assert_eq!(assignment(&world)["device_id"], "dev-7");
}

/// A packet of MQTT: its first byte, and what comes after its length.
fn packet(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut byte = [0];
    stream.read_exact(&mut byte).ok()?;
    let (kind, mut length, mut shift) = (byte[0], 0, 0);
    loop {
        stream.read_exact(&mut byte).ok()?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        shift += 7;
        if byte[0] < 0x80 {
            break;
        }
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).ok()?;
    Some((kind, rest))
}

/// A service that gives these answers, one to a connection, to the first question on each; it says when it was asked.
fn service(answers: [(&'static str, Value); 2]) -> (u16, JoinHandle<Vec<Instant>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let serve = spawn(move || {
        let mut asked = Vec::new();
        for (head, body) in answers {
            let (mut stream, _) = listener.accept().expect("someone asks");
            while let Some((kind, rest)) = packet(&mut stream) {
                let answer = match kind >> 4 {
                    1 => vec![0x20, 2, 0, 0],
                    8 => vec![0x90, 3, rest[0], rest[1], 1],
                    3 => {
                        asked.push(Instant::now());
                        let topic = format!("$dps/registrations/res/{head}");
                        let body = body.to_string();
                        let length = 2 + topic.len() + body.len();
                        let mut answer = vec![0x30, (length & 0x7f) as u8 | 0x80, (length >> 7) as u8];
                        answer.extend([0, topic.len() as u8]);
                        answer.extend(topic.bytes().chain(body.bytes()));
                        answer
                    }
                    _ => continue,
                };
                // It may have hung up.
                let _ = stream.write_all(&answer);
            }
        }
        asked
    });
    (port, serve)
}

#[test]
fn a_service_that_is_asked_too_much_is_left_in_peace_for_as_long_as_it_says() {
    let world = World::new(None, &[]);
    let hub = world.hub.address().expect("it listens").to_string();
    let assigned = json!({
        "status": "assigned", "registrationState": { "assignedHub": hub, "deviceId": "dev-1" },
    });
    let throttled = json!({ "errorCode": 429_001, "message": "Operations are being throttled." });
    let (port, served) = service([("429/?$rid=1&retry-after=2", throttled), ("200/?$rid=1", assigned)]);
    let key = world.device_key();
    world.configure(
        &[],
        &format!(
            "[hub]\nplain = true\n[provisioning]\nendpoint = \"127.0.0.1:{port}\"\nid_scope = \"{SCOPE}\"\n\
             registration_id = \"dev-1\"\nkey = \"{key}\"\n"
        ),
    );
    let _agent = world.start();
    world.reports_until(runs("fw-1"));
    let asked = served.join().expect("it was asked");
    assert!(asked[1] - asked[0] >= Duration::from_secs(2), "{asked:?}: {}", world.log());
    assert!(world.log().contains("asks for patience status=429"), "{}", world.log());
}
