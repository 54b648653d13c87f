//! Who a client is: its names and its token.

use std::sync::Arc;

use fleetwave_protocol::sas::{Key, Token};
use fleetwave_protocol::{Profile, Up, WallTime};
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, LastWill};

use crate::codec::{self, Will};
use crate::policy::{Policies, Rights};

/// What a hub lets in.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    /// What devices' keys are derived from.
    pub(crate) group_key: Key,
    /// The hub's names and its shared access policies.
    pub(crate) policies: Arc<Policies>,
}

/// A refusal: what the client is told, and what the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) code: ConnectReturnCode,
    pub(crate) why: &'static str,
}

const fn refused(code: ConnectReturnCode, why: &'static str) -> Refused {
    Refused { code, why }
}

impl Gate {
    /// Checks a CONNECT; gives the time at which its token ends.
    pub(crate) fn check(&self, connect: &Connect, wall: WallTime) -> Result<WallTime, Refused> {
        use ConnectReturnCode::{BadClientId, BadUserNamePassword, NotAuthorized};
        let id = connect.client_id.as_str();
        if !is_client_id(id) {
            return Err(refused(BadClientId, "not a device id"));
        }
        let Some(login) = &connect.login else {
            return Err(refused(BadUserNamePassword, "no user name"));
        };
        let host = host_of(&login.username, id)
            .ok_or(refused(BadUserNamePassword, "the user name is not {host}/{client id}/?api-version=…"))?;
        if id.contains('/') {
            return Err(refused(NotAuthorized, "module identities are not modelled"));
        }
        if !self.policies.hosts().accept(host) {
            return Err(refused(NotAuthorized, "the user name names another hub"));
        }
        let not_authorized = |_| refused(NotAuthorized, "the token is malformed, forged, or has expired");
        let token = Token::parse(&login.password).map_err(not_authorized)?;
        let resource = format!("{host}/devices/{id}");
        match &token.policy {
            None => token.check(&resource, wall, &self.group_key.derive(id)).map_err(not_authorized)?,
            Some(_) => {
                let checked = self.policies.check_parsed(&token, &resource, Rights::DEVICE_CONNECT, wall);
                checked
                    .map_err(|_| refused(NotAuthorized, "the policy's token is no good for this device"))?;
            }
        }
        Ok(token.expires)
    }
}

/// Device ids, and `{device}/{module}`: up to 128 characters each of those that IoT Hub allows.
fn is_client_id(id: &str) -> bool {
    let part = |part: &str| {
        (1..=128).contains(&part.len())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-:.+%_#*?!(),=@;$'".contains(&byte))
    };
    match id.split_once('/') {
        Some((device, module)) => part(device) && part(module),
        None => part(id),
    }
}

/// The host of `{host}/{client id}/?api-version=…` or `{host}/{client id}/api-version=…`.
fn host_of<'a>(user: &'a str, id: &str) -> Option<&'a str> {
    let (host, rest) = user.split_once('/')?;
    let query = rest.strip_prefix(id)?.strip_prefix('/')?;
    let query = query.strip_prefix('?').unwrap_or(query);
    let versioned = query.split('&').any(|member| member.starts_with("api-version="));
    (!host.is_empty() && versioned).then_some(host)
}

/// The will to keep; `None` if it is on a topic that the client may not publish on.
pub(crate) fn will(client: &str, will: &LastWill) -> Option<Will> {
    if !codec::is_topic(&will.topic) || will.qos == rumqttc::mqttbytes::QoS::ExactlyOnce {
        return None;
    }
    match Profile::IotHub.decode_up(client, &will.topic, &will.message) {
        Ok(Up::Telemetry { .. }) => Some(Will { topic: will.topic.clone(), body: will.message.clone() }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{HostNames, Policy};
    use fleetwave_protocol::sas;

    fn gate() -> Gate {
        Gate {
            group_key: Key::from_bytes(*b"group"),
            policies: Arc::new(Policies::new(
                HostNames::new(["hub.example".to_owned()]),
                vec![Policy {
                    name: "device".into(),
                    primary: Key::from_bytes(*b"policy"),
                    secondary: Key::from_bytes(*b"policy2"),
                    rights: Rights::DEVICE_CONNECT,
                }],
            )),
        }
    }

    const NOW: WallTime = WallTime::from_unix_millis(1_000_000);
    const LATER: WallTime = WallTime::from_unix_millis(2_000_000);

    fn connect(id: &str, user: &str, password: &str) -> Connect {
        let mut connect = Connect::new(id);
        connect.set_login(user, password);
        connect
    }

    fn code(connect: &Connect) -> Option<ConnectReturnCode> {
        gate().check(connect, NOW).err().map(|refused| refused.code)
    }

    #[test]
    fn a_device_comes_in_with_its_own_key_or_a_policys() {
        let own = sas::token(&gate().group_key.derive("d"), "hub.example/devices/d", LATER, None);
        let policy = sas::token(&Key::from_bytes(*b"policy"), "hub.example", LATER, Some("device"));
        for password in [&own, &policy] {
            for user in [
                "hub.example/d/?api-version=2021-04-12&DeviceClientType=x",
                "hub.example/d/api-version=2016-11-14",
                "HUB.example/d/?model-id=m&api-version=2021-04-12",
            ] {
                assert_eq!(gate().check(&connect("d", user, password), NOW), Ok(LATER), "{user}");
            }
        }
    }

    #[test]
    fn each_refusal_has_its_code() {
        use ConnectReturnCode::{BadClientId, BadUserNamePassword, NotAuthorized};
        let user = "hub.example/d/?api-version=2021-04-12";
        let token = |id: &str, key: &str, end| {
            sas::token(&gate().group_key.derive(key), &format!("hub.example/devices/{id}"), end, None)
        };
        let good = token("d", "d", LATER);
        assert_eq!(code(&connect("d", user, &good)), None);
        assert_eq!(code(&connect("", user, &good)), Some(BadClientId));
        assert_eq!(code(&connect("d d", user, &good)), Some(BadClientId));
        assert_eq!(code(&Connect::new("d")), Some(BadUserNamePassword));
        assert_eq!(code(&connect("d", "d", &good)), Some(BadUserNamePassword));
        assert_eq!(code(&connect("d", "hub.example/e/?api-version=1", &good)), Some(BadUserNamePassword));
        assert_eq!(code(&connect("d", "hub.example/d/", &good)), Some(BadUserNamePassword));
        assert_eq!(code(&connect("d", "other/d/?api-version=1", &good)), Some(NotAuthorized));
        assert_eq!(code(&connect("d", user, "")), Some(NotAuthorized));
        assert_eq!(code(&connect("d", user, &token("d", "e", LATER))), Some(NotAuthorized));
        assert_eq!(code(&connect("d", user, &token("e", "d", LATER))), Some(NotAuthorized));
        assert_eq!(code(&connect("d", user, &token("d", "d", NOW))), Some(NotAuthorized));
        let unknown = sas::token(&gate().group_key, "hub.example", LATER, Some("nobody"));
        assert_eq!(code(&connect("d", user, &unknown)), Some(NotAuthorized));
    }
}
