//! IoT Hub's query language.
//!
//! It selects, filters, counts and groups device twins, module twins and what jobs did; target conditions of
//! configurations are its expressions. The source is `articles/iot-hub/iot-hub-devguide-query-language.md` with
//! `query-twins.md` and `query-jobs.md` beside it, in MicrosoftDocs/azure-docs; where they are silent, `eval` and
//! `aggregate` say what is assumed. What the real one does not have (`DISTINCT`, `ORDER BY`, `LIKE`, `JOIN`, ..) is
//! refused by name.
//!
//! ```
//! use fleetwave_hub_core::query::{Condition, Query};
//!
//! assert!(Condition::parse("tags.site.floor >= 2 AND NOT properties.reported.state IN ['broken', 'lost']").is_ok());
//! assert!(Query::parse("SELECT deviceId FROM devices WHERE configurations.[[fw-2]].status = 'Applied'").is_ok());
//! assert!(Query::parse("SELECT tags.site, COUNT() AS n FROM devices GROUP BY tags.site").is_ok());
//! let text = "tags.floor = ";
//! let error = Condition::parse(text).unwrap_err();
//! assert_eq!(error.span, 13..13);
//! assert!(error.caret(text).ends_with("\n             ^"));
//! ```
//!
//! A driver runs a query over shards: a query that [is an aggregate](Query::is_aggregate) by merging the
//! [partials](crate::Hub::query_partial) of all, any other by going through the [pages](crate::Hub::query_page) of one
//! after the other. Rows of `devices.jobs` come from elsewhere, as a [`Scope`] each.

mod aggregate;
mod ast;
mod eval;
mod expr;
mod functions;
mod lex;
mod parse;
mod path;
mod print;
mod rows;
mod twins;
mod value;

use std::fmt;
use std::ops::Range;

pub use aggregate::Partial;
pub use ast::{Collection, Path};
use ast::{Expr, Root, Select, Selection, Side, What};
pub use rows::{JsonRow, Scope};
pub(crate) use twins::TwinScope;
pub use twins::{Page, PageLimits};
pub use value::Value;

/// What is wrong with a query.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at byte {}: {problem}", span.start)]
pub struct QueryError {
    /// The bytes of the text that it is about.
    pub span: Range<usize>,
    /// What is wrong there.
    pub problem: Problem,
}

impl QueryError {
    /// The line of the text that it is about, and a second one with carets below what is wrong.
    #[must_use]
    pub fn caret(&self, text: &str) -> String {
        let start = text[..self.span.start].rfind('\n').map_or(0, |at| at + 1);
        let line = text[start..].lines().next().unwrap_or_default();
        let (before, wrong) = (self.span.start - start, text[self.span.clone()].lines().next());
        let blanks = text[start..start + before].chars().count();
        let carets = wrong.unwrap_or_default().chars().count().max(1);
        format!("{line}\n{}{}", " ".repeat(blanks), "^".repeat(carets))
    }
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
    /// The language or one like it, but a part that is not done here, or not there either.
    Unsupported {
        /// Which.
        feature: String,
    },
    /// More characters than a query may have.
    TooLong {
        /// How many it may have.
        limit: usize,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expected { expected, found } => write!(f, "expected {expected}, found {found}"),
            Self::Unsupported { feature } => write!(f, "not supported: {feature}"),
            Self::TooLong { limit } => write!(f, "longer than {limit} characters"),
        }
    }
}

/// A target condition, compiled. It is printed as a text that parses to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    collection: Collection,
    /// `None` is `*`.
    expr: Option<Expr>,
    paths: Box<[Path]>,
}

impl Condition {
    /// Parses a target condition: `*` for all devices, nothing for none, or an expression on `deviceId`, tags and
    /// reported properties; for modules `FROM devices.modules WHERE` and an expression.
    ///
    /// # Errors
    /// With the place, if it is anything else.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        let (collection, expr) = match text.trim() {
            "*" => (Collection::Devices, None),
            "" => (Collection::Devices, Some(Expr::NONE)),
            _ => parse::condition(text)?,
        };
        let mut paths = Vec::new();
        if let Some(expr) = &expr {
            expr.paths(&mut |path| paths.push(path.clone()));
        }
        Ok(Self { collection, expr, paths: paths.into_boxed_slice() })
    }

    /// What it targets: devices or modules.
    #[must_use]
    pub const fn collection(&self) -> Collection {
        self.collection
    }

    pub(crate) fn matches(&self, scope: &impl Scope) -> bool {
        self.expr.as_ref().is_none_or(|expr| eval::is_true(expr, scope))
    }

    /// Whether twins with equal documents may differ in it.
    pub(crate) fn is_individual(&self) -> bool {
        self.paths.iter().any(Path::is_individual)
    }

    /// The reported properties that it mentions, as escaped keys.
    pub(crate) fn reported_paths(&self) -> impl Iterator<Item = &[Box<str>]> {
        self.paths.iter().filter(|path| path.root == Root::Section(Side::Reported)).map(|path| &*path.keys)
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.collection, &self.expr) {
            (Collection::Devices, None) => f.write_str("*"),
            (Collection::Devices, Some(expr)) => write!(f, "{expr}"),
            (collection, None) => write!(f, "FROM {collection}"),
            (collection, Some(expr)) => write!(f, "FROM {collection} WHERE {expr}"),
        }
    }
}

