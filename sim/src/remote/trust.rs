//! Whose certificates are trusted: the system's authorities, or those of one file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::{ClientConfig, RootCertStore};

/// Why no server could be trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file that holds no certificates.
    #[error("{} holds no certificate in PEM form", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// A file whose certificates are none of authorities.
    #[error("{} holds no certificate of an authority", .0.display())]
    Useless(PathBuf),
    /// The system knows no authority.
    #[error(
        "this system has no certificates of authorities; install them (ca-certificates), or give a file by --target-ca"
    )]
    Nobody,
    /// TLS cannot be had.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
}

/// How to make TLS connections. Without a file, the system's authorities are trusted; with one, its alone.
///
/// # Errors
/// If there is nobody to be trusted.
pub(crate) fn client_config(ca: Option<&Path>) -> Result<Arc<ClientConfig>, TrustError> {
    let roots = match ca {
        Some(path) => from_file(path)?,
        None => from_system()?,
    };
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn from_file(path: &Path) -> Result<RootCertStore, TrustError> {
    let file = |source| TrustError::File { path: path.to_owned(), source };
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(file)?.collect::<Result<_, _>>().map_err(file)?;
    let mut roots = RootCertStore::empty();
    match roots.add_parsable_certificates(certificates) {
        (0, _) => Err(TrustError::Useless(path.to_owned())),
        _ => Ok(roots),
    }
}

fn from_system() -> Result<RootCertStore, TrustError> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "some of the system's certificates cannot be read");
    }
    let mut roots = RootCertStore::empty();
    match roots.add_parsable_certificates(found.certs) {
        (0, _) => Err(TrustError::Nobody),
        _ => Ok(roots),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ca.pem");
        std::fs::write(&path, "nothing").expect("written");
        let error = client_config(Some(&path)).expect_err("nothing to trust").to_string();
        assert!(error.contains("ca.pem"), "{error}");
    }
}
