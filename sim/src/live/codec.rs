//! MQTT packets of the device's side: rumqttc's codec, and buffers that a shard reuses.

use bytes::{BufMut, BytesMut};
use fleetwave_protocol::profile::{QoS, plain};
use fleetwave_protocol::{Profile, Up};
use rumqttc::SubscribeFilter;
use rumqttc::mqttbytes::v4::{Connect, Disconnect, LastWill, Packet, PingReq, PubAck, Publish, Subscribe};
use rumqttc::mqttbytes::{self, Error};

/// The largest packet that a device takes: a method call or C2D message with its topic, with room to spare.
const MAX_PACKET: usize = 512 * 1024;

/// What the hub sent makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The next packet and its size, or `None` while it is incomplete. A packet that was read leaves `input`.
pub(super) fn read(input: &mut BytesMut) -> Result<Option<(Packet, usize)>, Malformed> {
    let before = input.len();
    match Packet::read(input, MAX_PACKET) {
        Ok(packet) => Ok(Some((packet, before - input.len()))),
        Err(Error::InsufficientBytes(_)) => Ok(None),
        Err(_) => Err(Malformed),
    }
}

/// Writes packets one after the other into a buffer, and counts them.
#[derive(Debug)]
pub(super) struct Writer {
    profile: Profile,
    topic: String,
    payload: BytesMut,
    out: BytesMut,
    packets: u64,
}

const WRITABLE: &str = "far below 256 MiB, and acknowledged packets have an identifier";

impl Writer {
    pub(super) fn new(profile: Profile) -> Self {
        Self { profile, topic: String::new(), payload: BytesMut::new(), out: BytesMut::new(), packets: 0 }
    }

    /// What was written since the last call of [`clear`](Self::clear), and how many packets it is.
    pub(super) fn written(&self) -> (&[u8], u64) {
        (&self.out, self.packets)
    }

    pub(super) fn clear(&mut self) {
        self.out.clear();
        self.packets = 0;
    }

    /// `login` is user name and token, for a hub that wants them.
    pub(super) fn connect(&mut self, id: &str, login: Option<(String, String)>, keep_alive: u16) {
        let mut connect = Connect::new(id);
        connect.clean_session = false;
        connect.keep_alive = keep_alive;
        if let Some((user, token)) = login {
            connect.set_login(user, token);
        }
        if self.profile == Profile::Plain {
            let topic = plain::bye_topic(id);
            connect.last_will = Some(LastWill::new(topic, [], mqttbytes::QoS::AtLeastOnce, false));
        }
        self.count(|out| connect.write(out));
    }

    pub(super) fn subscribe(&mut self, id: &str) {
        let filters = self.profile.filters(id).into_iter().map(|(path, quality)| SubscribeFilter {
            path,
            qos: match quality {
                QoS::AtMostOnce => mqttbytes::QoS::AtMostOnce,
                QoS::AtLeastOnce => mqttbytes::QoS::AtLeastOnce,
            },
        });
        let mut subscribe = Subscribe::new_many(filters);
        subscribe.pkid = 1;
        self.count(|out| subscribe.write(out));
    }

    pub(super) fn up(&mut self, id: &str, message: &Up<'_>) {
        let packet = self.profile.encode_up(id, message, &mut self.topic);
        self.payload.put_slice(packet.payload);
        self.publish();
    }

    /// Writes a message that the hub acknowledges under that identifier.
    pub(super) fn up_acknowledged(&mut self, id: &str, message: &Up<'_>, packet: u16) {
        let encoded = self.profile.encode_up(id, message, &mut self.topic);
        self.payload.put_slice(encoded.payload);
        self.publish_as(mqttbytes::QoS::AtLeastOnce, packet);
    }

    /// What a device says on a plain broker when it has connected.
    pub(super) fn hello(&mut self, id: &str) {
        self.topic = plain::hello_topic(id);
        self.publish();
    }

    /// Ends the connection in good order.
    pub(super) fn goodbye(&mut self, id: &str) {
        if self.profile == Profile::Plain {
            // A broker publishes no will after a DISCONNECT.
            self.topic = plain::bye_topic(id);
            self.publish();
        }
        self.count(|out| Disconnect.write(out));
    }

    pub(super) fn ack(&mut self, pkid: u16) {
        self.count(|out| PubAck::new(pkid).write(out));
    }

    pub(super) fn ping(&mut self) {
        self.count(|out| PingReq.write(out));
    }

    /// What a device sends is not acknowledged, as a rule: see the profiles.
    fn publish(&mut self) {
        self.publish_as(mqttbytes::QoS::AtMostOnce, 0);
    }

    fn publish_as(&mut self, quality: mqttbytes::QoS, packet: u16) {
        let payload = self.payload.split().freeze();
        let topic = std::mem::take(&mut self.topic);
        let mut publish = Publish::from_bytes(topic, quality, payload);
        publish.pkid = packet;
        self.count(|out| publish.write(out));
        self.topic = publish.topic;
    }

    fn count(&mut self, write: impl FnOnce(&mut BytesMut) -> Result<usize, Error>) {
        write(&mut self.out).expect(WRITABLE);
        self.packets += 1;
    }
}
