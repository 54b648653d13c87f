//! The hub's certificates: an authority of its own, and what servers show.
//!
//! Whoever wants to use other certificates puts `server.pem` (the chain) and `server.key` into the directory.

use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::tls;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long an authority lasts: longer than a device's firmware that trusts it.
const CA_DAYS: u32 = 3650;
/// How long a server certificate lasts. Some platforms refuse longer than 398 days.
const SERVER_DAYS: u32 = 397;
/// A server certificate with less than this left is made again.
const RENEW_DAYS: u32 = 30;
/// Tells certificates of this module from those that a user has put there.
const ORGANISATION: &str = "Fleetwave hub";

/// Why there are no certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("cannot {doing} {}: {source}", path.display())]
    File {
        /// `read` or `write`.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file does not hold what its name says.
    #[error("{} holds no {expected} in PEM form: {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What was expected.
        expected: &'static str,
        /// What is wrong.
        why: String,
    },
    /// One of a pair of files is there, the other is not.
    #[error("{} is there, but not {}: both belong together", present.display(), absent.display())]
    Half {
        /// The file that is there.
        present: PathBuf,
        /// The one that is not.
        absent: PathBuf,
    },
    /// A name that cannot stand in a certificate.
    #[error(
        "{0:?} cannot stand in a certificate: letters, digits, `-`, `.` and a leading `*.` were expected"
    )]
    Name(String),
    /// A certificate or key could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// Certificate and key do not go together, or TLS cannot use them.
    #[error("these certificates cannot be used for TLS: {0}")]
    Unusable(#[from] rustls::Error),
}

/// Certificates to serve with.
#[derive(Clone, Debug)]
pub struct Pki {
    ca_pem: String,
    config: Arc<ServerConfig>,
}

impl Pki {
    /// Loads the certificates of a directory, and makes those that are missing: `ca.pem`, `ca.key`, `server.pem`,
    /// `server.key`. Without a directory they live as long as the value.
    ///
    /// The server certificate stands for `localhost`, the loopback addresses, the machine's name, the names of Azure's
    /// hubs and provisioning services, and `names`. It is made again when one of these is missing, or its time ends.
    ///
    /// # Errors
    /// If files cannot be read or written, or hold something else, or a name is none.
    pub fn load_or_create(dir: Option<&Path>, names: &[String]) -> Result<Self, PkiError> {
        let names = sans(names)?;
        let Some(dir) = dir else {
            let authority = Authority::generate()?;
            let (chain, key) = authority.issue(&names)?;
            return Self::new(authority.pem, &chain, &key, Path::new("server.pem"));
        };
        fs::create_dir_all(dir).map_err(file("write", dir))?;
        let place = |name: &str| dir.join(name);
        let pair = read_pair(&place("server.pem"), &place("server.key"))?;
        let ca_text = read(&place("ca.pem"))?;
        if let Some((chain, key)) = &pair
            && !is_ours(&place("server.pem"), chain)?
        {
            let ca_pem = match ca_text {
                Some(text) => text,
                None => last_certificate(chain),
            };
            return Self::new(ca_pem, chain, key, &place("server.pem"));
        }
        let authority = match read_pair(&place("ca.pem"), &place("ca.key"))? {
            Some((certificate, key)) => Authority::load(&place("ca.pem"), certificate, &key)?,
            None => {
                let authority = Authority::generate()?;
                write(&place("ca.key"), &authority.issuer.key().serialize_pem(), 0o600)?;
                write(&place("ca.pem"), &authority.pem, 0o644)?;
                authority
            }
        };
        let (chain, key) = match pair {
            Some((chain, key)) if authority.is_current(&place("server.pem"), &chain, &names)? => (chain, key),
            _ => {
                let (chain, key) = authority.issue(&names)?;
                write(&place("server.key"), &key, 0o600)?;
                write(&place("server.pem"), &chain, 0o644)?;
                (chain, key)
            }
        };
        Self::new(authority.pem, &chain, &key, &place("server.pem"))
    }

    fn new(ca_pem: String, chain: &str, key: &str, path: &Path) -> Result<Self, PkiError> {
        let chain = certificates(path, chain)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| PkiError::Content {
            path: path.with_extension("key"),
            expected: "private key",
            why: error.to_string(),
        })?;
        Ok(Self { ca_pem, config: Arc::new(tls::server_config(chain, key)?) })
    }

    /// What clients have to trust, in PEM form.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// How to serve TLS with these certificates: versions 1.2 and 1.3, sessions can be resumed, a client may show a
    /// certificate of whatever origin. Who it belongs to is for the caller to find out.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }
}

