//! The byte ledger: what downloads have cost this device, and what they may still cost.
//!
//! Bytes are counted before they come: a piece is reserved on disk, then fetched, and what was not used of it is given
//! back at the end of the try. A power cut leaves the ledger with too much, by one piece at the most, never with too
//! little.

mod account;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use fleetwave_agent_core::{FetchError, Release};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub(crate) use self::account::Account;
use super::pair::{self, Pair};
use super::settings::LedgerLimits;
use crate::units::Bytes;

/// The updates that are remembered one by one, the latest last.
const UPDATES: usize = 6;

/// What downloads have cost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// When the window began: seconds since 1970.
    pub(crate) window: u64,
    /// In this window.
    pub(crate) bytes: u64,
    pub(crate) requests: u64,
    /// Since the state directory was made.
    pub(crate) total_bytes: u64,
    pub(crate) total_requests: u64,
    updates: Vec<Spent>,
}

/// What one update has cost, in all its tries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spent {
    /// Which one.
    release: String,
    pub(crate) bytes: u64,
    #[serde(default)]
    pub(crate) requests: u32,
    /// Tries that asked for something.
    #[serde(default)]
    pub(crate) tries: u32,
    /// When the first one did, in seconds since 1970.
    #[serde(default)]
    pub(crate) since: u64,
}

impl Counts {
    fn spent(&self, release: &str) -> Spent {
        let known = self.updates.iter().find(|update| update.release == release);
        known.cloned().unwrap_or_default()
    }

    fn known(&mut self, release: &str) -> Option<&mut Spent> {
        self.updates.iter_mut().find(|update| update.release == release)
    }

    fn update(&mut self, release: &str) -> &mut Spent {
        let known = self.updates.iter().position(|update| update.release == release);
        let update = match known {
            Some(at) => self.updates.remove(at),
            None => Spent { release: release.to_owned(), ..Spent::default() },
        };
        if self.updates.len() == UPDATES {
            self.updates.remove(0);
        }
        self.updates.push(update);
        self.updates.last_mut().expect("just pushed")
    }

    /// Begins a new window if the time for it has come. A clock that was set back opens none.
    fn roll(&mut self, now: u64, window: u64) {
        let current = now - now % window;
        if current > self.window {
            (self.window, self.bytes, self.requests) = (current, 0, 0);
        }
    }
}

/// Counts, and refuses.
#[derive(Debug)]
pub(crate) struct Ledger {
    limits: LedgerLimits,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    pair: Pair,
    counts: Counts,
}

