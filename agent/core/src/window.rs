//! Windows: the hours of the week in which a step of an update may begin.

use core::time::Duration;

use fleetwave_protocol::time::WallTime;

const DAY: u64 = 86_400_000;

/// Days of the week.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Days(u8);

impl Days {
    /// Every day.
    pub const ALL: Self = Self(0x7f);
    /// None; a window that never opens.
    pub const NONE: Self = Self(0);
    /// The days' names, in order.
    pub const NAMES: [&'static str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

    /// These and the day of that name (`mon` to `sun`); `None` if no day has it.
    #[must_use]
    pub fn and(self, name: &str) -> Option<Self> {
        let day = Self::NAMES.iter().position(|known| *known == name)?;
        Some(Self(self.0 | 1 << day))
    }

    /// Whether a day is among them; Monday is 0.
    #[must_use]
    pub const fn has(self, day: u64) -> bool {
        self.0 >> (day % 7) & 1 == 1
    }
}

impl core::ops::BitOr for Days {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl core::fmt::Debug for Days {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let names = (0..7).filter(|day| self.has(*day)).map(|day| Self::NAMES[day as usize]);
        f.debug_set().entries(names).finish()
    }
}

/// A window that opens at the same time of each of its days, in the device's local time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The days on which it opens.
    pub days: Days,
    /// When it opens, since midnight.
    pub opens: Duration,
    /// How long it stays open: at most a week. A day or more, every day, is always.
    pub lasts: Duration,
    /// How long what was begun in it may go on after its end; [`Duration::MAX`] is to its own end.
    pub grace: Duration,
}

/// Where an instant lies in relation to a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In it; it closes after so long.
    Open(Duration),
    /// After its end; what was begun in it may go on for so long.
    Grace(Duration),
    /// Outside.
    Closed,
}

impl Window {
    /// A window that opens every day, without grace.
    #[must_use]
    pub const fn daily(opens: Duration, lasts: Duration) -> Self {
        Self { days: Days::ALL, opens, lasts, grace: Duration::ZERO }
    }

    /// Whether it ever opens, and closes within a week.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if self.days == Days::NONE {
            Err("has no day: it never opens")
        } else if self.lasts.is_zero() {
            Err("lasts no time at all: it never opens")
        } else if self.lasts > Duration::from_secs(7 * 86_400) {
            Err("lasts for more than a week")
        } else if self.opens >= Duration::from_secs(86_400) {
            Err("opens after the end of the day")
        } else {
            Ok(())
        }
    }

    /// How long since it last opened, at the local time `local`; `None` if it did not within the days that matter.
    fn since_opening(&self, local: WallTime) -> Option<Duration> {
        let now = local.as_unix_millis();
        let opens = self.opens.as_millis() as u64 % DAY;
        // A window over midnight was opened the day before, one of a week seven days ago, and grace comes on top.
        (0..=14).filter_map(|ago| (now / DAY).checked_sub(ago)).find_map(|day| {
            let opened = day * DAY + opens;
            (self.days.has(weekday(day)) && opened <= now).then(|| Duration::from_millis(now - opened))
        })
    }

    /// Where the local time `local` lies.
    #[must_use]
    pub fn place(&self, local: WallTime) -> Place {
        let Some(since) = self.since_opening(local) else { return Place::Closed };
        match self.lasts.checked_sub(since) {
            Some(left) if !left.is_zero() => Place::Open(left),
            _ => match self.lasts.saturating_add(self.grace).checked_sub(since) {
                Some(left) if !left.is_zero() => Place::Grace(left),
                _ => Place::Closed,
            },
        }
    }

    /// How long until it is open, from the local time `local`: zero if it is open now, for ever if it never opens.
    #[must_use]
    pub fn wait(&self, local: WallTime) -> Duration {
        if let Place::Open(_) = self.place(local) {
            return Duration::ZERO;
        }
        let now = local.as_unix_millis();
        let opens = self.opens.as_millis() as u64 % DAY;
        let next = (0..=7).map(|ahead| now / DAY + ahead).find_map(|day| {
            let opens = day * DAY + opens;
            (self.days.has(weekday(day)) && opens > now).then(|| Duration::from_millis(opens - now))
        });
        next.unwrap_or(Duration::MAX)
    }
}

/// The day of the week of a day since the Unix epoch, which was a Thursday; Monday is 0.
const fn weekday(day: u64) -> u64 {
    (day + 3) % 7
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    /// Midnight of a Monday.
    const MONDAY: u64 = 20_458 * DAY;

    fn hours(hours: u64) -> Duration {
        Duration::from_secs(hours * 3600)
    }

    fn at(hour: u64) -> WallTime {
        WallTime::from_unix_millis(MONDAY + hour * HOUR)
    }

    fn on(names: &[&str]) -> Days {
        names.iter().fold(Days::NONE, |days, name| days.and(name).expect(name))
    }

    #[test]
    fn the_first_of_january_2026_is_a_thursday() {
        assert!(on(&["thu"]).has(weekday(1_767_225_600_000 / DAY)));
        assert!(on(&["mon"]).has(weekday(MONDAY / DAY)));
        assert_eq!(Days::NONE.and("Monday"), None);
        assert_eq!(format!("{:?}", on(&["sun", "tue"])), r#"{"tue", "sun"}"#);
    }

    #[test]
    fn a_window_over_midnight_is_open_on_both_sides_of_it() {
        let window = Window::daily(hours(22), hours(4));
        assert_eq!(window.wait(at(21)), hours(1));
        assert_eq!(window.wait(at(22)), Duration::ZERO);
        assert_eq!(window.wait(at(25)), Duration::ZERO);
        assert_eq!(window.wait(at(26)), hours(20));
    }

    #[test]
    fn a_window_of_some_days_waits_for_the_next_of_them_and_runs_over_into_the_day_after() {
        let window = Window { days: on(&["tue", "sat"]), ..Window::daily(hours(22), hours(4)) };
        assert_eq!(window.wait(at(0)), hours(24 + 22));
        assert_eq!(window.place(at(24 + 23)), Place::Open(hours(3)));
        assert_eq!(window.place(at(48 + 1)), Place::Open(hours(1)));
        assert_eq!(window.wait(at(48 + 2)), hours(3 * 24 + 20));
        // From Sunday to Tuesday of the week after.
        assert_eq!(window.wait(at(6 * 24 + 12)), hours(48 + 10));
    }

    #[test]
    fn what_was_begun_may_go_on_for_as_long_as_the_grace() {
        let window = Window { grace: hours(1), ..Window::daily(hours(2), hours(3)) };
        assert_eq!(window.place(at(4)), Place::Open(hours(1)));
        assert_eq!(window.place(at(5)), Place::Grace(hours(1)));
        assert_eq!(window.place(at(6)), Place::Closed);
        let endless = Window { grace: Duration::MAX, ..window };
        assert!(matches!(endless.place(at(26 - 1)), Place::Grace(_)));
    }

    #[test]
    fn a_window_that_is_always_open_is_and_one_without_days_never() {
        let always = Window::daily(hours(9), hours(24));
        let never = Window { days: Days::NONE, ..always };
        for hour in 0..200 {
            assert_eq!(always.wait(at(hour)), Duration::ZERO);
            assert_eq!((never.wait(at(hour)), never.place(at(hour))), (Duration::MAX, Place::Closed));
        }
        let weekly = Window { days: on(&["sun"]), ..Window::daily(hours(9), hours(7 * 24)) };
        for hour in 0..200 {
            assert_eq!(weekly.wait(at(hour)), Duration::ZERO, "{hour}");
        }
    }
}
