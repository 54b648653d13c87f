//! The journal: what the machine asked to be durable, one line each.
//!
//! A line is a checksum, a space, and JSON. The checksum covers the line before it too, so the longest valid prefix
//! of the file is what was written, in order; whatever follows it is cut off when the journal is opened. Releases that
//! records refer to stand in the journal themselves, so that a cold start knows them before it has seen the hub.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use fleetwave_agent_core::{Record, ReleaseId, Releases, ResultCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::{crash, files};

const NAME: &str = "journal";

/// A line. Numbers count the releases in the journal, from 0.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    Release(Map<String, Value>),
    Started(usize),
    Staged(usize),
    Booting(usize),
    Reverting(usize, String),
    Ended(usize, String),
}

impl Entry {
    fn new(record: Record, number: usize) -> Self {
        match record {
            Record::Started(_) => Self::Started(number),
            Record::Staged(_) => Self::Staged(number),
            Record::Booting(_) => Self::Booting(number),
            Record::Reverting(_, code) => Self::Reverting(number, code.name().to_owned()),
            Record::Ended(_, code) => Self::Ended(number, code.name().to_owned()),
        }
    }
}

const fn subject(record: Record) -> ReleaseId {
    match record {
        Record::Started(release)
        | Record::Staged(release)
        | Record::Booting(release)
        | Record::Reverting(release, _)
        | Record::Ended(release, _) => release,
    }
}

/// What a journal says, as far as it is sound.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    pub(crate) records: Vec<Record>,
    /// Bytes behind the sound part.
    pub(crate) torn: u64,
    end: End,
}

/// Where the next line goes.
#[derive(Clone, Debug, Default)]
struct End {
    offset: u64,
    checksum: String,
    /// The releases so far.
    releases: Vec<ReleaseId>,
}

impl End {
    fn line(&mut self, entry: &Entry) -> String {
        let json = serde_json::to_string(entry).expect("an entry is JSON");
        self.checksum = chain(&self.checksum, &json);
        let line = format!("{} {json}\n", self.checksum);
        self.offset += line.len() as u64;
        line
    }
}

fn chain(before: &str, json: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(before);
    hash.update(json);
    hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Replay {
    /// Reads the journal in `dir` without touching it; one that is missing is empty.
    pub(crate) fn read(dir: &Path, releases: &mut Releases) -> io::Result<Self> {
        let bytes = match std::fs::read(dir.join(NAME)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        let mut replay = Self::default();
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            if replay.take(line, releases).is_none() {
                break;
            }
        }
        replay.torn = bytes.len() as u64 - replay.end.offset;
        Ok(replay)
    }

    /// `None` for a line that is not sound.
    fn take(&mut self, line: &[u8], releases: &mut Releases) -> Option<()> {
        let text = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
        let (checksum, json) = text.split_once(' ')?;
        if checksum != chain(&self.end.checksum, json) {
            return None;
        }
        let release = |number: usize| self.end.releases.get(number).copied();
        let record = match serde_json::from_str(json).ok()? {
            Entry::Release(reference) => {
                self.end.releases.push(releases.intern(&reference));
                None
            }
            Entry::Started(number) => Some(Record::Started(release(number)?)),
            Entry::Staged(number) => Some(Record::Staged(release(number)?)),
            Entry::Booting(number) => Some(Record::Booting(release(number)?)),
            Entry::Reverting(number, code) => {
                Some(Record::Reverting(release(number)?, ResultCode::from_name(&code)?))
            }
            Entry::Ended(number, code) => {
                Some(Record::Ended(release(number)?, ResultCode::from_name(&code)?))
            }
        };
        self.records.extend(record);
        self.end.offset += line.len() as u64;
        self.end.checksum = checksum.to_owned();
        Some(())
    }
}

/// A journal to append to.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
    /// There is none before the first record, or while it cannot be written.
    file: Option<File>,
    end: End,
}

impl Journal {
    /// The journal in `dir`, as far as it can be read: a device whose storage fails still has to say so. Nothing is
    /// written before the first record.
    pub(crate) fn open(dir: &Path, releases: &mut Releases) -> (Self, Vec<Record>) {
        let Replay { records, torn, end } = Replay::read(dir, releases).unwrap_or_else(|error| {
            tracing::error!(%error, dir = %dir.display(), "the journal cannot be read");
            Replay::default()
        });
        if torn > 0 {
            tracing::warn!(
                bytes = torn,
                sound = end.offset,
                "the end of the journal is torn or corrupt: it will be cut off"
            );
        }
        (Self { dir: dir.to_owned(), file: None, end }, records)
    }

