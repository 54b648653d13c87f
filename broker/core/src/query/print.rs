//! Queries as text, which parses to what it was printed from.

use std::fmt;

use super::ast::{Collection, Expr, Item, Literal, Path, Root, Select, Selection, Step, What};
use crate::tree::unescape;

impl fmt::Display for Collection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Devices => "devices",
            Self::Modules => "devices.modules",
            Self::Jobs => "devices.jobs",
        })
    }
}

impl fmt::Display for Select {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SELECT ")?;
        if let Some(top) = self.top {
            write!(f, "TOP {top} ")?;
        }
        match &self.selection {
            Selection::Everything => f.write_str("*")?,
            Selection::Items(items) => list(f, items)?,
        }
        write!(f, " FROM {}", self.collection)?;
        if let Some(filter) = &self.filter {
            write!(f, " WHERE {filter}")?;
        }
        if !self.group.is_empty() {
            f.write_str(" GROUP BY ")?;
            list(f, &self.group)?;
        }
        Ok(())
    }
}

fn list(f: &mut fmt::Formatter<'_>, items: &[impl fmt::Display]) -> fmt::Result {
    for (place, item) in items.iter().enumerate() {
        let comma = if place == 0 { "" } else { ", " };
        write!(f, "{comma}{item}")?;
    }
    Ok(())
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Path(path) => write!(f, "{path}")?,
            What::Aggregate(aggregate, None) => write!(f, "{}()", aggregate.name())?,
            What::Aggregate(aggregate, Some(path)) => write!(f, "{}({path})", aggregate.name())?,
        }
        write!(f, " AS [[{}]]", unescape(&self.name))
    }
}

/// What stands inside an operator: in parentheses, unless it holds together by itself.
struct Inner<'a>(&'a Expr);

impl fmt::Display for Inner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Expr::Path(_) | Expr::Literal(_) | Expr::Call(..) => write!(f, "{}", self.0),
            other => write!(f, "({other})"),
        }
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chain = |f: &mut fmt::Formatter<'_>, parts: &[Self], word: &str| {
            for (place, part) in parts.iter().enumerate() {
                if place > 0 {
                    write!(f, " {word} ")?;
                }
                write!(f, "{}", Inner(part))?;
            }
            Ok(())
        };
        match self {
            Self::Path(path) => write!(f, "{path}"),
            Self::Literal(literal) => write!(f, "{literal}"),
            Self::And(parts) => chain(f, parts, "AND"),
            Self::Or(parts) => chain(f, parts, "OR"),
            Self::Not(inner) => write!(f, "NOT {}", Inner(inner)),
            Self::Compare(comparison, sides) => {
                write!(f, "{} {} {}", Inner(&sides.0), comparison.symbol(), Inner(&sides.1))
            }
            Self::In(inner, items) => {
                write!(f, "{} IN {}", Inner(inner), Literal::Array(items.clone()))
            }
            Self::Arithmetic(first, rest) => {
                write!(f, "{}", Inner(first))?;
                for (operator, part) in rest {
                    write!(f, " {} {}", operator.symbol(), Inner(part))?;
                }
                Ok(())
            }
            Self::Negate(inner) => write!(f, "-({inner})"),
            Self::Call(function, arguments) => {
                write!(f, "{}(", function.name())?;
                list(f, arguments)?;
                f.write_str(")")
            }
        }
    }
}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undefined => f.write_str("undefined"),
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(number) => write!(f, "{number:e}"),
            Self::String(text) => {
                f.write_str("'")?;
                for c in text.chars() {
                    match c {
                        '\'' | '\\' => write!(f, "\\{c}")?,
                        c if c.is_control() => write!(f, "\\u{:04x}", u32::from(c))?,
                        c => write!(f, "{c}")?,
                    }
                }
                f.write_str("'")
            }
            Self::Array(items) => {
                // The space keeps an array in an array from looking like a name in brackets.
                f.write_str("[ ")?;
                list(f, items)?;
                f.write_str(" ]")
            }
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.root {
            Root::Job => f.write_str("devices.jobs")?,
            root => f.write_str(&root.names().join("."))?,
        }
        for key in &self.keys {
            write!(f, ".[[{}]]", unescape(key))?;
        }
        for step in &self.rest {
            match step {
                Step::Key(key) => write!(f, ".[[{}]]", unescape(key))?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}
