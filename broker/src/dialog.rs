//! What a client's packets do: the conversation of one session.

use bytes::BytesMut;
use fleetwave_hub_core::Topics;
use fleetwave_protocol::profile::{Channel, iothub};
use fleetwave_protocol::{Now, Profile, Up, bag};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{
    Connect, ConnectReturnCode, Packet, Publish, SubAck, Subscribe, SubscribeReasonCode, Unsubscribe,
};

use crate::auth::{self, Claim, Refused};
use crate::codec;
use crate::engine::Hello;
use crate::reactor::Shard;
use crate::session::End;

/// How a conversation goes on.
#[derive(Debug)]
pub(crate) enum Flow {
    /// With the next packet.
    Next,
    /// Not before the hub has accepted the connection.
    Wait,
    /// In another shard.
    Elsewhere(usize, Box<Connect>),
    /// Not at all.
    End(End),
}

impl Shard {
    /// One packet of a session.
    pub(crate) fn packet(&mut self, index: u32, now: Now, packet: Packet) -> Flow {
        self.engine.metrics.packets_in += 1;
        if let Packet::Connect(connect) = packet {
            return self.connect(index, now, connect);
        }
        if let Some(who) = self.sessions.registration(index) {
            return self.registering(&who, packet);
        }
        if let Some((_, serial)) = self.open(index)
            && let Some(tap) = &self.sessions.tap
        {
            tap.up(serial, &packet);
        }
        match packet {
            Packet::Publish(publish) => self.publish(index, &publish),
            Packet::PubAck(ack) => self.acknowledge(index, ack.pkid),
            Packet::Subscribe(subscribe) => self.subscribe(index, &subscribe),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(index, &unsubscribe),
            Packet::PingReq => {
                codec::pingresp(self.sessions.answers());
                Flow::Next
            }
            Packet::Disconnect => Flow::End(End::Disconnected),
            // The codec's guard lets nothing else through.
            _ => Flow::End(End::Faulty),
        }
    }

    pub(crate) fn connect(&mut self, index: u32, now: Now, connect: Connect) -> Flow {
        if let Some(flow) = self.connect_to_register(index, &connect) {
            return flow;
        }
        let home = self.assign.shard(&connect.client_id, self.shards.len());
        if home != self.index {
            return Flow::Elsewhere(home, Box::new(connect));
        }
        if let Some(serial) = self.sessions.get(index).map(|session| session.serial)
            && let Some(tap) = &mut self.sessions.tap
        {
            tap.connect(serial, &connect);
        }
        let claim = match Claim::read(&connect) {
            Ok(claim) => claim,
            Err(refused) => return self.refuse(&connect, refused),
        };
        let Some(device) = self.engine.find(claim.id) else {
            tracing::debug!(client = connect.client_id, "a connection was refused: no such device");
            codec::connack(ConnectReturnCode::NotAuthorized, false, self.sessions.answers());
            self.engine.metrics.refused_unknown += 1;
            return Flow::End(End::Refused);
        };
        let peer = self.sessions.peer(index);
        let registered = self.engine.hub().identity(device).authentication;
        let expires = match self.gate.check(&claim, registered, &peer, now.wall) {
            Ok(expires) => expires,
            Err(refused) => return self.refuse(&connect, refused),
        };
        let will = match &connect.last_will {
            None => None,
            Some(will) => match auth::will(&connect.client_id, will) {
                Some(will) => Some(will),
                None => return Flow::End(End::Faulty),
            },
        };
        self.sessions.identify(index, now, connect.keep_alive, expires, will);
        let Some(session) = self.sessions.get(index) else { return Flow::End(End::Lost) };
        let serial = session.serial;
        let hello = Hello { device, session: serial, clean: connect.clean_session, model: claim.model };
        self.engine.connect(hello, &mut self.sessions);
        Flow::Wait
    }

    pub(crate) fn refuse(&mut self, connect: &Connect, refused: Refused) -> Flow {
        tracing::debug!(client = connect.client_id, why = refused.why, "a connection was refused");
        codec::connack(refused.code, false, self.sessions.answers());
        let metrics = &mut self.engine.metrics;
        match refused.code {
            ConnectReturnCode::BadClientId => metrics.refused_client_id += 1,
            ConnectReturnCode::BadUserNamePassword => metrics.refused_user_name += 1,
            _ => metrics.refused_credentials += 1,
        }
        Flow::End(End::Refused)
    }

