//! For the tests of installers: a state directory, releases, and the steps of an update without a machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ed25519_dalek::SigningKey;
use fleetwave_agent_core::{Release, Releases, TrustRoot, sign};
use serde::de::DeserializeOwned;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::{Activated, InstallError, Installer, Options, Reference, Site};
use crate::target::{Kind, Target};

pub(crate) struct Bench {
    pub(crate) dir: TempDir,
    target: Target,
    key: SigningKey,
}

impl Bench {
    pub(crate) fn new(kind: Kind, name: &str) -> Self {
        let target = Target::within(kind, name).expect("a name");
        Self { dir: tempfile::tempdir().expect("a directory"), target, key: SigningKey::from_bytes(&[7; 32]) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// An installer as a new process makes it.
    pub(crate) fn installer<O: Options + DeserializeOwned>(&self, options: &str) -> Rc<dyn Installer> {
        let options: O = toml::from_str(options).expect("well-formed");
        let installed = Reference::from_iter([("id".into(), json!("app-0")), ("seq".into(), json!(0))]);
        options.installer(Site { target: self.target.clone(), dir: self.state(), installed })
    }

    pub(crate) fn release(&self, id: &str, seq: u64, payload: &[u8]) -> Release {
        let trust = TrustRoot::new(vec![("k1".into(), self.key.verifying_key())], 1);
        let mut releases = Releases::new(trust);
        let digest = Sha256::digest(payload).into();
        let reference = sign(id, seq, payload.len() as u64, &digest, false, &[("k1", &self.key)]);
        let id = releases.intern(&reference);
        releases[id].clone()
    }
}

/// Downloads and stages a release.
pub(crate) async fn stage(
    installer: &Rc<dyn Installer>,
    release: &Release,
    payload: &[u8],
) -> Result<(), InstallError> {
    let place = installer.place(release).expect("a place");
    fs::write(place.path, payload).expect("written");
    Rc::clone(installer).stage(release.clone()).await
}

/// Makes what was staged run, and gives what runs and what is committed by name.
pub(crate) async fn activate(installer: &Rc<dyn Installer>) -> (String, String) {
    let activated = Rc::clone(installer).activate().await.expect("activated");
    assert_eq!(activated, Activated::Running);
    stands(installer).await
}

/// What runs and what is committed, by name.
pub(crate) async fn stands(installer: &Rc<dyn Installer>) -> (String, String) {
    let standing = Rc::clone(installer).standing().await.expect("it stands");
    let id = |reference: &Reference| reference["id"].as_str().expect("a name").to_owned();
    (id(&standing.running), id(&standing.committed))
}

/// An archive of these files.
pub(crate) fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        tar.append_data(&mut header, name, *content).expect("a vector takes it");
    }
    tar.into_inner().expect("a vector takes it")
}

/// Names in a directory, in order.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
    let entries = fs::read_dir(dir).expect("a directory");
    let mut names: Vec<_> = entries.map(|entry| name(entry).into_string().expect("text")).collect();
    names.sort();
    names
}
