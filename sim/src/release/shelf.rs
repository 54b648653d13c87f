//! Release directories, and a directory of them.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use fleetwave_agent_core::{Archive, FIRMWARE, Unsigned};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::archive;

/// The reference's file.
const REFERENCE: &str = "release.json";
/// The payload's file.
const PAYLOAD: &str = "payload";
/// The file of the payload's chunked archive, if there is one.
const ARCHIVE: &str = "archive";

/// Why a release cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShelfError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "{} is no release: {why}\n  = help: give the directory that `fleetwave release create` printed", path.display()
    )]
    Form { path: PathBuf, why: String },
    #[error(
        "{} exists\n  = help: a release never changes once devices may have heard of it: choose another id or sequence", .0.display()
    )]
    Exists(PathBuf),
    #[error("{0}")]
    Wrong(String),
}

impl ShelfError {
    pub(super) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| Self::Read { path: path.to_owned(), source }
    }

    pub(super) fn write(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| Self::Write { path: path.to_owned(), source }
    }
}

/// What an operator says of a payload.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub(crate) id: String,
    pub(crate) seq: u64,
    pub(crate) target: Option<String>,
    pub(crate) compatible: Vec<String>,
    pub(crate) downgrade: bool,
    /// Whether devices that have much of the payload already may fetch the rest alone.
    pub(crate) delta: bool,
}

/// A directory of releases.
#[derive(Clone, Debug)]
pub(crate) struct Shelf(PathBuf);

/// A release on a shelf.
#[derive(Clone, Debug)]
pub(crate) struct Release {
    /// Its directory.
    pub(crate) dir: PathBuf,
    /// What goes into twins.
    pub(crate) reference: Map<String, Value>,
}

impl Release {
    pub(crate) fn payload(&self) -> PathBuf {
        self.dir.join(PAYLOAD)
    }

    pub(crate) fn archive(&self) -> PathBuf {
        self.dir.join(ARCHIVE)
    }
}

impl Shelf {
    pub(crate) fn new(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
    }

    /// The release of this name, sequence and target.
    ///
    /// A directory that is no release is passed over, with a word in the log: one that is being made must not keep
    /// others from being found.
    pub(crate) fn find(&self, id: &str, seq: u64, target: &str) -> Result<Option<Release>, ShelfError> {
        let entries = fs::read_dir(&self.0).map_err(ShelfError::read(&self.0))?;
        for entry in entries {
            let dir = entry.map_err(ShelfError::read(&self.0))?.path();
            if !dir.join(REFERENCE).is_file() {
                continue;
            }
            match read_reference(&dir) {
                Ok(reference) => {
                    let text = |name: &str| reference.get(name).and_then(Value::as_str);
                    let same = text("id") == Some(id)
                        && reference.get("seq").and_then(Value::as_u64) == Some(seq)
                        && target_of(&reference) == target;
                    if same {
                        return Ok(Some(Release { dir, reference }));
                    }
                }
                Err(error) => tracing::warn!(%error, "passed over"),
            }
        }
        Ok(None)
    }

    /// Makes a release of a payload: it is there whole, or not at all. For one with an archive, which takes a while,
    /// `done` is told how many bytes of the payload are in it.
    pub(crate) fn create(
        &self,
        payload: &Path,
        recipe: &Recipe,
        keys: &[(String, SigningKey)],
        done: impl FnMut(u64),
    ) -> Result<Release, ShelfError> {
        recipe.check()?;
        if self.0.is_file() {
            return Err(ShelfError::Wrong(format!(
                "--out {}: it is a file, and no directory",
                self.0.display()
            )));
        }
        fs::create_dir_all(&self.0).map_err(ShelfError::write(&self.0))?;
        let name: String = format!("{}-{}", recipe.id, recipe.seq)
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || "-._".contains(c) { c } else { '_' })
            .collect();
        let dir = self.0.join(match &recipe.target {
            Some(target) => format!("{target}-{name}"),
            None => name,
        });
        if dir.exists() {
            return Err(ShelfError::Exists(dir));
        }
        // Named by a dot: a shelf that is read now passes it over.
        let partial = self.0.join(format!(".{}.partial", std::process::id()));
        fs::create_dir(&partial).map_err(ShelfError::write(&partial))?;
        let made = fill(&partial, payload, recipe, keys, done).and_then(|reference| {
            fs::rename(&partial, &dir).map_err(ShelfError::write(&dir))?;
            Ok(Release { dir, reference })
        });
        if made.is_err() {
            let _ = fs::remove_dir_all(&partial);
        }
        made
    }
}

