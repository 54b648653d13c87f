//! The journal: what the machine asked to be durable, one line each.
//!
//! A line is a checksum, a space, and JSON. The checksum covers the line before it too, so the longest valid prefix
//! of the file is what was written, in order; whatever follows it is cut off when the journal is written to again.
//! Releases that records refer to stand in the journal themselves, so that a cold start knows them before it has seen
//! the hub.
//!
//! A journal that has grown beyond its [`BOUND`] is written anew with what its records add up to, as a whole, beside
//! the old one, whose place it then takes. A power cut leaves one or the other, and both say the same.

mod replay;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use fleetwave_agent_core::{Durable, Pending, Phase, Record, ReleaseId, Releases};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub(crate) use self::replay::Replay;
use self::replay::{End, NAME};
use crate::install::Reference;
use crate::{crash, files};

/// A journal that is longer is written anew.
const BOUND: u64 = 32 << 10;
/// Where a damaged journal is kept for whoever wants to know what became of the medium.
pub(crate) const DAMAGED: &str = "journal.damaged";

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
    /// The record before, so many times more.
    Again(u8),
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

/// The fewest records that add up to the same, each with how often it is to be repeated. What is committed is not
/// among it: that is for the installer to say.
fn gist(durable: &Durable) -> impl Iterator<Item = (Record, u8)> {
    let last = durable.last.map(|(release, code)| (Record::Ended(release, code), durable.repeats));
    let pending = durable.pending.map(|Pending { release, phase }| match phase {
        Phase::Started { starts } => (Record::Started(release), starts.saturating_sub(1)),
        Phase::Staged { boots: 0 } => (Record::Staged(release), 0),
        Phase::Staged { boots } => (Record::Booting(release), boots - 1),
        Phase::Reverting(code) => (Record::Reverting(release, code), 0),
    });
    last.into_iter().chain(pending)
}

/// A journal to append to.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
    /// There is none before the first record, or while it cannot be written.
    file: Option<File>,
    end: End,
    durable: Durable,
    /// What it may grow to before it is written anew.
    limit: u64,
    /// Records that were durable could not be read, and the file is still as it was found.
    damaged: bool,
}

impl Journal {
    /// The journal in `dir` of a target that has `committed`, as far as it can be read: a device whose storage fails
    /// still has to say so. Nothing is written before the first record.
    pub(crate) fn open(dir: &Path, releases: &mut Releases, committed: &Reference) -> Self {
        let Replay { records, torn, damaged, end } = Replay::read(dir, releases).unwrap_or_else(|error| {
            tracing::error!(%error, dir = %dir.display(), "the journal cannot be read");
            Replay::default()
        });
        if damaged {
            let kept = dir.join(DAMAGED).display().to_string();
            tracing::error!(
                bytes = torn,
                sound = end.offset,
                kept,
                "records of the journal are damaged, and those behind them are lost: suspect the medium"
            );
        } else if torn > 0 {
            tracing::warn!(
                bytes = torn,
                sound = end.offset,
                "the end of the journal is torn or corrupt: it will be cut off"
            );
        }
        // Whatever it holds, it never took the journal's place.
        let _ = fs::remove_file(files::beside(&dir.join(NAME)));
        let mut durable = Durable::new(releases.intern(committed));
        records.into_iter().for_each(|record| durable.apply(record));
        Self { dir: dir.to_owned(), file: None, end, durable, limit: crash::journal_bound(BOUND), damaged }
    }

    /// What the records add up to.
    pub(crate) fn durable(&self) -> Durable {
        self.durable
    }

    /// Whether records were lost that had been durable, in this life or in one before, and no update has ended well
    /// since.
    pub(crate) fn is_damaged(&self) -> bool {
        self.damaged || self.dir.join(DAMAGED).exists()
    }

    /// What was lost is of no consequence any more.
    pub(crate) fn forget_damage(&self) {
        if let Err(error) = files::remove(&self.dir.join(DAMAGED)) {
            tracing::warn!(%error, "the damaged journal cannot be removed");
        }
    }

    /// Keeps a copy of what is about to be cut off.
    fn keep_damaged(&mut self) {
        if std::mem::take(&mut self.damaged) {
            let copied = fs::read(self.dir.join(NAME))
                .and_then(|bytes| files::replace(&self.dir.join(DAMAGED), &bytes));
            if let Err(error) = copied {
                tracing::warn!(%error, "the damaged journal is not kept");
            }
        }
    }

    /// Opens the file, made if it is missing, and cuts off what is not sound.
    fn file(&mut self) -> io::Result<&File> {
        if self.file.is_none() {
            fs::create_dir_all(&self.dir)?;
            if let Some(parent) = self.dir.parent() {
                files::sync_dir(parent)?;
            }
            self.keep_damaged();
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
        if self.end.offset > self.limit {
            // What cannot be made shorter can still be written to, or will say why not.
            if let Err(error) = self.compact(releases) {
                tracing::warn!(%error, bytes = self.end.offset, "the journal is not made shorter");
            }
        }
        let mut end = self.end.clone();
        let lines = end.lines(record, releases);
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
        self.durable.apply(record);
        Ok(())
    }

    /// Puts in the journal's place a new one that says the same, and no more.
    fn compact(&mut self, releases: &Releases) -> io::Result<()> {
        let mut end = End::default();
        let mut lines = String::new();
        for (record, again) in gist(&self.durable) {
            lines.push_str(&end.lines(record, releases));
            if again > 0 {
                lines.push_str(&end.line(&Entry::Again(again)));
            }
        }
        self.keep_damaged();
        let path = self.dir.join(NAME);
        crash::point("journal: compacting");
        let replaced = files::replace(&path, lines.as_bytes());
        // What is opened next makes the names in the directory durable before anything relies on them.
        self.file = None;
        // It may have taken the other one's place, and that not be durable.
        if replaced.is_ok() || fs::read(&path).is_ok_and(|now| now == lines.as_bytes()) {
            tracing::debug!(before = self.end.offset, after = end.offset, "the journal was made shorter");
            // One that cannot be much shorter is not written anew each time.
            self.limit = self.limit.max(2 * end.offset);
            self.end = end;
        }
        crash::point("journal: compacted");
        replaced
    }
}

#[cfg(test)]
mod tests;
