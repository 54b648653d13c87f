//! How a device shows who it is: by a symmetric key or a certificate, whose key is in a file or in a token that does
//! not give it away.

#[cfg(feature = "pkcs11")]
mod pkcs11;
mod secret;
mod uri;

use std::path::{Path, PathBuf};
#[cfg(feature = "pkcs11")]
use std::sync::Arc;

use fleetwave_protocol::WallTime;
use fleetwave_protocol::sas::{self, Key};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde::Deserialize;

#[cfg(feature = "pkcs11")]
pub(crate) use pkcs11::TokenError;
pub(crate) use secret::FileError;
pub(crate) use secret::{exposure, read, read_secret};

#[cfg(feature = "pkcs11")]
use pkcs11::TokenKey;
use uri::Pkcs11Uri;

/// `[identity]`: a key of the device, and what else it shows.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// A PEM file: the device's certificate, then those between it and its authority. Without one the key is
    /// symmetric.
    pub certificate: Option<PathBuf>,
    /// Where the key is.
    pub key: KeySource,
}

/// A file, or `pkcs11:…`.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct KeySource(Source);

#[derive(Clone, Debug)]
enum Source {
    File(PathBuf),
    #[cfg_attr(not(feature = "pkcs11"), expect(dead_code, reason = "refused where it is read"))]
    Token(Pkcs11Uri),
}

impl TryFrom<String> for KeySource {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.starts_with(uri::SCHEME) {
            let uri = Pkcs11Uri::parse(&text)?;
            if cfg!(not(feature = "pkcs11")) {
                return Err("this build of the agent has no PKCS#11 (feature `pkcs11`)".to_owned());
            }
            return Ok(Self(Source::Token(uri)));
        }
        Ok(Self(Source::File(text.into())))
    }
}

/// Why an identity cannot be shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A token.
    #[cfg(feature = "pkcs11")]
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Certificate and key, as TLS sees them.
    #[error("{}: {}", certificate.display(), unusable(source))]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
}

fn unusable(error: &rustls::Error) -> String {
    let text = error.to_string();
    if text.contains("UnsupportedCertVersion") {
        return "a certificate of X.509 version 1, which TLS does not take: make it with extensions (`openssl x509 \
                -req -extfile FILE`), that makes it version 3"
            .to_owned();
    }
    match error {
        rustls::Error::InconsistentKeys(_) => "the certificate is not that of the key".to_owned(),
        _ => text,
    }
}

/// A symmetric key that signs tokens.
#[derive(Clone, Debug)]
pub(crate) struct SasSigner {
    key: SasKey,
    /// The key is a group's: the device's own is derived from it by this id.
    group_of: Option<String>,
}

#[derive(Clone, Debug)]
enum SasKey {
    Held(Key),
    File(PathBuf),
    #[cfg(feature = "pkcs11")]
    Token(Arc<TokenKey>),
}

impl SasSigner {
    pub(crate) fn held(key: Key) -> Self {
        Self { key: SasKey::Held(key), group_of: None }
    }

    pub(crate) fn file(path: PathBuf) -> Self {
        Self { key: SasKey::File(path), group_of: None }
    }

    pub(crate) fn from_source(source: &KeySource) -> Self {
        let key = match &source.0 {
            Source::File(path) => SasKey::File(path.clone()),
            #[cfg(feature = "pkcs11")]
            Source::Token(uri) => SasKey::Token(Arc::new(TokenKey::secret(uri.clone()))),
            #[cfg(not(feature = "pkcs11"))]
            Source::Token(_) => unreachable!("refused where the configuration is read"),
        };
        Self { key, group_of: None }
    }

    /// With the device's key derived from this one.
    pub(crate) fn in_group(self, id: &str) -> Self {
        Self { group_of: Some(id.to_owned()), ..self }
    }

    /// A token for `resource`.
    pub(crate) fn token(
        &self,
        resource: &str,
        expires: WallTime,
        policy: Option<&str>,
    ) -> Result<String, IdentityError> {
        let key = match &self.key {
            SasKey::Held(key) => key.clone(),
            SasKey::File(path) => {
                let text = read_secret(path)?;
                let key = Key::from_base64(text.trim());
                key.ok_or_else(|| FileError::content(path, "not a key in base64"))?
            }
            #[cfg(feature = "pkcs11")]
            SasKey::Token(key) => {
                let Some(id) = &self.group_of else {
                    return Ok(sas::token_signed_by(resource, expires, policy, |text| key.mac(text))?);
                };
                let key = Key::from_bytes(key.mac(id.as_bytes())?);
                return Ok(sas::token(&key, resource, expires, policy));
            }
        };
        let key = self.group_of.as_ref().map_or_else(|| key.clone(), |id| key.derive(id));
        Ok(sas::token(&key, resource, expires, policy))
    }

