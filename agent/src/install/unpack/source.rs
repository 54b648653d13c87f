//! What an archive is read from: a file, without its compression, and no more of it than was allowed.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Seek as _};
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{InstallError, failed};

/// zstd may need 8 MiB (`-19`), not more: the agent's memory is small.
const WINDOW_LOG: u32 = 23;
/// What may stand between two files of an archive: long names, attributes.
const BETWEEN: u64 = 1 << 20;

/// How an archive is compressed.
enum Kind {
    Plain,
    Gzip,
    Zstd,
}

/// What the first bytes of a file say that it is.
fn kind(file: &File) -> io::Result<Option<Kind>> {
    let mut magic = Vec::with_capacity(512);
    file.take(512).read_to_end(&mut magic)?;
    Ok(match magic.as_slice() {
        [0x1f, 0x8b, ..] => Some(Kind::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Kind::Zstd),
        _ if magic.get(257..262) == Some(b"ustar") => Some(Kind::Plain),
        _ => None,
    })
}

/// Whether a file is an archive.
pub(crate) fn is_archive(path: &Path) -> Result<bool, InstallError> {
    let kind = File::open(path).and_then(|file| kind(&file));
    Ok(kind.map_err(failed("reading", path))?.is_some())
}

/// The archive without its compression. Nothing may be read of it before that is allowed. It ends with an error when
/// `given_up` is set.
pub(super) fn open<'a>(path: &Path, given_up: &'a AtomicBool) -> Result<(Source<'a>, Budget), InstallError> {
    let mut file = File::open(path).map_err(failed("opening", path))?;
    let kind = kind(&file).and_then(|kind| file.rewind().map(|()| kind)).map_err(failed("reading", path))?;
    let inner: Box<dyn Read> = match kind {
        Some(Kind::Plain) => Box::new(file),
        Some(Kind::Gzip) => Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(file))),
        Some(Kind::Zstd) => {
            let mut decoder = zstd::stream::read::Decoder::new(file).map_err(failed("reading", path))?;
            decoder.window_log_max(WINDOW_LOG).map_err(failed("reading", path))?;
            Box::new(decoder)
        }
        None => {
            return Err(InstallError::Payload(
                "it is no archive: tar, tar.gz and tar.zst are known by their first bytes".to_owned(),
            ));
        }
    };
    let budget = Budget(Rc::default());
    Ok((Source { inner, budget: budget.clone(), given_up }, budget))
}

/// An archive that cannot be read is at fault itself, unless the disk is.
pub(super) fn unreadable(error: io::Error) -> InstallError {
    if error.raw_os_error().is_some() {
        return InstallError::io("reading the archive")(error);
    }
    InstallError::Payload(format!("the archive cannot be read: {error}"))
}

/// How much may still be read.
#[derive(Clone, Debug)]
pub(super) struct Budget(Rc<Cell<u64>>);

impl Budget {
    /// What stands before the next file.
    pub(super) fn between(&self) {
        self.0.set(BETWEEN);
    }

    /// A file of this size. One that is longer than allowed is refused before it is read.
    pub(super) fn file(&self, size: u64) {
        self.0.set(size.saturating_add(BETWEEN));
    }
}

/// Reads no more than it is allowed to: a few bytes of a compressed archive can stand for terabytes.
pub(super) struct Source<'a> {
    inner: Box<dyn Read>,
    budget: Budget,
    given_up: &'a AtomicBool,
}

impl Read for Source<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.given_up.load(Ordering::Relaxed) {
            return Err(io::Error::other("nobody wants it any more"));
        }
        let left = self.budget.0.get();
        if left == 0 {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                "more stands between two files than any name takes",
            ));
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(into.len());
        let read = self.inner.read(&mut into[..most])?;
        self.budget.0.set(left - read as u64);
        Ok(read)
    }
}
