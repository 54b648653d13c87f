//! Who a client is: its names, and its token or certificate.

use std::borrow::Cow;
use std::sync::Arc;

use fleetwave_hub_core::Authentication;

use fleetwave_protocol::sas::{Key, SasError, Token};
use fleetwave_protocol::{Profile, Up, WallTime, bag};
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, LastWill};

use crate::codec::{self, Will};
use crate::policy::{Policies, Rights};
use crate::tls::PeerIdentity;
use crate::x509::{self, Authorities};

/// What a hub lets in.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    /// The hub's names and its own keys.
    pub(crate) policies: Arc<Policies>,
    /// What devices' keys are derived from, as far as they have none of their own.
    pub(crate) group_key: Key,
    /// Who may vouch for devices' certificates.
    pub(crate) authorities: Authorities,
}

/// Who a client says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim<'a> {
    /// `{device}` or `{device}/{module}`.
    pub(crate) id: &'a str,
    /// The model that it says it implements.
    pub(crate) model: Option<Cow<'a, str>>,
    /// The hub that it wants.
    host: &'a str,
    /// Its token; empty if it shows a certificate.
    password: &'a str,
}

/// A refusal: what the client is told, and what the log is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) code: ConnectReturnCode,
    pub(crate) why: String,
}

fn refused(code: ConnectReturnCode, why: impl ToString) -> Refused {
    Refused { code, why: why.to_string() }
}

fn not_authorized(why: impl ToString) -> Refused {
    refused(ConnectReturnCode::NotAuthorized, why)
}

impl<'a> Claim<'a> {
    /// Reads a CONNECT.
    pub(crate) fn read(connect: &'a Connect) -> Result<Self, Refused> {
        use ConnectReturnCode::{BadClientId, BadUserNamePassword};
        let id = connect.client_id.as_str();
        if !is_client_id(id) {
            return Err(refused(BadClientId, "the client id is neither a device id nor {device}/{module}"));
        }
        let Some(login) = &connect.login else {
            return Err(refused(BadUserNamePassword, "no user name"));
        };
        let (host, query) = names(&login.username, id).ok_or_else(|| {
            refused(BadUserNamePassword, "the user name is not {host}/{client id}/?api-version=…")
        })?;
        let model =
            query.split('&').find_map(|member| member.strip_prefix("model-id=")).and_then(bag::decode);
        Ok(Self { id, model, host, password: &login.password })
    }

    /// A device or module that speaks over HTTPS. The token is empty if it shows a certificate.
    pub(crate) fn over_https(id: &'a str, host: &'a str, token: &'a str) -> Self {
        Self { id, model: None, host, password: token }
    }

    /// The resource that it opens.
    fn resource(&self) -> String {
        let host = self.host;
        match self.id.split_once('/') {
            Some((device, module)) => format!("{host}/devices/{device}/modules/{module}"),
            None => format!("{host}/devices/{}", self.id),
        }
    }
}

impl Gate {
    /// Checks what a client shows against how it is registered; gives the time at which that ends.
    pub(crate) fn check(
        &self,
        claim: &Claim<'_>,
        registered: &Authentication,
        peer: &PeerIdentity,
        wall: WallTime,
    ) -> Result<WallTime, Refused> {
        if !self.policies.hosts().accept(claim.host) {
            return Err(not_authorized(format!("the user name is for the hub {:?}", claim.host)));
        }
        if claim.password.is_empty() {
            self.check_certificate(claim, registered, peer, wall)?;
            // IoT Hub lets a connection outlive the certificate that it was made with.
            return Ok(WallTime::from_unix_millis(u64::MAX));
        }
        let token = Token::parse(claim.password).map_err(not_authorized)?;
        let resource = claim.resource();
        if token.policy.is_some() {
            let checked = self.policies.check_parsed(&token, &resource, Rights::DEVICE_CONNECT, wall);
            return checked.map(|granted| granted.expires).map_err(not_authorized);
        }
        let signed = match registered {
            Authentication::Derived => token.is_signed_with(&self.group_key.derive(claim.id)),
            Authentication::Sas { primary, secondary } => {
                token.is_signed_with(primary) || token.is_signed_with(secondary)
            }
            other => return Err(not_authorized(format!("it is registered as {:?}: no key", other.name()))),
        };
        if !self.policies.hosts().cover(&token.resource, &resource) {
            return Err(not_authorized(SasError::WrongResource));
        }
        if !signed {
            return Err(not_authorized(SasError::WrongKey));
        }
        if token.expires <= wall {
            return Err(not_authorized(SasError::Expired));
        }
        Ok(token.expires)
    }

