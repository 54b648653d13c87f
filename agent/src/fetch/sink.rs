//! The way of the bytes onto the disk: hashed, written and made durable on another thread than the one that receives,
//! with a few buffers between.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use tokio::sync::OwnedMutexGuard;
use tokio::task::{JoinHandle, spawn_blocking};

use super::progress::{Hashed, Origin, Progress, Subject};
use crate::install::Place;
use crate::{crash, files};

/// What is written at once.
const BUFFER: usize = 256 * 1024;
/// Buffers of a download: one is filled while the others are hashed and written.
const BUFFERS: usize = 4;
/// At least so often what has come is made durable: it is what a power cut costs of a slow link …
const CHECKPOINT_TIME: Duration = Duration::from_secs(2);
/// … and this of a fast one.
const CHECKPOINT_BYTES: u64 = 64 << 20;

/// The file or device that a payload goes into. It moves to the threads that work on it and back.
#[derive(Debug)]
pub(crate) struct Sink {
    file: File,
    regular: bool,
    subject: Subject,
    hash: Sha256,
    /// The hash is that of what was written.
    sound: bool,
    written: u64,
    durable: u64,
    checkpoint: Instant,
    attempt: u64,
    progress: Arc<Mutex<Progress>>,
    pub(crate) origin: Option<Origin>,
    /// Nobody else works on this target's payload as long as this exists.
    _gate: OwnedMutexGuard<()>,
}

impl Sink {
    /// Opens `place` to go on behind `offset`, with the hash of what lies before. Blocks.
    pub(crate) fn open(
        place: &Place,
        subject: Subject,
        (offset, hash): (u64, Sha256),
        size: u64,
        (attempt, progress): (u64, Arc<Mutex<Progress>>),
        gate: OwnedMutexGuard<()>,
    ) -> io::Result<Self> {
        if place.capacity.is_some_and(|capacity| capacity < size) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let new = !place.path.exists();
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&place.path)?;
        let regular = file.metadata()?.is_file();
        if new {
            files::sync_dir(place.path.parent().expect("a place lies in a directory"))?;
        }
        if regular {
            // What lies behind was never said to be durable.
            file.set_len(offset)?;
            // Bytes that find no room would be paid for in vain.
            let system = rustix::fs::fstatvfs(&file)?;
            if u128::from(system.f_bavail) * u128::from(system.f_frsize) < u128::from(size - offset) {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        let mut sink = Self {
            file,
            regular,
            subject,
            hash,
            sound: true,
            written: offset,
            durable: offset,
            checkpoint: Instant::now(),
            attempt,
            progress,
            origin: None,
            _gate: gate,
        };
        if offset == 0 {
            // Before the first byte is overwritten nothing may claim any more that something is there.
            sink.reached(0)?;
        }
        Ok(sink)
    }

    /// Bytes from the start that would survive a power cut.
    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.sound = false;
        self.file.write_all_at(bytes, self.written)?;
        self.sound = true;
        self.written += bytes.len() as u64;
        let grown = self.written - self.durable;
        if grown >= CHECKPOINT_BYTES || (grown > 0 && self.checkpoint.elapsed() >= CHECKPOINT_TIME) {
            self.sync()?;
        }
        Ok(())
    }

    /// Makes what has come durable, and then the record that says so.
    fn sync(&mut self) -> io::Result<()> {
        crash::point("payload: before");
        self.file.sync_data()?;
        self.reached(self.written)?;
        self.durable = self.written;
        self.checkpoint = Instant::now();
        Ok(())
    }

    fn reached(&mut self, bytes: u64) -> io::Result<()> {
        lock(&self.progress).reached(self.attempt, &self.subject, bytes, self.origin.as_ref())
    }

    /// The server has other bytes now than those that are there.
    fn restart(&mut self) -> io::Result<()> {
        self.origin = None;
        self.reached(0)?;
        (self.hash, self.sound) = (Sha256::new(), true);
        (self.written, self.durable) = (0, 0);
        if self.regular { self.file.set_len(0) } else { Ok(()) }
    }

    /// Ends the try: what has come is kept if it can be.
    fn finish(&mut self) -> io::Result<()> {
        let kept = if self.written > self.durable { self.sync() } else { Ok(()) };
        if kept.is_ok() && self.sound {
            let hashed =
                Hashed { subject: self.subject.clone(), hash: self.hash.clone(), length: self.written };
            lock(&self.progress).keep(self.attempt, hashed);
        }
        kept
    }
}

fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    progress.lock().expect("nobody panics while holding it")
}

type Batch = (Sink, Vec<Vec<u8>>, io::Result<()>);