/// Who signs server certificates.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn generate() -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = params(CA_DAYS);
        // Authorities of several hubs must not look alike: a client may trust more than one.
        let id: String =
            params.key_identifier(&key).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        params.distinguished_name = name(&format!("Fleetwave hub CA {id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { pem, issuer: Issuer::new(params, key) })
    }

    fn load(path: &Path, pem: String, key: &str) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(key).map_err(|error| PkiError::Content {
            path: path.with_extension("key"),
            expected: "private key",
            why: error.to_string(),
        })?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(|error| PkiError::Content {
            path: path.to_owned(),
            expected: "certificate of an authority",
            why: error.to_string(),
        })?;
        Ok(Self { pem, issuer })
    }

    /// A server's chain and key, in PEM form.
    fn issue(&self, names: &[SanType]) -> Result<(String, String), PkiError> {
        let key = KeyPair::generate()?;
        let mut params = params(SERVER_DAYS);
        params.distinguished_name = name("localhost");
        params.subject_alt_names = names.to_vec();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((format!("{}{}", certificate.pem(), self.pem), key.serialize_pem()))
    }

    /// Whether a chain is of this authority, stands for all the names, and lasts a while.
    fn is_current(&self, path: &Path, chain: &str, names: &[SanType]) -> Result<bool, PkiError> {
        let chain = certificates(path, chain)?;
        let authority = CertificateDer::from_pem_slice(self.pem.as_bytes());
        if chain.get(1) != authority.ok().as_ref() {
            return Ok(false);
        }
        let leaf = parse(path, &chain[0])?;
        let enough = SystemTime::now() + DAY * RENEW_DAYS;
        let lasts = enough
            .duration_since(SystemTime::UNIX_EPOCH)
            .is_ok_and(|at| leaf.validity().not_after.timestamp() > at.as_secs().cast_signed());
        let alternative = leaf.subject_alternative_name().ok().flatten();
        let present = alternative.map(|extension| &extension.value.general_names[..]).unwrap_or_default();
        let has = |wanted: &SanType| {
            present.iter().any(|name| match (wanted, name) {
                (SanType::DnsName(wanted), GeneralName::DNSName(name)) => wanted.as_str() == *name,
                (SanType::IpAddress(IpAddr::V4(wanted)), GeneralName::IPAddress(bytes)) => {
                    *bytes == wanted.octets()
                }
                (SanType::IpAddress(IpAddr::V6(wanted)), GeneralName::IPAddress(bytes)) => {
                    *bytes == wanted.octets()
                }
                _ => false,
            })
        };
        Ok(lasts && names.iter().all(has))
    }
}

fn params(days: u32) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = SystemTime::now();
    // A client's clock may be late.
    params.not_before = (now - DAY).into();
    params.not_after = (now + DAY * days).into();
    params
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name.push(DnType::OrganizationName, ORGANISATION);
    name
}

/// All names of a server certificate, each once.
fn sans(names: &[String]) -> Result<Vec<SanType>, PkiError> {
    let dns = |name: &str| -> Result<SanType, PkiError> {
        let label = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        let plain = name.strip_prefix("*.").unwrap_or(name);
        let wrong = || PkiError::Name(name.to_owned());
        if !plain.split('.').all(label) {
            return Err(wrong());
        }
        Ok(SanType::DnsName(name.to_ascii_lowercase().try_into().map_err(|_| wrong())?))
    };
    let mut all = vec![
        dns("localhost")?,
        dns("*.azure-devices.net")?,
        dns("*.azure-devices-provisioning.net")?,
        SanType::IpAddress(Ipv4Addr::LOCALHOST.into()),
        SanType::IpAddress(Ipv6Addr::LOCALHOST.into()),
    ];
    let machine = rustix::system::uname();
    // A machine may have a name that certificates cannot carry; nobody asked for it.
    all.extend(machine.nodename().to_str().ok().and_then(|name| dns(name).ok()));
    for name in names {
        all.push(match name.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => dns(name)?,
        });
    }
    let mut once = Vec::with_capacity(all.len());
    for name in all {
        if !once.contains(&name) {
            once.push(name);
        }
    }
    Ok(once)
}

fn certificates(path: &Path, pem: &str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let wrong = |why: String| PkiError::Content { path: path.to_owned(), expected: "certificate chain", why };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(error.to_string()))?;
    if chain.is_empty() { Err(wrong("there is no certificate in it".into())) } else { Ok(chain) }
}

