//! Values that are either a fixed word or a quantity, written the same way: as text.

use core::fmt;
use core::str::FromStr;
use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

use super::model::{Cycle, Share};
use super::quantity::{Percent, Quantity, QuantityError, Span};

/// Serde and schema of a type that is `$word` or a `$quantity`.
macro_rules! word_or {
    ($type:ident, $word:literal => $fixed:path, $quantity:ident => $wrap:path) => {
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

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(
                            f,
                            "{}, for instance \"{}\", or \"{}\"",
                            $quantity::WHAT,
                            $quantity::EXAMPLE,
                            $word
                        )
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<$type, E> {
                        $quantity::from_integer(number).map($wrap).map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Text)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                let quantity = generator.subschema_for::<$quantity>();
                json_schema!({ "anyOf": [{ "const": $word }, quantity] })
            }
        }
    };
}

word_or!(Share, "rest" => Share::Rest, Percent => Share::Of);
word_or!(Cycle, "immediate" => Cycle::Immediate, Span => Cycle::Every);
