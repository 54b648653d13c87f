//! The bandwidth limit of a device: one for all that it downloads.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

/// What was not used so long ago may still be used: the precision of timers, not a burst.
const CREDIT: Duration = Duration::from_millis(100);

/// Says when the next bytes may be read. Not reading is what slows a server down: its side of the connection fills.
#[derive(Debug)]
pub(crate) struct Limiter {
    rate: u64,
    /// When all that was read so far is paid for.
    paid: Mutex<Instant>,
}

impl Limiter {
    /// `rate` in bytes a second.
    pub(crate) fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), paid: Mutex::new(Instant::now()) }
    }

    /// How much is to be read at once: a twentieth of a second's worth.
    pub(crate) fn piece(&self) -> usize {
        usize::try_from(self.rate / 20).unwrap_or(usize::MAX).clamp(64, 16 * 1024)
    }

    /// How much the system may hold for a connection that nobody reads from.
    pub(crate) fn socket_buffer(&self) -> usize {
        usize::try_from(self.rate / 4).unwrap_or(usize::MAX).clamp(4 * 1024, 1024 * 1024)
    }

    /// Takes note of `bytes` that were read at `now`, and says when the next may be.
    pub(crate) fn took(&self, bytes: usize, now: Instant) -> Instant {
        let cost = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        let mut paid = self.paid.lock().expect("nobody panics while holding it");
        *paid = (*paid).max(now.checked_sub(CREDIT).unwrap_or(now)) + cost;
        *paid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_second_gets_more_than_the_rate_and_a_little_even_after_a_pause() {
        let limiter = Limiter::new(1000);
        let start = Instant::now() + Duration::from_secs(60);
        let (mut now, mut bytes) = (start, 0);
        while now < start + Duration::from_secs(10) {
            bytes += limiter.piece();
            now = limiter.took(limiter.piece(), now).max(now);
        }
        assert!((9_900..=10_200).contains(&bytes), "{bytes}");
    }

    #[test]
    fn two_connections_share_one_limit() {
        let limiter = Limiter::new(1000);
        let now = Instant::now() + Duration::from_secs(60);
        let (first, second) = (limiter.took(500, now), limiter.took(500, now));
        assert_eq!(second - first, Duration::from_millis(500));
    }
}
