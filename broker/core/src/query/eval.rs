//! Conditions on twins.
//!
//! IoT Hub's pages say that a condition must be exactly `true` and that anything else, `undefined` included, counts
//! as false; they leave open what operators make of `undefined`. Assumed here is what Azure Cosmos DB's SQL, which the
//! language comes from, does: comparing with something undefined, or values of different types, is undefined; so is
//! NOT of undefined; AND and OR are three-valued (`undefined AND false` is false, `undefined OR true` is true).

use std::borrow::Cow;
use std::cmp::Ordering;

use super::ast::{Comparison, Expr, Literal, Operand, Path, Test, TextTest};
use crate::tree::{Kind, Tree, unescape};

/// A value that an operand has.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    Undefined,
    Null,
    Bool(bool),
    Number(f64),
    Text(Cow<'a, str>),
    /// An object or array: it is there, and equal to nothing.
    Composite {
        object: bool,
    },
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
            Kind::Array => Self::Composite { object: false },
            Kind::Object => Self::Composite { object: true },
        }
    }
}

/// Where paths lead.
pub(crate) trait Scope<'a> {
    fn value(&self, path: &Path) -> Value<'a>;
}

pub(super) fn is_true<'a>(expr: &Expr, scope: &impl Scope<'a>) -> bool {
    eval(expr, scope) == Some(true)
}

/// `None` is undefined.
fn eval<'a>(expr: &Expr, scope: &impl Scope<'a>) -> Option<bool> {
    match expr {
        Expr::And(parts) => decide(parts, scope, false),
        Expr::Or(parts) => decide(parts, scope, true),
        Expr::Not(inner) => eval(inner, scope).map(|value| !value),
        Expr::Compare(comparison, left, right) => {
            let order = compare(&value(left, scope), &value(right, scope))?;
            holds(*comparison, order)
        }
        Expr::In(left, list) => {
            let left = value(left, scope);
            if left == Value::Undefined {
                return None;
            }
            let equal = |order| holds(Comparison::Equal, order) == Some(true);
            Some(list.iter().any(|item| compare(&left, &literal(item)).is_some_and(equal)))
        }
        Expr::Is(test, operand) => Some(is(*test, &value(operand, scope))),
        Expr::Text(test, left, right) => match (value(left, scope), value(right, scope)) {
            (Value::Text(text), Value::Text(part)) => Some(match test {
                TextTest::StartsWith => text.starts_with(&*part),
                TextTest::EndsWith => text.ends_with(&*part),
                TextTest::Contains => text.contains(&*part),
            }),
            _ => None,
        },
        Expr::Truth(operand) => match value(operand, scope) {
            Value::Bool(value) => Some(value),
            _ => None,
        },
    }
}

/// Three-valued AND (`decisive` false) and OR (`decisive` true).
fn decide<'a>(parts: &[Expr], scope: &impl Scope<'a>, decisive: bool) -> Option<bool> {
    let mut result = Some(!decisive);
    for part in parts {
        match eval(part, scope) {
            Some(value) if value == decisive => return Some(decisive),
            Some(_) => {}
            None => result = None,
        }
    }
    result
}

#[derive(Clone, Copy)]
enum Order {
    Is(Ordering),
    /// Equal and not ordered: null, booleans.
    Same(bool),
}

fn compare(left: &Value<'_>, right: &Value<'_>) -> Option<Order> {
    match (left, right) {
        (Value::Number(a), Value::Number(b)) => a.partial_cmp(b).map(Order::Is),
        (Value::Text(a), Value::Text(b)) => Some(Order::Is(a.cmp(b))),
        (Value::Bool(a), Value::Bool(b)) => Some(Order::Same(a == b)),
        (Value::Null, Value::Null) => Some(Order::Same(true)),
        _ => None,
    }
}

fn holds(comparison: Comparison, order: Order) -> Option<bool> {
    let order = match (order, comparison) {
        (Order::Is(order), _) => order,
        (Order::Same(same), Comparison::Equal) => return Some(same),
        (Order::Same(same), Comparison::NotEqual) => return Some(!same),
        (Order::Same(_), _) => return None,
    };
    Some(match comparison {
        Comparison::Equal => order.is_eq(),
        Comparison::NotEqual => order.is_ne(),
        Comparison::Less => order.is_lt(),
        Comparison::LessOrEqual => order.is_le(),
        Comparison::Greater => order.is_gt(),
        Comparison::GreaterOrEqual => order.is_ge(),
    })
}

fn is(test: Test, value: &Value<'_>) -> bool {
    match test {
        Test::Defined => *value != Value::Undefined,
        Test::Null => *value == Value::Null,
        Test::Bool => matches!(value, Value::Bool(_)),
        Test::Number => matches!(value, Value::Number(_)),
        Test::String => matches!(value, Value::Text(_)),
        Test::Object => matches!(value, Value::Composite { object: true }),
    }
}

fn value<'a, 'e: 'v, 'v>(operand: &'e Operand, scope: &impl Scope<'a>) -> Value<'v>
where
    'a: 'v,
{
    match operand {
        Operand::Path(path) => scope.value(path),
        Operand::Literal(constant) => literal(constant),
    }
}

fn literal(literal: &Literal) -> Value<'_> {
    match literal {
        Literal::Undefined => Value::Undefined,
        Literal::Null => Value::Null,
        Literal::Bool(value) => Value::Bool(*value),
        Literal::Number(number) => Value::Number(*number),
        Literal::String(text) => Value::Text(Cow::Borrowed(text)),
    }
}
