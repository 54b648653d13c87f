//! How much of a payload is durable, and what is known about it: per target, on disk and in memory.
//!
//! The length of a file does not tell: a block device has none, and a file may have become longer before its bytes
//! were on disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fleetwave_agent_core::Release;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::pair::{self, Pair, hex};
use crate::install::Place;

/// Which bytes, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subject {
    /// The digest that was signed.
    release: String,
    /// The place, abbreviated.
    place: String,
}

impl Subject {
    pub(crate) fn new(release: &Release, place: &Place) -> Self {
        Self { release: hex(&release.digest), place: short(place.path.as_os_str().as_encoded_bytes()) }
    }
}

/// The first half of a digest: enough to tell apart what nobody forges.
pub(crate) fn short(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes)[..16])
}

/// What the server called the bytes, so that it can say whether they are still the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// Host and path of the link, abbreviated.
    pub(crate) source: String,
    /// The entity tag.
    pub(crate) etag: String,
}

/// How many bytes of the payload of `release` the record in the file `path` calls durable, for whoever only reads.
pub(crate) fn recorded(path: &Path, release: &Release) -> u64 {
    let record: Option<(u64, Record)> = pair::read(path).unwrap_or_default();
    record
        .filter(|(_, record)| record.subject.release == hex(&release.digest))
        .map_or(0, |(_, record)| record.bytes)
}

/// What is durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    subject: Subject,
    bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<Origin>,
}

/// The digest of the first bytes of a payload, all of which went through this process.
#[derive(Clone, Debug)]
pub(crate) struct Hashed {
    pub(crate) subject: Subject,
    pub(crate) hash: Sha256,
    pub(crate) length: u64,
}

/// The state of one target's payload. Each try has a number; what an earlier one still does in the background changes
/// nothing here any more.
#[derive(Debug)]
pub(crate) struct Progress {
    pair: Pair,
    record: Option<Record>,
    attempt: u64,
    hashed: Option<Hashed>,
}

impl Progress {
    pub(crate) fn open(path: PathBuf) -> Self {
        let (pair, record) = Pair::open(path);
        Self { pair, record, attempt: 0, hashed: None }
    }

    /// How many bytes of the payload are durable in `place`.
    pub(crate) fn durable(&self, subject: &Subject, place: &Path) -> u64 {
        match &self.record {
            Some(record) if record.subject == *subject => {
                // A place that somebody has emptied since has nothing, whatever was written down.
                let there = fs::metadata(place)
                    .map_or(0, |there| if there.is_file() { there.len() } else { u64::MAX });
                if there >= record.bytes { record.bytes } else { 0 }
            }
            _ => 0,
        }
    }

    /// What the server called the bytes that are there.
    pub(crate) fn origin(&self, subject: &Subject) -> Option<Origin> {
        self.record.as_ref().filter(|record| record.subject == *subject)?.origin.clone()
    }

    /// Begins a try: from now on the one before counts for nothing.
    pub(crate) fn begin(&mut self) -> u64 {
        self.attempt += 1;
        self.attempt
    }

    /// Makes durable that so many bytes are.
    pub(crate) fn reached(
        &mut self,
        attempt: u64,
        subject: &Subject,
        bytes: u64,
        origin: Option<&Origin>,
    ) -> io::Result<()> {
        if attempt != self.attempt {
            return Err(io::Error::other("the download was given up"));
        }
        let record = Record { subject: subject.clone(), bytes, origin: origin.cloned() };
        if self.record.as_ref() == Some(&record) {
            return Ok(());
        }
        self.pair.write(&record)?;
        self.record = Some(record);
        Ok(())
    }

    /// Keeps the digest of what has come, for the rest or for the comparison.
    pub(crate) fn keep(&mut self, attempt: u64, hashed: Hashed) {
        if attempt == self.attempt {
            self.hashed = Some(hashed);
        }
    }

    /// The digest of the first `length` bytes, if they all went through this process.
    pub(crate) fn hashed(&mut self, subject: &Subject, length: u64) -> Option<Sha256> {
        let known = self.hashed.take()?;
        (known.subject == *subject && known.length == length).then_some(known.hash)
    }

    /// How many bytes were hashed, if it was `subject`'s.
    pub(crate) fn hashed_length(&self, subject: &Subject) -> Option<u64> {
        self.hashed.as_ref().filter(|known| known.subject == *subject).map(|known| known.length)
    }

    /// Forgets everything, for good.
    pub(crate) fn discard(&mut self) -> io::Result<()> {
        self.attempt += 1;
        self.hashed = None;
        self.record = None;
        self.pair.remove()
    }
}
