//! A small record that is written often: two places in one file, used by turns, so that a write that is torn by a
//! power cut leaves the one before it. One `fdatasync` a write and no change of names: kind to SD cards.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use crate::{crash, files};

/// The size of one place.
const PLACE: usize = 1024;

/// A record on disk.
#[derive(Debug)]
pub(crate) struct Pair {
    path: PathBuf,
    /// Opened with the first write, closed when the record is removed.
    file: Option<File>,
    /// How often it was written.
    turn: u64,
}

impl Pair {
    /// The record in the file `path`, and what it holds: `None` if there is no file, or nothing sound in it.
    pub(crate) fn open<T: DeserializeOwned>(path: PathBuf) -> (Self, Option<T>) {
        let newest = read(&path).unwrap_or_else(|error| {
            tracing::error!(%error, path = %path.display(), "a record cannot be read");
            None
        });
        let turn = newest.as_ref().map_or(0, |(turn, _)| *turn);
        (Self { path, file: None, turn }, newest.map(|(_, record)| record))
    }

    /// Makes `record` durable.
    pub(crate) fn write(&mut self, record: &impl Serialize) -> io::Result<()> {
        let turn = self.turn + 1;
        let body = format!("{turn} {}", serde_json::to_string(record)?);
        let mut line = format!("{} {body}\n", checksum(&body)).into_bytes();
        if line.len() > PLACE {
            return Err(io::Error::other("a record that is too long for its place"));
        }
        line.resize(PLACE, b' ');
        let file = match &self.file {
            Some(file) => file,
            None => {
                let dir = self.path.parent().expect("a record lies in the state directory");
                std::fs::create_dir_all(dir)?;
                let file = OpenOptions::new().write(true).create(true).truncate(false).open(&self.path)?;
                files::sync_dir(dir)?;
                self.file.insert(file)
            }
        };
        crash::point("record: before");
        file.write_all_at(&line, turn % 2 * PLACE as u64)?;
        file.sync_data()?;
        crash::point("record: after");
        self.turn = turn;
        Ok(())
    }

    /// Removes the record for good.
    pub(crate) fn remove(&mut self) -> io::Result<()> {
        self.file = None;
        files::remove(&self.path)
    }
}

/// What the record in the file `path` holds, with its turn.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<(u64, T)>> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    Ok(bytes.chunks(PLACE).filter_map(sound).max_by_key(|(turn, _)| *turn))
}

fn sound<T: DeserializeOwned>(place: &[u8]) -> Option<(u64, T)> {
    let (line, _) = std::str::from_utf8(place).ok()?.split_once('\n')?;
    let (sum, body) = line.split_once(' ')?;
    if sum != checksum(body) {
        return None;
    }
    let (turn, json) = body.split_once(' ')?;
    Some((turn.parse().ok()?, serde_json::from_str(json).ok()?))
}

fn checksum(body: &str) -> String {
    hex(&Sha256::digest(body)[..8])
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(path: &Path) -> Option<u64> {
        read(path).expect("reads").map(|(_, value)| value)
    }

    #[test]
    fn a_torn_write_leaves_the_record_before_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("record");
        let (mut pair, none) = Pair::open::<u64>(path.clone());
        assert_eq!(none, None);
        for value in 0..5_u64 {
            pair.write(&value).expect("writes");
            assert_eq!(stored(&path), Some(value));
        }
        let whole = std::fs::read(&path).expect("reads");
        // The fifth write went into the second place.
        for at in 0..20 {
            let mut torn = whole.clone();
            torn[PLACE + at] ^= 0x11;
            std::fs::write(&path, &torn).expect("writes");
            assert_eq!(stored(&path), Some(3), "byte {at}");
            let (mut pair, found) = Pair::open::<u64>(path.clone());
            assert_eq!(found, Some(3));
            pair.write(&9_u64).expect("writes");
            assert_eq!(stored(&path), Some(9), "byte {at}");
        }
    }

    #[test]
    fn a_record_that_was_removed_is_gone_and_can_be_written_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("record");
        let (mut pair, _) = Pair::open::<u64>(path.clone());
        pair.write(&1_u64).expect("writes");
        pair.remove().expect("removes");
        assert_eq!(stored(&path), None);
        pair.write(&2_u64).expect("writes");
        assert_eq!(stored(&path), Some(2));
    }
}
