//! The comparisons that conditions are made of.

use core::cmp::Ordering;
use core::fmt;

/// How a figure has to compare to a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Comparison {
    /// `<`
    Below,
    /// `<=`
    AtMost,
    /// `=`
    Equal,
    /// `>=`
    AtLeast,
    /// `>`
    Above,
}

impl Comparison {
    /// Splits a condition into what stands before its comparison, the comparison, and what follows.
    pub(super) fn split(text: &str) -> Option<(&str, Self, &str)> {
        let start = text.find(['<', '>', '='])?;
        let (left, rest) = text.split_at(start);
        let (comparison, right) = [
            ("<=", Self::AtMost),
            (">=", Self::AtLeast),
            ("==", Self::Equal),
            ("<", Self::Below),
            (">", Self::Above),
            ("=", Self::Equal),
        ]
        .into_iter()
        .find_map(|(sign, comparison)| Some((comparison, rest.strip_prefix(sign)?)))?;
        Some((left.trim(), comparison, right.trim()))
    }

    /// Whether a figure that stands so to its bound is as it has to be.
    #[must_use]
    pub const fn accepts(self, ordering: Ordering) -> bool {
        match self {
            Self::Below => ordering.is_lt(),
            Self::AtMost => ordering.is_le(),
            Self::Equal => ordering.is_eq(),
            Self::AtLeast => ordering.is_ge(),
            Self::Above => ordering.is_gt(),
        }
    }

    pub(super) const fn holds_for(self, figure: u128, bound: u128) -> bool {
        let ordering = if figure < bound {
            Ordering::Less
        } else if figure == bound {
            Ordering::Equal
        } else {
            Ordering::Greater
        };
        self.accepts(ordering)
    }

    /// Whether it keeps a figure from growing without end.
    pub(super) const fn is_upper(self) -> bool {
        matches!(self, Self::Below | Self::AtMost | Self::Equal)
    }

    /// Whether it keeps a figure from falling to nothing.
    pub(super) const fn is_lower(self) -> bool {
        matches!(self, Self::AtLeast | Self::Above | Self::Equal)
    }

    /// Whether the bound itself is accepted.
    pub(super) const fn is_inclusive(self) -> bool {
        !matches!(self, Self::Below | Self::Above)
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Below => "<",
            Self::AtMost => "<=",
            Self::Equal => "=",
            Self::AtLeast => ">=",
            Self::Above => ">",
        })
    }
}