/// Puts the files into a directory.
fn fill(
    dir: &Path,
    payload: &Path,
    recipe: &Recipe,
    keys: &[(String, SigningKey)],
    done: impl FnMut(u64),
) -> Result<Map<String, Value>, ShelfError> {
    let (size, digest) = copy(payload, &dir.join(PAYLOAD))?;
    if size == 0 {
        return Err(ShelfError::Wrong(format!("{} is empty", payload.display())));
    }
    let archive =
        if recipe.delta { Some(archive::pack(&dir.join(PAYLOAD), &dir.join(ARCHIVE), done)?) } else { None };
    let reference = recipe.sign(size, digest, archive, keys);
    write_reference(dir, &reference)?;
    Ok(reference)
}

/// Copies a file, and gives its size and SHA-256.
fn copy(from: &Path, to: &Path) -> Result<(u64, [u8; 32]), ShelfError> {
    let mut source = File::open(from).map_err(ShelfError::read(from))?;
    let mut sink = File::create(to).map_err(ShelfError::write(to))?;
    let (mut hash, mut size) = (Sha256::new(), 0);
    let mut piece = vec![0; 1 << 20];
    loop {
        let length = source.read(&mut piece).map_err(ShelfError::read(from))?;
        if length == 0 {
            break;
        }
        hash.update(&piece[..length]);
        sink.write_all(&piece[..length]).map_err(ShelfError::write(to))?;
        size += length as u64;
    }
    sink.sync_all().map_err(ShelfError::write(to))?;
    Ok((size, hash.finalize().into()))
}

/// The reference in a release's directory.
pub(crate) fn read_reference(dir: &Path) -> Result<Map<String, Value>, ShelfError> {
    let path = dir.join(REFERENCE);
    let text = fs::read(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound if dir.exists() => {
            ShelfError::Form { path: dir.to_owned(), why: format!("it has no {REFERENCE}") }
        }
        io::ErrorKind::NotFound => {
            ShelfError::Form { path: dir.to_owned(), why: "it does not exist".to_owned() }
        }
        io::ErrorKind::NotADirectory => {
            ShelfError::Form { path: dir.to_owned(), why: "it is not a directory".to_owned() }
        }
        _ => ShelfError::read(&path)(error),
    })?;
    serde_json::from_slice(&text).map_err(|error| ShelfError::Form { path, why: error.to_string() })
}

fn write_reference(dir: &Path, reference: &Map<String, Value>) -> Result<(), ShelfError> {
    let path = dir.join(REFERENCE);
    let partial = path.with_extension("partial");
    let text = serde_json::to_string_pretty(reference).expect("an object is JSON");
    let write = || {
        let mut file = File::create(&partial)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&partial, &path)
    };
    write().map_err(ShelfError::write(&path))
}

/// Where in a twin a release belongs.
pub(crate) fn target_of(reference: &Map<String, Value>) -> String {
    reference.get("target").and_then(Value::as_str).unwrap_or(FIRMWARE).to_owned()
}

impl Recipe {
    fn sign(
        &self,
        size: u64,
        digest: [u8; 32],
        delta: Option<Archive>,
        keys: &[(String, SigningKey)],
    ) -> Map<String, Value> {
        let unsigned = Unsigned {
            downgrade: self.downgrade,
            target: self.target.as_deref(),
            compatible: self.compatible.iter().map(String::as_str).collect(),
            delta,
            ..Unsigned::new(&self.id, self.seq, size, digest)
        };
        unsigned.sign(&borrowed(keys))
    }

    /// What every agent would refuse is refused here already, where it can still be mended.
    fn check(&self) -> Result<(), ShelfError> {
        let target = self.target.as_deref().unwrap_or(FIRMWARE);
        let part = |prefix: &str| {
            target.strip_prefix(prefix).is_some_and(|name| {
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
            })
        };
        if target != FIRMWARE && !part("components.") && !part("workloads.") {
            return Err(ShelfError::Wrong(format!(
                "--target {target:?}: firmware, components.NAME or workloads.NAME, with a name of letters, digits, - and _"
            )));
        }
        // The payload plays no part in it.
        if Unsigned::read(&self.sign(1, [0; 32], None, &[])).is_none() {
            return Err(ShelfError::Wrong(
                "--id and --compatible: 1 to 128 characters, without line feeds".to_owned(),
            ));
        }
        Ok(())
    }
}

fn borrowed(keys: &[(String, SigningKey)]) -> Vec<(&str, &SigningKey)> {
    keys.iter().map(|(name, key)| (name.as_str(), key)).collect()
}

