//! The clock that a hub and its callers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleetwave_protocol::{Instant, Now, WallTime};

/// Monotonic and calendar time from one origin.
///
/// Clones share the origin, so instants that a hub reports can be compared with the caller's own. The
/// calendar is read once and then follows the monotonic time: a step of the system's clock in mid-run does
/// not tear tokens and latencies apart.
#[derive(Clone, Debug)]
pub struct Clock {
    origin: std::time::Instant,
    wall_origin: u64,
    ahead: Arc<AtomicU64>,
}

impl Clock {
    /// A clock whose origin is now.
    ///
    /// A system clock before 1970 counts as 1970.
    #[must_use]
    pub fn new() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            origin: std::time::Instant::now(),
            wall_origin: u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX),
            ahead: Arc::new(AtomicU64::new(0)),
        }
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Now {
        let at = self.at(std::time::Instant::now());
        let wall = self.wall_origin.saturating_add(at.as_micros() / 1000);
        Now { at, wall: WallTime::from_unix_millis(wall) }
    }

    /// Where an instant of the system lies on this clock; its origin if it was before that.
    #[must_use]
    pub fn at(&self, instant: std::time::Instant) -> Instant {
        let ahead = Duration::from_micros(self.ahead.load(Ordering::Relaxed));
        Instant::ZERO + instant.saturating_duration_since(self.origin) + ahead
    }

    /// Moves this clock, and all its clones, forward: keep-alives and tokens that expire in an hour can be
    /// tested in a moment.
    pub fn advance(&self, by: Duration) {
        self.ahead.fetch_add(fleetwave_protocol::time::micros(by), Ordering::Relaxed);
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}
