//! The performatives of AMQP and SASL, and other composites, with all their fields.
//!
//! Source: OASIS AMQP 1.0, parts 2 (transport), 3 (messaging) and 5 (security).

use bytes::Bytes;

use super::value::{Malformed, Value};

/// A field of a composite.
trait Field: Sized {
    fn parse(value: Value) -> Option<Self>;
    fn value(&self) -> Value;
}

macro_rules! primitive {
    ($($ty:ty = $variant:ident),+ $(,)?) => {$(
        impl Field for $ty {
            fn parse(value: Value) -> Option<Self> {
                match value {
                    Value::$variant(value) => Some(value),
                    _ => None,
                }
            }

            fn value(&self) -> Value {
                Value::$variant(self.clone())
            }
        }
    )+};
}

primitive!(u8 = Ubyte, u16 = Ushort, u32 = Uint, Bytes = Binary);

/// Flags are false if they are missing.
impl Field for bool {
    fn parse(value: Value) -> Option<Self> {
        match value {
            Value::Bool(value) => Some(value),
            Value::Null => Some(false),
            _ => None,
        }
    }

    fn value(&self) -> Value {
        Value::Bool(*self)
    }
}

impl Field for String {
    fn parse(value: Value) -> Option<Self> {
        match value {
            Value::String(text) | Value::Symbol(text) => Some(text),
            _ => None,
        }
    }

    fn value(&self) -> Value {
        Value::String(self.clone())
    }
}

/// A text of the type symbol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Symbol(pub(crate) String);

impl Field for Symbol {
    fn parse(value: Value) -> Option<Self> {
        String::parse(value).map(Self)
    }

    fn value(&self) -> Value {
        Value::Symbol(self.0.clone())
    }
}

/// "Multiple" symbols: an array, a single one, or null.
impl Field for Vec<Symbol> {
    fn parse(value: Value) -> Option<Self> {
        match value {
            Value::Null => Some(Self::new()),
            Value::Array(items) => items.into_iter().map(Symbol::parse).collect(),
            one => Symbol::parse(one).map(|symbol| vec![symbol]),
        }
    }

    fn value(&self) -> Value {
        if self.is_empty() { Value::Null } else { Value::Array(self.iter().map(Symbol::value).collect()) }
    }
}

impl Field for Value {
    fn parse(value: Value) -> Option<Self> {
        Some(value)
    }

    fn value(&self) -> Value {
        self.clone()
    }
}

impl<T: Field> Field for Option<T> {
    fn parse(value: Value) -> Option<Self> {
        match value {
            Value::Null => Some(None),
            value => T::parse(value).map(Some),
        }
    }

    fn value(&self) -> Value {
        self.as_ref().map_or(Value::Null, Field::value)
    }
}

