//! Shards from what the file has.

use std::panic::{self, AssertUnwindSafe};

use fleetwave_hub_core::{Hub, Numbers, Options, Output, Parts, RecordError, Restore, device_id};
use fleetwave_protocol::Now;
use redb::{AccessGuard, ReadOnlyTable, ReadableDatabase as _, ReadableTable as _};
use rustc_hash::FxHashMap;

use super::batch::{Batch, Key};
use super::file::{CONFIGURATIONS, DEVICES, DataFile, PARTS, damaged};
use super::{OpenError, Store};
use crate::Assign;

/// A shard as it comes out of the store.
pub(crate) struct Restored {
    pub(crate) hub: Hub,
    /// What services are to hear of.
    pub(crate) outputs: Vec<Output>,
}

impl Store {
    /// The shards of a hub, as they were.
    pub(crate) fn restore(
        &self,
        shards: usize,
        options: Options,
        assign: &Assign,
        now: Now,
    ) -> Result<Vec<Restored>, OpenError> {
        let Some(open) = &self.0 else {
            let empty = || Restored { hub: Hub::new(options), outputs: Vec::new() };
            return Ok(std::iter::repeat_with(empty).take(shards).collect());
        };
        let file = &open.file;
        let read = panic::catch_unwind(AssertUnwindSafe(|| load(file, shards, options, assign, now)));
        let read = read.unwrap_or_else(|_| Err(Unreadable("its pages do not fit together".into())));
        let (restored, unused) = read.map_err(|Unreadable(what)| damaged(&file.path, what))?;
        if !unused.is_empty() {
            let mut batch = Batch::default();
            unused.into_iter().for_each(|number| batch.add(Key::Part(number), None));
            let written = open.writer.write(batch, &open.failure).block();
            written.map_err(|error| OpenError::Io {
                path: file.path.as_path().into(),
                source: std::io::Error::other(error),
            })?;
        }
        Ok(restored)
    }
}

/// What is wrong.
struct Unreadable(String);

impl<E: Into<redb::Error>> From<E> for Unreadable {
    fn from(error: E) -> Self {
        Self(error.into().to_string())
    }
}

/// The parts in the file, and which shard keeps each.
struct Source {
    table: ReadOnlyTable<u64, &'static [u8]>,
    /// The one that was read last.
    read: Option<AccessGuard<'static, &'static [u8]>>,
    keepers: FxHashMap<u64, usize>,
    shard: usize,
    broken: Option<redb::StorageError>,
}

impl Parts for Source {
    fn part(&mut self, number: u64) -> Option<(&[u8], bool)> {
        self.read = self.table.get(number).unwrap_or_else(|error| {
            self.broken = Some(error);
            None
        });
        let record = self.read.as_ref()?.value();
        Some((record, *self.keepers.entry(number).or_insert(self.shard) == self.shard))
    }
}

fn load(
    file: &DataFile,
    shards: usize,
    options: Options,
    assign: &Assign,
    now: Now,
) -> Result<(Vec<Restored>, Vec<u64>), Unreadable> {
    let transaction = file.database.begin_read()?;
    let devices = transaction.open_table(DEVICES)?;
    let parts = transaction.open_table(PARTS)?;
    let last = |table: &ReadOnlyTable<u64, &'static [u8]>| -> Result<u64, redb::StorageError> {
        Ok(table.last()?.map_or(0, |(key, _)| key.value()))
    };
    let first = last(&devices)?.max(last(&parts)?) + 1;
    let numbers = |shard: usize| Numbers { next: first + shard as u64, step: shards as u64 };
    let mut restores: Vec<_> = (0..shards).map(|shard| Restore::new(options, numbers(shard))).collect();

    let mut configurations = Vec::new();
    for row in transaction.open_table(CONFIGURATIONS)?.iter()? {
        let (id, record) = row?;
        configurations.push((id.value().to_owned(), record.value().to_vec()));
    }
    for restore in &mut restores {
        let records = configurations.iter().map(|(_, record)| &record[..]);
        restore.configurations(records).map_err(|(place, error)| {
            Unreadable(format!("the configuration {:?} cannot be read: {error}", configurations[place].0))
        })?;
    }

    let mut source =
        Source { table: parts, read: None, keepers: FxHashMap::default(), shard: 0, broken: None };
    for row in devices.iter()? {
        let (number, record) = row?;
        let (number, record) = (number.value(), record.value());
        let unreadable = |error: RecordError| {
            let id = device_id(record).map_or_else(|_| format!("number {number}"), |id| format!("{id:?}"));
            Unreadable(format!("the record of the device {id} cannot be read: {error}"))
        };
        let id = device_id(record).map_err(unreadable)?;
        // A module is where its device is.
        let device = id.split_once('/').map_or(id, |(device, _)| device);
        source.shard = assign.shard(device, shards);
        let restored = restores[source.shard].device(now, number, record, &mut source);
        if let Some(error) = source.broken.take() {
            return Err(error.into());
        }
        restored.map_err(unreadable)?;
    }
    let mut unused = Vec::new();
    for row in source.table.iter()? {
        let number = row?.0.value();
        if !source.keepers.contains_key(&number) {
            unused.push(number);
        }
    }
    let finish = |restore: Restore| {
        let mut outputs = Vec::new();
        let hub = restore.finish(now, &mut outputs);
        Restored { hub, outputs }
    };
    Ok((restores.into_iter().map(finish).collect(), unused))
}
