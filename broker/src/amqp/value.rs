//! AMQP values, as bytes and as Rust.
//!
//! Written by ourselves because of two demands that the published codecs don't meet together: what arrives may be
//! anything, so counts and depths are bounded by the bytes that are really there; and composites are written with all
//! their trailing nulls, because one service SDK reads them by position and pads nothing.
//!
//! Source: OASIS AMQP 1.0, part 1 (types).

use bytes::Bytes;

/// How deep values may nest.
const MAX_DEPTH: u8 = 16;

/// An AMQP value.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Value {
    #[default]
    Null,
    Bool(bool),
    Ubyte(u8),
    Ushort(u16),
    Uint(u32),
    Ulong(u64),
    Byte(i8),
    Short(i16),
    Int(i32),
    Long(i64),
    Float(f32),
    Double(f64),
    /// Of 4, 8 or 16 bytes, which nothing here looks into.
    Decimal(Bytes),
    Char(char),
    /// Milliseconds since the Unix epoch.
    Timestamp(i64),
    Uuid([u8; 16]),
    Binary(Bytes),
    String(String),
    Symbol(String),
    List(Vec<Value>),
    Map(Vec<(Value, Value)>),
    Array(Vec<Value>),
    /// Descriptor and value.
    Described(Box<(Value, Value)>),
}

/// Bytes that are no AMQP value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("the bytes end within a value")]
    Short,
    #[error("{0:#04x} is no format code of AMQP 1.0")]
    Format(u8),
    #[error("values nest deeper than {MAX_DEPTH}")]
    Deep,
    #[error("a compound's count does not fit its size")]
    Count,
    #[error("a text is not UTF-8, or a character is none")]
    Text,
    #[error("{0}.{1} has a type that it cannot have, or is missing")]
    Field(&'static str, &'static str),
    #[error("{0} was expected")]
    Expected(&'static str),
}

impl Value {
    /// The value at the start of `bytes`, which move on behind it.
    pub(crate) fn read(bytes: &mut Bytes) -> Result<Self, Malformed> {
        read(bytes, 0)
    }

    /// The text of a string or symbol.
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::String(text) | Self::Symbol(text) => Some(text),
            _ => None,
        }
    }

    /// A described value with a numeric descriptor.
    pub(crate) fn described(code: u64, value: Self) -> Self {
        Self::Described(Box::new((Self::Ulong(code), value)))
    }

    pub(crate) fn symbol(text: &str) -> Self {
        Self::Symbol(text.to_owned())
    }

    pub(crate) fn string(text: impl Into<String>) -> Self {
        Self::String(text.into())
    }

    /// The value of a string or symbol key of a map.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(pairs) => pairs.iter().find(|(k, _)| k.text() == Some(key)).map(|(_, value)| value),
            _ => None,
        }
    }

    /// An integer of any width.
    pub(crate) fn integer(&self) -> Option<i64> {
        match *self {
            Self::Ubyte(value) => Some(value.into()),
            Self::Ushort(value) => Some(value.into()),
            Self::Uint(value) => Some(value.into()),
            Self::Ulong(value) => i64::try_from(value).ok(),
            Self::Byte(value) => Some(value.into()),
            Self::Short(value) => Some(value.into()),
            Self::Int(value) => Some(value.into()),
            Self::Long(value) | Self::Timestamp(value) => Some(value),
            _ => None,
        }
    }
}

fn take(bytes: &mut Bytes, count: usize) -> Result<Bytes, Malformed> {
    if bytes.len() < count { Err(Malformed::Short) } else { Ok(bytes.split_to(count)) }
}

fn fixed<const N: usize>(bytes: &mut Bytes) -> Result<[u8; N], Malformed> {
    let mut out = [0; N];
    out.copy_from_slice(&take(bytes, N)?);
    Ok(out)
}

fn octet(bytes: &mut Bytes) -> Result<u8, Malformed> {
    fixed::<1>(bytes).map(|[byte]| byte)
}

/// A size or count of one byte, or of four.
fn width(bytes: &mut Bytes, wide: bool) -> Result<usize, Malformed> {
    if wide { Ok(u32::from_be_bytes(fixed(bytes)?) as usize) } else { Ok(octet(bytes)?.into()) }
}

fn text(bytes: &mut Bytes, wide: bool) -> Result<String, Malformed> {
    let length = width(bytes, wide)?;
    String::from_utf8(take(bytes, length)?.into()).map_err(|_| Malformed::Text)
}