/// What the rows of a result are, as the header `x-ms-item-type` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemType {
    /// Whole twins.
    Twin,
    /// What a job did with a device.
    DeviceJob,
    /// Anything else.
    Raw,
}

impl ItemType {
    /// The header's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Twin => "Twin",
            Self::DeviceJob => "DeviceJob",
            Self::Raw => "Raw",
        }
    }
}

/// A query, compiled. It is printed as a text that parses to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    select: Select,
    /// Twins with equal documents may differ in the filter.
    filters_individually: bool,
    /// Or in anything that it mentions.
    individual: bool,
}

impl Query {
    /// Parses `SELECT .. FROM .. [WHERE ..] [GROUP BY ..]`.
    ///
    /// # Errors
    /// With the place, if it is anything else, or more than the language has.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        let select = parse::query(text)?;
        let mut filters_individually = false;
        if let Some(filter) = &select.filter {
            filter.paths(&mut |path| filters_individually |= path.is_individual());
        }
        let selected = match &select.selection {
            Selection::Everything => true,
            Selection::Items(items) => items.iter().any(|item| match &item.what {
                What::Path(path) | What::Aggregate(_, Some(path)) => path.is_individual(),
                What::Aggregate(_, None) => false,
            }),
        };
        let individual = filters_individually || selected || select.group.iter().any(Path::is_individual);
        Ok(Self { select, filters_individually, individual })
    }

    /// What it goes over.
    #[must_use]
    pub const fn collection(&self) -> Collection {
        self.select.collection
    }

    /// What its rows are.
    #[must_use]
    pub const fn item_type(&self) -> ItemType {
        match (&self.select.selection, self.select.collection) {
            (Selection::Items(_), _) => ItemType::Raw,
            (Selection::Everything, Collection::Jobs) => ItemType::DeviceJob,
            (Selection::Everything, _) => ItemType::Twin,
        }
    }

    /// How many rows it wants at most, over all pages; [`Query::write_rows`] keeps to it, pages don't.
    #[must_use]
    pub const fn top(&self) -> Option<u32> {
        self.select.top
    }

    /// Whether rows depend on more than one twin each: it has aggregates or `GROUP BY`.
    #[must_use]
    pub fn is_aggregate(&self) -> bool {
        let aggregates = match &self.select.selection {
            Selection::Everything => false,
            Selection::Items(items) => items.iter().any(|item| matches!(item.what, What::Aggregate(..))),
        };
        aggregates || !self.select.group.is_empty()
    }

    /// Whether its condition is true of a row.
    #[must_use]
    pub fn matches(&self, row: &impl Scope) -> bool {
        self.select.filter.as_ref().is_none_or(|filter| eval::is_true(filter, row))
    }

    /// Appends what it shows of a row, as JSON, with a comma before it unless `out` is empty or ends in `[`. It has
    /// to be no aggregate.
    pub fn write_row(&self, row: &impl Scope, out: &mut Vec<u8>) {
        rows::write_row(&self.select.selection, row, out);
    }

    /// Adds a row to an aggregate, as often as there are equal ones, if the condition is true of it.
    pub fn add(&self, row: &impl Scope, times: u64, partial: &mut Partial) {
        if self.matches(row) {
            partial.add(&self.select, row, times);
        }
    }

    /// Adds what another shard found.
    pub fn merge(&self, partial: &mut Partial, other: Partial) {
        partial.merge(&self.select, other);
    }

    /// Appends the rows of an aggregate, with commas as [`Query::write_row`] does; answers how many.
    pub fn write_rows(&self, partial: Partial, out: &mut Vec<u8>) -> usize {
        partial.write_rows(&self.select, out)
    }

    pub(crate) const fn filters_individually(&self) -> bool {
        self.filters_individually
    }

    pub(crate) const fn is_individual(&self) -> bool {
        self.individual
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.select)
    }
}

#[cfg(test)]
mod tests;
