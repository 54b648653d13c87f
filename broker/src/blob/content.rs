//! What a blob holds.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use fleetwave_protocol::rng::mix;
use sha2::{Digest, Sha256};

/// What is not in memory is made or read in pieces of this many bytes.
pub(super) const PIECE: usize = 64 * 1024;

/// A blob's content.
#[derive(Clone, Debug)]
pub enum Content {
    /// These bytes, shared and never copied.
    Bytes(Bytes),
    /// Pseudo-random bytes that are a function of the seed and their offset, so that a blob of any size
    /// occupies nothing. They don't compress.
    Generated {
        /// What the bytes depend on.
        seed: u64,
        /// How many there are.
        size: u64,
    },
    /// A file's, read piece by piece as they are asked for.
    File(FileContent),
}

/// A file that is served. It has to stay as it is.
#[derive(Clone, Debug)]
pub struct FileContent {
    file: Arc<File>,
    size: u64,
    /// Which file it is, and which state of it.
    tag: u64,
}

impl FileContent {
    pub(super) const fn tag(&self) -> u64 {
        self.tag
    }

    /// Nothing if the file has become shorter or cannot be read: the answer then ends early.
    fn read(&self, offset: u64, length: usize) -> Bytes {
        let mut bytes = BytesMut::zeroed(length);
        match self.file.read_at(&mut bytes, offset) {
            Ok(read) => bytes.truncate(read),
            Err(error) => {
                tracing::error!(%error, "a blob's file cannot be read");
                bytes.clear();
            }
        }
        bytes.freeze()
    }
}

impl Content {
    /// The content of a file.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn file(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        let tag = mix(meta.ino() ^ mix(meta.mtime() as u64 ^ mix(meta.mtime_nsec() as u64)));
        Ok(Self::File(FileContent { file: Arc::new(file), size: meta.len(), tag }))
    }

    /// Its length in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Generated { size, .. } => *size,
            Self::File(file) => file.size,
        }
    }

    /// Its bytes from `offset` on: at most `limit` of them, and at most 64 KiB of what is not in memory; none
    /// at or behind the end.
    #[must_use]
    pub fn read(&self, offset: u64, limit: u64) -> Bytes {
        let length = self.size().saturating_sub(offset).min(limit);
        match self {
            Self::Bytes(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                let length = usize::try_from(length).expect("within the bytes that are in memory");
                bytes.slice(start..start + length)
            }
            Self::Generated { seed, .. } => {
                let length = usize::try_from(length).unwrap_or(PIECE).min(PIECE);
                generate(*seed, offset, length).into()
            }
            Self::File(file) => file.read(offset, usize::try_from(length).unwrap_or(PIECE).min(PIECE)),
        }
    }

    /// Its SHA-256 digest, in lower-case hexadecimal. Reads the content once.
    #[must_use]
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        let mut offset = 0;
        loop {
            let piece = self.read(offset, u64::MAX);
            if piece.is_empty() {
                break;
            }
            hash.update(&piece);
            offset += piece.len() as u64;
        }
        hash.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
            use std::fmt::Write;
            write!(text, "{byte:02x}").expect("writing to a string does not fail");
            text
        })
    }
}

fn generate(seed: u64, offset: u64, length: usize) -> Vec<u8> {
    let skip = (offset % 8) as usize;
    let mut bytes = Vec::with_capacity(length + 16);
    let mut word = offset / 8;
    while bytes.len() < skip + length {
        bytes.extend_from_slice(&mix(seed ^ mix(word)).to_le_bytes());
        word += 1;
    }
    bytes.truncate(skip + length);
    bytes.drain(..skip);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_content_is_the_same_wherever_a_reader_starts() {
        let content = Content::Generated { seed: 9, size: 200_001 };
        let mut whole = Vec::new();
        while whole.len() < 200_001 {
            whole.extend_from_slice(&content.read(whole.len() as u64, u64::MAX));
        }
        for offset in [0, 1, 7, 8, 65_535, 65_537, 200_000] {
            let piece = content.read(offset, 100);
            assert_eq!(piece, whole[offset as usize..][..piece.len()], "at {offset}");
        }
        assert_eq!(content.sha256(), Content::Bytes(whole.into()).sha256());
        assert!(content.read(200_001, 1).is_empty() && content.read(u64::MAX, 1).is_empty());
    }

    #[test]
    fn a_file_is_read_in_pieces_and_gives_nothing_behind_its_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("blob");
        let bytes: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        std::fs::write(&path, &bytes).expect("written");
        let content = Content::file(&path).expect("opened");
        assert_eq!(content.sha256(), Content::Bytes(bytes.clone().into()).sha256());
        assert_eq!(content.read(70_000, 5), bytes[70_000..70_005]);
        assert!(content.read(200_000, 1).is_empty());
        File::options().write(true).open(&path).expect("opened").set_len(10).expect("cut");
        assert!(content.read(70_000, 5).is_empty(), "the file has become shorter");
    }

    #[test]
    fn the_digest_is_sha_256() {
        let abc = Content::Bytes(Bytes::from_static(b"abc"));
        assert_eq!(abc.sha256(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
