//! The payload, chunk by chunk: from what runs, from what of it was put together before, or from the archive.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use fleetwave_agent_core::FetchError;
use fleetwave_agent_core::delta::{Dictionary, Entry};
use tokio::task::spawn_blocking;
use zstd::bulk::Decompressor;

use super::super::ask::{Asked, Bill, Caller, Flow, Stop, cut, stop};
use super::super::get::Job;
use super::super::pipe::Pipe;
use super::{Patch, seeds};
use crate::install::Seed;

impl Job {
    /// Puts the payload together from `offset` on.
    pub(in super::super) async fn assemble(
        &self,
        patch: &Patch,
        pipe: &mut Pipe,
        bill: &Bill,
    ) -> Result<(), Stop> {
        let ranges = patch.ranges(self.offset).map_err(|error| self.refuse(error))?;
        let mut store = Store::new(self, bill, ranges);
        let mut local = Local::open(Arc::clone(&patch.seeds)).await?;
        let dictionary = &patch.dictionary;
        // Chunks that have had their first place.
        let mut known = 0;
        // Long runs of the same are common in images.
        let mut last: Option<(usize, Bytes)> = None;
        for (index, at) in dictionary.pieces() {
            let entry = dictionary.entries()[index];
            let again = index < known;
            known = known.max(index + 1);
            let end = at + u64::from(entry.size);
            if end <= self.offset {
                continue;
            }
            let place = patch.found.borrow().place(index);
            let bytes = match (last.take().filter(|last| last.0 == index), place) {
                (Some((_, bytes)), _) => bytes,
                (None, Some((seed, at))) => match local.read(seed, at, dictionary, index).await? {
                    Some(bytes) => bytes,
                    None => {
                        patch.stale.set(true);
                        return Err(stop(
                            FetchError::Unplanned,
                            "what runs has changed since it was searched",
                        ));
                    }
                },
                (None, None) if again => {
                    pipe.drain().await?;
                    let place = self.place.path.clone();
                    let read = spawn_blocking({
                        let dictionary = Arc::clone(dictionary);
                        move || seeds::read(&File::open(place)?, entry.first, &dictionary, index)
                    });
                    let read = read.await.map_err(io::Error::other)??;
                    read.ok_or_else(|| stop(FetchError::Protocol, "what was written is not there any more"))?
                }
                (None, None) => store.chunk(&entry, dictionary, index).await?,
            };
            let skip = usize::try_from(self.offset.saturating_sub(at)).unwrap_or(0);
            pipe.push_whole(&bytes[skip..]).await?;
            self.payload.position.set(end);
            last = Some((index, bytes));
        }
        Ok(())
    }

    /// From now on all of the payload is fetched.
    fn refuse(&self, why: impl std::fmt::Display) -> Stop {
        self.payload.deltas.refuse(&self.release, &why);
        stop(FetchError::Unplanned, why)
    }
}

/// What runs.
struct Local(Arc<Vec<Option<File>>>);

impl Local {
    async fn open(seeds: Arc<Vec<Seed>>) -> Result<Self, Stop> {
        let open = move || seeds.iter().map(|seed| File::open(&seed.path).ok()).collect();
        Ok(Self(Arc::new(spawn_blocking(open).await.map_err(cut)?)))
    }

    /// A chunk, if it is still there.
    async fn read(
        &mut self,
        seed: usize,
        at: u64,
        dictionary: &Arc<Dictionary>,
        index: usize,
    ) -> Result<Option<Bytes>, Stop> {
        let (files, dictionary) = (Arc::clone(&self.0), Arc::clone(dictionary));
        let read = spawn_blocking(move || match files.get(seed) {
            Some(Some(file)) => seeds::read(file, at, &dictionary, index).unwrap_or_else(|error| {
                tracing::warn!(%error, "what runs cannot be read");
                None
            }),
            _ => None,
        });
        read.await.map_err(cut)
    }
}

/// The archive, asked for one range after the other.
struct Store<'a> {
    job: &'a Job,
    bill: &'a Bill,
    caller: Option<Caller<'a>>,
    ranges: std::vec::IntoIter<Range<u64>>,
    /// The range that is coming, what of it lies ready, and where that begins.
    flow: Option<(Box<Flow<'a>>, Range<u64>)>,
    ready: Bytes,
    /// Moves to the threads that use it and back.
    decompressor: Option<Decompressor<'static>>,
}

impl<'a> Store<'a> {
    fn new(job: &'a Job, bill: &'a Bill, ranges: Vec<Range<u64>>) -> Self {
        let ranges = ranges.into_iter();
        Self { job, bill, caller: None, ranges, flow: None, ready: Bytes::new(), decompressor: None }
    }

