//! What others than the shards keep: rows of JSON under a key.

use std::marker::PhantomData;

use redb::ReadableDatabase as _;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::batch::{Batch, Key};
use super::file::ROWS;
use super::writer::Pending;
use super::{Store, StoreError};

/// Why a table cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The store does not give it.
    #[error("the table {table:?} cannot be read: {why}")]
    Unreadable {
        /// The table's name.
        table: &'static str,
        /// Why.
        why: String,
    },
    /// A row is not what it should be.
    #[error("the row {key:?} of the table {table:?} cannot be read: {source}")]
    Row {
        /// The table's name.
        table: &'static str,
        /// The row's key.
        key: String,
        /// Why.
        source: serde_json::Error,
    },
}

/// Rows of one kind. In a store that keeps nothing, writes end at once and nothing is there; so whoever has a table holds
/// its rows in memory, too.
///
/// Values are kept as JSON: a field that a newer version adds needs a default, so that old rows can be read.
pub struct Table<T> {
    store: Store,
    name: &'static str,
    rows: PhantomData<fn(T) -> T>,
}

impl<T> Clone for Table<T> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), name: self.name, rows: PhantomData }
    }
}

impl Store {
    /// The table of a name, which nobody else uses and which never changes.
    #[must_use]
    pub fn table<T: Serialize + DeserializeOwned>(&self, name: &'static str) -> Table<T> {
        Table { store: self.clone(), name, rows: PhantomData }
    }
}

impl<T: Serialize + DeserializeOwned> Table<T> {
    /// Puts a row in the place of the one of the same key, and returns once that is durable.
    ///
    /// # Errors
    /// If the store has failed: the row may be there after a restart or not.
    ///
    /// # Panics
    /// If the value cannot be written as JSON, as a map with keys that are no texts.
    pub async fn put(&self, key: &str, value: &T) -> Result<(), StoreError> {
        self.write([(key, Some(value))]).await
    }

    /// Removes a row, if it is there, and returns once that is durable.
    ///
    /// # Errors
    /// If the store has failed.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.write([(key, None)]).await
    }

    /// Puts and, where there is no value, removes rows, all or none, and returns once that is durable.
    ///
    /// # Errors
    /// If the store has failed.
    ///
    /// # Panics
    /// If a value cannot be written as JSON.
    pub async fn write<'a>(
        &self,
        rows: impl IntoIterator<Item = (&'a str, Option<&'a T>)>,
    ) -> Result<(), StoreError>
    where
        T: 'a,
    {
        match self.begin(rows) {
            Some(pending) => pending.wait().await,
            None => Ok(()),
        }
    }

    /// Like [`Table::write`], and blocks. Not for async code.
    ///
    /// # Errors
    /// If the store has failed.
    ///
    /// # Panics
    /// If a value cannot be written as JSON.
    pub fn write_blocking<'a>(
        &self,
        rows: impl IntoIterator<Item = (&'a str, Option<&'a T>)>,
    ) -> Result<(), StoreError>
    where
        T: 'a,
    {
        self.begin(rows).map_or(Ok(()), Pending::block)
    }

    /// Begins a write; what it gives tells when it is durable. Writes that begin one after the other become durable in
    /// this order.
    pub(crate) fn begin<'a>(
        &self,
        rows: impl IntoIterator<Item = (&'a str, Option<&'a T>)>,
    ) -> Option<Pending>
    where
        T: 'a,
    {
        let open = self.store.0.as_ref()?;
        let mut batch = Batch::default();
        for (key, value) in rows {
            let json = value.map(|value| serde_json::to_vec(value).expect("rows can be written as JSON"));
            batch.add(Key::Row(self.name, key.into()), json.as_deref());
        }
        Some(open.writer.write(batch, &open.failure))
    }

    /// All rows, in the order of their keys. To be called before the first write.
    ///
    /// # Errors
    /// If the store or a row cannot be read.
    pub fn load_all(&self) -> Result<Vec<(String, T)>, TableError> {
        let Some(open) = &self.store.0 else { return Ok(Vec::new()) };
        let rows = read(open, self.name);
        let rows = rows.map_err(|why| TableError::Unreadable { table: self.name, why: why.to_string() })?;
        rows.into_iter()
            .map(|(key, json)| match serde_json::from_slice(&json) {
                Ok(value) => Ok((key, value)),
                Err(source) => Err(TableError::Row { table: self.name, key, source }),
            })
            .collect()
    }
}

fn read(open: &super::Open, name: &'static str) -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
    let transaction = open.file.database.begin_read()?;
    let mut rows = Vec::new();
    for row in transaction.open_table(ROWS)?.range((name, "")..)? {
        let (key, value) = row?;
        let (table, key) = key.value();
        if table != name {
            break;
        }
        rows.push((key.to_owned(), value.value().to_vec()));
    }
    Ok(rows)
}
