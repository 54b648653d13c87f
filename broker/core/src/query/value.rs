//! Values, and how they compare.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::ast::{Comparison, Literal, Step};
use crate::tree::{Kind, Tree, unescape};

/// What an expression has for a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// Not there.
    Undefined,
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number, never infinite and never NaN.
    Number(f64),
    /// A string.
    Text(Cow<'a, str>),
    /// An array: it is there, and equal to nothing.
    Array,
    /// An object: it is there, and equal to nothing.
    Object,
}

impl<'a> Value<'a> {
    /// The value of a member of a document; undefined if there is none.
    pub(crate) fn of(tree: &'a Tree, node: Option<usize>) -> Self {
        let Some(node) = node else { return Self::Undefined };
        let text = tree.value(node);
        match tree.kind(node) {
            Kind::Null => Self::Null,
            Kind::False => Self::Bool(false),
            Kind::True => Self::Bool(true),
            Kind::Number => text.parse().map_or(Self::Undefined, Self::Number),
            Kind::String => {
                let inner = &text[1..text.len() - 1];
                Self::Text(if inner.contains('\\') { unescape(inner).into() } else { inner.into() })
            }
            Kind::Array => Self::Array,
            Kind::Object => Self::Object,
        }
    }

    /// The value of JSON; undefined if there is none.
    #[must_use]
    pub fn of_json(json: Option<&'a serde_json::Value>) -> Self {
        match json {
            None => Self::Undefined,
            Some(serde_json::Value::Null) => Self::Null,
            Some(serde_json::Value::Bool(value)) => Self::Bool(*value),
            Some(serde_json::Value::Number(number)) => number.as_f64().map_or(Self::Undefined, Self::number),
            Some(serde_json::Value::String(text)) => Self::Text(text.into()),
            Some(serde_json::Value::Array(_)) => Self::Array,
            Some(serde_json::Value::Object(_)) => Self::Object,
        }
    }

    pub(crate) fn of_literal(literal: &'a Literal) -> Self {
        match literal {
            Literal::Undefined => Self::Undefined,
            Literal::Null => Self::Null,
            Literal::Bool(value) => Self::Bool(*value),
            Literal::Number(number) => Self::Number(*number),
            Literal::String(text) => Self::Text(Cow::Borrowed(text)),
            Literal::Array(_) => Self::Array,
        }
    }

    /// What arithmetic gave: undefined if that is no number that JSON has.
    pub(crate) fn number(number: f64) -> Self {
        if number.is_finite() { Self::Number(number) } else { Self::Undefined }
    }

    /// The same, holding on to nothing.
    pub(crate) fn into_owned(self) -> Value<'static> {
        match self {
            Self::Undefined => Value::Undefined,
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Bool(value),
            Self::Number(number) => Value::Number(number),
            Self::Text(text) => Value::Text(text.into_owned().into()),
            Self::Array => Value::Array,
            Self::Object => Value::Object,
        }
    }

    pub(crate) const fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }
}

/// A number as JSON has it: a whole one without a fraction.
pub(crate) fn number_text(number: f64) -> String {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() <= EXACT {
        return (number as i64).to_string();
    }
    serde_json::Value::from(number).to_string()
}

/// Follows escaped keys and steps into JSON.
pub(crate) fn walk<'v>(
    json: &'v serde_json::Value,
    keys: &[Box<str>],
    rest: &[Step],
) -> Option<&'v serde_json::Value> {
    let json = keys.iter().try_fold(json, |json, key| member(json, key))?;
    rest.iter().try_fold(json, |json, step| match step {
        Step::Key(key) => member(json, key),
        Step::Index(index) => json.as_array()?.get(usize::try_from(*index).ok()?),
    })
}

fn member<'v>(json: &'v serde_json::Value, key: &str) -> Option<&'v serde_json::Value> {
    let members = json.as_object()?;
    if key.contains('\\') { members.get(&unescape(key)) } else { members.get(key) }
}

/// What comparing two values gives; `None` is undefined.
pub(crate) fn compare(comparison: Comparison, left: &Value<'_>, right: &Value<'_>) -> Option<bool> {
    let order = match (left, right) {
        (Value::Number(a), Value::Number(b)) => a.partial_cmp(b)?,
        (Value::Text(a), Value::Text(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) => return unordered(comparison, a == b),
        (Value::Null, Value::Null) => return unordered(comparison, true),
        _ => return None,
    };
    Some(match comparison {
        Comparison::Equal => order == Ordering::Equal,
        Comparison::NotEqual => order != Ordering::Equal,
        Comparison::Less => order == Ordering::Less,
        Comparison::LessOrEqual => order != Ordering::Greater,
        Comparison::Greater => order == Ordering::Greater,
        Comparison::GreaterOrEqual => order != Ordering::Less,
    })
}

/// The same of values that are equal or not and have no order.
const fn unordered(comparison: Comparison, same: bool) -> Option<bool> {
    match comparison {
        Comparison::Equal => Some(same),
        Comparison::NotEqual => Some(!same),
        _ => None,
    }
}
