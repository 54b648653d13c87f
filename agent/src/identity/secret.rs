//! Files that hold secrets.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Nothing that is a key, a password or a chain of certificates is longer.
const LONGEST: u64 = 64 * 1024;

/// A file of an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It does not hold what it should.
    #[error("{}: {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What was expected, and never what was found.
        why: String,
    },
}

impl FileError {
    pub(crate) fn content(path: &Path, why: impl Into<String>) -> Self {
        Self::Content { path: path.to_owned(), why: why.into() }
    }
}

/// Reads a file that others may read.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |source| FileError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LONGEST {
        return Err(FileError::content(path, "longer than 64 KiB: this is another file"));
    }
    Ok(bytes)
}

/// Reads a secret, without the line end that editors leave.
pub(crate) fn read_secret(path: &Path) -> Result<String, FileError> {
    let text = String::from_utf8(read(path)?).map_err(|_| FileError::content(path, "not text"))?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

/// What is wrong with who may use a secret, and how to mend it. A group may read it: that is how a service's user gets
/// at what root wrote.
pub(crate) fn exposure(path: &Path) -> Option<String> {
    let mode = path.metadata().ok()?.mode() & 0o777;
    let who = match mode {
        mode if mode & 0o007 != 0 => "everybody on this machine",
        mode if mode & 0o020 != 0 => "its group",
        _ => return None,
    };
    let path = path.display();
    Some(format!("{path} holds a secret, and {who} can get at it (mode {mode:o}): chmod 640 {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_secret_that_others_can_read_is_told_with_the_command_that_mends_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("key");
        fs::write(&path, "c2VjcmV0\n").expect("written");
        for (mode, who) in
            [(0o644, Some("everybody")), (0o660, Some("its group")), (0o640, None), (0o600, None)]
        {
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("a file of ours");
            let told = exposure(&path);
            assert_eq!(told.is_some(), who.is_some(), "{mode:o}");
            let told = told.unwrap_or_default();
            assert!(who.is_none_or(|who| told.contains(who) && told.contains("chmod 640")), "{told}");
            assert!(!told.contains("c2VjcmV0"), "{told}");
        }
        assert_eq!(read_secret(&path).expect("readable"), "c2VjcmV0");
    }

    #[test]
    fn a_file_that_is_far_too_long_is_not_read_into_memory() {
        let error = read(Path::new("/dev/zero")).expect_err("endless");
        assert!(error.to_string().contains("/dev/zero: longer than 64 KiB"), "{error}");
    }
}
