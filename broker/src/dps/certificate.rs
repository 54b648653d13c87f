//! Certificates in enrollments, and chains that devices show.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fleetwave_hub_core::Iso8601;
use fleetwave_protocol::WallTime;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use serde_json::{Value, json};
use sha2::Digest as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::DpsError;

/// A certificate that was read, with what is shown of it.
#[derive(Clone, Debug)]
pub(super) struct Certificate {
    der: Vec<u8>,
    common_name: Option<String>,
    subject: String,
    issuer: String,
    serial: String,
    version: u32,
    /// Seconds since 1970.
    not_before: i64,
    not_after: i64,
}

impl Certificate {
    /// Reads PEM, or the base64 of DER.
    pub(super) fn read(text: &str) -> Result<Self, DpsError> {
        let text = text.trim();
        if text.contains("-----BEGIN") {
            let der = CertificateDer::from_pem_slice(text.as_bytes())
                .map_err(|error| DpsError::invalid(format!("a certificate is not PEM: {error:?}")))?;
            return Self::of_der(der.to_vec());
        }
        let compact: String = text.split_whitespace().collect();
        let bytes = STANDARD.decode(compact).map_err(|error| {
            DpsError::invalid(format!("a certificate is neither PEM nor base64: {error}"))
        })?;
        // Some back ends encode the PEM text once more.
        if bytes.starts_with(b"-----BEGIN") {
            return Self::read(&String::from_utf8_lossy(&bytes));
        }
        Self::of_der(bytes)
    }

    pub(super) fn of_der(der: Vec<u8>) -> Result<Self, DpsError> {
        let (_, parsed) = X509Certificate::from_der(&der)
            .map_err(|error| DpsError::invalid(format!("not an X.509 certificate: {error}")))?;
        let common_name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        Ok(Self {
            common_name: common_name.map(str::to_owned),
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            serial: parsed.raw_serial_as_string().replace(':', "").to_uppercase(),
            version: parsed.version().0 + 1,
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            der,
        })
    }

    pub(super) fn der(&self) -> &[u8] {
        &self.der
    }

    pub(super) fn common_name(&self) -> Option<&str> {
        self.common_name.as_deref()
    }

    pub(super) fn check_dates(&self, wall: WallTime) -> Result<(), String> {
        let now = i64::try_from(wall.as_unix_secs()).unwrap_or(i64::MAX);
        if now < self.not_before || now > self.not_after {
            return Err("the certificate is not valid at this time".into());
        }
        Ok(())
    }

    pub(super) fn write(&self) -> Value {
        json!({
            "certificate": STANDARD.encode(&self.der),
            "info": {
                "subjectName": self.subject,
                "sha1Thumbprint": hex(&sha1::Sha1::digest(&self.der)),
                "sha256Thumbprint": hex(&sha2::Sha256::digest(&self.der)),
                "issuerName": self.issuer,
                "notBeforeUtc": utc(self.not_before),
                "notAfterUtc": utc(self.not_after),
                "serialNumber": self.serial,
                "version": self.version,
            },
        })
    }
}

fn utc(seconds: i64) -> String {
    let millis = u64::try_from(seconds).unwrap_or(0).saturating_mul(1000);
    Iso8601(WallTime::from_unix_millis(millis)).to_string()
}

/// The SHA-256 thumbprint of a certificate in DER.
pub(super) fn thumbprint(der: &[u8]) -> String {
    hex(&sha2::Sha256::digest(der))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02X}");
        text
    })
}

/// Whether a chain leads to one of the anchors at this time.
pub(super) fn verify_chain(
    chain: &[CertificateDer<'_>],
    anchors: &[Certificate],
    wall: WallTime,
) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    for anchor in anchors {
        let added = roots.add(CertificateDer::from(anchor.der.clone()));
        added.map_err(|error| format!("the enrollment's certificate is no authority: {error}"))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| format!("the enrollment's certificates cannot be used: {error}"))?;
    let (own, between) = chain.split_first().ok_or("no certificate was shown")?;
    let now = UnixTime::since_unix_epoch(Duration::from_millis(wall.as_unix_millis()));
    verifier
        .verify_client_cert(own, between, now)
        .map(drop)
        .map_err(|error| format!("the certificate does not lead to the enrollment's: {error}"))
}
