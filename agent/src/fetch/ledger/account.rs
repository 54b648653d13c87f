//! What one try of a download costs: reserved piece by piece, settled at its end.

use std::sync::{Arc, Mutex, MutexGuard};

use fleetwave_agent_core::{FetchError, Release};

use super::{Ledger, name};
use crate::files::storage_error;

/// How much is reserved at first.
pub(super) const FIRST: u64 = 1 << 20;
/// The most that is reserved at once.
const MOST: u64 = 64 << 20;

/// Reserved beside what is expected, so that a guess that is a little wrong costs no write for each packet.
pub(super) const SLACK: u64 = 4096;

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
        Self::of(ledger, name(release))
    }

    pub(super) fn of(ledger: Arc<Ledger>, update: String) -> Self {
        let reserved = Arc::new(Mutex::new(Reserved { began: false, bytes: 0, step: FIRST }));
        Self { ledger, update, reserved }
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
