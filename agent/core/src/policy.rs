//! What a fleet's agents share: how long they wait, how often they try, when they may install.

use core::time::Duration;

use fleetwave_protocol::CounterRng;
use fleetwave_protocol::time::{WallTime, micros};

use crate::Window;

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
    /// When payloads may be fetched; at any time if `None`.
    pub download_window: Option<Window>,
    /// When what runs may be replaced; at any time if `None`.
    pub install_window: Option<Window>,
    /// How far local time is ahead of UTC, in seconds. A driver keeps it up to date.
    pub utc_offset: i32,
    /// Whether, and for how long, those who run on the device are asked before it is interrupted.
    pub locks: Option<Locks>,
    /// What downloads may cost.
    pub caps: Option<Caps>,
    /// Whether reports say what an update will cost.
    pub report_plan: bool,
    /// How often the cloud side may put one update off before it is given up.
    pub postponements: u8,
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
            download_window: None,
            install_window: None,
            utc_offset: 0,
            locks: None,
            caps: None,
            report_plan: false,
            postponements: 100,
            slot_size: 4 << 30,
        }
    }
}

/// A value of a policy that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{member} {problem}")]
pub struct PolicyError {
    /// Which member.
    pub member: &'static str,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl Policy {
    /// Looks for values with which no update could come to a good end, or the machine would turn without a pause.
    ///
    /// # Errors
    /// The first such value.
    pub fn check(&self) -> Result<(), PolicyError> {
        const NO_TIME: &str = "is zero: nothing could come in time";
        const NO_TRY: &str = "is zero: nothing would ever be tried";
        let window = |window: Option<Window>| window.map_or(Ok(()), |window| window.check());
        let named = |member| move |problem| PolicyError { member, problem };
        let zero = [
            ("request_timeout", self.request_timeout.is_zero(), NO_TIME),
            ("grant_timeout", self.grant_timeout.is_zero(), NO_TIME),
            ("probation_timeout", self.probation_timeout.is_zero(), NO_TIME),
            ("retry", self.retry.max.is_zero(), "is zero: what fails would be tried without a pause"),
            ("reconnect", self.reconnect.max.is_zero(), "is zero: a hub would be called without a pause"),
            ("boot_attempts", self.boot_attempts == 0, NO_TRY),
            ("start_attempts", self.start_attempts == 0, NO_TRY),
            (
                "locks.retry",
                self.locks.is_some_and(|locks| locks.retry.is_zero()),
                "is zero: nobody is left in peace",
            ),
            ("caps", self.caps.is_some_and(|caps| caps.per_update.min(caps.per_window) == 0), NO_TRY),
            (
                "caps.window",
                self.caps.is_some_and(|caps| caps.window.is_zero()),
                "is zero: what is counted would be forgotten at once",
            ),
            ("utc_offset", self.utc_offset.abs() > 14 * 3600, "is more than 14 hours"),
        ];
        if let Some(&(member, _, problem)) = zero.iter().find(|(_, is, _)| *is) {
            return Err(PolicyError { member, problem });
        }
        window(self.download_window).map_err(named("download_window"))?;
        window(self.install_window).map_err(named("install_window"))
    }

    /// The device's local time.
    #[must_use]
    pub fn local(&self, wall: WallTime) -> WallTime {
        WallTime::from_unix_millis(
            wall.as_unix_millis().saturating_add_signed(i64::from(self.utc_offset) * 1000),
        )
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

/// Whoever runs on the device may ask to be left alone for a while: how long the machine listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locks {
    /// The pause before it asks again.
    pub retry: Duration,
    /// How long it goes on asking, since it first did in this life.
    pub deadline: Duration,
    /// What it does then.
    pub at_deadline: AtDeadline,
}

/// What becomes of an update whose locks are held for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtDeadline {
    /// It goes on, whoever it interrupts.
    Proceed,
    /// It is given up.
    GiveUp,
}

/// What downloads may cost; [`u64::MAX`] is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Bytes of one update, in all its attempts.
    pub per_update: u64,
    /// Bytes within a window: a month, a day.
    pub per_window: u64,
    /// How long a window is. They are counted from 1970 on, in UTC. One that is longer than the calendar never ends.
    pub window: Duration,
}

impl Caps {
    /// When the window ends in which `wall` lies, and another one begins; `None` if it never does.
    pub(crate) fn renewed(&self, wall: WallTime) -> Option<WallTime> {
        let (now, window) = (wall.as_unix_millis(), u64::try_from(self.window.as_millis()).ok()?);
        let end = (now / window.max(1)).checked_add(1)?.checked_mul(window.max(1))?;
        Some(WallTime::from_unix_millis(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_window_of_caps_ends_where_the_next_one_begins_counted_from_1970_on() {
        let renewed = |window, wall| {
            let caps = Caps { per_update: 1, per_window: 1, window };
            caps.renewed(WallTime::from_unix_millis(wall)).map(WallTime::as_unix_millis)
        };
        let day = Duration::from_secs(86_400);
        assert_eq!(renewed(day, 0), Some(86_400_000));
        assert_eq!(renewed(day, 86_399_999), Some(86_400_000));
        assert_eq!(renewed(day, 86_400_000), Some(2 * 86_400_000));
        assert_eq!((renewed(Duration::MAX, 5), renewed(day, u64::MAX)), (None, None));
    }

    #[test]
    fn values_that_make_no_sense_are_refused_by_name() {
        let good = Policy::default();
        assert_eq!(good.check(), Ok(()));
        let hour = Duration::from_secs(3600);
        let window = Some(Window::daily(hour, Duration::ZERO));
        let locks = Locks { retry: Duration::ZERO, deadline: hour, at_deadline: AtDeadline::Proceed };
        let caps = Caps { per_update: 0, per_window: u64::MAX, window: hour };
        for (policy, member) in [
            (Policy { request_timeout: Duration::ZERO, ..good.clone() }, "request_timeout"),
            (Policy { probation_timeout: Duration::ZERO, ..good.clone() }, "probation_timeout"),
            (Policy { boot_attempts: 0, ..good.clone() }, "boot_attempts"),
            (Policy { download_window: window, ..good.clone() }, "download_window"),
            (Policy { install_window: window, ..good.clone() }, "install_window"),
            (Policy { locks: Some(locks), ..good.clone() }, "locks.retry"),
            (Policy { caps: Some(caps), ..good.clone() }, "caps"),
            (
                Policy { caps: Some(Caps { per_update: 1, window: Duration::ZERO, ..caps }), ..good.clone() },
                "caps.window",
            ),
            (Policy { utc_offset: 86_400, ..good.clone() }, "utc_offset"),
        ] {
            assert_eq!(policy.check().expect_err(member).member, member);
        }
    }
}
