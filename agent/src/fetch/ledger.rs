//! The byte ledger: what downloads have cost this device, and what they may still cost.
//!
//! Bytes are counted before they come: a piece is reserved on disk, then fetched, and what was not used of it is given
//! back at the end of the try. A power cut leaves the ledger with too much, by one piece at the most, never with too
//! little.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use fleetwave_agent_core::{FetchError, Release};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::pair::{self, Pair};
use super::settings::LedgerLimits;
use crate::files::storage_error;
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
        let (name, mut inner) = (name(release), self.inner());
        let spent = inner.counts.spent(&name);
        inner.counts.updates.retain(|update| update.release != name);
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
        let update = counts.update(release);
        update.bytes = update.bytes.saturating_sub(bytes);
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

/// How much is reserved at first.
const FIRST: u64 = 1 << 20;
/// The most that is reserved at once.
const MOST: u64 = 64 << 20;

/// Reserved beside what is expected, so that a guess that is a little wrong costs no write for each packet.
const SLACK: u64 = 4096;

/// What one try costs. Clones are the same account.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    ledger: Arc<Ledger>,
    update: String,
    reserved: Arc<Mutex<Reserved>>,
}

#[derive(Debug)]
struct Reserved {
    /// Something was asked for.
    began: bool,
    bytes: u64,
    /// What is reserved at once: more each time, so that a fast link does not wait for the disk.
    step: u64,
}

impl Account {
    pub(crate) fn new(ledger: Arc<Ledger>, release: &Release) -> Self {
        let reserved = Arc::new(Mutex::new(Reserved { began: false, bytes: 0, step: FIRST }));
        Self { ledger, update: name(release), reserved }
    }

