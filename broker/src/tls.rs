//! TLS as the hub serves it, and what a client shows about itself in the handshake.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, CommonState, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};
use x509_parser::asn1_rs::{Any, FromDer};
use x509_parser::prelude::X509Certificate;

/// The certificates that a client has shown, its own first, and has proven to hold the key of.
///
/// That says nothing about whose they are: the hub compares thumbprints, or looks for an authority.
#[derive(Clone, Debug, Default)]
pub struct PeerIdentity(Option<Arc<[CertificateDer<'static>]>>);

impl PeerIdentity {
    /// Of a client that has shown none.
    pub const NONE: Self = Self(None);

    /// Of a TLS connection whose handshake is done.
    #[must_use]
    pub fn of(connection: &CommonState) -> Self {
        Self(connection.peer_certificates().filter(|chain| !chain.is_empty()).map(Arc::from))
    }

    /// The chain, the client's own certificate first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// How the hub serves TLS with a certificate.
pub(crate) fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(Arc::new(AnyCertificate(provider)))
        .with_single_cert(chain, key)?;
    config.ticketer = ring::Ticketer::new()?;
    config.send_tls13_tickets = 1;
    Ok(config)
}

/// Asks for a certificate, takes whichever comes if the client holds its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl AnyCertificate {
    /// Checks that the key of `certificate` signed. Certificates are not held to any profile here, old versions
    /// included: what a certificate is worth is decided with the device's registration at hand.
    fn verify(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
        any_curve: bool,
    ) -> Result<HandshakeSignatureValid, Error> {
        let malformed = || Error::InvalidCertificate(CertificateError::BadEncoding);
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| malformed())?;
        let key = &parsed.tbs_certificate.subject_pki;
        let algorithm = contents(key.raw).and_then(contents).ok_or_else(malformed)?;
        let known = &self.0.signature_verification_algorithms.mapping;
        let (_, algorithms) = known
            .iter()
            .find(|(scheme, _)| *scheme == signed.scheme)
            .ok_or(Error::InvalidCertificate(CertificateError::BadSignature))?;
        let candidates = if any_curve { algorithms.len() } else { 1 };
        let verified = algorithms.iter().take(candidates).any(|candidate| {
            candidate.public_key_alg_id().as_ref() == algorithm
                && candidate
                    .verify_signature(&key.subject_public_key.data, message, signed.signature())
                    .is_ok()
        });
        if verified {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::BadSignature))
        }
    }
}

/// The contents of the first DER element.
fn contents(der: &[u8]) -> Option<&[u8]> {
    Any::from_der(der).ok().map(|(_, element)| element.data)
}

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, certificate, signed, true)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // In this version a scheme names its curve, and the old RSA padding may not be used.
        let known = SCHEMES_13.contains(&signed.scheme);
        if !known {
            return Err(Error::InvalidCertificate(CertificateError::BadSignature));
        }
        self.verify(message, certificate, signed, false)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Signature schemes that TLS 1.3 allows in handshakes.
const SCHEMES_13: [SignatureScheme; 7] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::ED25519,
];