fn read(bytes: &mut Bytes, depth: u8) -> Result<Value, Malformed> {
    let code = octet(bytes)?;
    if code == 0 {
        let descriptor = read_nested(bytes, depth)?;
        return Ok(Value::Described(Box::new((descriptor, read_nested(bytes, depth)?))));
    }
    body(code, bytes, depth)
}

fn read_nested(bytes: &mut Bytes, depth: u8) -> Result<Value, Malformed> {
    if depth >= MAX_DEPTH { Err(Malformed::Deep) } else { read(bytes, depth + 1) }
}

/// What follows a format code.
fn body(code: u8, bytes: &mut Bytes, depth: u8) -> Result<Value, Malformed> {
    Ok(match code {
        0x40 => Value::Null,
        0x41 => Value::Bool(true),
        0x42 => Value::Bool(false),
        0x43 => Value::Uint(0),
        0x44 => Value::Ulong(0),
        0x45 => Value::List(Vec::new()),
        0x50 => Value::Ubyte(octet(bytes)?),
        0x51 => Value::Byte(i8::from_be_bytes(fixed(bytes)?)),
        0x52 => Value::Uint(octet(bytes)?.into()),
        0x53 => Value::Ulong(octet(bytes)?.into()),
        0x54 => Value::Int(i8::from_be_bytes(fixed(bytes)?).into()),
        0x55 => Value::Long(i8::from_be_bytes(fixed(bytes)?).into()),
        0x56 => Value::Bool(octet(bytes)? != 0),
        0x60 => Value::Ushort(u16::from_be_bytes(fixed(bytes)?)),
        0x61 => Value::Short(i16::from_be_bytes(fixed(bytes)?)),
        0x70 => Value::Uint(u32::from_be_bytes(fixed(bytes)?)),
        0x71 => Value::Int(i32::from_be_bytes(fixed(bytes)?)),
        0x72 => Value::Float(f32::from_be_bytes(fixed(bytes)?)),
        0x73 => {
            let scalar = u32::from_be_bytes(fixed(bytes)?);
            Value::Char(char::from_u32(scalar).ok_or(Malformed::Text)?)
        }
        0x74 => Value::Decimal(take(bytes, 4)?),
        0x80 => Value::Ulong(u64::from_be_bytes(fixed(bytes)?)),
        0x81 => Value::Long(i64::from_be_bytes(fixed(bytes)?)),
        0x82 => Value::Double(f64::from_be_bytes(fixed(bytes)?)),
        0x83 => Value::Timestamp(i64::from_be_bytes(fixed(bytes)?)),
        0x84 => Value::Decimal(take(bytes, 8)?),
        0x94 => Value::Decimal(take(bytes, 16)?),
        0x98 => Value::Uuid(fixed(bytes)?),
        0xa0 | 0xb0 => {
            let length = width(bytes, code == 0xb0)?;
            Value::Binary(take(bytes, length)?)
        }
        0xa1 | 0xb1 => Value::String(text(bytes, code == 0xb1)?),
        0xa3 | 0xb3 => Value::Symbol(text(bytes, code == 0xb3)?),
        0xc0 | 0xd0 => {
            let (count, mut items) = compound(bytes, code == 0xd0)?;
            let mut list = Vec::with_capacity(count.min(64));
            for _ in 0..count {
                list.push(read_nested(&mut items, depth)?);
            }
            Value::List(list)
        }
        0xc1 | 0xd1 => {
            let (count, mut items) = compound(bytes, code == 0xd1)?;
            if count % 2 != 0 {
                return Err(Malformed::Count);
            }
            let mut pairs = Vec::with_capacity((count / 2).min(64));
            for _ in 0..count / 2 {
                let key = read_nested(&mut items, depth)?;
                pairs.push((key, read_nested(&mut items, depth)?));
            }
            Value::Map(pairs)
        }
        0xe0 | 0xf0 => array(bytes, code == 0xf0, depth)?,
        other => return Err(Malformed::Format(other)),
    })
}

/// Count and content of a list, map or array. No element of a list or map is shorter than a byte, and of an array we
/// take no more elements than it has bytes.
fn compound(bytes: &mut Bytes, wide: bool) -> Result<(usize, Bytes), Malformed> {
    let size = width(bytes, wide)?;
    let mut content = take(bytes, size)?;
    let count = width(&mut content, wide)?;
    if count > content.len() { Err(Malformed::Count) } else { Ok((count, content)) }
}

