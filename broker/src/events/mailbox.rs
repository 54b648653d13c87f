//! What the hub has to say to the back end and wants to be acknowledged: C2D feedback and file notifications.
//!
//! Whoever takes records locks them. They are gone when the lock is completed, and come again when it is abandoned or
//! has expired.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use fleetwave_protocol::Instant;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use uuid::Uuid;

/// The most records that wait; beyond it the oldest go.
const CAPACITY: usize = 50_000;
/// How often a record is given out, unless set otherwise: IoT Hub's default.
const DELIVERIES: u32 = 10;
/// How long a lock holds: IoT Hub's default.
const LOCK: Duration = Duration::from_secs(60);

/// Names a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LockToken(Uuid);

impl LockToken {
    /// The token of its text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text.trim_matches('"')).ok().map(Self)
    }
}

impl std::fmt::Display for LockToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Debug)]
struct Record {
    json: Box<str>,
    deliveries: u32,
}

#[derive(Debug)]
struct Lock {
    until: Instant,
    records: Vec<Record>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Record>,
    locked: HashMap<LockToken, Lock>,
}

/// A queue of JSON records.
#[derive(Debug, Default)]
pub struct Mailbox {
    // Held for a few lines at a time.
    state: Mutex<State>,
    changed: Notify,
}

/// Records that were taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// What settles them.
    pub lock: LockToken,
    /// The records, JSON objects, oldest first.
    pub records: Vec<Box<str>>,
}

impl Mailbox {
    /// Puts a record, a JSON object, at the end.
    pub fn push(&self, json: impl Into<Box<str>>) {
        let mut state = self.lock();
        if state.waiting.len() >= CAPACITY {
            state.waiting.pop_front();
        }
        state.waiting.push_back(Record { json: json.into(), deliveries: 0 });
        drop(state);
        self.changed.notify_waiters();
    }

    /// Takes up to `most` records, the oldest first; `None` if there is none.
    #[must_use]
    pub fn take(&self, now: Instant, most: usize) -> Option<Taken> {
        let mut state = self.lock();
        state.expire(now);
        let count = state.waiting.len().min(most);
        if count == 0 {
            return None;
        }
        let mut records: Vec<Record> = state.waiting.drain(..count).collect();
        records.iter_mut().for_each(|record| record.deliveries += 1);
        let lock = LockToken(Uuid::new_v4());
        let taken = Taken { lock, records: records.iter().map(|record| record.json.clone()).collect() };
        state.locked.insert(lock, Lock { until: now + LOCK, records });
        Some(taken)
    }

    /// Removes what was taken; false if the lock is not, or no longer, there.
    pub fn complete(&self, now: Instant, lock: LockToken) -> bool {
        let mut state = self.lock();
        state.expire(now);
        state.locked.remove(&lock).is_some()
    }

    /// Puts back what was taken; false if the lock is not, or no longer, there.
    pub fn abandon(&self, now: Instant, lock: LockToken) -> bool {
        let mut state = self.lock();
        state.expire(now);
        let found = state.put_back(lock);
        drop(state);
        if found {
            self.changed.notify_waiters();
        }
        found
    }

    /// When the next lock expires.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Instant> {
        self.lock().locked.values().map(|lock| lock.until).min()
    }

    /// Completes when records come or come back after it was first polled or enabled.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under this lock")
    }
}

impl State {
    fn expire(&mut self, now: Instant) {
        let expired: Vec<LockToken> =
            self.locked.iter().filter(|(_, lock)| lock.until <= now).map(|(token, _)| *token).collect();
        for token in expired {
            self.put_back(token);
        }
    }

    fn put_back(&mut self, token: LockToken) -> bool {
        let Some(lock) = self.locked.remove(&token) else { return false };
        for record in lock.records.into_iter().rev().filter(|record| record.deliveries < DELIVERIES) {
            self.waiting.push_front(record);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    fn mailbox() -> Mailbox {
        let mailbox = Mailbox::default();
        for json in ["1", "2", "3"] {
            mailbox.push(json);
        }
        mailbox
    }

    fn taken(mailbox: &Mailbox, seconds: u64, most: usize) -> (Vec<String>, Option<LockToken>) {
        match mailbox.take(at(seconds), most) {
            Some(taken) => (taken.records.iter().map(ToString::to_string).collect(), Some(taken.lock)),
            None => (Vec::new(), None),
        }
    }

    #[test]
    fn what_is_taken_is_locked_until_it_is_completed_or_comes_again() {
        let mailbox = mailbox();
        let (records, first) = taken(&mailbox, 0, 2);
        assert_eq!(records, ["1", "2"]);
        assert_eq!(taken(&mailbox, 0, 2).0, ["3"]);
        assert!(taken(&mailbox, 0, 2).0.is_empty());
        assert!(mailbox.abandon(at(1), first.unwrap()));
        assert!(!mailbox.complete(at(1), first.unwrap()), "the lock is gone");
        let (records, again) = taken(&mailbox, 2, 9);
        assert_eq!(records, ["1", "2"], "in the old order");
        assert!(mailbox.complete(at(3), again.unwrap()));
        assert_eq!(taken(&mailbox, 60, 9).0, ["3"], "a lock expired");
    }

    #[test]
    fn a_record_that_nobody_completes_comes_ten_times() {
        let mailbox = mailbox();
        for round in 0..10 {
            assert_eq!(taken(&mailbox, round * 60, 9).0.len(), 3);
        }
        assert!(taken(&mailbox, 600, 9).0.is_empty());
    }

    #[test]
    fn a_lock_survives_its_text() {
        let lock = mailbox().take(at(0), 1).unwrap().lock;
        assert_eq!(LockToken::parse(&format!("\"{lock}\"")), Some(lock));
        assert_eq!(LockToken::parse("x"), None);
    }
}