    fn publish(&mut self, index: u32, publish: &Publish) -> Flow {
        let Some((device, serial)) = self.open(index) else { return Flow::End(End::Lost) };
        if publish.qos == QoS::ExactlyOnce || !codec::is_topic(&publish.topic) {
            return Flow::End(End::Faulty);
        }
        let message = Profile::IotHub.decode_up(self.engine.id(device), &publish.topic, &publish.payload);
        let Ok(message) = message else {
            tracing::debug!(device = self.engine.id(device), topic = publish.topic, "unknown topic");
            return Flow::End(End::Faulty);
        };
        // The hub has the message once it is in its hands, so the acknowledgement may go first.
        if publish.qos == QoS::AtLeastOnce {
            codec::puback(publish.pkid, self.sessions.answers());
        }
        match message {
            // Nothing is retained: whoever reads the message is told that it was to be.
            Up::Telemetry { properties, body } if publish.retain => {
                let mut marked = properties.to_owned();
                bag::push(&mut marked, "mqtt-retain", "true");
                let message = Up::Telemetry { properties: &marked, body };
                self.engine.up(device, serial, message, &mut self.sessions);
            }
            message => self.engine.up(device, serial, message, &mut self.sessions),
        }
        Flow::Next
    }

    fn acknowledge(&mut self, index: u32, pkid: u16) -> Flow {
        if let Some(delivery) = self.sessions.acknowledged(index, pkid)
            && let Some((device, _)) = self.open(index)
        {
            self.engine.acknowledge(device, delivery, &mut self.sessions);
        }
        Flow::Next
    }

    fn subscribe(&mut self, index: u32, subscribe: &Subscribe) -> Flow {
        let Some((device, _)) = self.open(index) else { return Flow::End(End::Lost) };
        if subscribe.pkid == 0 {
            return Flow::End(End::Faulty);
        }
        let mut topics = Topics::NONE;
        let mut codes = Vec::with_capacity(subscribe.filters.len());
        for filter in &subscribe.filters {
            codes.push(match iothub::channel(self.engine.id(device), &filter.path) {
                Some(channel) => {
                    topics = topics | topic(channel);
                    if channel == Channel::CloudToDevice {
                        self.sessions.set_c2d_quality(index, filter.qos == QoS::AtMostOnce);
                    }
                    SubscribeReasonCode::Success(granted(filter.qos))
                }
                None => SubscribeReasonCode::Failure,
            });
        }
        codec::suback(SubAck::new(subscribe.pkid, codes), self.sessions.answers());
        if topics != Topics::NONE {
            self.engine.subscribe(device, topics, &mut self.sessions);
        }
        Flow::Next
    }

    fn unsubscribe(&mut self, index: u32, unsubscribe: &Unsubscribe) -> Flow {
        let Some((device, _)) = self.open(index) else { return Flow::End(End::Lost) };
        if unsubscribe.pkid == 0 || unsubscribe.topics.is_empty() {
            return Flow::End(End::Faulty);
        }
        let topics = unsubscribe
            .topics
            .iter()
            .filter_map(|filter| iothub::channel(self.engine.id(device), filter))
            .fold(Topics::NONE, |topics, channel| topics | topic(channel));
        codec::unsuback(unsubscribe.pkid, self.sessions.answers());
        self.engine.unsubscribe(device, topics, &mut self.sessions);
        Flow::Next
    }

    /// A session goes on in the shard of its device.
    pub(crate) fn adopt(&mut self, index: u32, connect: Connect, rest: BytesMut) {
        let now = self.engine.now();
        self.sessions.begin(index);
        self.engine.metrics.packets_in += 1;
        match self.connect(index, now, connect) {
            Flow::End(end) => {
                self.sessions.finish();
                self.end(index, end);
            }
            _ => {
                self.sessions.finish();
                if !rest.is_empty() {
                    self.sessions.keep_partial(index, rest);
                }
                self.arrived(index, &[]);
            }
        }
    }
}

fn topic(channel: Channel) -> Topics {
    match channel {
        Channel::TwinAnswers => Topics::TWIN_ANSWERS,
        Channel::Desired => Topics::DESIRED,
        Channel::Methods => Topics::METHODS,
        Channel::CloudToDevice => Topics::C2D,
        Channel::Inputs => Topics::NONE,
    }
}

/// IoT Hub grants no QoS 2.
pub(crate) fn granted(asked: QoS) -> QoS {
    match asked {
        QoS::ExactlyOnce => QoS::AtLeastOnce,
        other => other,
    }
}