fn parse<'a>(path: &Path, certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, PkiError> {
    match X509Certificate::from_der(certificate) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => {
            Err(PkiError::Content { path: path.to_owned(), expected: "certificate", why: error.to_string() })
        }
    }
}

/// Whether a server's chain was made here.
fn is_ours(path: &Path, chain: &str) -> Result<bool, PkiError> {
    let chain = certificates(path, chain)?;
    let leaf = parse(path, &chain[0])?;
    let organisation = leaf.subject().iter_organization().next().and_then(|name| name.as_str().ok());
    Ok(organisation == Some(ORGANISATION))
}

/// The last block of a chain: what signed the others, or a certificate that signed itself.
fn last_certificate(chain: &str) -> String {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    chain.rfind(BEGIN).map_or_else(|| chain.to_owned(), |start| chain[start..].to_owned())
}

fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PkiError {
    let path = path.to_owned();
    move |source| PkiError::File { doing, path, source }
}

fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file("read", path)(error)),
    }
}

fn read_pair(certificate: &Path, key: &Path) -> Result<Option<(String, String)>, PkiError> {
    let half =
        |present: &Path, absent: &Path| PkiError::Half { present: present.into(), absent: absent.into() };
    match (read(certificate)?, read(key)?) {
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(half(certificate, key)),
        (None, Some(_)) => Err(half(key, certificate)),
    }
}

/// Writes a file whole or not at all, readable for those who may from its first moment on.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let new = path.with_extension("new");
    let write = || -> io::Result<()> {
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(file("write", path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn text(dir: &Path, name: &str) -> String {
        fs::read_to_string(dir.join(name)).unwrap()
    }

    #[test]
    fn certificates_are_made_once_and_the_authority_stays_when_names_are_added() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["hub.example".to_owned()];
        let first = Pki::load_or_create(Some(dir.path()), &names).unwrap();
        let (ca, server) = (text(dir.path(), "ca.pem"), text(dir.path(), "server.pem"));
        assert_eq!(first.ca_pem(), ca);
        for key in ["ca.key", "server.key"] {
            let mode = fs::metadata(dir.path().join(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key} is the owner's");
        }
        Pki::load_or_create(Some(dir.path()), &names).unwrap();
        assert_eq!(text(dir.path(), "server.pem"), server, "nothing changed");
        let more = ["hub.example".to_owned(), "other.example".to_owned(), "10.1.2.3".to_owned()];
        Pki::load_or_create(Some(dir.path()), &more).unwrap();
        assert_eq!(text(dir.path(), "ca.pem"), ca, "clients trust it already");
        let again = text(dir.path(), "server.pem");
        assert_ne!(again, server);
        let chain = certificates(Path::new("server.pem"), &again).unwrap();
        let leaf = parse(Path::new("server.pem"), &chain[0]).unwrap();
        let names = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
        assert!(names.contains(&GeneralName::DNSName("other.example")));
        assert!(names.contains(&GeneralName::IPAddress(&[10, 1, 2, 3])));
    }

    #[test]
    fn certificates_of_the_users_own_are_used_and_left_alone() {
        let theirs = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["hub.example".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        write(&theirs.path().join("server.pem"), &certificate.pem(), 0o644).unwrap();
        write(&theirs.path().join("server.key"), &key.serialize_pem(), 0o600).unwrap();
        let pki = Pki::load_or_create(Some(theirs.path()), &[]).unwrap();
        assert_eq!(pki.ca_pem(), certificate.pem());
        assert_eq!(text(theirs.path(), "server.pem"), certificate.pem());
        assert!(!theirs.path().join("ca.pem").exists());
    }

    #[test]
    fn what_is_wrong_with_the_files_is_said_with_their_names() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("server.pem"), "nothing", 0o644).unwrap();
        let error = Pki::load_or_create(Some(dir.path()), &[]).unwrap_err().to_string();
        assert!(error.ends_with("server.key: both belong together"), "{error}");
        write(&dir.path().join("server.key"), "nothing", 0o644).unwrap();
        let error = Pki::load_or_create(Some(dir.path()), &[]).unwrap_err().to_string();
        assert!(error.contains("server.pem holds no certificate chain in PEM form"), "{error}");
        let error = Pki::load_or_create(None, &["no name".to_owned()]).unwrap_err().to_string();
        assert!(error.starts_with(r#""no name" cannot stand in a certificate"#), "{error}");
    }
}
