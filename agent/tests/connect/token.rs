//! Keys in a PKCS#11 token: SoftHSM's, which is a directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fleetwave_hub_core::Authentication;
use fleetwave_protocol::sas::Key;
use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey};
use sha2::{Digest as _, Sha256};

use super::certificates::{by_thumbprint, params, register, sections};
use super::real::have;
use super::support::{World, runs};

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const PIN: &str = "4711";

/// A token of a test's own.
struct Token {
    dir: PathBuf,
}

impl Token {
    fn new(world: &World) -> Self {
        let dir = world.dir.path().join("token");
        fs::create_dir_all(dir.join("objects")).expect("a directory");
        let config =
            format!("directories.tokendir = {}\nobjectstore.backend = file\n", dir.join("objects").display());
        fs::write(dir.join("softhsm2.conf"), config).expect("written");
        fs::write(dir.join("pin"), format!("{PIN}\n")).expect("written");
        let token = Self { dir };
        let init = ["--init-token", "--free", "--label", "my device", "--so-pin", "0000", "--pin", PIN];
        token.run("softhsm2-util", &init);
        token
    }

    fn conf(&self) -> PathBuf {
        self.dir.join("softhsm2.conf")
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let output = Command::new(program)
            .args(arguments)
            .env("SOFTHSM2_CONF", self.conf())
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
        output
    }

    fn tool(&self, arguments: &[&str]) -> Output {
        let login = ["--module", MODULE, "--token-label", "my device", "--login", "--pin", PIN];
        self.run("pkcs11-tool", &[&login, arguments].concat())
    }

    fn uri(&self, object: &str) -> String {
        let pin = self.dir.join("pin");
        format!(
            "pkcs11:token=my%20device;object={object}?module-path={MODULE}&pin-source=file:{}",
            pin.display()
        )
    }

    /// A new key pair in the token, and what makes certificates for it.
    fn key_pair(&self, object: &str, kind: &str) -> InToken<'_> {
        self.tool(&["--keypairgen", "--key-type", kind, "--label", object, "--id", "01"]);
        let file = self.dir.join("public.der");
        let path = file.to_str().expect("text");
        self.tool(&["--read-object", "--type", "pubkey", "--label", object, "--output-file", path]);
        let spki = fs::read(&file).expect("a public key");
        InToken { token: self, object: object.to_owned(), rsa: kind.starts_with("rsa"), spki }
    }
}

/// A key that signs certificate requests in the token.
struct InToken<'a> {
    token: &'a Token,
    object: String,
    rsa: bool,
    /// The SubjectPublicKeyInfo.
    spki: Vec<u8>,
}

impl PublicKeyData for InToken<'_> {
    fn der_bytes(&self) -> &[u8] {
        // The BIT STRING at the end: for an elliptic curve one point, for RSA the rest after its header.
        let length = if self.rsa { self.spki.len() - 24 } else { 65 };
        &self.spki[self.spki.len() - length..]
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        if self.rsa { &PKCS_RSA_SHA256 } else { &PKCS_ECDSA_P256_SHA256 }
    }
}

impl SigningKey for InToken<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let place = |name: &str| self.token.dir.join(name).to_str().expect("text").to_owned();
        let (input, output) = (place("message"), place("signature"));
        let digest = Sha256::digest(message);
        fs::write(&input, if self.rsa { message } else { &digest[..] }).expect("written");
        let mechanism = if self.rsa { "SHA256-RSA-PKCS" } else { "ECDSA" };
        let files = ["--input-file", &input, "--output-file", &output, "--signature-format", "openssl"];
        self.token
            .tool(&[&["--sign", "--mechanism", mechanism, "--label", &self.object], &files[..]].concat());
        Ok(fs::read(Path::new(&output)).expect("a signature"))
    }
}

fn have_token() -> bool {
    have("softhsm2-util") && have("pkcs11-tool")
}