    /// What is still to come.
    fn left(&self) -> u64 {
        let coming = self.flow.as_ref().map_or(0, |(_, range)| range.end - range.start);
        let later = self.ranges.as_slice().iter().map(|range| range.end - range.start);
        coming.saturating_sub(self.ready.len() as u64) + later.sum::<u64>()
    }

    /// A chunk, as it belongs into the payload.
    async fn chunk(
        &mut self,
        entry: &Entry,
        dictionary: &Arc<Dictionary>,
        index: usize,
    ) -> Result<Bytes, Stop> {
        let end = entry.at + u64::from(entry.stored);
        while self.flow.as_ref().is_none_or(|(_, range)| range.end < end) {
            self.next_range().await?;
        }
        self.skip(entry.at).await?;
        let stored = self.take(entry.stored as usize).await?;
        let decompressor = match self.decompressor.take() {
            Some(decompressor) => decompressor,
            None => Decompressor::new()?,
        };
        let (size, dictionary) = (entry.size as usize, Arc::clone(dictionary));
        let unpacked = spawn_blocking(move || {
            let mut decompressor = decompressor;
            // Not a byte more than it should have is made of it.
            let bytes =
                if stored.len() == size { Ok(stored) } else { decompressor.decompress(&stored, size) };
            (bytes.ok().and_then(|bytes| seeds::check(bytes, &dictionary, index)), decompressor)
        });
        let (bytes, decompressor) = unpacked.await.map_err(cut)?;
        self.decompressor = Some(decompressor);
        bytes.ok_or_else(|| self.job.refuse("a chunk of the archive is not the one that was signed"))
    }

    async fn next_range(&mut self) -> Result<(), Stop> {
        if let Some((flow, range)) = self.flow.take()
            && range.is_empty()
        {
            flow.end().await;
        }
        self.ready = Bytes::new();
        let left = self.left();
        let Some(range) = self.ranges.next() else {
            return Err(self.job.refuse("a chunk that no range has"));
        };
        let Some(link) = &self.job.links.archive else {
            return Err(stop(FetchError::Unplanned, "the last grant has no link to an archive"));
        };
        if self.caller.is_none() {
            self.caller = Some(Caller::new(&self.job.fetcher, self.bill).await?);
        }
        let caller = self.caller.as_ref().ok_or_else(|| cut("no client"))?;
        match caller.ask(link, range.clone(), None, left).await {
            Ok(Asked::Take(flow, body)) if flow.is_partial() && body.start == range.start => {
                self.flow = Some((flow, range));
                Ok(())
            }
            Ok(Asked::Take(..)) => Err(self.job.refuse("the server knows no ranges")),
            Ok(Asked::Short { .. }) => Err(self.job.refuse("the archive is shorter than was signed")),
            Err(Stop { error: FetchError::NotFound | FetchError::Protocol, why }) => {
                Err(self.job.refuse(why))
            }
            Err(stop) => Err(stop),
        }
    }

    /// Waits for bytes if none lie ready.
    async fn fill(&mut self) -> Result<(), Stop> {
        while self.ready.is_empty() {
            let left = self.left();
            let Some((flow, _)) = &mut self.flow else { return Err(cut("no range is coming")) };
            flow.reserve(left).await?;
            self.ready = flow.next().await?;
        }
        Ok(())
    }

    fn advance(&mut self, bytes: usize) -> Bytes {
        let taken = self.ready.split_to(bytes);
        if let Some((_, range)) = &mut self.flow {
            range.start += bytes as u64;
        }
        taken
    }

    /// Passes over what lies between two chunks.
    async fn skip(&mut self, to: u64) -> Result<(), Stop> {
        loop {
            let at = self.flow.as_ref().map_or(to, |(_, range)| range.start);
            let Some(gap) = to.checked_sub(at) else {
                return Err(self.job.refuse("a chunk before the one that came"));
            };
            if gap == 0 {
                return Ok(());
            }
            self.fill().await?;
            let gap = usize::try_from(gap).unwrap_or(usize::MAX).min(self.ready.len());
            self.advance(gap);
        }
    }

    async fn take(&mut self, length: usize) -> Result<Vec<u8>, Stop> {
        let mut taken = Vec::with_capacity(length);
        while taken.len() < length {
            self.fill().await?;
            let piece = self.ready.len().min(length - taken.len());
            let piece = self.advance(piece);
            taken.extend_from_slice(&piece);
        }
        Ok(taken)
    }
}
