//! MQTT 3.1.1 packets: rumqttc's codec, with a guard in front of it.
//!
//! The codec trusts its peer in places where a hub must not: it takes packets that only a server sends, flags
//! that the standard forbids, and lets one SUBSCRIBE of the largest size become tens of thousands of strings.

use bytes::{BufMut, Bytes, BytesMut};
use fleetwave_protocol::{Packet as Outgoing, QoS};
use rumqttc::mqttbytes::v4::{ConnAck, ConnectReturnCode, Packet, PubAck, Publish, SubAck, UnsubAck};
use rumqttc::mqttbytes::{self, Error};

/// IoT Hub takes messages of 256 KB; the topic, which carries the properties, comes on top.
pub(crate) const MAX_PACKET: usize = (256 + 8) * 1024;
/// A connection that has not shown who it is gets room for its names, a token and a will of some size.
pub(crate) const MAX_CONNECT: usize = 16 * 1024;
/// Filters become strings, one each.
const MAX_FILTERS: usize = 16 * 1024;

/// Why a connection is closed for what it sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("malformed packet")]
    Malformed,
    #[error("packet of {size} bytes, {most} are allowed")]
    TooLarge { size: usize, most: usize },
    #[error("not MQTT 3.1.1")]
    OtherProtocol,
    #[error("packet of a kind that a client may not send here")]
    Unexpected,
}

/// The next packet of a client, or `None` while it is incomplete. A packet that was read leaves `input`.
pub(crate) fn read(input: &mut BytesMut, connected: bool) -> Result<Option<Packet>, Fault> {
    let Some((header, remaining)) = whole(input, connected)? else {
        return Ok(None);
    };
    let most = header + remaining;
    if input[0] >> 4 == CONNECT {
        check_connect(&input[header..header + remaining])?;
    }
    match Packet::read(input, most) {
        Ok(packet) => Ok(Some(packet)),
        Err(Error::InsufficientBytes(_)) => Ok(None),
        Err(_) => Err(Fault::Malformed),
    }
}

/// The lengths of the first packet's header and of what follows it, once all of it is there.
fn whole(input: &[u8], connected: bool) -> Result<Option<(usize, usize)>, Fault> {
    let Some(&first) = input.first() else {
        return Ok(None);
    };
    let most = limit(first, connected)?;
    let Some((header, remaining)) = remaining_length(input)? else {
        return Ok(None);
    };
    if remaining > most {
        return Err(Fault::TooLarge { size: remaining, most });
    }
    if (first >> 4 == PINGREQ || first >> 4 == DISCONNECT) && remaining > 0 {
        return Err(Fault::Malformed);
    }
    Ok((input.len() >= header + remaining).then_some((header, remaining)))
}

/// The client id of a CONNECT that somebody else will read again: none while it is incomplete, an empty one if it is
/// no CONNECT.
pub(crate) fn client_id(input: &[u8]) -> Option<String> {
    match whole(input, false) {
        Ok(None) => None,
        Ok(Some((header, remaining))) => match read(&mut BytesMut::from(&input[..header + remaining]), false)
        {
            Ok(Some(Packet::Connect(connect))) => Some(connect.client_id),
            _ => Some(String::new()),
        },
        Err(_) => Some(String::new()),
    }
}

const CONNECT: u8 = 1;
const PUBLISH: u8 = 3;
const PUBACK: u8 = 4;
const SUBSCRIBE: u8 = 8;
const UNSUBSCRIBE: u8 = 10;
const PINGREQ: u8 = 12;
const DISCONNECT: u8 = 14;

/// The largest remaining length for a packet with this first byte.
fn limit(first: u8, connected: bool) -> Result<usize, Fault> {
    let (kind, flags) = (first >> 4, first & 15);
    let (most, fixed_flags) = match kind {
        CONNECT if !connected => (MAX_CONNECT, Some(0)),
        _ if !connected => return Err(Fault::Unexpected),
        PUBLISH => (MAX_PACKET, None),
        // IoT Hub grants no QoS 2, so its acknowledgements have no place here.
        PUBACK => (2, Some(0)),
        SUBSCRIBE | UNSUBSCRIBE => (MAX_FILTERS, Some(2)),
        PINGREQ | DISCONNECT => (0, Some(0)),
        _ => return Err(Fault::Unexpected),
    };
    match fixed_flags {
        Some(expected) if expected != flags => Err(Fault::Malformed),
        _ => Ok(most),
    }
}