/// The file of a certificate for this key, by whose thumbprint the hub knows the device.
fn certified(world: &World, key: &InToken<'_>) -> PathBuf {
    let certificate = params("dev-x").self_signed(key).expect("a certificate");
    register(&world.hub.control(), "dev-x", by_thumbprint(certificate.der()));
    let file = world.dir.path().join("device.pem");
    fs::write(&file, certificate.pem()).expect("written");
    file
}

fn a_key_pair_in_the_token_connects(kind: &str) {
    if !have_token() {
        return;
    }
    let world = World::new(None, &[]);
    let token = Token::new(&world);
    let key = token.key_pair("hub", kind);
    let file = certified(&world, &key);
    world.configure(&[], &sections(&world, "dev-x", &file, &token.uri("hub")));
    let _agent = world.start_with(&[("SOFTHSM2_CONF", &token.conf())]);
    world.reports_until(runs("fw-1"));
}

#[test]
fn a_certificate_whose_elliptic_curve_key_never_leaves_its_token() {
    a_key_pair_in_the_token_connects("EC:prime256v1");
}

#[test]
fn a_certificate_whose_rsa_key_never_leaves_its_token() {
    a_key_pair_in_the_token_connects("rsa:2048");
}

#[test]
fn a_symmetric_key_signs_tokens_where_it_is() {
    if !have_token() {
        return;
    }
    let world = World::new(None, &[]);
    let token = Token::new(&world);
    token.tool(&["--keygen", "--key-type", "GENERIC:32", "--label", "sas", "--extractable", "--id", "02"]);
    // The hub has to know it, too; a real key would be made elsewhere and written into both.
    let file = token.dir.join("secret");
    let path = file.to_str().expect("text");
    token.tool(&["--read-object", "--type", "secrkey", "--label", "sas", "--output-file", path]);
    let key = fs::read(&file).expect("a key");
    fs::remove_file(&file).expect("ours");
    let (primary, secondary) = (Key::from_bytes(key), Key::from_bytes(*b"another one"));
    register(&world.hub.control(), "dev-x", Authentication::Sas { primary, secondary });
    let reach = sections(&world, "dev-x", Path::new("unused"), &token.uri("sas"));
    world.configure(&[], &reach.replace("certificate = \"unused\"\n", ""));
    let _agent = world.start_with(&[("SOFTHSM2_CONF", &token.conf())]);
    world.reports_until(runs("fw-1"));
}

#[test]
fn a_key_that_is_not_in_the_token_is_told_of_without_the_pin() {
    if !have_token() {
        return;
    }
    let world = World::new(None, &[]);
    let token = Token::new(&world);
    let key = token.key_pair("hub", "EC:prime256v1");
    let file = certified(&world, &key);
    world.configure(&[], &sections(&world, "dev-x", &file, &token.uri("other")));
    let _agent = world.start_with(&[("SOFTHSM2_CONF", &token.conf())]);
    super::eventually("the log says so", || world.log().contains("0 keys in the token are object \"other\""));
    assert!(!world.log().contains(PIN), "{}", world.log());
}

#[test]
fn a_pin_that_the_token_refuses_is_shown_to_it_once_and_the_right_one_is_taken_without_a_restart() {
    if !have_token() {
        return;
    }
    let world = World::new(None, &[]);
    let token = Token::new(&world);
    let key = token.key_pair("hub", "EC:prime256v1");
    let file = certified(&world, &key);
    fs::write(token.dir.join("pin"), "1234").expect("written");
    world.configure(&[], &sections(&world, "dev-x", &file, &token.uri("hub")));
    let _agent = world.start_with(&[("SOFTHSM2_CONF", &token.conf())]);
    super::eventually("it is not tried again", || world.log().matches("has refused this PIN").count() >= 2);
    assert_eq!(world.log().matches("the token refused the login").count(), 1, "{}", world.log());
    fs::write(token.dir.join("pin"), PIN).expect("written");
    world.reports_until(runs("fw-1"));
}
