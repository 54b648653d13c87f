//! What of a payload is on the device already: its chunks, looked for in what runs.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bitar::chunker::{Config, FilterBits, FilterConfig};
use bytes::Bytes;
use fleetwave_agent_core::delta::{Cut, Dictionary, Rule};
use tokio::task::spawn_blocking;

use crate::chunks::{Chunk, Chunks, VerifiedChunk};
use crate::install::Seed;

/// Where each chunk of a dictionary lies: in which of the seeds, and where in it. Eight bytes a chunk.
#[derive(Clone, Debug)]
pub(super) struct Found(Vec<u64>);

/// Not on the device.
const NOWHERE: u64 = u64::MAX;
/// Bits of a place in a seed; the others say in which.
const PLACE: u32 = 56;
/// So many seeds are looked at.
const SEEDS: usize = 16;

impl Found {
    pub(super) fn has(&self, index: usize) -> bool {
        self.0[index] != NOWHERE
    }

    /// Seed, and place in it.
    pub(super) fn place(&self, index: usize) -> Option<(usize, u64)> {
        let place = self.0[index];
        (place != NOWHERE).then_some(((place >> PLACE) as usize, place & ((1 << PLACE) - 1)))
    }

    pub(super) fn count(&self) -> usize {
        self.0.iter().filter(|place| **place != NOWHERE).count()
    }
}

/// Reads the seeds once, on another thread, and notes which chunks they hold. What cannot be read has none.
pub(super) async fn search(dictionary: Arc<Dictionary>, seeds: Arc<Vec<Seed>>) -> Found {
    /// Nobody waits for it any more.
    struct GivenUp(Arc<AtomicBool>);

    impl Drop for GivenUp {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    let given_up = GivenUp(Arc::default());
    let seen = Arc::clone(&given_up.0);
    let chunks = dictionary.entries().len();
    let searched = spawn_blocking(move || {
        let mut found = Found(vec![NOWHERE; chunks]);
        for (number, seed) in seeds.iter().take(SEEDS).enumerate() {
            if let Err(error) = look(&dictionary, number as u64, seed, &mut found, &seen) {
                tracing::warn!(%error, seed = %seed.path.display(), "nothing more is taken from it");
            }
        }
        found
    });
    searched.await.unwrap_or_else(|_| Found(vec![NOWHERE; chunks]))
}

fn look(
    dictionary: &Dictionary,
    number: u64,
    seed: &Seed,
    found: &mut Found,
    given_up: &AtomicBool,
) -> io::Result<()> {
    let mut left = dictionary.entries().len() - found.count();
    for chunk in Chunks::of(File::open(&seed.path)?, seed.length, &config(dictionary.cut())) {
        if left == 0 || given_up.load(Ordering::Relaxed) {
            break;
        }
        let (at, chunk) = chunk?;
        let verified = VerifiedChunk::new(chunk);
        let hash = &verified.hash().slice()[..dictionary.hash_length()];
        if let Some(index) = dictionary.find(hash)
            && !found.has(index)
        {
            found.0[index] = number << PLACE | at;
            left -= 1;
        }
    }
    Ok(())
}

fn config(cut: &Cut) -> Config {
    let filter = FilterConfig {
        filter_bits: FilterBits(cut.filter_bits),
        min_chunk_size: cut.min as usize,
        max_chunk_size: cut.max as usize,
        window_size: cut.window as usize,
    };
    match cut.rule {
        Rule::BuzHash => Config::BuzHash(filter),
        Rule::RollSum => Config::RollSum(filter),
        Rule::Fixed => Config::FixedSize(cut.max as usize),
    }
}

/// The bytes of a chunk if they are the ones that its digest stands for.
pub(super) fn check(bytes: Vec<u8>, dictionary: &Dictionary, index: usize) -> Option<Bytes> {
    let (hash, chunk) = VerifiedChunk::new(Chunk::from(bytes)).into_parts();
    (hash.slice()[..dictionary.hash_length()] == *dictionary.hash(index)).then(|| chunk.into_inner())
}

/// Reads a chunk from a file; `None` if it is another one, or ends before it.
pub(super) fn read(file: &File, at: u64, dictionary: &Dictionary, index: usize) -> io::Result<Option<Bytes>> {
    let mut bytes = vec![0; dictionary.entries()[index].size as usize];
    match file.read_exact_at(&mut bytes, at) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        read => read.map(|()| check(bytes, dictionary, index)),
    }
}
