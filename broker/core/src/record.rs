//! How what a store keeps of a hub is written: fields with a number each, in any order.
//!
//! A field that has its usual value is left out, and one that is not known is skipped, so that a newer hub can add
//! fields and read what an older one wrote. What an older hub must not misread needs a new format of the whole store,
//! which is the driver's to tell.

use fleetwave_protocol::WallTime;

use crate::stamps::Stamp;

/// Why a record of a store can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It is no record: cut off, or not what a hub writes.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// It refers to a part that the store does not have.
    #[error("it refers to the part {0}, which is missing or of another kind")]
    MissingPart(u64),
    /// It says what this hub refuses.
    #[error("this hub refuses it: {0}")]
    Refused(#[from] crate::error::HubError),
}

/// Appends a number in groups of seven bits, the lowest first.
pub(crate) fn put_varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends a field with a number, unless that is zero.
pub(crate) fn put_number(field: u64, number: u64, out: &mut Vec<u8>) {
    if number != 0 {
        put_varint(field << 1, out);
        put_varint(number, out);
    }
}

/// Appends a field with bytes, also if there are none.
pub(crate) fn put_bytes(field: u64, bytes: &[u8], out: &mut Vec<u8>) {
    put_varint(field << 1 | 1, out);
    put_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Appends a field with what `write` appends.
pub(crate) fn put_nested(field: u64, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let mut nested = Vec::new();
    write(&mut nested);
    put_bytes(field, &nested, out);
}

/// Appends a field with a text, if there is one.
pub(crate) fn put_text(field: u64, text: Option<&str>, out: &mut Vec<u8>) {
    if let Some(text) = text {
        put_bytes(field, text.as_bytes(), out);
    }
}

/// A field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    pub(crate) fn number(self) -> Result<u64, RecordError> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Bytes(_) => Err(RecordError::Damaged("bytes stand where a number belongs")),
        }
    }

    /// A number of 32 bits.
    pub(crate) fn small(self) -> Result<u32, RecordError> {
        u32::try_from(self.number()?).map_err(|_| RecordError::Damaged("a number is too large"))
    }

    pub(crate) fn time(self) -> Result<WallTime, RecordError> {
        self.number().map(WallTime::from_unix_millis)
    }

    pub(crate) fn bytes(self) -> Result<&'a [u8], RecordError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) => Err(RecordError::Damaged("a number stands where bytes belong")),
        }
    }

    pub(crate) fn text(self) -> Result<&'a str, RecordError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| RecordError::Damaged("a text is not UTF-8"))
    }
}

/// Reads numbers off the front of bytes.
pub(crate) fn take_varint(bytes: &mut &[u8]) -> Result<u64, RecordError> {
    let mut number = 0;
    for (place, &byte) in bytes.iter().enumerate().take(10) {
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            *bytes = &bytes[place + 1..];
            return Ok(number);
        }
    }
    Err(RecordError::Damaged("it is cut off"))
}

/// The fields of a record.
pub(crate) fn fields(mut bytes: &[u8]) -> impl Iterator<Item = Result<(u64, Value<'_>), RecordError>> {
    let mut field = move || {
        let key = take_varint(&mut bytes)?;
        let number = take_varint(&mut bytes)?;
        if key & 1 == 0 {
            return Ok((key >> 1, Value::Number(number), bytes.is_empty()));
        }
        let split = usize::try_from(number).ok().and_then(|length| bytes.split_at_checked(length));
        let (value, rest) = split.ok_or(RecordError::Damaged("it is cut off"))?;
        bytes = rest;
        Ok((key >> 1, Value::Bytes(value), bytes.is_empty()))
    };
    let mut over = bytes.is_empty();
    std::iter::from_fn(move || {
        if over {
            return None;
        }
        let next = field();
        over = next.as_ref().map_or(true, |&(_, _, last)| last);
        Some(next.map(|(field, value, _)| (field, value)))
    })
}