/// The length of the fixed header and of what follows it.
fn remaining_length(input: &[u8]) -> Result<Option<(usize, usize)>, Fault> {
    let mut remaining = 0;
    for (index, byte) in input.iter().skip(1).take(4).enumerate() {
        remaining |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((index + 2, remaining)));
        }
    }
    if input.len() > 4 { Err(Fault::Malformed) } else { Ok(None) }
}

/// Looks at the protocol before the codec reads the rest, whose layout depends on it.
fn check_connect(body: &[u8]) -> Result<(), Fault> {
    match body {
        [0, 4, b'M', b'Q', b'T', b'T', 4, flags, ..] if flags & 1 == 0 => Ok(()),
        [0, 4, b'M', b'Q', b'T', b'T', 4, ..] => Err(Fault::Malformed),
        [0, 4, b'M', b'Q', b'T', b'T', _, ..] | [0, 6, b'M', b'Q', b'I', b's', b'd', b'p', ..] => {
            Err(Fault::OtherProtocol)
        }
        _ => Err(Fault::Malformed),
    }
}

/// Writes packets for clients, reusing its buffers.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    topic: String,
    payload: BytesMut,
}

impl Writer {
    /// The buffer for the topic of the next [`Writer::publish`].
    pub(crate) fn topic(&mut self) -> &mut String {
        &mut self.topic
    }

    /// Appends a PUBLISH on the topic that was written before. `pkid` counts for QoS 1 only.
    pub(crate) fn publish(&mut self, packet: Outgoing<'_>, pkid: u16, out: &mut BytesMut) {
        self.payload.put_slice(packet.payload);
        let qos = match packet.qos {
            QoS::AtMostOnce => mqttbytes::QoS::AtMostOnce,
            QoS::AtLeastOnce => mqttbytes::QoS::AtLeastOnce,
        };
        let pkid = if qos == mqttbytes::QoS::AtMostOnce { 0 } else { pkid };
        let payload = self.payload.split().freeze();
        let topic = std::mem::take(&mut self.topic);
        let publish = Publish { dup: false, qos, retain: false, topic, pkid, payload };
        publish.write(out).expect("below 256 MiB, and QoS 1 has an identifier");
        self.topic = publish.topic;
    }
}

/// Appends a packet whose size is bounded by what it answers.
fn write(packet: &Packet, out: &mut BytesMut) {
    packet.write(out, MAX_PACKET).expect("an acknowledgement is smaller than what it acknowledges");
}

pub(crate) fn connack(code: ConnectReturnCode, session_present: bool, out: &mut BytesMut) {
    write(&Packet::ConnAck(ConnAck { session_present, code }), out);
}

pub(crate) fn puback(pkid: u16, out: &mut BytesMut) {
    write(&Packet::PubAck(PubAck { pkid }), out);
}

pub(crate) fn suback(ack: SubAck, out: &mut BytesMut) {
    write(&Packet::SubAck(ack), out);
}

pub(crate) fn unsuback(pkid: u16, out: &mut BytesMut) {
    write(&Packet::UnsubAck(UnsubAck { pkid }), out);
}

pub(crate) fn pingresp(out: &mut BytesMut) {
    write(&Packet::PingResp, out);
}

/// Whether a topic can be published on: no wildcards, no NUL, not empty.
pub(crate) fn is_topic(topic: &str) -> bool {
    !topic.is_empty() && !topic.contains(['+', '#', '\0'])
}