    fn secret_file(&self) -> Option<&Path> {
        match &self.key {
            SasKey::File(path) => Some(path),
            _ => None,
        }
    }
}

/// A certificate and where its key is. The files are read for each connection: a certificate that was replaced is
/// shown from the next one on.
#[derive(Clone, Debug)]
pub(crate) struct CertificateSource {
    chain: PathBuf,
    key: CertificateKey,
}

#[derive(Clone, Debug)]
enum CertificateKey {
    File(PathBuf),
    #[cfg(feature = "pkcs11")]
    Token(Arc<TokenKey>),
}

impl CertificateSource {
    pub(crate) fn new(chain: &Path, key: &KeySource) -> Self {
        let key = match &key.0 {
            Source::File(path) => CertificateKey::File(path.clone()),
            #[cfg(feature = "pkcs11")]
            Source::Token(uri) => CertificateKey::Token(Arc::new(TokenKey::private(uri.clone()))),
            #[cfg(not(feature = "pkcs11"))]
            Source::Token(_) => unreachable!("refused where the configuration is read"),
        };
        Self { chain: chain.to_owned(), key }
    }

    /// What TLS shows, and the bytes it was made from.
    pub(crate) fn load(&self) -> Result<(CertifiedKey, Vec<u8>), IdentityError> {
        let mut bytes = read(&self.chain)?;
        let certified = match &self.key {
            CertificateKey::File(path) => {
                let key = read(path)?;
                let certified = certified((&self.chain, &bytes), (path, &key))?;
                bytes.extend(&key);
                certified
            }
            #[cfg(feature = "pkcs11")]
            CertificateKey::Token(key) => {
                CertifiedKey::new(certificates(&self.chain, &bytes)?, key.clone().for_tls()?)
            }
        };
        Ok((certified, bytes))
    }

    fn secret_file(&self) -> Option<&Path> {
        match &self.key {
            CertificateKey::File(path) => Some(path),
            #[cfg(feature = "pkcs11")]
            CertificateKey::Token(_) => None,
        }
    }
}

/// A certificate with those between it and the authority, and its private key, from the PEM bytes of two files.
pub(crate) fn certified(
    (chain_path, chain): (&Path, &[u8]),
    (key_path, key): (&Path, &[u8]),
) -> Result<CertifiedKey, IdentityError> {
    let chain = certificates(chain_path, chain)?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_| FileError::content(key_path, "no private key in PEM form"))?;
    CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())
        .map_err(|source| IdentityError::Unusable { certificate: chain_path.to_owned(), source })
}

fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let chain = CertificateDer::pem_slice_iter(bytes).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| FileError::content(path, format!("not PEM: {error}")))?;
    if chain.is_empty() {
        return Err(FileError::content(path, "no certificate in PEM form"));
    }
    Ok(chain)
}

/// What a device shows.
#[derive(Clone, Debug)]
pub(crate) enum Proof {
    /// A token, signed for each connection.
    Sas(SasSigner),
    /// A certificate.
    Certificate(CertificateSource),
    /// A user's name and password, at a broker that is no hub.
    Password {
        /// The user's name.
        user: String,
        /// The file of the password.
        file: PathBuf,
    },
    /// Nothing: a broker that lets everybody in.
    Nothing,
}

impl Proof {
    /// What `[identity]` says.
    pub(crate) fn of(identity: &Identity) -> Self {
        match &identity.certificate {
            Some(chain) => Self::Certificate(CertificateSource::new(chain, &identity.key)),
            None => Self::Sas(SasSigner::from_source(&identity.key)),
        }
    }

    /// For people.
    pub(crate) fn describe(&self) -> String {
        let place = |file: Option<&Path>| match file {
            Some(path) => path.display().to_string(),
            None => "a token".to_owned(),
        };
        match self {
            Self::Sas(SasSigner { key: SasKey::Held(_), .. }) => "a key, from the configuration".to_owned(),
            Self::Sas(signer) => format!("a key, in {}", place(signer.secret_file())),
            Self::Certificate(source) => {
                format!("{}, whose key is in {}", source.chain.display(), place(source.secret_file()))
            }
            Self::Password { user, file } => format!("the password of {user}, in {}", file.display()),
            Self::Nothing => "nothing".to_owned(),
        }
    }

    /// The file of its secret that others could read, and how to mend it.
    pub(crate) fn exposure(&self) -> Option<String> {
        let path = match self {
            Self::Sas(signer) => signer.secret_file(),
            Self::Certificate(source) => source.secret_file(),
            Self::Password { file, .. } => Some(file.as_path()),
            Self::Nothing => None,
        };
        exposure(path?)
    }
}