fn array(bytes: &mut Bytes, wide: bool, depth: u8) -> Result<Value, Malformed> {
    let (count, mut items) = compound(bytes, wide)?;
    if depth >= MAX_DEPTH {
        return Err(Malformed::Deep);
    }
    let mut array = Vec::with_capacity(count.min(64));
    if count == 0 {
        return Ok(Value::Array(array));
    }
    let mut code = octet(&mut items)?;
    let descriptor = if code == 0 {
        let descriptor = read_nested(&mut items, depth)?;
        code = octet(&mut items)?;
        Some(descriptor)
    } else {
        None
    };
    for _ in 0..count {
        let item = body(code, &mut items, depth + 1)?;
        array.push(match &descriptor {
            Some(descriptor) => Value::Described(Box::new((descriptor.clone(), item))),
            None => item,
        });
    }
    Ok(Value::Array(array))
}

impl Value {
    /// Appends the value's bytes.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.push(0x40),
            Self::Bool(true) => out.push(0x41),
            Self::Bool(false) => out.push(0x42),
            Self::Uint(0) => out.push(0x43),
            Self::Ulong(0) => out.push(0x44),
            Self::Uint(value @ 1..=0xff) => out.extend([0x52, *value as u8]),
            Self::Ulong(value @ 1..=0xff) => out.extend([0x53, *value as u8]),
            Self::Binary(bytes) if bytes.len() < 256 => short(0xa0, bytes, out),
            Self::String(text) if text.len() < 256 => short(0xa1, text.as_bytes(), out),
            Self::Symbol(text) if text.len() < 256 => short(0xa3, text.as_bytes(), out),
            Self::List(items) => {
                write_compound(0xc0, items.len(), out, |out| items.iter().for_each(|item| item.write(out)));
            }
            Self::Map(pairs) => write_compound(0xc1, pairs.len() * 2, out, |out| {
                for (key, value) in pairs {
                    key.write(out);
                    value.write(out);
                }
            }),
            Self::Array(items) => write_array(items, out),
            Self::Described(described) => {
                out.push(0);
                described.0.write(out);
                described.1.write(out);
            }
            _ => {
                out.push(self.wide_code());
                self.write_wide(out);
            }
        }
    }

    /// The format code under which all values of this kind can stand.
    fn wide_code(&self) -> u8 {
        match self {
            Self::Null | Self::List(_) | Self::Map(_) | Self::Array(_) | Self::Described(_) => 0x40,
            Self::Bool(_) => 0x56,
            Self::Ubyte(_) => 0x50,
            Self::Ushort(_) => 0x60,
            Self::Uint(_) => 0x70,
            Self::Ulong(_) => 0x80,
            Self::Byte(_) => 0x51,
            Self::Short(_) => 0x61,
            Self::Int(_) => 0x71,
            Self::Long(_) => 0x81,
            Self::Float(_) => 0x72,
            Self::Double(_) => 0x82,
            Self::Decimal(bytes) => match bytes.len() {
                4 => 0x74,
                8 => 0x84,
                _ => 0x94,
            },
            Self::Char(_) => 0x73,
            Self::Timestamp(_) => 0x83,
            Self::Uuid(_) => 0x98,
            Self::Binary(_) => 0xb0,
            Self::String(_) => 0xb1,
            Self::Symbol(_) => 0xb3,
        }
    }

    fn write_wide(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null | Self::List(_) | Self::Map(_) | Self::Array(_) | Self::Described(_) => {}
            Self::Bool(value) => out.push(u8::from(*value)),
            Self::Ubyte(value) => out.push(*value),
            Self::Ushort(value) => out.extend(value.to_be_bytes()),
            Self::Uint(value) => out.extend(value.to_be_bytes()),
            Self::Ulong(value) => out.extend(value.to_be_bytes()),
            Self::Byte(value) => out.extend(value.to_be_bytes()),
            Self::Short(value) => out.extend(value.to_be_bytes()),
            Self::Int(value) => out.extend(value.to_be_bytes()),
            Self::Long(value) | Self::Timestamp(value) => out.extend(value.to_be_bytes()),
            Self::Float(value) => out.extend(value.to_be_bytes()),
            Self::Double(value) => out.extend(value.to_be_bytes()),
            Self::Decimal(bytes) => out.extend_from_slice(bytes),
            Self::Char(value) => out.extend(u32::from(*value).to_be_bytes()),
            Self::Uuid(bytes) => out.extend(bytes),
            Self::Binary(bytes) => long(bytes, out),
            Self::String(text) | Self::Symbol(text) => long(text.as_bytes(), out),
        }
    }

    /// The value's bytes.
    #[cfg(test)]
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }
}

