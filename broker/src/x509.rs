//! What is read in clients' certificates: thumbprints, names, and who vouches for them.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use fleetwave_protocol::WallTime;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{Error, RootCertStore};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::tls::PeerIdentity;

/// Whether `thumbprint` is the SHA-1 or SHA-256 of a certificate, in hexadecimal digits of either case.
#[must_use]
pub fn has_thumbprint(certificate: &CertificateDer<'_>, thumbprint: &str) -> bool {
    let digest = match thumbprint.len() {
        40 => hexadecimal(&Sha1::digest(certificate)),
        64 => hexadecimal(&Sha256::digest(certificate)),
        _ => return false,
    };
    digest.eq_ignore_ascii_case(thumbprint)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02X}").expect("a String never fails to grow");
        text
    })
}

/// The common name of a certificate's subject; `None` if it has none, or several.
#[must_use]
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let mut names = parsed.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?.to_owned();
    names.next().is_none().then_some(name)
}

/// The certificate authorities that may vouch for devices.
#[derive(Clone, Debug, Default)]
pub struct Authorities(Option<Arc<dyn ClientCertVerifier>>);

impl Authorities {
    /// These authorities: each text holds certificates in PEM form.
    ///
    /// # Errors
    /// If one holds no certificate, or what it holds is none.
    pub fn from_pem<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, NotAnAuthority> {
        let mut roots = RootCertStore::empty();
        for text in texts {
            let before = roots.len();
            for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
                let certificate = certificate.map_err(|error| NotAnAuthority(error.to_string()))?;
                roots.add(certificate).map_err(|error| NotAnAuthority(error.to_string()))?;
            }
            if roots.len() == before {
                return Err(NotAnAuthority("there is no certificate in it".into()));
            }
        }
        if roots.is_empty() {
            return Ok(Self::default());
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| NotAnAuthority(error.to_string()))?;
        Ok(Self(Some(verifier)))
    }

    /// The common name that an authority vouches for, of a client that has shown its chain.
    ///
    /// # Errors
    /// If no authority does, or a certificate of the chain is not valid at `wall`, or there is no one common name.
    pub fn vouch(&self, peer: &PeerIdentity, wall: WallTime) -> Result<String, Error> {
        let [leaf, between @ ..] = peer.chain() else { return Err(Error::NoCertificatesPresented) };
        let unknown = || Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let verifier = self.0.as_ref().ok_or_else(unknown)?;
        let now = UnixTime::since_unix_epoch(Duration::from_millis(wall.as_unix_millis()));
        verifier.verify_client_cert(leaf, between, now)?;
        common_name(leaf).ok_or_else(|| Error::General("the certificate has no single common name".into()))
    }
}

/// What was given for an authority's certificate is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the certificate of an authority in PEM form: {0}")]
pub struct NotAnAuthority(String);
