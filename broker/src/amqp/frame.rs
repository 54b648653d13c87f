//! Frames: how performatives stand in a connection's bytes.

use bytes::{Buf as _, Bytes, BytesMut};

use super::performative::{Composite, Transfer};
use super::value::Value;

/// The smallest frame: its header.
const HEADER: usize = 8;

/// The two kinds of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Amqp = 0,
    Sasl = 1,
}

/// A frame as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) channel: u16,
    /// Empty for a heartbeat.
    pub(crate) body: Bytes,
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame of {0} bytes is longer than what was agreed")]
    Large(usize),
    #[error("a frame's size or data offset is impossible")]
    Shape,
    #[error("frame type {0} is unknown")]
    Kind(u8),
}

/// Takes the first frame, if it is complete. No more than `limit` bytes are ever waited for.
pub(crate) fn take(input: &mut BytesMut, limit: usize) -> Result<Option<Frame>, FrameError> {
    let Some(header) = input.first_chunk::<HEADER>() else { return Ok(None) };
    let [a, b, c, d, offset, kind, high, low] = *header;
    let size = u32::from_be_bytes([a, b, c, d]) as usize;
    let offset = usize::from(offset) * 4;
    if size > limit {
        return Err(FrameError::Large(size));
    }
    if offset < HEADER || size < offset {
        return Err(FrameError::Shape);
    }
    let kind = match kind {
        0 => Kind::Amqp,
        1 => Kind::Sasl,
        other => return Err(FrameError::Kind(other)),
    };
    if input.len() < size {
        return Ok(None);
    }
    let mut body = input.split_to(size).freeze();
    body.advance(offset);
    Ok(Some(Frame { kind, channel: u16::from_be_bytes([high, low]), body }))
}

/// Appends a frame with one value.
pub(crate) fn put(kind: Kind, channel: u16, value: &Value, out: &mut Vec<u8>) {
    let start = begin(kind, channel, out);
    value.write(out);
    end(start, out);
}

/// Appends a heartbeat.
pub(crate) fn put_empty(out: &mut Vec<u8>) {
    let start = begin(Kind::Amqp, 0, out);
    end(start, out);
}

/// Appends a transfer with as much of `payload` as a frame of `limit` bytes can bear, and says how much that was. The
/// transfer's `more` is set by whether something is left.
pub(crate) fn put_transfer(
    channel: u16,
    transfer: &mut Transfer,
    payload: &[u8],
    limit: usize,
    out: &mut Vec<u8>,
) -> usize {
    transfer.more = false;
    let start = begin(Kind::Amqp, channel, out);
    transfer.to_value().write(out);
    let room = limit.saturating_sub(out.len() - start).max(1);
    let part = payload.len().min(room);
    if part < payload.len() {
        // Both flags are a byte, so the room stays the same.
        transfer.more = true;
        out.truncate(start + HEADER);
        transfer.to_value().write(out);
    }
    out.extend_from_slice(&payload[..part]);
    end(start, out);
    part
}

fn begin(kind: Kind, channel: u16, out: &mut Vec<u8>) -> usize {
    let start = out.len();
    let [high, low] = channel.to_be_bytes();
    out.extend([0, 0, 0, 0, 2, kind as u8, high, low]);
    start
}

fn end(start: usize, out: &mut [u8]) {
    let size = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&size.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_come_out_whole_and_only_when_they_are() {
        let mut out = Vec::new();
        put(Kind::Sasl, 7, &Value::Uint(5), &mut out);
        put_empty(&mut out);
        let mut input = BytesMut::new();
        let mut frames = Vec::new();
        for byte in out {
            input.extend_from_slice(&[byte]);
            frames.extend(take(&mut input, 512).unwrap());
        }
        let body = Bytes::from_static(&[0x52, 5]);
        assert_eq!(
            frames,
            [
                Frame { kind: Kind::Sasl, channel: 7, body },
                Frame { kind: Kind::Amqp, channel: 0, body: Bytes::new() }
            ]
        );
    }

    #[test]
    fn frames_that_cannot_be_are_refused_at_their_header() {
        let refused = |bytes: [u8; 8]| take(&mut BytesMut::from(&bytes[..]), 512).unwrap_err();
        assert_eq!(refused([0, 0, 2, 1, 2, 0, 0, 0]), FrameError::Large(513));
        assert_eq!(refused([0, 0, 0, 7, 2, 0, 0, 0]), FrameError::Shape);
        assert_eq!(refused([0, 0, 0, 8, 1, 0, 0, 0]), FrameError::Shape);
        assert_eq!(refused([0, 0, 0, 8, 2, 9, 0, 0]), FrameError::Kind(9));
    }

    proptest! {
        #[test]
        fn no_bytes_make_taking_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut input = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = take(&mut input, 64) {}
        }

        #[test]
        fn the_parts_of_a_payload_are_the_payload(
            payload in prop::collection::vec(any::<u8>(), 0..2000),
            limit in 64_usize..512,
        ) {
            let mut transfer = Transfer { delivery_id: Some(1), ..Transfer::default() };
            let (mut sent, mut whole) = (0, Vec::new());
            loop {
                let mut out = Vec::new();
                sent += put_transfer(1, &mut transfer, &payload[sent..], limit, &mut out);
                prop_assert!(out.len() <= limit);
                let mut body = take(&mut BytesMut::from(&out[..]), limit).unwrap().unwrap().body;
                let seen = Transfer::from_value(Value::read(&mut body).unwrap()).unwrap();
                whole.extend_from_slice(&body);
                prop_assert_eq!(seen.more, sent < payload.len());
                if !seen.more {
                    break;
                }
            }
            prop_assert_eq!(whole, payload);
        }
    }
}