    fn reserved(&self) -> MutexGuard<'_, Reserved> {
        self.reserved.lock().expect("nobody panics while holding it")
    }

    /// Whether what is reserved should grow: `used` bytes have come, `expected` are still to come.
    pub(crate) fn runs_low(&self, used: u64, expected: u64) -> bool {
        let reserved = self.reserved();
        used + expected.min(reserved.step / 4) > reserved.bytes
    }

    /// Reserves for what comes next, if all of it (`expected` bytes) may come. Blocks.
    pub(crate) fn reserve(
        &self,
        used: u64,
        expected: u64,
        requests: u32,
        now: u64,
    ) -> Result<(), FetchError> {
        let mut reserved = self.reserved();
        let upto = |bytes: u64| used.saturating_add(bytes).saturating_sub(reserved.bytes);
        let most = self.ledger.afford(&self.update, upto(expected), now)?;
        let piece = upto(expected.min(reserved.step) + SLACK).min(most);
        let stored = self.ledger.reserve(&self.update, piece, (u32::from(!reserved.began), requests), now);
        stored.map_err(|error| FetchError::Storage(storage_error(&error)))?;
        reserved.began = true;
        reserved.bytes += piece;
        reserved.step = (reserved.step * 2).min(MOST);
        Ok(())
    }

    /// Whether exactly what has come is counted. Does not wait.
    pub(crate) fn is_settled(&self, used: u64) -> bool {
        self.reserved.try_lock().is_ok_and(|reserved| reserved.bytes == used)
    }

    /// Ends the try, which cost `used` bytes. Blocks.
    pub(crate) fn settle(&self, used: u64, now: u64) {
        let mut reserved = self.reserved();
        let settled = match used.checked_sub(reserved.bytes) {
            Some(0) => Ok(()),
            Some(more) => self.ledger.reserve(&self.update, more, (0, 0), now),
            None => self.ledger.give_back(&self.update, reserved.bytes - used),
        };
        match settled {
            Ok(()) => reserved.bytes = used,
            Err(error) => tracing::warn!(%error, "the byte ledger cannot be written: it counts too much"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Span;

    const DAY: u64 = 86_400;

    fn ledger(dir: &Path, per_update: Option<u64>, per_window: Option<u64>) -> Arc<Ledger> {
        let limits = LedgerLimits {
            per_update: per_update.map(Bytes),
            per_window: per_window.map(Bytes),
            window: Span(DAY),
        };
        Arc::new(Ledger::open(dir.join("ledger"), limits))
    }

    fn account(ledger: &Arc<Ledger>, update: &str) -> Account {
        Account {
            ledger: ledger.clone(),
            update: update.to_owned(),
            reserved: Arc::new(Mutex::new(Reserved { began: false, bytes: 0, step: FIRST })),
        }
    }

    #[test]
    fn a_try_costs_what_it_used_and_a_crash_in_it_no_less() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = ledger(dir.path(), None, None);
        let try_one = account(&first, "a");
        try_one.reserve(0, 5 << 20, 1, DAY).expect("no limit");
        assert_eq!(ledger(dir.path(), None, None).counts(DAY).bytes, FIRST + SLACK, "counted before it came");
        assert!(!try_one.runs_low(FIRST / 4, 5 << 20) && try_one.runs_low(FIRST, 4 << 20));
        assert!(!try_one.runs_low(FIRST, 0), "nothing more is to come");
        try_one.reserve(FIRST, 4 << 20, 0, DAY).expect("no limit");
        assert_eq!(ledger(dir.path(), None, None).counts(DAY).bytes, 3 * FIRST + SLACK);
        try_one.settle(2_000_000, DAY);
        let after = ledger(dir.path(), None, None).counts(DAY);
        assert_eq!((after.bytes, after.requests, after.total_bytes), (2_000_000, 1, 2_000_000));
        assert_eq!(
            after.spent("a"),
            Spent { release: "a".into(), bytes: 2_000_000, requests: 1, tries: 1, since: DAY },
            "a try that needed three pieces is one"
        );
    }

    #[test]
    fn a_window_begins_with_its_time_and_a_clock_that_was_set_back_begins_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let ledger = ledger(dir.path(), None, Some(1000));
        let first = account(&ledger, "a");
        first.reserve(0, 900, 1, 3 * DAY + 5).expect("within the limit");
        first.settle(900, 3 * DAY + 6);
        assert_eq!(ledger.allowance(4 * DAY - 1), 100);
        assert_eq!(ledger.allowance(0), 100, "1970");
        assert_eq!(ledger.allowance(4 * DAY), 1000);
        let counts = ledger.counts(4 * DAY);
        assert_eq!((counts.window, counts.bytes, counts.total_bytes), (4 * DAY, 0, 900));
    }

    #[test]
    fn what_does_not_fit_below_a_cap_is_refused_before_it_comes_and_the_cap_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let ledger = ledger(dir.path(), Some(1000), Some(1500));
        let first = account(&ledger, "a");
        assert_eq!(first.reserve(0, 1001, 1, DAY), Err(FetchError::OverUpdateCap));
        assert_eq!(ledger.counts(DAY).requests, 0, "nothing was asked for");
        first.reserve(0, 800, 1, DAY).expect("within both");
        first.settle(800, DAY);
        // The second try of the same update has what the first one left.
        assert_eq!(account(&ledger, "a").reserve(0, 201, 1, DAY), Err(FetchError::OverUpdateCap));
        assert_eq!(account(&ledger, "b").reserve(0, 701, 1, DAY), Err(FetchError::OverWindowCap));
        let second = account(&ledger, "b");
        second.reserve(0, 700, 1, DAY).expect("within both");
        second.settle(700, DAY);
        let read = Read::new(&dir.path().join("ledger"), &ledger.limits, DAY).expect("reads");
        assert_eq!(
            read.to_string(),
            "1.5 KiB by 2 requests in this window of 1.5 KiB, 0 B left; 1.5 KiB in all"
        );
        assert_eq!(read.told(), ledger.told(DAY), "with and without an agent");
        assert_eq!(
            (&read.told()["window"]["limit"], &read.told()["window"]["left"]),
            (&json!(1500), &json!(0))
        );
    }

    #[test]
    fn the_record_fits_its_place_with_the_largest_numbers() {
        let dir = tempfile::tempdir().expect("a directory");
        let ledger = ledger(dir.path(), None, None);
        for update in 0..20_u64 {
            let update = pair::hex(&update.to_be_bytes());
            ledger.reserve(&update, u64::MAX / 32, (u32::MAX, u32::MAX), u64::MAX / 2).expect("it fits");
        }
        assert_eq!(self::ledger(dir.path(), None, None).counts(0).updates.len(), UPDATES);
    }
}
