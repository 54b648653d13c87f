//! A release as it lies on a stick: the directory that `fleetwave release create` makes.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::install::Reference;

/// The reference's file, and the payload's beside it.
const REFERENCE: &str = "release.json";
const PAYLOAD: &str = "payload";
/// The longest reference: a twin has no room for more.
const LONGEST: u64 = 64 * 1024;
const HELP: &str = "`fleetwave release create PAYLOAD --out DIR` makes a release: a directory with release.json and \
                    payload. Give that directory, or its release.json";

/// Why there is no release.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StickError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is no release: {why}\n  = help: {HELP}", path.display())]
    Form { path: PathBuf, why: String },
}

/// A release that was found. Nothing in it is trusted yet.
#[derive(Clone, Debug)]
pub(crate) struct Stick {
    pub(crate) reference: Reference,
    /// The payload's file.
    pub(crate) source: PathBuf,
    /// The same, opened.
    pub(crate) file: Arc<File>,
}

impl Stick {
    /// Finds the release in a directory, or the one of a `release.json`.
    pub(crate) fn find(path: &Path) -> Result<Self, StickError> {
        // Absolute: an agent works elsewhere, and may have to open it again.
        let path = path.canonicalize().map_err(read(path))?;
        let form = |why: String| StickError::Form { path: path.clone(), why };
        let (named, dir) = if path.is_dir() {
            (path.join(REFERENCE), path.as_path())
        } else {
            (path.clone(), path.parent().unwrap_or(Path::new("/")))
        };
        let text = match read_short(&named) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(form(format!("it has no {REFERENCE}")));
            }
            text => text.map_err(read(&named))?,
        };
        let reference = text.and_then(|text| serde_json::from_slice::<Reference>(&text).ok());
        let reference = reference.filter(|reference| reference.contains_key("sigs"));
        let reference = reference.ok_or_else(|| StickError::Form {
            path: named.clone(),
            why: "it does not hold the reference of one".to_owned(),
        })?;
        let source = dir.join(PAYLOAD);
        let file = match File::open(&source) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(form(format!("there is no {PAYLOAD} beside {REFERENCE}")));
            }
            file => file.map_err(read(&source))?,
        };
        if !file.metadata().map_err(read(&source))?.is_file() {
            return Err(StickError::Form { path: source, why: "the payload has to be a file".to_owned() });
        }
        Ok(Self { reference, source, file: Arc::new(file) })
    }
}

fn read(path: &Path) -> impl FnOnce(io::Error) -> StickError {
    |source| StickError::Read { path: path.to_owned(), source }
}

/// `None` if the file is too long: it may be a whole payload.
fn read_short(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut text = Vec::new();
    File::open(path)?.take(LONGEST + 1).read_to_end(&mut text)?;
    Ok((text.len() as u64 <= LONGEST).then_some(text))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_release_is_found_by_its_directory_and_by_its_reference() {
        let dir = tempfile::tempdir().expect("a directory");
        let complaint = |path: &Path| Stick::find(path).expect_err("no release").to_string();
        let named = dir.path().join(REFERENCE);
        assert!(complaint(&dir.path().join("nowhere")).contains("nowhere: No such file"));
        let empty = complaint(dir.path());
        assert!(
            empty.contains("it has no release.json") && empty.contains("fleetwave release create"),
            "{empty}"
        );
        fs::write(&named, "{").expect("written");
        assert!(complaint(dir.path()).contains("release.json is no release: it does not hold"));
        fs::write(&named, vec![b' '; 100_000]).expect("written");
        assert!(complaint(&named).contains("it does not hold the reference"));
        fs::write(&named, r#"{"id": "a", "sigs": {}}"#).expect("written");
        assert!(complaint(dir.path()).contains("there is no payload beside release.json"));
        fs::create_dir(dir.path().join(PAYLOAD)).expect("made");
        assert!(complaint(dir.path()).contains("the payload has to be a file"));
        fs::remove_dir(dir.path().join(PAYLOAD)).expect("removed");
        fs::write(dir.path().join(PAYLOAD), "bytes").expect("written");
        for path in [dir.path(), &named] {
            let stick = Stick::find(path).expect("a release");
            assert!(stick.source.is_absolute() && stick.source.ends_with(PAYLOAD));
        }
        assert!(complaint(&dir.path().join(PAYLOAD)).contains("payload is no release"));
    }
}