const fn zigzag(from: u64, to: u64) -> u64 {
    let step = to.wrapping_sub(from) as i64;
    (step << 1 ^ step >> 63) as u64
}

const fn unzigzag(from: u64, step: u64) -> u64 {
    from.wrapping_add((step >> 1) ^ (step & 1).wrapping_neg())
}

/// Appends stamps: each as its distance from the one before.
pub(crate) fn put_stamps(stamps: &[Stamp], out: &mut Vec<u8>) {
    let (mut at, mut version) = (0, 0);
    for stamp in stamps {
        let (new_at, new_version) = (stamp.at().as_unix_millis(), u64::from(stamp.version()));
        put_varint(zigzag(at, new_at), out);
        put_varint(zigzag(version, new_version), out);
        (at, version) = (new_at, new_version);
    }
}

/// Reads all stamps that [`put_stamps`] wrote.
pub(crate) fn take_stamps(mut bytes: &[u8]) -> Result<Vec<Stamp>, RecordError> {
    let (mut at, mut version) = (0, 0);
    let mut stamps = Vec::new();
    while !bytes.is_empty() {
        at = unzigzag(at, take_varint(&mut bytes)?);
        version = unzigzag(version, take_varint(&mut bytes)?);
        let version = u32::try_from(version).map_err(|_| RecordError::Damaged("a version is too large"))?;
        stamps.push(Stamp::new(WallTime::from_unix_millis(at), version));
    }
    Ok(stamps)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Field {
        Number(u64),
        Bytes(Vec<u8>),
    }

    fn field() -> impl Strategy<Value = (u64, Field)> {
        let value = prop_oneof![
            prop_oneof![1..300_u64, any::<u64>().prop_filter("not the usual value", |&n| n > 0)]
                .prop_map(Field::Number),
            prop::collection::vec(any::<u8>(), 0..200).prop_map(Field::Bytes),
        ];
        (0..40_u64, value)
    }

    proptest! {
        /// What was written is read, and a record that is cut anywhere gives its first fields, then an error or an end.
        #[test]
        fn fields_come_back(written in prop::collection::vec(field(), 0..8), cut in any::<prop::sample::Index>()) {
            let mut bytes = Vec::new();
            for (number, value) in &written {
                match value {
                    Field::Number(value) => put_number(*number, *value, &mut bytes),
                    Field::Bytes(value) => put_bytes(*number, value, &mut bytes),
                }
            }
            let same = |(read, written): (&(u64, Value<'_>), &(u64, Field))| {
                read.0 == written.0 && match (&read.1, &written.1) {
                    (Value::Number(read), Field::Number(written)) => read == written,
                    (Value::Bytes(read), Field::Bytes(written)) => *read == &written[..],
                    _ => false,
                }
            };
            let read: Vec<_> = fields(&bytes).collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(read.len(), written.len());
            prop_assert!(read.iter().zip(&written).all(same));
            let part: Vec<_> = fields(&bytes[..cut.index(bytes.len() + 1)]).map_while(Result::ok).collect();
            prop_assert!(part.len() <= written.len() && part.iter().zip(&written).all(same));
        }

        #[test]
        fn bytes_that_are_no_record_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let read = fields(&bytes).collect::<Result<Vec<_>, _>>();
            prop_assert!(read.is_err() || read.is_ok_and(|fields| fields.len() <= bytes.len()));
            let _ = take_stamps(&bytes);
        }

        #[test]
        fn stamps_come_back(stamps in prop::collection::vec((any::<u64>(), any::<u32>()), 0..20)) {
            let stamps: Vec<_> = stamps
                .into_iter()
                .map(|(at, version)| Stamp::new(WallTime::from_unix_millis(at), version))
                .collect();
            let mut bytes = Vec::new();
            put_stamps(&stamps, &mut bytes);
            prop_assert_eq!(take_stamps(&bytes).unwrap(), stamps);
        }
    }
}
