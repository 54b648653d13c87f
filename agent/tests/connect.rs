//! The ways to a hub: TLS, keys and certificates, provisioning, tokens that are renewed, brokers.

#[path = "common/real.rs"]
mod real;
mod support;

#[path = "connect/certificates.rs"]
mod certificates;
#[path = "connect/provisioning.rs"]
mod provisioning;
#[path = "connect/renewal.rs"]
mod renewal;
#[path = "connect/token.rs"]
mod token;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use fleetwave_hub::pki::Pki;
use support::{DEVICE, World, eventually, runs};

/// `[hub]` by a connection string over TLS, and what else stands in the section.
fn by_key(world: &World, names: &str, more: &str) -> String {
    let (port, key, ca) = (world.tls_port(), world.device_key(), world.ca());
    let names = names.replace("PORT", &port.to_string());
    format!(
        "[hub]\nconnection_string = \"{names};DeviceId={DEVICE};SharedAccessKey={key}\"\nca = {ca:?}\n{more}\n"
    )
}

/// Starts the agent and waits until its log says something; gives the log.
fn log_until(world: &World, says: &str) -> String {
    let _agent = world.start();
    eventually(says, || world.log().contains(says));
    world.log()
}

#[test]
fn a_key_and_the_authoritys_certificate_are_enough_for_tls() {
    let world = World::new(None, &[]);
    world.configure(&[], &by_key(&world, "HostName=localhost:PORT", ""));
    let _agent = world.start();
    assert_eq!(world.reports_until(runs("fw-1")), ["fw-1 idle -"]);
}

#[test]
fn a_hub_behind_a_gateway_is_reached_by_the_gateways_name_and_keeps_its_own() {
    let world = World::at_hub(None, |hub| hub.host_name("contoso.azure-devices.net"));
    let names = "HostName=contoso.azure-devices.net;GatewayHostName=localhost:PORT";
    world.configure(&[], &by_key(&world, names, ""));
    let _agent = world.start();
    world.reports_until(runs("fw-1"));
}

#[test]
fn a_hub_that_another_authority_vouches_for_is_not_talked_to() {
    let world = World::new(None, &[]);
    let reach = by_key(&world, "HostName=localhost:PORT", "");
    world.configure(&[], &reach);
    let other = Pki::load_or_create(None, &[]).expect("certificates");
    fs::write(world.dir.path().join("ca.pem"), other.ca_pem()).expect("written");
    let log = log_until(&world, "not connected");
    assert!(
        log.contains(
            "TLS with localhost: its certificate is from an authority that this device does not trust"
        ),
        "{log}"
    );
    assert!(log.contains("set [hub] ca"), "{log}");
    assert!(!log.contains("SharedAccessSignature") && !log.contains(&world.device_key()), "{log}");
}

#[test]
fn a_hub_of_another_name_than_was_configured_is_not_talked_to() {
    let world = World::new(None, &[]);
    // To Linux this is this machine, and it stands in no certificate.
    world.configure(&[], &by_key(&world, "HostName=localhost;GatewayHostName=0.0.0.0:PORT", ""));
    let log = log_until(&world, "not connected");
    assert!(log.contains("TLS with 0.0.0.0: certificate not valid for name"), "{log}");
}

#[test]
fn a_ca_file_that_is_not_there_yet_is_told_of_and_taken_as_soon_as_it_is() {
    let world = World::new(None, &[]);
    let reach = by_key(&world, "HostName=localhost:PORT", "");
    world.configure(&[], &reach);
    let (ca, aside) = (world.dir.path().join("ca.pem"), world.dir.path().join("aside.pem"));
    fs::rename(&ca, &aside).expect("renamed");
    let _agent = world.start();
    eventually("the log says so", || world.log().contains("[hub] ca: "));
    fs::rename(&aside, &ca).expect("renamed");
    world.reports_until(runs("fw-1"));
}

#[test]
fn a_device_that_the_hub_refuses_is_told_what_may_be_wrong() {
    let world = World::new(None, &[]);
    let reach =
        by_key(&world, "HostName=localhost:PORT", "").replace("SharedAccessKey=", "SharedAccessKey=AAAA");
    world.configure(&[], &reach);
    let log = log_until(&world, "not connected");
    assert!(
        log.contains("localhost refused the device (not authorized): a wrong key or certificate"),
        "{log}"
    );
}

#[test]
fn a_connection_string_in_a_file_works_and_one_that_everybody_can_read_is_told_of() {
    let world = World::new(None, &[]);
    let reach = by_key(&world, "HostName=localhost:PORT", "");
    let string = reach.split('"').nth(1).expect("quoted");
    let file = world.dir.path().join("string");
    fs::write(&file, format!("{string}\n")).expect("written");
    fs::set_permissions(&file, Permissions::from_mode(0o644)).expect("ours");
    world.configure(&[], &format!("[hub]\nconnection_string_file = {file:?}\nca = {:?}\n", world.ca()));
    let _agent = world.start();
    world.reports_until(runs("fw-1"));
    assert!(
        world.log().contains("everybody on this machine can get at it (mode 644): chmod 640"),
        "{}",
        world.log()
    );
}
