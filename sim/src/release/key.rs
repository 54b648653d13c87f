//! The keys that sign releases: Ed25519, in PKCS #8 PEM files as OpenSSL writes them.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _};
use rand::Rng as _;

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("cannot read the key {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write the key {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "the key {} exists, and one that signed releases is not to be overwritten\n  = help: choose another name", .0.display()
    )]
    Exists(PathBuf),
    #[error(
        "{} is not an Ed25519 key in PKCS #8 PEM form\n  = help: `fleetwave release key FILE` makes one, and so does \
         `openssl genpkey -algorithm ed25519`", .0.display()
    )]
    Form(PathBuf),
}

/// `NAME=FILE`: a key and the name under which devices know it.
#[derive(Clone, Debug)]
pub(crate) struct SigningKeyFile {
    /// The name in devices' `[trust]`.
    pub(crate) name: String,
    path: PathBuf,
}

impl FromStr for SigningKeyFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => {
                Ok(Self { name: name.to_owned(), path: path.into() })
            }
            _ => {
                Err("give NAME=FILE: the name under which devices trust the key, and the key's file"
                    .to_owned())
            }
        }
    }
}

impl SigningKeyFile {
    /// Reads the key.
    pub(crate) fn load(&self) -> Result<SigningKey, KeyError> {
        let text = fs::read_to_string(&self.path)
            .map_err(|source| KeyError::Read { path: self.path.clone(), source })?;
        SigningKey::from_pkcs8_pem(&text).map_err(|_| KeyError::Form(self.path.clone()))
    }
}

/// Makes a key that only its owner may read, and gives its public half as devices take it.
pub(crate) fn create(path: &Path) -> Result<String, KeyError> {
    let mut seed = [0; 32];
    rand::rng().fill_bytes(&mut seed);
    let key = SigningKey::from_bytes(&seed);
    let pem = key.to_pkcs8_pem(LineEnding::LF).map_err(|_| KeyError::Form(path.to_owned()))?;
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(pem.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => KeyError::Exists(path.to_owned()),
        _ => KeyError::Write { path: path.to_owned(), source },
    })?;
    Ok(public(&key))
}

/// The public half of a key, as devices take it.
pub(crate) fn public(key: &SigningKey) -> String {
    STANDARD.encode(key.verifying_key().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_made_and_never_overwritten() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("key.pem");
        let made = create(&path).expect("made");
        let named: SigningKeyFile = format!("k1={}", path.display()).parse().expect("well-formed");
        assert_eq!(public(&named.load().expect("read")), made);
        assert!(matches!(create(&path), Err(KeyError::Exists(_))));
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_quoted() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("key.pem");
        fs::write(&path, "c2VjcmV0").expect("written");
        let named: SigningKeyFile = format!("k1={}", path.display()).parse().expect("well-formed");
        let error = named.load().expect_err("no key").to_string();
        assert!(error.contains("genpkey") && !error.contains("c2VjcmV0"), "{error}");
        assert!("k1".parse::<SigningKeyFile>().is_err());
    }
}