macro_rules! composites {
    ($($(#[$meta:meta])* $name:ident = $code:literal $symbol:literal { $($field:ident: $ty:ty),+ $(,)? })+) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub(crate) struct $name { $(pub(crate) $field: $ty),+ }

        impl Composite for $name {
            const CODE: u64 = $code;
            const SYMBOL: &'static str = $symbol;

            fn from_fields(fields: Vec<Value>) -> Result<Self, Malformed> {
                let mut fields = fields.into_iter();
                Ok(Self { $($field: Field::parse(fields.next().unwrap_or_default())
                    .ok_or(Malformed::Field(stringify!($name), stringify!($field)))?),+ })
            }

            fn to_value(&self) -> Value {
                Value::described(Self::CODE, Value::List(vec![$(self.$field.value()),+]))
            }
        }

        impl Field for $name {
            fn parse(value: Value) -> Option<Self> {
                Self::from_value(value).ok()
            }

            fn value(&self) -> Value {
                self.to_value()
            }
        }
    )+};
}

/// A described list.
pub(crate) trait Composite: Sized {
    /// Its numeric descriptor, below 256 for all that are used here.
    const CODE: u64;
    /// Its symbolic descriptor.
    const SYMBOL: &'static str;

    fn from_fields(fields: Vec<Value>) -> Result<Self, Malformed>;

    fn to_value(&self) -> Value;

    fn is(descriptor: &Value) -> bool {
        match descriptor {
            Value::Ulong(code) => *code == Self::CODE,
            Value::Symbol(name) => name == Self::SYMBOL,
            _ => false,
        }
    }

    fn from_value(value: Value) -> Result<Self, Malformed> {
        match value {
            Value::Described(described) if Self::is(&described.0) => match described.1 {
                Value::List(fields) => Self::from_fields(fields),
                _ => Err(Malformed::Expected(Self::SYMBOL)),
            },
            _ => Err(Malformed::Expected(Self::SYMBOL)),
        }
    }
}

composites! {
    Open = 0x10 "amqp:open:list" {
        container_id: String,
        hostname: Option<String>,
        max_frame_size: Option<u32>,
        channel_max: Option<u16>,
        idle_time_out: Option<u32>,
        outgoing_locales: Value,
        incoming_locales: Value,
        offered_capabilities: Value,
        desired_capabilities: Value,
        properties: Value,
    }
    Begin = 0x11 "amqp:begin:list" {
        remote_channel: Option<u16>,
        next_outgoing_id: u32,
        incoming_window: u32,
        outgoing_window: u32,
        handle_max: Option<u32>,
        offered_capabilities: Value,
        desired_capabilities: Value,
        properties: Value,
    }
    Attach = 0x12 "amqp:attach:list" {
        name: String,
        handle: u32,
        // True: the peer that sends this receives.
        role: bool,
        snd_settle_mode: Option<u8>,
        rcv_settle_mode: Option<u8>,
        source: Option<Source>,
        // A coordinator is no target that is known here, so it is looked into later.
        target: Value,
        unsettled: Value,
        incomplete_unsettled: bool,
        initial_delivery_count: Option<u32>,
        max_message_size: Value,
        offered_capabilities: Vec<Symbol>,
        desired_capabilities: Vec<Symbol>,
        properties: Value,
    }
    Flow = 0x13 "amqp:flow:list" {
        next_incoming_id: Option<u32>,
        incoming_window: u32,
        next_outgoing_id: u32,
        outgoing_window: u32,
        handle: Option<u32>,
        delivery_count: Option<u32>,
        link_credit: Option<u32>,
        available: Option<u32>,
        drain: bool,
        echo: bool,
        properties: Value,
    }
    Transfer = 0x14 "amqp:transfer:list" {
        handle: u32,
        delivery_id: Option<u32>,
        delivery_tag: Option<Bytes>,
        message_format: Option<u32>,
        settled: Option<bool>,
        more: bool,
        rcv_settle_mode: Option<u8>,
        state: Value,
        resume: bool,
        aborted: bool,
        batchable: bool,
    }
    Disposition = 0x15 "amqp:disposition:list" {
        // True: the peer that sends this received the deliveries.
        role: bool,
        first: u32,
        last: Option<u32>,
        settled: bool,
        state: Value,
        batchable: bool,
    }
    Detach = 0x16 "amqp:detach:list" { handle: u32, closed: bool, error: Option<Error> }
    End = 0x17 "amqp:end:list" { error: Option<Error> }
    Close = 0x18 "amqp:close:list" { error: Option<Error> }
    Error = 0x1d "amqp:error:list" { condition: Symbol, description: Option<String>, info: Value }
    Source = 0x28 "amqp:source:list" {
        address: Value,
        durable: Value,
        expiry_policy: Value,
        timeout: Value,
        dynamic: bool,
        dynamic_node_properties: Value,
        distribution_mode: Value,
        filter: Value,
        default_outcome: Value,
        outcomes: Value,
        capabilities: Value,
    }
    Target = 0x29 "amqp:target:list" {
        address: Value,
        durable: Value,
        expiry_policy: Value,
        timeout: Value,
        dynamic: bool,
        dynamic_node_properties: Value,
        capabilities: Value,
    }
    // Fields that clients send in several types are looked into later.
    Properties = 0x73 "amqp:properties:list" {
        message_id: Value,
        user_id: Value,
        to: Value,
        subject: Value,
        reply_to: Value,
        correlation_id: Value,
        content_type: Value,
        content_encoding: Value,
        absolute_expiry_time: Value,
        creation_time: Value,
        group_id: Value,
        group_sequence: Value,
        reply_to_group_id: Value,
    }
    SaslMechanisms = 0x40 "amqp:sasl-mechanisms:list" { mechanisms: Vec<Symbol> }
    SaslInit = 0x41 "amqp:sasl-init:list" {
        mechanism: Symbol,
        initial_response: Option<Bytes>,
        hostname: Option<String>,
    }
    SaslOutcome = 0x44 "amqp:sasl-outcome:list" { code: u8, additional_data: Option<Bytes> }
}

impl Error {
    pub(crate) fn new(condition: &str, description: impl Into<String>) -> Self {
        Self {
            condition: Symbol(condition.to_owned()),
            description: Some(description.into()),
            info: Value::Null,
        }
    }
}

/// What an AMQP frame says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Performative {
    Open(Open),
    Begin(Begin),
    Attach(Box<Attach>),
    Flow(Flow),
    /// With what follows it in the frame.
    Transfer(Transfer, Bytes),
    Disposition(Disposition),
    Detach(Detach),
    End(End),
    Close(Close),
}

