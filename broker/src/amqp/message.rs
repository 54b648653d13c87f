//! Messages: the sections that a delivery's bytes consist of.
//!
//! Source: OASIS AMQP 1.0, part 3 (messaging).

use bytes::Bytes;

use super::performative::{Composite, Properties};
use super::value::{Malformed, Value};

const HEADER: u64 = 0x70;
const DELIVERY_ANNOTATIONS: u64 = 0x71;
const ANNOTATIONS: u64 = 0x72;
const PROPERTIES: u64 = 0x73;
const APPLICATION: u64 = 0x74;
const DATA: u64 = 0x75;
const SEQUENCE: u64 = 0x76;
const VALUE: u64 = 0x77;
const FOOTER: u64 = 0x78;

/// What a message carries.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Body {
    /// The data sections, joined.
    Data(Bytes),
    /// A value, or null for none.
    Value(Value),
    /// Sequences, which nothing here reads.
    Sequence,
}

impl Default for Body {
    fn default() -> Self {
        Self::Value(Value::Null)
    }
}

/// A message.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Message {
    pub(crate) delivery_annotations: Vec<(Value, Value)>,
    pub(crate) annotations: Vec<(Value, Value)>,
    pub(crate) properties: Properties,
    pub(crate) application: Vec<(Value, Value)>,
    pub(crate) body: Body,
}

impl Message {
    /// Reads a message from a delivery's bytes.
    pub(crate) fn read(mut bytes: Bytes) -> Result<Self, Malformed> {
        let mut message = Self::default();
        while !bytes.is_empty() {
            let Value::Described(section) = Value::read(&mut bytes)? else {
                return Err(Malformed::Expected("a message's section"));
            };
            let (descriptor, content) = *section;
            match (code(&descriptor).ok_or(Malformed::Expected("a message's section"))?, content) {
                (HEADER, Value::List(_)) | (FOOTER, Value::Map(_)) => {}
                (DELIVERY_ANNOTATIONS, Value::Map(pairs)) => message.delivery_annotations = pairs,
                (ANNOTATIONS, Value::Map(pairs)) => message.annotations = pairs,
                (PROPERTIES, Value::List(fields)) => message.properties = Properties::from_fields(fields)?,
                (APPLICATION, Value::Map(pairs)) => message.application = pairs,
                (DATA, Value::Binary(data)) => message.body.push(data),
                (SEQUENCE, Value::List(_)) => message.body = Body::Sequence,
                (VALUE, value) => message.body = Body::Value(value),
                _ => return Err(Malformed::Expected("a message's section of the right type")),
            }
        }
        Ok(message)
    }

    /// The message's bytes.
    pub(crate) fn to_bytes(&self) -> Bytes {
        let mut out = Vec::with_capacity(512);
        for (code, pairs) in
            [(DELIVERY_ANNOTATIONS, &self.delivery_annotations), (ANNOTATIONS, &self.annotations)]
        {
            map(code, pairs, &mut out);
        }
        if self.properties != Properties::default() {
            self.properties.to_value().write(&mut out);
        }
        map(APPLICATION, &self.application, &mut out);
        match &self.body {
            Body::Data(data) => Value::described(DATA, Value::Binary(data.clone())).write(&mut out),
            Body::Value(value) => Value::described(VALUE, value.clone()).write(&mut out),
            Body::Sequence => {}
        }
        out.into()
    }

    /// The value of an application property.
    pub(crate) fn property(&self, key: &str) -> Option<&Value> {
        self.application.iter().find(|(name, _)| name.text() == Some(key)).map(|(_, value)| value)
    }
}

impl Body {
    fn push(&mut self, data: Bytes) {
        match self {
            Self::Data(before) => *before = [before.as_ref(), data.as_ref()].concat().into(),
            _ => *self = Self::Data(data),
        }
    }
}

fn map(code: u64, pairs: &[(Value, Value)], out: &mut Vec<u8>) {
    if !pairs.is_empty() {
        Value::described(code, Value::Map(pairs.to_vec())).write(out);
    }
}

fn code(descriptor: &Value) -> Option<u64> {
    match descriptor {
        Value::Ulong(code) => Some(*code),
        Value::Symbol(name) => match name.as_str() {
            "amqp:header:list" => Some(HEADER),
            "amqp:delivery-annotations:map" => Some(DELIVERY_ANNOTATIONS),
            "amqp:message-annotations:map" => Some(ANNOTATIONS),
            "amqp:properties:list" => Some(PROPERTIES),
            "amqp:application-properties:map" => Some(APPLICATION),
            "amqp:data:binary" => Some(DATA),
            "amqp:amqp-sequence:list" => Some(SEQUENCE),
            "amqp:amqp-value:*" => Some(VALUE),
            "amqp:footer:map" => Some(FOOTER),
            _ => None,
        },
        _ => None,
    }
}

/// The text that a property has for those who only know texts, as message ids and application properties have on MQTT.
pub(crate) fn plain_text(value: &Value) -> Option<String> {
    Some(match value {
        Value::String(text) | Value::Symbol(text) => text.clone(),
        Value::Uuid(bytes) => uuid::Uuid::from_bytes(*bytes).to_string(),
        Value::Binary(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::Bool(value) => if *value { "True" } else { "False" }.to_owned(),
        Value::Ulong(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        Value::Double(value) => value.to_string(),
        Value::Char(value) => value.to_string(),
        Value::Null => String::new(),
        other => other.integer()?.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message() -> Message {
        Message {
            annotations: vec![(Value::symbol("x-opt-offset"), Value::string("12"))],
            properties: Properties { message_id: Value::Uuid([7; 16]), ..Properties::default() },
            application: vec![(Value::string("status"), Value::Int(3))],
            body: Body::Data(Bytes::from_static(b"hello")),
            ..Message::default()
        }
    }

    #[test]
    fn a_message_survives_its_bytes() {
        assert_eq!(Message::read(message().to_bytes()), Ok(message()));
    }

    #[test]
    fn several_data_sections_are_one_body() {
        let mut bytes = message().to_bytes().to_vec();
        Value::described(DATA, Value::Binary(Bytes::from_static(b" world"))).write(&mut bytes);
        let read = Message::read(bytes.into()).unwrap();
        assert_eq!(read.body, Body::Data(Bytes::from_static(b"hello world")));
    }

    #[test]
    fn ids_and_properties_of_any_type_have_a_text() {
        for (value, text) in [
            (Value::Uuid([0x11; 16]), "11111111-1111-1111-1111-111111111111"),
            (Value::Int(-3), "-3"),
            (Value::Ulong(u64::MAX), "18446744073709551615"),
            (Value::Bool(true), "True"),
            (Value::Binary(Bytes::from_static(b"b")), "b"),
            (Value::Double(1.5), "1.5"),
        ] {
            assert_eq!(plain_text(&value).as_deref(), Some(text));
        }
        assert_eq!(plain_text(&Value::List(vec![])), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::read(bytes.into());
        }

        #[test]
        fn damaged_messages_do_not_make_reading_panic(at in 0_usize..60, byte: u8) {
            let mut bytes = message().to_bytes().to_vec();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = Message::read(bytes.into());
        }
    }
}
