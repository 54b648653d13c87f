//! TLS as a device speaks it: whom it trusts, and what it shows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest as _, Sha256};

use super::LinkError;
use crate::identity::{CertificateSource, FileError, read};

/// Sessions that are kept for resumption: those of the hub, and of the provisioning service.
const SESSIONS: usize = 4;

/// What the agents of one process share: authorities are read once, and devices that show no certificate have one
/// configuration.
#[derive(Clone, Debug, Default)]
pub struct TlsPool(Arc<Mutex<BTreeMap<Option<PathBuf>, Shared>>>);

#[derive(Clone, Debug)]
struct Shared {
    /// The content of the file that the authorities are from; it may be replaced.
    digest: [u8; 32],
    roots: Arc<RootCertStore>,
    anonymous: Arc<ClientConfig>,
}

/// One device's way of TLS.
#[derive(Debug)]
pub(super) struct Client {
    pool: TlsPool,
    ca: Option<PathBuf>,
    /// The configuration with the device's certificate, and the digest of what it was made from: as long as that
    /// stays the same, sessions can be resumed.
    own: Mutex<Option<([u8; 32], Arc<ClientConfig>)>>,
}

impl Client {
    pub(super) fn new(pool: &TlsPool, ca: Option<&Path>) -> Self {
        Self { pool: pool.clone(), ca: ca.map(Path::to_owned), own: Mutex::default() }
    }

    /// What it shares with others.
    pub(super) fn pool(&self) -> &TlsPool {
        &self.pool
    }

    /// The configuration of a device that shows `certificate`, or none.
    pub(super) fn config(
        &self,
        certificate: Option<&CertificateSource>,
    ) -> Result<Arc<ClientConfig>, LinkError> {
        let shared = self.pool.shared(self.ca.as_deref())?;
        let Some(certificate) = certificate else { return Ok(shared.anonymous) };
        let (certified, made_from) = certificate.load()?;
        let digest = digest(&[&shared.digest, &made_from]);
        let mut own = self.own.lock().expect("nothing panics under this lock");
        if let Some((of, config)) = &*own
            && *of == digest
        {
            return Ok(config.clone());
        }
        let resolver = Arc::new(SingleCertAndKey::from(certified));
        let config = client_config(shared.roots, Some(resolver));
        *own = Some((digest, config.clone()));
        Ok(config)
    }
}

impl TlsPool {
    /// The configuration of whoever shows no certificate, and trusts the authorities in the file `ca`, or the system's.
    /// Reads files.
    pub(crate) fn anonymous(&self, ca: Option<&Path>) -> Result<Arc<ClientConfig>, LinkError> {
        Ok(self.shared(ca)?.anonymous)
    }

    fn shared(&self, ca: Option<&Path>) -> Result<Shared, LinkError> {
        let key = ca.map(Path::to_owned);
        let bytes = ca.map(read).transpose().map_err(LinkError::Authorities)?;
        let digest = digest(&[bytes.as_deref().unwrap_or_default()]);
        let mut known = self.0.lock().expect("nothing panics under this lock");
        if let Some(shared) = known.get(&key).filter(|shared| shared.digest == digest) {
            return Ok(shared.clone());
        }
        let roots = Arc::new(match (ca, &bytes) {
            (Some(path), Some(bytes)) => authorities(path, bytes)?,
            _ => system_authorities()?,
        });
        let shared = Shared { digest, anonymous: client_config(roots.clone(), None), roots };
        known.insert(key, shared.clone());
        Ok(shared)
    }
}

fn digest(parts: &[&[u8]]) -> [u8; 32] {
    parts.iter().fold(Sha256::new(), Sha256::chain_update).finalize().into()
}

/// The authorities in the bytes of the file `path`.
pub(crate) fn authorities(path: &Path, bytes: &[u8]) -> Result<RootCertStore, LinkError> {
    let bad = |why: String| LinkError::Authorities(FileError::content(path, why));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bytes) {
        let certificate = certificate.map_err(|error| bad(format!("not PEM: {error}")))?;
        roots.add(certificate).map_err(|error| bad(format!("not an authority's certificate: {error}")))?;
    }
    if roots.is_empty() {
        return Err(bad("no certificate in PEM form".to_owned()));
    }
    Ok(roots)
}

fn system_authorities() -> Result<RootCertStore, LinkError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Systems carry some that no library reads.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(LinkError::NoAuthorities(why));
    }
    Ok(roots)
}

/// The configuration of whoever trusts `roots` and shows `certificate`.
pub(crate) fn client_config(
    roots: Arc<RootCertStore>,
    certificate: Option<Arc<dyn ResolvesClientCert>>,
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("the provider has the suites of both versions")
        .with_root_certificates(roots);
    let mut config = match certificate {
        Some(resolver) => builder.with_client_cert_resolver(resolver),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    Arc::new(config)
}
