//! The part of IoT Hub's query language that targets, filters and counts device twins.
//!
//! Done: conditions with `= != <> < > <= >=`, `AND OR NOT`, `IN [..]`, `NIN [..]`, parentheses, `IS_DEFINED IS_NULL
//! IS_BOOL IS_NUMBER IS_STRING IS_OBJECT STARTSWITH ENDSWITH CONTAINS`, names in `[[..]]`, strings in either quote;
//! and `SELECT * | deviceId FROM devices [WHERE ..]`. What the language has beyond that is refused by name.
//!
//! ```
//! use fleetwave_hub_core::query::{Condition, Query};
//!
//! assert!(Condition::parse("tags.site.floor >= 2 AND NOT properties.reported.state IN ['broken', 'lost']").is_ok());
//! assert!(Query::parse("SELECT deviceId FROM devices WHERE configurations.[[fw-2]].status = 'Applied'").is_ok());
//! let error = Condition::parse("tags.floor = ").unwrap_err();
//! assert_eq!(error.span, 13..13);
//! ```

mod ast;
mod eval;
mod lex;
mod parse;

use std::fmt;
use std::ops::Range;

use ast::Expr;
pub use ast::Projection;
pub(crate) use ast::{Path, Root};
pub(crate) use eval::{Scope, Value};

/// What is wrong with a query.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at byte {}: {problem}", span.start)]
pub struct QueryError {
    /// The bytes of the text that it is about.
    pub span: Range<usize>,
    /// What is wrong there.
    pub problem: Problem,
}

/// The kinds of things that are wrong with queries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Not the language.
    Expected {
        /// What would have been right.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// The language, but a part that this hub does not do.
    Unsupported {
        /// Which.
        feature: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expected { expected, found } => write!(f, "expected {expected}, found {found}"),
            Self::Unsupported { feature } => write!(f, "not supported: {feature}"),
        }
    }
}

/// A target condition, compiled.
#[derive(Clone, Debug)]
pub struct Condition {
    /// `None` is `*`.
    expr: Option<Expr>,
    paths: Box<[Path]>,
}

impl Condition {
    /// Parses a target condition: `*` for all devices, nothing for none, or an expression on `deviceId`, tags and
    /// reported properties.
    ///
    /// # Errors
    /// With the place, if it is anything else.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        let expr = match text.trim() {
            "*" => None,
            "" => Some(Expr::NONE),
            _ => Some(parse::condition(text)?),
        };
        let mut paths = Vec::new();
        if let Some(expr) = &expr {
            expr.paths(&mut |path| paths.push(path.clone()));
        }
        Ok(Self { expr, paths: paths.into_boxed_slice() })
    }

    pub(crate) fn matches<'a>(&self, scope: &impl Scope<'a>) -> bool {
        self.expr.as_ref().is_none_or(|expr| eval::is_true(expr, scope))
    }

    /// Whether devices with equal twins may differ in it.
    pub(crate) fn is_individual(&self) -> bool {
        self.paths.iter().any(|path| path.root == Root::DeviceId)
    }

    /// The reported properties that it mentions, as escaped keys.
    pub(crate) fn reported_paths(&self) -> impl Iterator<Item = &[Box<str>]> {
        self.paths.iter().filter(|path| path.root == Root::Reported).map(|path| &*path.members)
    }
}

/// A query over device twins, compiled.
#[derive(Clone, Debug)]
pub struct Query {
    projection: Projection,
    filter: Option<Expr>,
    individual: bool,
}

impl Query {
    /// Parses `SELECT * | deviceId FROM devices [WHERE condition]`.
    ///
    /// # Errors
    /// With the place, if it is anything else.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        let (projection, filter) = parse::query(text)?;
        let mut individual = false;
        if let Some(filter) = &filter {
            filter.paths(&mut |path| individual |= path.root == Root::DeviceId);
        }
        Ok(Self { projection, filter, individual })
    }

    /// What it selects.
    #[must_use]
    pub const fn projection(&self) -> Projection {
        self.projection
    }

    pub(crate) fn matches<'a>(&self, scope: &impl Scope<'a>) -> bool {
        self.filter.as_ref().is_none_or(|filter| eval::is_true(filter, scope))
    }

    pub(crate) const fn is_individual(&self) -> bool {
        self.individual
    }
}

#[cfg(test)]
mod tests;
