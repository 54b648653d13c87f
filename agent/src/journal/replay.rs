//! Reading a journal: its sound part, and what may be said of the rest.

use std::io;
use std::path::Path;

use fleetwave_agent_core::{Record, ReleaseId, Releases, ResultCode};
use sha2::{Digest as _, Sha256};

use super::{Entry, subject};

pub(super) const NAME: &str = "journal";
/// Characters of a checksum.
const CHECKSUM: usize = 16;

/// Where the next line goes.
#[derive(Clone, Debug, Default)]
pub(super) struct End {
    pub(super) offset: u64,
    checksum: String,
    /// The releases so far.
    releases: Vec<ReleaseId>,
}

impl End {
    pub(super) fn line(&mut self, entry: &Entry) -> String {
        let json = serde_json::to_string(entry).expect("an entry is JSON");
        self.checksum = chain(&self.checksum, json.as_bytes());
        let line = format!("{} {json}\n", self.checksum);
        self.offset += line.len() as u64;
        line
    }

    /// A record's line, and before it that of its release if the journal has not got that yet.
    pub(super) fn lines(&mut self, record: Record, releases: &Releases) -> String {
        let release = subject(record);
        let mut lines = String::new();
        let known = self.releases.iter().position(|known| *known == release);
        let number = known.unwrap_or_else(|| {
            lines.push_str(&self.line(&Entry::Release(releases[release].reference().clone())));
            self.releases.push(release);
            self.releases.len() - 1
        });
        lines.push_str(&self.line(&Entry::new(record, number)));
        lines
    }
}

fn chain(before: &str, json: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(before);
    hash.update(json);
    hash.finalize()[..CHECKSUM / 2].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a journal says, as far as it is sound.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    pub(crate) records: Vec<Record>,
    /// Bytes behind the sound part.
    pub(crate) torn: u64,
    /// Among these are records that had been durable: no write that was cut short explains them.
    pub(crate) damaged: bool,
    pub(super) end: End,
}

impl Replay {
    /// Reads the journal in `dir` without touching it; one that is missing is empty.
    pub(crate) fn read(dir: &Path, releases: &mut Releases) -> io::Result<Self> {
        let bytes = match std::fs::read(dir.join(NAME)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        Ok(Self::of(&bytes, releases))
    }

    pub(super) fn of(bytes: &[u8], releases: &mut Releases) -> Self {
        let mut replay = Self::default();
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            if replay.take(line, releases).is_none() {
                break;
            }
        }
        replay.torn = bytes.len() as u64 - replay.end.offset;
        if replay.torn > 0 {
            let tail = &bytes[bytes.len() - replay.torn as usize..];
            replay.damaged = replay.end.is_followed(tail);
        }
        replay
    }

    /// `None` for a line that is not sound.
    fn take(&mut self, line: &[u8], releases: &mut Releases) -> Option<()> {
        let text = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
        let (checksum, json) = text.split_once(' ')?;
        if checksum != chain(&self.end.checksum, json.as_bytes()) {
            return None;
        }
        let release = |number: usize| self.end.releases.get(number).copied();
        let (record, times) = match serde_json::from_str(json).ok()? {
            Entry::Release(reference) => {
                self.end.releases.push(releases.intern(&reference));
                (None, 0)
            }
            Entry::Started(number) => (Some(Record::Started(release(number)?)), 1),
            Entry::Staged(number) => (Some(Record::Staged(release(number)?)), 1),
            Entry::Booting(number) => (Some(Record::Booting(release(number)?)), 1),
            Entry::Reverting(number, code) => {
                (Some(Record::Reverting(release(number)?, ResultCode::from_name(&code)?)), 1)
            }
            Entry::Ended(number, code) => {
                (Some(Record::Ended(release(number)?, ResultCode::from_name(&code)?)), 1)
            }
            Entry::Again(times) => (Some(*self.records.last()?), times),
        };
        self.records.extend((0..times).filter_map(|_| record));
        self.end.offset += line.len() as u64;
        self.end.checksum = checksum.to_owned();
        Some(())
    }
}

impl End {
    /// Whether what lies behind the sound part, which begins with a line that is not, holds lines of a later append
    /// than that one: then it was durable, for nothing is written behind what is not. An append is a record, and maybe
    /// its release before it.
    fn is_followed(&self, tail: &[u8]) -> bool {
        let end = tail.iter().position(|&byte| byte == b'\n').unwrap_or(tail.len());
        // By the checksum that the first line has, or should have had, the next one is known, whichever part is wrong.
        let stored = tail.get(..CHECKSUM).and_then(|text| std::str::from_utf8(text).ok()).map(str::to_owned);
        let right = tail.get(CHECKSUM + 1..end).map(|json| chain(&self.checksum, json));
        let mut before: Vec<String> = stored.into_iter().chain(right).collect();
        let mut own_record = false;
        // Not from newline to newline: one of these may be what is wrong.
        for at in 1..tail.len() {
            let Some((checksum, json)) = line_at(&tail[at..]) else { continue };
            if before.iter().any(|before| chain(before, json) == checksum) {
                let number = match serde_json::from_slice(json) {
                    Ok(
                        Entry::Started(number)
                        | Entry::Staged(number)
                        | Entry::Booting(number)
                        | Entry::Reverting(number, _)
                        | Entry::Ended(number, _),
                    ) => Some(number),
                    _ => None,
                };
                // The record of a release that would have stood in the line before it.
                if own_record || number != Some(self.releases.len()) {
                    return true;
                }
                own_record = true;
            }
            before = vec![checksum.to_owned()];
        }
        false
    }
}

/// Checksum and JSON, if there is something here that looks like a line.
fn line_at(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let json = bytes.get(CHECKSUM..)?.strip_prefix(b" ")?;
    let checksum = std::str::from_utf8(&bytes[..CHECKSUM]).ok()?;
    let end = json.iter().position(|&byte| byte == b'\n')?;
    (json.starts_with(b"{") && checksum.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .then(|| (checksum, &json[..end]))
}
