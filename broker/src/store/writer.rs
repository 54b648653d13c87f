//! The thread that writes: it makes one transaction of all that waits.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};
use tokio::sync::oneshot;

use super::batch::{Batch, Key};
use super::file::{CONFIGURATIONS, DEVICES, DataFile, PARTS, ROWS};
use super::{Failure, StoreError};
use crate::exposition::Instruments;

/// What a transaction takes at most before others wait for the next; a single batch may be larger.
const MOST: usize = 64 << 20;

type Done = oneshot::Sender<Result<(), StoreError>>;

/// The way to the thread.
pub(super) struct Writer {
    batches: Option<Sender<(Batch, Done)>>,
    thread: Option<JoinHandle<()>>,
}

/// A write that is under way. It can be awaited, or blocked on.
pub(crate) struct Pending {
    done: oneshot::Receiver<Result<(), StoreError>>,
    failure: Arc<Failure>,
}

impl Pending {
    fn ended(
        &self,
        answer: Result<Result<(), StoreError>, oneshot::error::RecvError>,
    ) -> Result<(), StoreError> {
        answer.unwrap_or_else(|_| Err(self.failure.fail("the thread that writes it has ended")))
    }

    /// Waits without blocking the thread.
    pub(crate) async fn wait(mut self) -> Result<(), StoreError> {
        let answer = (&mut self.done).await;
        self.ended(answer)
    }

    /// Blocks until it is durable.
    pub(crate) fn block(self) -> Result<(), StoreError> {
        let Self { done, failure } = self;
        done.blocking_recv().unwrap_or_else(|_| Err(failure.fail("the thread that writes it has ended")))
    }
}

impl Writer {
    pub(super) fn start(
        file: Arc<DataFile>,
        failure: Arc<Failure>,
        measures: Arc<OnceLock<Instruments>>,
    ) -> io::Result<Self> {
        let (sender, batches) = crossbeam_channel::unbounded();
        let thread = std::thread::Builder::new()
            .name("hub-store".into())
            .spawn(move || run(&file, &failure, &measures, &batches))?;
        Ok(Self { batches: Some(sender), thread: Some(thread) })
    }

    pub(super) fn write(&self, batch: Batch, failure: &Arc<Failure>) -> Pending {
        let (done, pending) = oneshot::channel();
        if let Some(batches) = &self.batches {
            // If the thread has ended, so has `done`, and who waits hears of it.
            let _ = batches.send((batch, done));
        }
        Pending { done: pending, failure: failure.clone() }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.batches.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's thread panicked");
        }
    }
}

fn run(
    file: &DataFile,
    failure: &Failure,
    measures: &OnceLock<Instruments>,
    batches: &Receiver<(Batch, Done)>,
) {
    while let Ok(first) = batches.recv() {
        let mut weight = first.0.weight();
        let mut taken = vec![first];
        while weight < MOST
            && let Ok(next) = batches.try_recv()
        {
            weight += next.0.weight();
            taken.push(next);
        }
        let began = Instant::now();
        let result = failure.check().and_then(|()| {
            // Who only wants to know whether all before is durable costs no commit.
            if weight == 0 {
                return Ok(());
            }
            let written = panic::catch_unwind(AssertUnwindSafe(|| write(file, &taken)));
            let written = written.unwrap_or_else(|_| Err(StoreBroke("its pages do not fit together".into())));
            written.map_err(|StoreBroke(why)| failure.fail(&why))
        });
        if let (Ok(()), Some(measures)) = (&result, measures.get()) {
            let records: usize = taken.iter().map(|(batch, _)| batch.iter().count()).sum();
            measures.commit(records as u64, began.elapsed());
        }
        for (_, done) in taken {
            // Somebody who does not wait any more is fine.
            let _ = done.send(result.clone());
        }
    }
}

struct StoreBroke(String);

impl<E: Into<redb::Error>> From<E> for StoreBroke {
    fn from(error: E) -> Self {
        Self(error.into().to_string())
    }
}

fn write(file: &DataFile, batches: &[(Batch, Done)]) -> Result<(), StoreBroke> {
    let transaction = file.database.begin_write()?;
    {
        let mut parts = transaction.open_table(PARTS)?;
        let mut devices = transaction.open_table(DEVICES)?;
        let mut configurations = transaction.open_table(CONFIGURATIONS)?;
        let mut rows = transaction.open_table(ROWS)?;
        for (key, value) in batches.iter().flat_map(|(batch, _)| batch.iter()) {
            match (key, value) {
                (Key::Part(number), Some(value)) => drop(parts.insert(number, value)?),
                (Key::Part(number), None) => drop(parts.remove(number)?),
                (Key::Device(number), Some(value)) => drop(devices.insert(number, value)?),
                (Key::Device(number), None) => drop(devices.remove(number)?),
                (Key::Configuration(id), Some(value)) => drop(configurations.insert(&**id, value)?),
                (Key::Configuration(id), None) => drop(configurations.remove(&**id)?),
                (Key::Row(table, key), Some(value)) => drop(rows.insert((*table, &**key), value)?),
                (Key::Row(table, key), None) => drop(rows.remove((*table, &**key))?),
            }
        }
    }
    transaction.commit()?;
    Ok(())
}
