//! Devices that a provisioning service puts where they belong.

use std::fs;
use std::process::Command;

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
