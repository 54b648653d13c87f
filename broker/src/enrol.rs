//! The conversation of a device that registers with the provisioning service, on the same port as all others.

use fleetwave_protocol::bag;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet, Publish, SubAck, SubscribeReasonCode};
use serde_json::Value;

use crate::auth::Refused;
use crate::codec;
use crate::dialog::{Flow, granted};
use crate::dps::{Answer, Credential, Registration};
use crate::reactor::Shard;
use crate::session::End;

const ANSWERS: &str = "$dps/registrations/res/#";
const REGISTER: &str = "$dps/registrations/PUT/iotdps-register/?";
const STATUS: &str = "$dps/registrations/GET/iotdps-get-operationstatus/?";

/// The id scope of `{scope}/registrations/{registration id}/api-version=…`.
fn scope<'a>(user: &'a str, client: &str) -> Option<&'a str> {
    let (scope, rest) = user.split_once("/registrations/")?;
    let query =
        rest.get(..client.len()).filter(|id| id.eq_ignore_ascii_case(client)).map(|id| &rest[id.len()..])?;
    let query = query.strip_prefix('/')?;
    let query = query.strip_prefix('?').unwrap_or(query);
    let versioned = query.split('&').any(|member| member.starts_with("api-version="));
    (versioned && !scope.is_empty() && !scope.contains('/')).then_some(scope)
}

impl Shard {
    /// A CONNECT of a device that wants to be registered; `None` if it is another client's.
    pub(crate) fn connect_to_register(&mut self, index: u32, connect: &Connect) -> Option<Flow> {
        let login = connect.login.as_ref()?;
        let scope = scope(&login.username, &connect.client_id)?;
        let not_authorized = |why: &str| Refused { code: ConnectReturnCode::NotAuthorized, why: why.into() };
        let Some(dps) = self.dps.clone() else {
            return Some(self.refuse(connect, not_authorized("this hub provisions no devices")));
        };
        let peer = self.sessions.peer(index);
        let shown = match login.password.as_str() {
            "" => Credential::Chain(peer.chain()),
            token => Credential::Token(token),
        };
        Some(match dps.authenticate(scope, &connect.client_id, shown) {
            Ok(registration) => {
                self.sessions.register(index, connect.keep_alive, registration);
                codec::connack(ConnectReturnCode::Success, false, self.sessions.answers());
                Flow::Next
            }
            Err(error) => self.refuse(connect, not_authorized(&error.message)),
        })
    }

    /// One packet of such a device.
    pub(crate) fn registering(&mut self, who: &Registration, packet: Packet) -> Flow {
        match packet {
            Packet::Subscribe(subscribe) if subscribe.pkid != 0 => {
                let code = |path: &str, qos| match path {
                    ANSWERS => SubscribeReasonCode::Success(granted(qos)),
                    _ => SubscribeReasonCode::Failure,
                };
                let codes = subscribe.filters.iter().map(|filter| code(&filter.path, filter.qos)).collect();
                codec::suback(SubAck::new(subscribe.pkid, codes), self.sessions.answers());
                Flow::Next
            }
            Packet::Unsubscribe(unsubscribe) if unsubscribe.pkid != 0 => {
                codec::unsuback(unsubscribe.pkid, self.sessions.answers());
                Flow::Next
            }
            Packet::Publish(publish) => self.registration_request(who, &publish),
            Packet::PubAck(_) => Flow::Next,
            Packet::PingReq => {
                codec::pingresp(self.sessions.answers());
                Flow::Next
            }
            Packet::Disconnect => Flow::End(End::Disconnected),
            _ => Flow::End(End::Faulty),
        }
    }

    fn registration_request(&mut self, who: &Registration, publish: &Publish) -> Flow {
        let Some(dps) = self.dps.clone() else { return Flow::End(End::Faulty) };
        let topic = publish.topic.as_str();
        let (answer, query) = if let Some(query) = topic.strip_prefix(REGISTER) {
            let payload = match publish.payload.trim_ascii() {
                [] => Ok(Value::Null),
                text => serde_json::from_slice::<Value>(text),
            };
            let answer = match payload {
                Ok(body) => {
                    dps.register(who, Some(body["payload"].clone()).filter(|payload| !payload.is_null()))
                }
                Err(error) => dps.malformed(&error),
            };
            (answer, query)
        } else if let Some(query) = topic.strip_prefix(STATUS) {
            let operation = bag::get(query, "operationId").unwrap_or_default();
            (dps.status(who, &operation), query)
        } else {
            tracing::debug!(topic, "a registering device published on an unknown topic");
            return Flow::End(End::Faulty);
        };
        match publish.qos {
            QoS::ExactlyOnce => return Flow::End(End::Faulty),
            QoS::AtLeastOnce => codec::puback(publish.pkid, self.sessions.answers()),
            QoS::AtMostOnce => {}
        }
        self.tell(&bag::get(query, "$rid").unwrap_or_default(), &answer);
        Flow::Next
    }

    fn tell(&mut self, rid: &str, answer: &Answer) {
        use std::fmt::Write as _;
        let mut topic = format!("$dps/registrations/res/{}/?$rid={}", answer.status, bag::encode(rid));
        if let Some(seconds) = answer.retry_after {
            let _ = write!(topic, "&retry-after={seconds}");
        }
        self.sessions.publish(&topic, answer.body.to_string().as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registering_devices_user_name_tells_its_scope() {
        let version = "api-version=2019-03-31";
        assert_eq!(scope(&format!("0ne1/registrations/d-1/{version}"), "d-1"), Some("0ne1"));
        assert_eq!(scope(&format!("0ne1/registrations/d-1/{version}&ClientVersion=x"), "D-1"), Some("0ne1"));
        for user in
            ["0ne1/registrations/d-2/api-version=1", "hub/d-1/?api-version=1", "0ne1/registrations/d-1/"]
        {
            assert_eq!(scope(user, "d-1"), None, "{user}");
        }
    }
}