/// A sink with the buffers in front of it.
#[derive(Debug)]
pub(crate) struct Pipe {
    /// Away while a batch is written.
    sink: Option<Sink>,
    batch: Option<JoinHandle<Batch>>,
    filling: Vec<u8>,
    full: Vec<Vec<u8>>,
    spare: Vec<Vec<u8>>,
    buffers: usize,
    flushed: Instant,
}

impl Pipe {
    pub(crate) fn new(sink: Sink) -> Self {
        Self {
            sink: Some(sink),
            batch: None,
            filling: Vec::with_capacity(BUFFER),
            full: Vec::new(),
            spare: Vec::new(),
            buffers: 1,
            flushed: Instant::now(),
        }
    }

    /// Takes bytes over. Waits only if the disk is slower than they come.
    pub(crate) async fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(BUFFER - self.filling.len()));
            self.filling.extend_from_slice(now);
            bytes = rest;
            if self.filling.len() == BUFFER || self.flushed.elapsed() >= CHECKPOINT_TIME {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Takes bytes over that belong together: what is durable never ends within them, unless a sync had begun before.
    #[cfg(feature = "delta")]
    pub(crate) async fn push_whole(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.filling.extend_from_slice(bytes);
        if self.filling.len() >= BUFFER || self.flushed.elapsed() >= CHECKPOINT_TIME {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.flushed = Instant::now();
        self.full.push(std::mem::take(&mut self.filling));
        if self.batch.as_ref().is_some_and(JoinHandle::is_finished)
            || (self.spare.is_empty() && self.buffers == BUFFERS)
        {
            self.reap().await?;
        }
        if self.batch.is_none() {
            self.start();
        }
        self.filling = match self.spare.pop() {
            Some(buffer) => buffer,
            None if self.buffers < BUFFERS => {
                self.buffers += 1;
                Vec::with_capacity(BUFFER)
            }
            None => {
                // All are being written: one of them comes back with the batch.
                self.reap().await?;
                self.spare.pop().unwrap_or_else(|| Vec::with_capacity(BUFFER))
            }
        };
        Ok(())
    }

    fn start(&mut self) {
        let mut sink = self.sink.take().expect("the sink is here unless a batch is under way");
        let mut buffers = std::mem::take(&mut self.full);
        self.batch = Some(spawn_blocking(move || {
            let written = buffers.iter().try_for_each(|buffer| sink.write(buffer));
            buffers.iter_mut().for_each(Vec::clear);
            (sink, buffers, written)
        }));
    }

    /// Waits for the batch under way. May be dropped and called again.
    async fn reap(&mut self) -> io::Result<()> {
        let Some(batch) = &mut self.batch else { return Ok(()) };
        let ended = batch.await;
        self.batch = None;
        let (sink, buffers, written) = ended.map_err(io::Error::other)?;
        self.sink = Some(sink);
        self.spare.extend(buffers);
        written
    }

    /// Writes all that was taken over.
    pub(crate) async fn drain(&mut self) -> io::Result<()> {
        self.reap().await?;
        if !self.filling.is_empty() {
            self.full.push(std::mem::take(&mut self.filling));
        }
        if !self.full.is_empty() {
            self.start();
            self.reap().await?;
        }
        if self.filling.capacity() == 0 {
            // One of those that came back: each that is made anew is one more, for good.
            self.filling = self.spare.pop().unwrap_or_default();
        }
        Ok(())
    }

    /// Begins again at the first byte.
    pub(crate) async fn restart(&mut self) -> io::Result<()> {
        self.drain().await?;
        if let Some(mut sink) = self.sink.take() {
            self.batch = Some(spawn_blocking(move || {
                let done = sink.restart();
                (sink, Vec::new(), done)
            }));
        }
        self.reap().await
    }

    /// Names the bytes to come.
    pub(crate) fn name(&mut self, origin: Option<Origin>) {
        if let Some(sink) = &mut self.sink {
            sink.origin = origin;
        }
    }

    /// Writes what is left, makes it durable, and says how many bytes from the start are.
    pub(crate) async fn finish(mut self) -> (u64, io::Result<()>) {
        // What could be written is kept even if something else could not.
        let drained = self.drain().await;
        let Some(mut sink) = self.sink.take() else { return (0, drained) };
        let finished = spawn_blocking(move || {
            let kept = sink.finish();
            (sink.durable(), kept)
        });
        match finished.await {
            Ok((durable, kept)) => (durable, drained.and(kept)),
            Err(error) => (0, Err(io::Error::other(error))),
        }
    }
}
