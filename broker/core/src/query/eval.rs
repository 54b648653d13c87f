//! Expressions to values.
//!
//! IoT Hub's pages say that a condition must be exactly `true` and that anything else, `undefined` included, counts
//! as false; they leave open what operators make of `undefined`. Assumed here is what Azure Cosmos DB's SQL, which the
//! language comes from, does: comparing with something undefined, or values of different types, is undefined; so is
//! NOT of undefined, and arithmetic with anything but numbers; AND and OR are three-valued (`undefined AND false` is
//! false, `undefined OR true` is true).

use super::ast::{Comparison, Expr, Operator};
use super::functions;
use super::rows::Scope;
use super::value::{Value, compare};

pub(super) fn is_true(expr: &Expr, scope: &impl Scope) -> bool {
    truth(expr, scope) == Some(true)
}

/// `None` is undefined, or any other value that is neither true nor false.
fn truth(expr: &Expr, scope: &impl Scope) -> Option<bool> {
    match expr {
        Expr::And(parts) => decide(parts, scope, false),
        Expr::Or(parts) => decide(parts, scope, true),
        Expr::Not(inner) => truth(inner, scope).map(|value| !value),
        Expr::Compare(comparison, sides) => {
            compare(*comparison, &value(&sides.0, scope), &value(&sides.1, scope))
        }
        Expr::In(left, list) => {
            let left = value(left, scope);
            if left == Value::Undefined {
                return None;
            }
            let equal = |item| compare(Comparison::Equal, &left, &Value::of_literal(item)) == Some(true);
            Some(list.iter().any(equal))
        }
        _ => value(expr, scope).as_bool(),
    }
}

/// Three-valued AND (`decisive` false) and OR (`decisive` true).
fn decide(parts: &[Expr], scope: &impl Scope, decisive: bool) -> Option<bool> {
    let mut result = Some(!decisive);
    for part in parts {
        match truth(part, scope) {
            Some(value) if value == decisive => return Some(decisive),
            Some(_) => {}
            None => result = None,
        }
    }
    result
}

pub(super) fn value<'v>(expr: &'v Expr, scope: &'v impl Scope) -> Value<'v> {
    match expr {
        Expr::Path(path) => scope.value(path),
        Expr::Literal(literal) => Value::of_literal(literal),
        Expr::Arithmetic(first, rest) => {
            let Value::Number(mut result) = value(first, scope) else { return Value::Undefined };
            for (operator, part) in rest {
                let Value::Number(right) = value(part, scope) else { return Value::Undefined };
                match Value::number(calculate(*operator, result, right)) {
                    Value::Number(number) => result = number,
                    _ => return Value::Undefined,
                }
            }
            Value::Number(result)
        }
        Expr::Negate(inner) => match value(inner, scope) {
            Value::Number(number) => Value::Number(-number),
            _ => Value::Undefined,
        },
        Expr::Call(function, arguments) => {
            let mut values = [const { Value::Undefined }; 3];
            if arguments.len() > values.len() {
                let all: Vec<_> = arguments.iter().map(|argument| value(argument, scope)).collect();
                return functions::apply(*function, &all);
            }
            for (place, argument) in values.iter_mut().zip(arguments) {
                *place = value(argument, scope);
            }
            functions::apply(*function, &values[..arguments.len()])
        }
        Expr::And(_) | Expr::Or(_) | Expr::Not(_) | Expr::Compare(..) | Expr::In(..) => {
            truth(expr, scope).map_or(Value::Undefined, Value::Bool)
        }
    }
}

fn calculate(operator: Operator, left: f64, right: f64) -> f64 {
    match operator {
        Operator::Add => left + right,
        Operator::Subtract => left - right,
        Operator::Multiply => left * right,
        Operator::Divide => left / right,
        Operator::Remainder => left % right,
    }
}
