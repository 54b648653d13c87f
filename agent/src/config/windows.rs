//! When updates may be fetched and installed, in local time.

use std::time::Duration;

use fleetwave_agent_core as core;
use serde::Deserialize;

const MINUTE: u64 = 60;
const DAY: u64 = 24 * 60;

/// `[windows]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Windows {
    /// When payloads may be fetched; at any time without it.
    pub download: Option<Window>,
    /// When what runs may be replaced; at any time without it.
    pub install: Option<Window>,
}

/// Some hours of some days.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// The days on which it opens; every day without it.
    #[serde(default)]
    pub days: Days,
    /// When it opens.
    pub from: Clock,
    /// When it closes: on the next day if that is not later. The same as `from` is a whole day.
    pub to: Clock,
    /// How long what was begun in it may go on after its end.
    #[serde(default)]
    pub grace_minutes: u64,
}

impl Windows {
    /// Whether it matters what time it is here.
    pub(crate) fn any(&self) -> bool {
        self.download.is_some() || self.install.is_some()
    }
}

impl Window {
    /// As the machine has it.
    pub(crate) fn hours(&self) -> core::Window {
        let lasts = match (self.to.0 + DAY - self.from.0) % DAY {
            0 => DAY,
            minutes => minutes,
        };
        core::Window {
            days: self.days.0,
            opens: Duration::from_secs(self.from.0 * MINUTE),
            lasts: Duration::from_secs(lasts * MINUTE),
            grace: Duration::from_secs(self.grace_minutes.saturating_mul(MINUTE)),
        }
    }
}

/// A time of the day: `"22:30"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Clock(u64);

impl TryFrom<String> for Clock {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let read = |digits: &str, below: u64| {
            let sound = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse::<u64>().ok().filter(|number| sound && *number < below)
        };
        text.split_once(':')
            .and_then(|(hours, minutes)| Some(Self(read(hours, 24)? * 60 + read(minutes, 60)?)))
            .ok_or_else(|| format!("{text:?} is not a time of the day: \"00:00\" to \"23:59\""))
    }
}

/// Days of the week: `["sat", "sun"]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct Days(core::Days);

impl Default for Days {
    fn default() -> Self {
        Self(core::Days::ALL)
    }
}

impl TryFrom<Vec<String>> for Days {
    type Error = String;

    fn try_from(names: Vec<String>) -> Result<Self, String> {
        if names.is_empty() {
            return Err("a window without days never opens: leave `days` out for every day".to_owned());
        }
        let add = |days: core::Days, name: &String| {
            let known = core::Days::NAMES.join(", ");
            days.and(name).ok_or_else(|| format!("{name:?} is not a day: {known}"))
        };
        names.iter().try_fold(core::Days::NONE, add).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(text: &str) -> Result<core::Window, String> {
        toml::from_str::<Window>(text)
            .map(|window| window.hours())
            .map_err(|error| error.message().to_owned())
    }

    #[test]
    fn a_window_may_cross_midnight_and_be_on_some_days_alone() {
        let night =
            window("from = '22:30'\nto = '04:00'\ndays = ['sat']\ngrace_minutes = 30").expect("right");
        assert_eq!(night.opens, Duration::from_secs(22 * 3600 + 1800));
        assert_eq!(night.lasts, Duration::from_secs(5 * 3600 + 1800));
        assert_eq!(night.grace, Duration::from_secs(1800));
        assert!(night.days.has(5) && !night.days.has(6));
        let always = window("from = '03:00'\nto = '03:00'").expect("right");
        assert_eq!((always.lasts, always.days), (Duration::from_secs(86_400), core::Days::ALL));
    }

    #[test]
    fn mistakes_say_what_would_have_been_right() {
        for (text, says) in [
            ("from = '24:00'\nto = '04:00'", "\"00:00\" to \"23:59\""),
            ("from = '4:00'\nto = '05:00'", "not a time of the day"),
            ("from = '04:00'\nto = '05:00'\ndays = ['Sunday']", "mon, tue"),
            ("from = '04:00'\nto = '05:00'\ndays = []", "never opens"),
        ] {
            assert!(window(text).is_err_and(|error| error.contains(says)), "{text}");
        }
    }
}
