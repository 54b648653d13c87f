//! Conditions on how far the fleet has come, for steps that wait: `"converged >= 99.9%"`.

use core::fmt;
use core::str::FromStr;

use super::compare::Comparison;
use super::quantity::{Count, Percent, Quantity, QuantityError, as_text, text_schema};

/// How far the fleet has come: a number of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Progress {
    /// Devices with a connection that the hub accepted. Its whole is the fleet; that of the others is the devices
    /// that a configuration targets.
    Connected,
    /// Targeted devices that know of their newest release.
    Notified,
    /// Targeted devices that run it.
    Converged,
    /// Targeted devices whose update ended with a failure.
    Failed,
    /// Those of them that went back to the release from before.
    RolledBack,
    /// Targeted devices that have converged or failed.
    Settled,
}

impl Progress {
    /// All of them, in the order of an update.
    pub const ALL: [Self; 6] =
        [Self::Connected, Self::Notified, Self::Converged, Self::Failed, Self::RolledBack, Self::Settled];

    /// Its name in a scenario file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Notified => "notified",
            Self::Converged => "converged",
            Self::Failed => "failed",
            Self::RolledBack => "rolled_back",
            Self::Settled => "settled",
        }
    }
}

/// What a number of devices is compared to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// So many devices.
    Devices(Count),
    /// That part of the whole.
    Share(Percent),
}

/// A condition on how far the fleet has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgressCondition {
    /// What is counted.
    pub progress: Progress,
    /// How it has to compare.
    pub comparison: Comparison,
    /// To what.
    pub bound: Bound,
}

impl ProgressCondition {
    /// Whether it holds for `count` of `whole` devices. No share of an empty whole holds: a rollout without a
    /// target has not converged.
    #[must_use]
    pub const fn holds(&self, count: u64, whole: u64) -> bool {
        match self.bound {
            Bound::Devices(Count(bound)) => self.comparison.holds_for(count as u128, bound as u128),
            Bound::Share(_) if whole == 0 => false,
            Bound::Share(share) => self
                .comparison
                .holds_for(count as u128 * 1_000_000, whole as u128 * share.millionths() as u128),
        }
    }
}

impl FromStr for ProgressCondition {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let Some((name, comparison, bound)) = Comparison::split(text).filter(|(name, ..)| !name.is_empty())
        else {
            return Err(QuantityError::new(format!(
                "\"{text}\" is not a condition; write one such as \"converged >= 99.9%\" or \"connected >= 1000\""
            )));
        };
        let Some(progress) = Progress::ALL.into_iter().find(|p| p.name() == name) else {
            let names = Progress::ALL.map(Progress::name);
            return Err(QuantityError::new(format!(
                "`{name}` is not something that the timeline counts{}; it counts {}",
                super::near::did_you_mean(name, names),
                super::near::list(names)
            )));
        };
        let bound =
            if bound.contains('%') { Bound::Share(bound.parse()?) } else { Bound::Devices(bound.parse()?) };
        Ok(Self { progress, comparison, bound })
    }
}

impl fmt::Display for ProgressCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.progress.name(), self.comparison)?;
        match self.bound {
            Bound::Devices(count) => count.fmt(f),
            Bound::Share(share) => share.fmt(f),
        }
    }
}

impl Quantity for ProgressCondition {
    const WHAT: &'static str = "a condition";
    const UNITS: &'static str = "a count or a percentage";
    const EXAMPLE: &'static str = "converged >= 99.9%";
    const PATTERN: &'static str = r"^\s*[a-z_]+\s*(<=|>=|==|<|>|=)\s*[0-9][0-9_.]*\s*(%|k|M)?\s*$";

    fn from_integer(number: i64) -> Result<Self, QuantityError> {
        number.to_string().parse()
    }
}

as_text!(ProgressCondition);
text_schema!(ProgressCondition);