/// Adds signatures to the release in a directory.
pub(crate) fn endorse(dir: &Path, keys: &[(String, SigningKey)]) -> Result<Map<String, Value>, ShelfError> {
    let reference = read_reference(dir)?;
    let unsigned = Unsigned::read(&reference).ok_or_else(|| ShelfError::Form {
        path: dir.join(REFERENCE),
        why: "a member is missing, or of the wrong form".to_owned(),
    })?;
    let of = |reference: &Map<String, Value>| match reference.get("sigs") {
        Some(Value::Object(signatures)) => signatures.clone(),
        _ => Map::new(),
    };
    let mut signatures = of(&reference);
    signatures.extend(of(&unsigned.sign(&borrowed(keys))));
    let endorsed = unsigned.with_signatures(signatures);
    write_reference(dir, &endorsed)?;
    Ok(endorsed)
}

#[cfg(test)]
mod tests {
    use fleetwave_agent_core::{Releases, TrustRoot};

    use super::*;

    fn recipe() -> Recipe {
        Recipe {
            id: "app-7".to_owned(),
            seq: 7,
            target: Some("components.app".to_owned()),
            compatible: vec!["rpi4".to_owned()],
            downgrade: false,
            delta: false,
        }
    }

    fn keys() -> [(String, SigningKey); 2] {
        [1, 2].map(|n| (format!("k{n}"), SigningKey::from_bytes(&[n; 32])))
    }

    #[test]
    fn a_second_signature_makes_a_release_that_needs_two_trusted() {
        let dir = tempfile::tempdir().expect("a directory");
        let payload = dir.path().join("app.tar");
        fs::write(&payload, b"an archive").expect("written");
        let shelf = Shelf::new(dir.path().join("shelf"));
        let keys = keys();
        let made = shelf.create(&payload, &recipe(), &keys[..1], |_| {}).expect("made");
        assert_eq!(fs::read(made.payload()).expect("read"), b"an archive");

        let trust = keys.iter().map(|(name, key)| (name.clone(), key.verifying_key())).collect();
        let mut device = Releases::new(TrustRoot::new(trust, 2)).fitting("components.app", Some("rpi4"));
        let one = device.intern(&made.reference);
        assert!(device[one].trust.is_err(), "one of two");
        let both = device.intern(&endorse(&made.dir, &keys[1..]).expect("signed"));
        assert_eq!((device[both].trust, device[both].fit), (Ok(()), Ok(())));

        let found = shelf.find("app-7", 7, "components.app").expect("read").expect("there");
        assert_eq!(found.dir, made.dir);
        assert!(shelf.find("app-7", 7, FIRMWARE).expect("read").is_none(), "of another target");
    }

    #[test]
    fn the_archive_of_a_release_is_signed_with_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let payload = dir.path().join("app.tar");
        fs::write(&payload, [b'x'; 100_000]).expect("written");
        let shelf = Shelf::new(dir.path().join("shelf"));
        let made =
            shelf.create(&payload, &Recipe { delta: true, ..recipe() }, &keys(), |_| {}).expect("made");
        let said = Unsigned::read(&made.reference).expect("well-formed").delta.expect("an archive");
        let archive = fs::read(made.archive()).expect("read");
        assert_eq!(archive.len() as u64, said.size);
        let header = &archive[..said.header_size as usize];
        assert_eq!(said.header_digest, <[u8; 32]>::from(Sha256::digest(header)));
        assert!(header.len() < archive.len());
        let found = |reference| Unsigned::read(reference).expect("well-formed").delta;
        assert_eq!(found(&endorse(&made.dir, &keys()[1..]).expect("signed")), Some(said));
    }

    #[test]
    fn a_release_is_never_made_twice_and_what_fails_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let (payload, shelf) = (dir.path().join("payload"), dir.path().join("shelf"));
        fs::write(&payload, b"").expect("written");
        let made = |recipe: &Recipe| Shelf::new(&shelf).create(&payload, recipe, &keys(), |_| {});
        assert!(matches!(made(&recipe()), Err(ShelfError::Wrong(_))), "an empty payload");
        for wrong in [
            Recipe { target: Some("components.".to_owned()), ..recipe() },
            Recipe { target: Some("elsewhere".to_owned()), ..recipe() },
            Recipe { id: String::new(), ..recipe() },
        ] {
            assert!(matches!(made(&wrong), Err(ShelfError::Wrong(_))), "{wrong:?}");
        }
        fs::write(&payload, b"bytes").expect("written");
        made(&recipe()).expect("made");
        assert!(matches!(made(&recipe()), Err(ShelfError::Exists(_))));
        assert_eq!(fs::read_dir(&shelf).expect("read").count(), 1);
    }
}
