//! What functions give. An argument of a wrong type, or a result that is no number, makes undefined.
//!
//! The pages list all but IS_DEFINED for message routes only, and the service takes more of them for twins (STARTSWITH
//! among them); here all may be called everywhere.

use super::ast::Function;
use super::value::{Value, number_text};

/// Applies a function to as many arguments as it takes.
pub(super) fn apply<'v>(function: Function, arguments: &[Value<'v>]) -> Value<'v> {
    match function {
        Function::IsDefined
        | Function::IsNull
        | Function::IsBool
        | Function::IsNumber
        | Function::IsString
        | Function::IsObject
        | Function::IsArray
        | Function::IsPrimitive => Value::Bool(is(function, &arguments[0])),
        Function::AsNumber => match &arguments[0] {
            Value::Text(text) => as_number(text),
            number @ Value::Number(_) => number.clone(),
            _ => Value::Undefined,
        },
        Function::StartsWith
        | Function::EndsWith
        | Function::Contains
        | Function::IndexOf
        | Function::Substring
        | Function::Concat
        | Function::Length
        | Function::Lower
        | Function::Upper => text(function, arguments).unwrap_or(Value::Undefined),
        Function::Abs
        | Function::Exp
        | Function::Power
        | Function::Square
        | Function::Ceiling
        | Function::Floor
        | Function::Sign
        | Function::Sqrt => number(function, arguments).map_or(Value::Undefined, Value::number),
    }
}

fn is(function: Function, value: &Value<'_>) -> bool {
    match function {
        Function::IsDefined => *value != Value::Undefined,
        Function::IsNull => *value == Value::Null,
        Function::IsBool => matches!(value, Value::Bool(_)),
        Function::IsNumber => matches!(value, Value::Number(_)),
        Function::IsString => matches!(value, Value::Text(_)),
        Function::IsObject => *value == Value::Object,
        Function::IsArray => *value == Value::Array,
        _ => matches!(value, Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_)),
    }
}

/// A decimal number; what else Rust reads as one ("inf", "nan") is not.
fn as_number(text: &str) -> Value<'static> {
    let text = text.trim();
    let decimal = |b: u8| b.is_ascii_digit() || b"+-.eE".contains(&b);
    match text.parse() {
        Ok(number) if text.bytes().all(decimal) => Value::number(number),
        _ => Value::Undefined,
    }
}

fn text<'v>(function: Function, arguments: &[Value<'v>]) -> Option<Value<'v>> {
    let of = |place: usize| match arguments.get(place) {
        Some(Value::Text(text)) => Some(&**text),
        _ => None,
    };
    let first = of(0)?;
    Some(match function {
        Function::StartsWith => Value::Bool(first.starts_with(of(1)?)),
        Function::EndsWith => Value::Bool(first.ends_with(of(1)?)),
        Function::Contains => Value::Bool(first.contains(of(1)?)),
        Function::IndexOf => {
            let at = first.find(of(1)?).map(|at| first[..at].chars().count());
            Value::Number(at.map_or(-1.0, |at| at as f64))
        }
        Function::Substring => {
            let start = whole(arguments.get(1)?)?;
            let length = arguments.get(2).map_or(Some(usize::MAX), whole)?;
            Value::Text(first.chars().skip(start).take(length).collect::<String>().into())
        }
        Function::Concat => {
            let parts = (0..arguments.len()).map(of).collect::<Option<Vec<_>>>()?;
            Value::Text(parts.concat().into())
        }
        Function::Length => Value::Number(first.chars().count() as f64),
        Function::Lower => Value::Text(first.to_lowercase().into()),
        _ => Value::Text(first.to_uppercase().into()),
    })
}

/// A whole number from zero.
fn whole(value: &Value<'_>) -> Option<usize> {
    match value {
        Value::Number(number) if number.fract() == 0.0 && *number >= 0.0 => number_text(*number).parse().ok(),
        _ => None,
    }
}

fn number(function: Function, arguments: &[Value<'_>]) -> Option<f64> {
    let of = |place: usize| match arguments.get(place) {
        Some(Value::Number(number)) => Some(*number),
        _ => None,
    };
    let first = of(0)?;
    Some(match function {
        Function::Abs => first.abs(),
        Function::Exp => first.exp(),
        Function::Power => first.powf(of(1)?),
        Function::Square => first * first,
        Function::Ceiling => first.ceil(),
        Function::Floor => first.floor(),
        Function::Sign if first == 0.0 => 0.0,
        Function::Sign => first.signum(),
        _ => first.sqrt(),
    })
}