impl Ledger {
    pub(crate) fn open(path: PathBuf, limits: LedgerLimits) -> Self {
        let empty = !path.exists();
        let (pair, counts) = Pair::open(path);
        if counts.is_none() && !empty {
            tracing::error!("the byte ledger cannot be read: it begins again at zero");
        }
        Self { limits, inner: Mutex::new(Inner { pair, counts: counts.unwrap_or_default() }) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panics while holding it")
    }

    /// What downloads have cost by `now`, in seconds since 1970.
    pub(crate) fn counts(&self, now: u64) -> Counts {
        let mut counts = self.inner().counts.clone();
        counts.roll(now, self.limits.window.0);
        counts
    }

    /// What an update has cost, in all its tries.
    pub(crate) fn spent(&self, release: &Release) -> Spent {
        self.inner().counts.spent(&name(release))
    }

    /// What this window may still cost; [`u64::MAX`] if there is no limit.
    pub(crate) fn allowance(&self, now: u64) -> u64 {
        allowance(&self.counts(now), &self.limits)
    }

    /// Forgets what an update has cost, and says it once more: it has ended, and the same release may be an update of
    /// its own later.
    pub(crate) fn ended(&self, release: &Release) -> Spent {
        self.forget(&name(release))
    }

    fn forget(&self, update: &str) -> Spent {
        let mut inner = self.inner();
        let mut counts = inner.counts.clone();
        let spent = counts.spent(update);
        counts.updates.retain(|known| known.release != update);
        if counts != inner.counts
            && let Err(error) = inner.store(counts, true)
        {
            tracing::warn!(%error, "the byte ledger cannot be written: it counts an update that has ended");
        }
        spent
    }

    /// What downloads have cost and may cost, for programs.
    pub(crate) fn told(&self, now: u64) -> Value {
        told(&self.counts(now), &self.limits)
    }

    /// How much more may come, if `bytes` more may. Nothing is counted.
    fn afford(&self, update: &str, bytes: u64, now: u64) -> Result<u64, FetchError> {
        let spent = self.inner().counts.spent(update).bytes;
        let allowance = self.allowance(now);
        let left = self.limits.per_update.map_or(u64::MAX, |most| most.0.saturating_sub(spent));
        if bytes > left {
            Err(FetchError::OverUpdateCap)
        } else if bytes > allowance {
            Err(FetchError::OverWindowCap)
        } else {
            Ok(left.min(allowance))
        }
    }

    /// Counts a piece before it comes, durably. Blocks.
    fn reserve(&self, release: &str, bytes: u64, (tries, requests): (u32, u32), now: u64) -> io::Result<()> {
        let mut inner = self.inner();
        let mut counts = inner.counts.clone();
        counts.roll(now, self.limits.window.0);
        counts.bytes += bytes;
        counts.requests += u64::from(requests);
        counts.total_bytes += bytes;
        counts.total_requests += u64::from(requests);
        // What still comes over the connections of an update that has ended is not its beginning.
        if tries == 0 && counts.known(release).is_none() {
            return inner.store(counts, self.limits.caps().is_some());
        }
        let update = counts.update(release);
        update.bytes += bytes;
        update.requests = update.requests.saturating_add(requests);
        update.tries = update.tries.saturating_add(tries);
        if update.since == 0 {
            update.since = now;
        }
        inner.store(counts, self.limits.caps().is_some())
    }

    /// Gives back what did not come. Blocks.
    fn give_back(&self, release: &str, bytes: u64) -> io::Result<()> {
        let mut inner = self.inner();
        let mut counts = inner.counts.clone();
        counts.bytes = counts.bytes.saturating_sub(bytes);
        counts.total_bytes = counts.total_bytes.saturating_sub(bytes);
        if let Some(update) = counts.known(release) {
            update.bytes = update.bytes.saturating_sub(bytes);
        }
        inner.store(counts, self.limits.caps().is_some())
    }
}

impl Inner {
    fn store(&mut self, counts: Counts, binding: bool) -> io::Result<()> {
        match self.pair.write(&counts) {
            // Where nothing is limited nothing depends on it.
            Err(error) if !binding => tracing::warn!(%error, "the byte ledger cannot be written"),
            written => written?,
        }
        self.counts = counts;
        Ok(())
    }
}

fn allowance(counts: &Counts, limits: &LedgerLimits) -> u64 {
    limits.per_window.map_or(u64::MAX, |most| most.0.saturating_sub(counts.bytes))
}

fn told(counts: &Counts, limits: &LedgerLimits) -> Value {
    let bytes = |limit: Option<Bytes>| limit.map(|limit| limit.0);
    json!({
        "window": {
            "since": counts.window,
            "seconds": limits.window.0,
            "bytes": counts.bytes,
            "requests": counts.requests,
            "limit": bytes(limits.per_window),
            "left": limits.per_window.map(|_| allowance(counts, limits)),
        },
        "update_limit": bytes(limits.per_update),
        "total": { "bytes": counts.total_bytes, "requests": counts.total_requests },
    })
}

fn name(release: &Release) -> String {
    pair::hex(&release.digest[..8])
}

/// What a ledger on disk says, for when no agent runs, too.
#[derive(Debug)]
pub(crate) struct Read(Counts, LedgerLimits);

impl Read {
    /// The ledger in the file `path` by `now`.
    pub(crate) fn new(path: &Path, limits: &LedgerLimits, now: u64) -> io::Result<Self> {
        let mut counts = pair::read(path)?.map_or_else(Counts::default, |(_, counts)| counts);
        counts.roll(now, limits.window.0);
        Ok(Self(counts, limits.clone()))
    }

    /// For programs.
    pub(crate) fn told(&self) -> Value {
        told(&self.0, &self.1)
    }

    /// What an update has cost, in all its tries.
    pub(crate) fn spent(&self, release: &Release) -> Spent {
        self.0.spent(&name(release))
    }
}

impl fmt::Display for Read {
    /// For people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(counts, limits) = self;
        let left = match limits.per_window {
            None => String::new(),
            Some(most) => format!(" of {most}, {} left", Bytes(allowance(counts, limits))),
        };
        write!(
            f,
            "{} by {} requests in this window{left}; {} in all",
            Bytes(counts.bytes),
            counts.requests,
            Bytes(counts.total_bytes)
        )
    }
}