    /// Checks what a client shows that names something which is not registered: nobody without a token of the right
    /// form is told so. Its signature can't be checked; so of a device that is registered (`beside_known`) nobody
    /// without a policy's token is told which modules it has.
    pub(crate) fn check_unknown(
        &self,
        claim: &Claim<'_>,
        beside_known: bool,
        wall: WallTime,
    ) -> Result<(), Refused> {
        let token = Token::parse(claim.password).map_err(not_authorized)?;
        let resource = claim.resource();
        if token.policy.is_some() {
            let checked = self.policies.check_parsed(&token, &resource, Rights::DEVICE_CONNECT, wall);
            return checked.map(drop).map_err(not_authorized);
        }
        if !self.policies.hosts().cover(&token.resource, &resource) {
            return Err(not_authorized(SasError::WrongResource));
        }
        if beside_known {
            return Err(not_authorized(SasError::WrongKey));
        }
        if token.expires <= wall { Err(not_authorized(SasError::Expired)) } else { Ok(()) }
    }

    fn check_certificate(
        &self,
        claim: &Claim<'_>,
        registered: &Authentication,
        peer: &PeerIdentity,
        wall: WallTime,
    ) -> Result<(), Refused> {
        let Some(leaf) = peer.chain().first() else {
            return Err(not_authorized("neither a token nor a certificate"));
        };
        match registered {
            Authentication::SelfSigned { .. } => {
                let mut thumbprints = registered.thumbprints().into_iter().flatten();
                if thumbprints.any(|thumbprint| x509::has_thumbprint(leaf, thumbprint.as_str())) {
                    Ok(())
                } else {
                    Err(not_authorized("the certificate has another thumbprint"))
                }
            }
            Authentication::CertificateAuthority => {
                let name = self.authorities.vouch(peer, wall).map_err(not_authorized)?;
                if name == claim.id {
                    Ok(())
                } else {
                    Err(not_authorized(format!("the certificate is made out to {name:?}")))
                }
            }
            other => Err(not_authorized(format!("it is registered as {:?}: no certificate", other.name()))),
        }
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

/// The host and the query of `{host}/{client id}/?api-version=…` or `{host}/{client id}/api-version=…`.
fn names<'a>(user: &'a str, id: &str) -> Option<(&'a str, &'a str)> {
    let (host, rest) = user.split_once('/')?;
    let query = rest.strip_prefix(id)?.strip_prefix('/')?;
    let query = query.strip_prefix('?').unwrap_or(query);
    let versioned = query.split('&').any(|member| member.starts_with("api-version="));
    (!host.is_empty() && versioned).then_some((host, query))
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
        let policy = |name: &str, rights| Policy {
            name: name.into(),
            primary: Key::from_bytes(*b"policy"),
            secondary: Key::from_bytes(*b"policy-2"),
            rights,
        };
        let policies =
            vec![policy("device", Rights::DEVICE_CONNECT), policy("service", Rights::SERVICE_CONNECT)];
        Gate {
            policies: Arc::new(Policies::new(HostNames::new(["hub.example".into()]), policies)),
            group_key: Key::from_bytes(*b"group"),
            authorities: Authorities::default(),
        }
    }

    fn check(connect: &Connect) -> Result<WallTime, Refused> {
        gate().check(&Claim::read(connect)?, &Authentication::Derived, &PeerIdentity::NONE, NOW)
    }

    const NOW: WallTime = WallTime::from_unix_millis(1_000_000);
    const LATER: WallTime = WallTime::from_unix_millis(2_000_000);

    fn connect(id: &str, user: &str, password: &str) -> Connect {
        let mut connect = Connect::new(id);
        connect.set_login(user, password);
        connect
    }

    fn code(connect: &Connect) -> Option<ConnectReturnCode> {
        check(connect).err().map(|refused| refused.code)
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
                assert_eq!(check(&connect("d", user, password)), Ok(LATER), "{user}");
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
        let service = sas::token(&Key::from_bytes(*b"policy"), "hub.example", LATER, Some("service"));
        assert_eq!(code(&connect("d", user, &service)), Some(NotAuthorized), "it may not speak as a device");
        let unknown = sas::token(&gate().group_key, "hub.example", LATER, Some("nobody"));
        assert_eq!(code(&connect("d", user, &unknown)), Some(NotAuthorized));
    }
}
