//! The way of bytes from who receives them onto the disk.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::Sha256;

use super::lanes::{BUFFER, Lanes};
use super::progress::Origin;
use super::sink::Sink;

/// So often what has come is made durable: it is what a power cut costs of a slow link.
const CHECKPOINT_TIME: Duration = Duration::from_secs(2);

/// A sink with the buffers in front of it. Dropping it is as good as a power cut.
#[derive(Debug)]
pub(crate) struct Pipe {
    lanes: Arc<Lanes>,
    /// Without memory of its own until there is something to put in.
    filling: Vec<u8>,
    checkpoint: Instant,
}

impl Pipe {
    /// Goes on behind `offset`, with the hash of what lies before.
    pub(crate) fn new(sink: Sink, (offset, hash): (u64, Sha256)) -> Self {
        let lanes = Lanes::new(sink, (offset, hash));
        Self { lanes, filling: Vec::new(), checkpoint: Instant::now() }
    }

    /// Takes bytes over. Waits only if the disk is slower than they come.
    pub(crate) async fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.begin().await;
            let (now, rest) = bytes.split_at(bytes.len().min(BUFFER - self.filling.len()));
            self.filling.extend_from_slice(now);
            bytes = rest;
            self.pass()?;
        }
        Ok(())
    }

    /// Takes bytes over that belong together: what is durable never ends within them.
    #[cfg(feature = "delta")]
    pub(crate) async fn push_whole(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.begin().await;
        self.filling.extend_from_slice(bytes);
        self.pass()
    }

    async fn begin(&mut self) {
        if self.filling.capacity() == 0 {
            self.filling = self.lanes.buffer().await;
        }
    }

    /// Hands a full buffer over, and any one if it is time.
    fn pass(&mut self) -> io::Result<()> {
        let late = self.checkpoint.elapsed() >= CHECKPOINT_TIME;
        if late || self.filling.len() >= BUFFER {
            self.lanes.give(std::mem::take(&mut self.filling));
        }
        if late {
            self.checkpoint = Instant::now();
            self.lanes.ask();
        }
        self.lanes.error()
    }

    /// Writes all that was taken over.
    pub(crate) async fn drain(&mut self) -> io::Result<()> {
        if !self.filling.is_empty() {
            self.lanes.give(std::mem::take(&mut self.filling));
        }
        self.lanes.idle().await;
        self.lanes.error()
    }

    /// Begins again at the first byte.
    pub(crate) async fn restart(&mut self) -> io::Result<()> {
        self.drain().await?;
        self.lanes.restart().await
    }

    /// Names the bytes to come.
    pub(crate) fn name(&mut self, origin: Option<Origin>) {
        self.lanes.name(origin);
    }

    /// Writes what is left, makes it durable, and says how many bytes from the start are.
    pub(crate) async fn finish(mut self) -> (u64, io::Result<()>) {
        // What could be written is kept even if something else could not.
        let drained = self.drain().await;
        let (durable, kept) = self.lanes.finish().await;
        (durable, drained.and(kept))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.lanes.close();
    }
}
