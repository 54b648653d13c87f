//! Values that are either a fixed word or a quantity, written the same way: as text.

use core::fmt;
use core::str::FromStr;

use schemars::{Schema, SchemaGenerator, json_schema};

use super::model::{Cycle, Share};
use super::quantity::{Percent, Quantity, QuantityError, Span, as_text};

/// Text, serde and schema of a type that is `$word` or a `$quantity`.
macro_rules! word_or {
    ($type:ident, $word:literal => $fixed:path, $quantity:ident => $wrap:path, $what:literal) => {
        impl Quantity for $type {
            const WHAT: &'static str = $what;
            const UNITS: &'static str = $quantity::UNITS;
            const EXAMPLE: &'static str = $quantity::EXAMPLE;
            const PATTERN: &'static str = $quantity::PATTERN;

            fn from_integer(number: i64) -> Result<Self, QuantityError> {
                $quantity::from_integer(number).map($wrap)
            }
        }

        impl FromStr for $type {
            type Err = QuantityError;

            fn from_str(text: &str) -> Result<Self, QuantityError> {
                if text == $word {
                    return Ok($fixed);
                }
                text.parse().map($wrap).map_err(|error: QuantityError| {
                    QuantityError::new(format!("{error}, or \"{}\"", $word))
                })
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $fixed => f.write_str($word),
                    $wrap(quantity) => quantity.fmt(f),
                }
            }
        }

        impl $type {
            fn text_schema(generator: &mut SchemaGenerator) -> Schema {
                let quantity = generator.subschema_for::<$quantity>();
                json_schema!({ "anyOf": [{ "const": $word }, quantity] })
            }
        }

        as_text!($type);
    };
}

word_or!(Share, "rest" => Share::Rest, Percent => Share::Of, "\"rest\" or a percentage");
word_or!(Cycle, "immediate" => Cycle::Immediate, Span => Cycle::Every, "\"immediate\" or a span of time");