impl Performative {
    /// Reads the body of an AMQP frame that is not empty.
    pub(crate) fn read(body: &mut Bytes) -> Result<Self, Malformed> {
        let Value::Described(described) = Value::read(body)? else {
            return Err(Malformed::Expected("a performative"));
        };
        let (descriptor, Value::List(fields)) = *described else {
            return Err(Malformed::Expected("a performative"));
        };
        macro_rules! dispatch {
            ($($name:ident),+) => {
                $(if $name::is(&descriptor) {
                    return $name::from_fields(fields).map(Performative::$name);
                })+
            };
        }
        if Transfer::is(&descriptor) {
            return Ok(Self::Transfer(Transfer::from_fields(fields)?, std::mem::take(body)));
        }
        if Attach::is(&descriptor) {
            return Ok(Self::Attach(Box::new(Attach::from_fields(fields)?)));
        }
        dispatch!(Open, Begin, Flow, Disposition, Detach, End, Close);
        Err(Malformed::Expected("a performative"))
    }
}

/// How a delivery ended, by its receiver's word.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    Accepted,
    Rejected(Option<Error>),
    Released,
    /// With the flag that says that the delivery failed.
    Modified(bool),
}

impl Outcome {
    /// The outcome in a delivery state, if it is one.
    pub(crate) fn of(state: &Value) -> Option<Self> {
        let Value::Described(described) = state else { return None };
        let first = match &described.1 {
            Value::List(fields) => fields.first(),
            _ => None,
        };
        match &described.0 {
            Value::Ulong(0x24) => Some(Self::Accepted),
            Value::Ulong(0x25) => {
                Some(Self::Rejected(first.and_then(|error| Error::from_value(error.clone()).ok())))
            }
            Value::Ulong(0x26) => Some(Self::Released),
            Value::Ulong(0x27) => Some(Self::Modified(first == Some(&Value::Bool(true)))),
            Value::Symbol(name) => match name.as_str() {
                "amqp:accepted:list" => Some(Self::Accepted),
                "amqp:rejected:list" => Some(Self::Rejected(None)),
                "amqp:released:list" => Some(Self::Released),
                "amqp:modified:list" => Some(Self::Modified(first == Some(&Value::Bool(true)))),
                _ => None,
            },
            _ => None,
        }
    }

    pub(crate) fn to_value(&self) -> Value {
        let (code, fields) = match self {
            Self::Accepted => (0x24, vec![]),
            Self::Rejected(error) => (0x25, vec![error.value()]),
            Self::Released => (0x26, vec![]),
            Self::Modified(failed) => (0x27, vec![Value::Bool(*failed), Value::Null, Value::Null]),
        };
        Value::described(code, Value::List(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Descriptor and number of fields, as they stand in the bytes.
    fn shape(value: &Value) -> (u8, u8) {
        let bytes = value.to_bytes();
        assert_eq!(bytes[..2], [0, 0x53], "the descriptor is a small ulong");
        assert_eq!(bytes[3], 0xc0);
        (bytes[2], bytes[5])
    }

    #[test]
    fn every_performative_has_all_its_fields_however_many_are_null() {
        let shapes = [
            shape(&Open::default().to_value()),
            shape(&Begin::default().to_value()),
            shape(&Attach::default().to_value()),
            shape(&Flow::default().to_value()),
            shape(&Transfer::default().to_value()),
            shape(&Disposition::default().to_value()),
            shape(&Detach::default().to_value()),
            shape(&End::default().to_value()),
            shape(&Close::default().to_value()),
        ];
        let expected = [(16, 10), (17, 8), (18, 14), (19, 11), (20, 11), (21, 6), (22, 3), (23, 1), (24, 1)];
        assert_eq!(shapes, expected);
    }

    #[test]
    fn a_performative_survives_its_bytes_and_may_be_short_of_fields() {
        let attach = Attach {
            name: "l".into(),
            handle: 3,
            role: true,
            source: Some(Source { address: Value::string("a"), ..Source::default() }),
            desired_capabilities: vec![Symbol("c".into())],
            ..Attach::default()
        };
        let mut bytes = attach.to_value().to_bytes().into();
        assert_eq!(Performative::read(&mut bytes), Ok(Performative::Attach(Box::new(attach))));
        // end, as list0.
        let mut bytes = Bytes::from_static(&[0, 0x53, 0x17, 0x45]);
        assert_eq!(Performative::read(&mut bytes), Ok(Performative::End(End::default())));
        let mut bytes = Bytes::from_static(&[0, 0x53, 0x11, 0x45]);
        assert_eq!(
            Performative::read(&mut bytes),
            Err(Malformed::Field("Begin", "next_outgoing_id")),
            "what must be there is missed"
        );
    }

    #[test]
    fn outcomes_survive_their_values() {
        let rejected = Outcome::Rejected(Some(Error::new("amqp:not-found", "no such device")));
        for outcome in [Outcome::Accepted, rejected, Outcome::Released, Outcome::Modified(true)] {
            assert_eq!(Outcome::of(&outcome.to_value()), Some(outcome));
        }
        assert_eq!(Outcome::of(&Value::Null), None);
    }
}
