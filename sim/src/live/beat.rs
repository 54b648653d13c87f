//! A thread's heartbeat: how late the harness itself runs.

use std::time::Duration;

use fleetwave_protocol::Instant;

/// How often a thread of the harness means to run.
const PERIOD: Duration = Duration::from_millis(10);

/// When the next beat is due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beat(Instant);

impl Beat {
    pub(super) fn new(now: Instant) -> Self {
        Self(now + PERIOD)
    }

    /// When the next beat is due.
    pub(super) const fn next(&self) -> Instant {
        self.0
    }

    /// Records how late each beat is that was due by `now`. A thread that stood still has missed many, and each of
    /// them counts: one late beat among hundreds would hide in a percentile.
    pub(super) fn strike(&mut self, now: Instant, mut record: impl FnMut(Duration)) {
        while self.0 <= now {
            record(now.since(self.0));
            self.0 = self.0 + PERIOD;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_stood_still_has_missed_every_beat_in_between() {
        let at = |millis: u64| Instant::from_micros(millis * 1000);
        let mut beat = Beat::new(at(0));
        let mut lags = Vec::new();
        beat.strike(at(9), |late| lags.push(late));
        assert!(lags.is_empty());
        beat.strike(at(310), |late| lags.push(late));
        assert_eq!(lags.len(), 31);
        assert_eq!(lags[0], Duration::from_millis(300));
        assert_eq!(lags[30], Duration::ZERO);
        assert_eq!(beat.next(), at(320));
    }
}