    /// Opens the file, made if it is missing, and cuts off what is not sound.
    fn file(&mut self) -> io::Result<&File> {
        if self.file.is_none() {
            std::fs::create_dir_all(&self.dir)?;
            if let Some(parent) = self.dir.parent() {
                files::sync_dir(parent)?;
            }
            let path = self.dir.join(NAME);
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
            if file.metadata()?.len() > self.end.offset {
                file.set_len(self.end.offset)?;
                file.sync_all()?;
            }
            files::sync_dir(&self.dir)?;
            self.file = Some(file);
        }
        Ok(self.file.as_ref().expect("just opened"))
    }

    /// Makes a record durable. After an error the journal ends where it did before.
    pub(crate) fn append(&mut self, record: Record, releases: &Releases) -> io::Result<()> {
        let release = subject(record);
        let mut end = self.end.clone();
        let mut lines = String::new();
        let number = end.releases.iter().position(|known| *known == release).unwrap_or_else(|| {
            lines.push_str(&end.line(&Entry::Release(releases[release].reference().clone())));
            end.releases.push(release);
            end.releases.len() - 1
        });
        lines.push_str(&end.line(&Entry::new(record, number)));
        let offset = self.end.offset;
        let file = self.file()?;
        crash::point("journal: before");
        // At the known end, whatever an append that failed has left there.
        let written = file.write_all_at(crash::torn("journal: torn", lines.as_bytes()), offset);
        if let Err(error) = written.and_then(|()| file.sync_data()) {
            // If this fails too, the next append or the next start gets rid of the rest.
            let _ = file.set_len(offset);
            self.file = None;
            return Err(error);
        }
        crash::point("journal: durable");
        self.end = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use fleetwave_agent_core::TrustRoot;

    use super::*;

    fn releases() -> Releases {
        Releases::new(TrustRoot::default())
    }

    fn records(releases: &mut Releases) -> Vec<Record> {
        let (first, second) = (releases.preinstalled("fw-2", 2), releases.preinstalled("fw-3", 3));
        vec![
            Record::Started(first),
            Record::Staged(first),
            Record::Booting(first),
            Record::Reverting(first, ResultCode::Unhealthy),
            Record::Ended(first, ResultCode::Unhealthy),
            Record::Started(second),
            Record::Ended(second, ResultCode::Ok),
        ]
    }

    #[test]
    fn a_journal_cut_anywhere_gives_the_records_before_the_cut_and_takes_new_ones() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut known = releases();
        let written = records(&mut known);
        let (mut journal, none) = Journal::open(dir.path(), &mut known);
        assert!(none.is_empty());
        let mut ends = vec![0];
        for record in &written {
            journal.append(*record, &known).expect("appends");
            ends.push(journal.end.offset);
        }
        let whole = std::fs::read(dir.path().join(NAME)).expect("reads");
        for cut in 0..=whole.len() {
            std::fs::write(dir.path().join(NAME), &whole[..cut]).expect("writes");
            let sound = ends.iter().filter(|end| **end <= cut as u64).count() - 1;
            let (mut journal, read) = Journal::open(dir.path(), &mut known);
            assert_eq!(read, written[..sound], "cut at {cut}");
            journal.append(written[0], &known).expect("appends");
            let (_, again) = Journal::open(dir.path(), &mut known);
            assert_eq!(again.len(), sound + 1, "cut at {cut}");
        }
    }

    #[test]
    fn a_changed_byte_ends_the_sound_part_at_its_line() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut known = releases();
        let written = records(&mut known);
        let (mut journal, _) = Journal::open(dir.path(), &mut known);
        written.iter().for_each(|record| journal.append(*record, &known).expect("appends"));
        let whole = std::fs::read(dir.path().join(NAME)).expect("reads");
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x11;
            std::fs::write(dir.path().join(NAME), &changed).expect("writes");
            let replay = Replay::read(dir.path(), &mut known).expect("reads");
            assert!(replay.torn > 0 && replay.end.offset <= at as u64, "byte {at}");
            assert_eq!(replay.records, written[..replay.records.len()], "byte {at}");
        }
    }

    #[test]
    fn a_cold_start_knows_the_releases_from_the_journal_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut known = releases();
        let written = records(&mut known);
        let (mut journal, _) = Journal::open(dir.path(), &mut known);
        journal.append(written[5], &known).expect("appends");
        let mut fresh = releases();
        let replay = Replay::read(dir.path(), &mut fresh).expect("reads");
        assert_eq!(replay.records, [Record::Started(fresh.find("fw-3", 3).expect("known"))]);
    }
}