fn short(code: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.extend([code, bytes.len() as u8]);
    out.extend_from_slice(bytes);
}

fn long(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend((bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Writes a list or map in its short form if it fits; `code` is the short form's, never that of an empty list.
fn write_compound(code: u8, count: usize, out: &mut Vec<u8>, items: impl FnOnce(&mut Vec<u8>)) {
    const LONG: usize = 9;
    let start = out.len();
    out.extend([0; LONG]);
    items(out);
    let size = out.len() - start - LONG;
    if size < 255 && count < 256 {
        out.copy_within(start + LONG.., start + 3);
        out.truncate(start + 3 + size);
        out[start..start + 3].copy_from_slice(&[code, size as u8 + 1, count as u8]);
    } else {
        out[start] = code + 0x10;
        out[start + 1..start + 5].copy_from_slice(&(size as u32 + 4).to_be_bytes());
        out[start + 5..start + LONG].copy_from_slice(&(count as u32).to_be_bytes());
    }
}

/// Arrays hold primitives of one kind; what is read of others is not sent back.
fn write_array(items: &[Value], out: &mut Vec<u8>) {
    let code = items.first().map_or(0xb3, Value::wide_code);
    if code == 0x40 || items.iter().any(|item| item.wide_code() != code) {
        return out.push(0x40);
    }
    write_compound(0xe0, items.len(), out, |out| {
        out.push(code);
        items.iter().for_each(|item| item.write_wide(out));
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(bytes: &[u8]) -> Result<Value, Malformed> {
        let mut bytes = Bytes::copy_from_slice(bytes);
        let value = Value::read(&mut bytes)?;
        assert!(bytes.is_empty(), "{bytes:?} is left");
        Ok(value)
    }

    fn scalars() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<u8>().prop_map(Value::Ubyte),
            any::<u16>().prop_map(Value::Ushort),
            any::<u32>().prop_map(Value::Uint),
            any::<u64>().prop_map(Value::Ulong),
            any::<i8>().prop_map(Value::Byte),
            any::<i16>().prop_map(Value::Short),
            any::<i32>().prop_map(Value::Int),
            any::<i64>().prop_map(Value::Long),
            any::<i64>().prop_map(Value::Timestamp),
            any::<char>().prop_map(Value::Char),
            any::<[u8; 16]>().prop_map(Value::Uuid),
            prop::collection::vec(any::<u8>(), 0..300).prop_map(|bytes| Value::Binary(bytes.into())),
            ".{0,300}".prop_map(Value::String),
            "[a-z:-]{0,300}".prop_map(Value::Symbol),
        ]
    }

    fn values() -> impl Strategy<Value = Value> {
        scalars().prop_recursive(4, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::List),
                prop::collection::vec((inner.clone(), inner.clone()), 0..4).prop_map(Value::Map),
                prop::collection::vec("[a-z]{0,300}".prop_map(Value::Symbol), 1..4).prop_map(Value::Array),
                (any::<u64>(), inner).prop_map(|(code, value)| Value::described(code, value)),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(value in values()) {
            prop_assert_eq!(read_all(&value.to_bytes()), Ok(value));
        }

        #[test]
        fn no_bytes_make_reading_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Value::read(&mut bytes.into());
        }
    }

    #[test]
    fn trailing_nulls_are_written_and_no_list_is_the_empty_form() {
        let list = Value::List(vec![Value::Null, Value::Null, Value::Null]);
        assert_eq!(list.to_bytes(), [0xc0, 4, 3, 0x40, 0x40, 0x40]);
        assert_eq!(Value::List(vec![]).to_bytes(), [0xc0, 1, 0]);
    }

    #[test]
    fn counts_and_depths_that_the_bytes_do_not_bear_out_are_refused() {
        // An array of four thousand million nulls, and a list that claims as many.
        assert_eq!(read_all(&[0xf0, 0, 0, 0, 5, 0xff, 0xff, 0xff, 0xff, 0x40]), Err(Malformed::Count));
        assert_eq!(read_all(&[0xd0, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff]), Err(Malformed::Count));
        assert_eq!(read_all(&[0xb0, 0xff, 0xff, 0xff, 0xff]), Err(Malformed::Short));
        let nested = [0xc0, 0xff, 1].repeat(100);
        assert!(read_all(&nested).is_err());
        assert_eq!(read_all(&[0; 100]), Err(Malformed::Deep));
    }
}