/// A will, kept until the connection ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Will {
    pub(crate) topic: String,
    pub(crate) body: Bytes,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(bytes: &[u8], connected: bool) -> Result<usize, Fault> {
        let mut input = BytesMut::from(bytes);
        let mut packets = 0;
        while read(&mut input, connected)?.is_some() {
            packets += 1;
        }
        Ok(packets)
    }

    #[test]
    fn a_client_may_not_send_what_a_server_sends() {
        for first in [0x20, 0x50, 0x62, 0x70, 0x90, 0xb0, 0xd0, 0x00, 0xf0] {
            assert_eq!(read_all(&[first, 0], true), Err(Fault::Unexpected), "{first:#x}");
        }
        assert_eq!(read_all(&[0x30, 0], false), Err(Fault::Unexpected), "PUBLISH before CONNECT");
        assert_eq!(read_all(&[0x10, 0], true), Err(Fault::Unexpected), "a second CONNECT");
    }

    #[test]
    fn forbidden_flags_and_lengths_are_malformed() {
        assert_eq!(read_all(&[0x80, 5, 0, 1, 0, 1, b'a'], true), Err(Fault::Malformed), "SUBSCRIBE flags");
        assert_eq!(read_all(&[0xc0, 1, 0], true), Err(Fault::TooLarge { size: 1, most: 0 }), "PINGREQ body");
        assert_eq!(read_all(&[0x30, 0xff, 0xff, 0xff, 0xff], true), Err(Fault::Malformed), "length");
        assert_eq!(read_all(&[0x36, 4, 0, 1, b'a', 0], true), Err(Fault::Malformed), "QoS 3");
    }

    #[test]
    fn a_size_beyond_the_limit_is_refused_before_its_bytes_come() {
        let announced = [0x30, 0x80, 0x80, 0x80, 0x01];
        let refused = Err(Fault::TooLarge { size: 2_097_152, most: MAX_PACKET });
        assert_eq!(read_all(&announced, true), refused);
    }

    #[test]
    fn other_protocol_levels_are_told_apart_from_garbage() {
        let connect = |name: &[u8], level: u8| {
            let mut bytes = vec![0x10, 0, 0, name.len() as u8];
            bytes.extend_from_slice(name);
            bytes.extend_from_slice(&[level, 2, 0, 60, 0, 1, b'd']);
            bytes[1] = (bytes.len() - 2) as u8;
            bytes
        };
        assert_eq!(read_all(&connect(b"MQTT", 4), false), Ok(1));
        assert_eq!(read_all(&connect(b"MQTT", 5), false), Err(Fault::OtherProtocol));
        assert_eq!(read_all(&connect(b"MQIsdp", 3), false), Err(Fault::OtherProtocol));
        assert_eq!(read_all(&connect(b"HTTP", 4), false), Err(Fault::Malformed));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), connected: bool) {
            let _ = read_all(&bytes, connected);
        }

        #[test]
        fn no_body_under_a_valid_header_makes_the_reader_panic(
            first in prop::sample::select(vec![0x10u8, 0x30, 0x32, 0x34, 0x40, 0x82, 0xa2, 0xc0, 0xe0]),
            body in prop::collection::vec(any::<u8>(), 0..120),
        ) {
            let mut bytes = vec![first, body.len() as u8];
            bytes.extend_from_slice(&body);
            let _ = read_all(&bytes, first != 0x10);
        }

        #[test]
        fn a_packet_that_comes_in_pieces_is_read_once_whole(
            payload in prop::collection::vec(any::<u8>(), 0..400), cut in 0usize..400,
        ) {
            let mut bytes = BytesMut::new();
            let mut writer = Writer::default();
            writer.topic().push_str("devices/d/messages/events/");
            writer.publish(Outgoing { payload: &payload, qos: QoS::AtLeastOnce }, 7, &mut bytes);
            let cut = cut.min(bytes.len() - 1);
            let mut input = BytesMut::from(&bytes[..cut]);
            prop_assert_eq!(read(&mut input, true), Ok(None));
            input.extend_from_slice(&bytes[cut..]);
            let Ok(Some(Packet::Publish(publish))) = read(&mut input, true) else {
                return Err(TestCaseError::fail("not a publish"));
            };
            prop_assert_eq!(&publish.payload[..], &payload[..]);
            prop_assert!(input.is_empty());
        }
    }
}
