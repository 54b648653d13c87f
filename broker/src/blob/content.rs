//! What a blob holds.

use bytes::Bytes;
use fleetwave_protocol::rng::mix;
use sha2::{Digest, Sha256};

/// Generated content is made in pieces of this many bytes.
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
}

impl Content {
    /// Its length in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Generated { size, .. } => *size,
        }
    }

    /// Its bytes from `offset` on: at most `limit` of them, and for generated content at most 64 KiB; none
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
    fn the_digest_is_sha_256() {
        let abc = Content::Bytes(Bytes::from_static(b"abc"));
        assert_eq!(abc.sha256(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
