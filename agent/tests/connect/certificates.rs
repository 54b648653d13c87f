//! Devices with a certificate.

use std::fs;
use std::path::Path;

use fleetwave_hub::HubControl;
use fleetwave_hub_core::{Authentication, DeviceSpec, Identity, Thumbprint};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use sha2::{Digest as _, Sha256};

use super::support::{World, runs};

/// What a certificate says: whose it is.
pub(crate) fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// An authority for devices.
pub(crate) fn authority() -> (String, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().expect("a key");
    let mut params = params("devices");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).expect("a certificate").pem();
    (pem, Issuer::new(params, key))
}

pub(crate) fn register(control: &HubControl, id: &str, authentication: Authentication) {
    let name = id.to_owned();
    let created = control.with_device_blocking(id, move |shard| {
        let identity = Identity { authentication, generation_id: 1, ..Identity::default() };
        shard.create(&name, DeviceSpec { identity: Some(&identity), ..DeviceSpec::default() }).map(drop)
    });
    created.expect("the hub runs").expect("a new device");
}

/// The registration of a device whose certificate this is.
pub(crate) fn by_thumbprint(der: &[u8]) -> Authentication {
    let digits: String = Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect();
    Authentication::SelfSigned { primary: Some(Thumbprint::parse(&digits).expect("digits")), secondary: None }
}

/// Sections of a device that shows the certificate and key of these texts.
pub(crate) fn reach(world: &World, id: &str, certificate: &str, key: &str) -> String {
    let place = |name: &str| world.dir.path().join(name);
    fs::write(place("device.pem"), certificate).expect("written");
    fs::write(place("device.key"), key).expect("written");
    sections(world, id, &place("device.pem"), place("device.key").to_str().expect("text"))
}

pub(crate) fn sections(world: &World, id: &str, certificate: &Path, key: &str) -> String {
    let (port, ca) = (world.tls_port(), world.ca());
    format!(
        "[hub]\nhost = \"localhost:{port}\"\ndevice_id = \"{id}\"\nca = {ca:?}\n\
         [identity]\ncertificate = {certificate:?}\nkey = {key:?}\n"
    )
}

#[test]
fn a_device_is_known_by_its_certificates_thumbprint() {
    let world = World::new(None, &[]);
    let key = KeyPair::generate().expect("a key");
    let certificate = params("dev-x").self_signed(&key).expect("a certificate");
    register(&world.hub.control(), "dev-x", by_thumbprint(certificate.der()));
    world.configure(&[], &reach(&world, "dev-x", &certificate.pem(), &key.serialize_pem()));
    let _agent = world.start();
    world.reports_until(runs("fw-1"));
}

#[test]
fn a_device_is_known_by_an_authority_that_vouches_for_it() {
    let (pem, issuer) = authority();
    let world = World::at_hub(None, |hub| hub.device_ca(&pem));
    register(&world.hub.control(), "dev-x", Authentication::CertificateAuthority);
    let key = KeyPair::generate().expect("a key");
    let certificate = params("dev-x").signed_by(&key, &issuer).expect("a certificate");
    let string = format!("HostName=localhost:{};DeviceId=dev-x;x509=true", world.tls_port());
    let reach = reach(&world, "dev-x", &certificate.pem(), &key.serialize_pem());
    let (_, rest) = reach.split_once("\nca").expect("a section");
    world.configure(&[], &format!("[hub]\nconnection_string = \"{string}\"\nca{rest}"));
    let _agent = world.start();
    world.reports_until(runs("fw-1"));
}

#[test]
fn a_certificate_and_a_key_that_do_not_go_together_are_told_of() {
    let world = World::new(None, &[]);
    let (key, other) = (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
    let certificate = params("dev-x").self_signed(&key).expect("a certificate");
    world.configure(&[], &reach(&world, "dev-x", &certificate.pem(), &other.serialize_pem()));
    let log = super::log_until(&world, "not connected");
    assert!(log.contains("device.pem: the certificate is not that of the key"), "{log}");
}
