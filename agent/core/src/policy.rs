//! What a fleet's agents share: how long they wait, how often they try, when they may install.

use core::time::Duration;

use fleetwave_protocol::CounterRng;
use fleetwave_protocol::time::{WallTime, micros};

/// Limits and delays, shared by all devices of a group and passed to each call of the machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// A new update starts after a random delay of at most this, so that a fleet does not start at once.
    pub splay: Duration,
    /// How long an answer of the hub may take: connection, twin, report.
    pub request_timeout: Duration,
    /// How long a download grant may take.
    pub grant_timeout: Duration,
    /// Pauses between tries of grant, download, report.
    pub retry: Backoff,
    /// Pauses between tries to connect, drawn from zero up: this is what spreads a fleet after an outage.
    pub reconnect: Backoff,
    /// Tries of grant and download without any progress before the update is given up.
    pub attempts: u8,
    /// Whole downloads of a payload that turns out not to match, before it is given up.
    pub verify_attempts: u8,
    /// Boots of the new slot before it is given up.
    pub boot_attempts: u8,
    /// Cold starts within one update before it is given up.
    pub start_attempts: u8,
    /// How long the new release has to become healthy and to reach the hub.
    pub probation_timeout: Duration,
    /// Whether the new release must reach the hub before it is committed.
    pub probation_needs_hub: bool,
    /// When updates may start and reboot; at any time if `None`.
    pub window: Option<Window>,
    /// The largest payload that a slot takes.
    pub slot_size: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            splay: Duration::from_secs(60),
            request_timeout: Duration::from_secs(60),
            grant_timeout: Duration::from_secs(120),
            retry: Backoff { first: Duration::from_secs(5), max: Duration::from_secs(600) },
            reconnect: Backoff { first: Duration::from_secs(5), max: Duration::from_secs(300) },
            attempts: 10,
            verify_attempts: 2,
            boot_attempts: 3,
            start_attempts: 20,
            probation_timeout: Duration::from_secs(600),
            probation_needs_hub: true,
            window: None,
            slot_size: 4 << 30,
        }
    }
}

/// Exponential backoff with jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The ceiling of the first pause.
    pub first: Duration,
    /// The ceiling of every pause.
    pub max: Duration,
}

impl Backoff {
    fn ceiling(&self, attempt: u8) -> u64 {
        let first = micros(self.first).max(1);
        first.saturating_mul(1 << u32::from(attempt).min(40)).min(micros(self.max).max(first))
    }

    /// The pause after `attempt` earlier tries, from half the ceiling to the whole: never at once.
    pub(crate) fn pause(&self, attempt: u8, rng: &mut CounterRng) -> Duration {
        let ceiling = self.ceiling(attempt);
        Duration::from_micros(rng.between(ceiling / 2, ceiling))
    }

    /// The pause after `attempt` earlier tries, from zero to the ceiling: the widest spread.
    pub(crate) fn spread(&self, attempt: u8, rng: &mut CounterRng) -> Duration {
        Duration::from_micros(rng.between(0, self.ceiling(attempt)))
    }
}

/// A daily maintenance window, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// When it opens, since midnight.
    pub opens: Duration,
    /// How long it stays open; a day or more is always.
    pub lasts: Duration,
}

impl Window {
    const DAY: u64 = 86_400_000;

    /// How long until it is open: zero if it is open now.
    #[must_use]
    pub fn wait(&self, wall: WallTime) -> Duration {
        let opens = self.opens.as_millis() as u64 % Self::DAY;
        let since_open = (wall.millis_of_day() + Self::DAY - opens) % Self::DAY;
        if u128::from(since_open) < self.lasts.as_millis() {
            Duration::ZERO
        } else {
            Duration::from_millis(Self::DAY - since_open)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    #[test]
    fn a_window_over_midnight_is_open_on_both_sides_of_it() {
        let window = Window { opens: Duration::from_secs(22 * 3600), lasts: Duration::from_secs(4 * 3600) };
        let wait = |hour: u64| window.wait(WallTime::from_unix_millis(20_000 * 24 * HOUR + hour * HOUR));
        assert_eq!(wait(21), Duration::from_secs(3600));
        assert_eq!(wait(22), Duration::ZERO);
        assert_eq!(wait(1), Duration::ZERO);
        assert_eq!(wait(2), Duration::from_secs(20 * 3600));
    }

    #[test]
    fn pauses_grow_to_their_ceiling_and_spread_below_it() {
        let backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(60) };
        let mut rng = CounterRng::new(3);
        for attempt in 0..=u8::MAX {
            let ceiling = Duration::from_secs(1u64.checked_shl(attempt.into()).unwrap_or(60).clamp(1, 60));
            let pause = backoff.pause(attempt, &mut rng);
            assert!(pause <= ceiling && pause >= ceiling / 2, "{attempt}: {pause:?}");
            assert!(backoff.spread(attempt, &mut rng) <= ceiling);
        }
    }
}
