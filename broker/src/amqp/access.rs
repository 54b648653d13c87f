//! What a connection may do: the tokens that it has shown.

use fleetwave_protocol::WallTime;
use fleetwave_protocol::sas::{Key, SasError, Token};

use super::address;
use crate::policy::{Policies, PolicyError, Rights};

/// What a token allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    /// The path that it is for, in lower case; empty for all of the hub.
    path: String,
    policy: String,
    rights: Rights,
    pub(crate) expires: WallTime,
}

#[cfg(fuzzing)]
impl Grant {
    /// All that a service may do, for ever.
    pub(crate) fn whole_hub() -> Self {
        Self {
            path: String::new(),
            policy: "service".to_owned(),
            rights: Rights::SERVICE_CONNECT,
            expires: WallTime::from_unix_millis(u64::MAX),
        }
    }
}

/// The tokens of one connection.
#[derive(Debug, Default)]
pub(crate) struct Access {
    grants: Vec<Grant>,
}

/// Why a node is closed to a connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    #[error("no token was shown on $cbs that covers {0}")]
    NoToken(String),
    #[error("the token that covers {0} has expired")]
    Expired(String),
    #[error("the shared access policy {policy:?} lacks the right {wanted}")]
    Lacks { policy: String, wanted: Rights },
}

/// Reads and checks a token's text: of a policy of this hub, for one of its names, signed, not expired.
///
/// IoT Hub's SDKs sign with the bytes that a key's base64 stands for, Event Hubs' SDKs with its text.
pub(crate) fn check(policies: &Policies, text: &str, wall: WallTime) -> Result<Grant, PolicyError> {
    let token = Token::parse(text)?;
    let name = token.policy.as_deref().ok_or(PolicyError::NoPolicy)?;
    let policy = policies.get(name).ok_or_else(|| PolicyError::Unknown(name.to_owned()))?;
    let (host, path) = address::resource(&token.resource);
    if !policies.hosts().accept(host) {
        return Err(SasError::WrongResource.into());
    }
    let signed = [&policy.primary, &policy.secondary].into_iter().any(|key| {
        token.is_signed_with(key) || token.is_signed_with(&Key::from_bytes(key.to_base64().into_bytes()))
    });
    if !signed {
        return Err(SasError::WrongKey.into());
    }
    if token.expires <= wall {
        return Err(SasError::Expired.into());
    }
    Ok(Grant {
        path: path.to_ascii_lowercase(),
        policy: policy.name.clone(),
        rights: policy.rights,
        expires: token.expires,
    })
}

/// Checks what was shown by SASL PLAIN: `{policy}@sas.root.{hub}` with a token as IoT Hub has it, or a policy's name
/// with its key as Event Hubs has it.
pub(crate) fn check_plain(
    policies: &Policies,
    user: &str,
    password: &str,
    wall: WallTime,
) -> Result<Grant, PolicyError> {
    let Some((name, realm)) = user.split_once('@') else {
        return check_key(policies, user, password);
    };
    let hub = realm.get(.."sas.root.".len()).filter(|prefix| prefix.eq_ignore_ascii_case("sas.root."));
    let hub = hub.map(|prefix| &realm[prefix.len()..]).ok_or(PolicyError::NoPolicy)?;
    let hosts = policies.hosts().as_slice();
    let is_hub = |host: &String| {
        host.eq_ignore_ascii_case(hub)
            || host.split_once('.').is_some_and(|(first, _)| first.eq_ignore_ascii_case(hub))
    };
    if !hosts.is_empty() && !hosts.iter().any(is_hub) {
        return Err(SasError::WrongResource.into());
    }
    let grant = check(policies, password, wall)?;
    if grant.policy == name { Ok(grant) } else { Err(PolicyError::Unknown(name.to_owned())) }
}

fn check_key(policies: &Policies, name: &str, password: &str) -> Result<Grant, PolicyError> {
    let policy = policies.get(name).ok_or_else(|| PolicyError::Unknown(name.to_owned()))?;
    let shown = Key::from_base64(password).ok_or(SasError::WrongKey)?;
    // By way of signatures, which are compared in constant time.
    let signature = shown.sign(&[b"plain"]);
    if ![&policy.primary, &policy.secondary].into_iter().any(|key| key.verify(&[b"plain"], &signature)) {
        return Err(SasError::WrongKey.into());
    }
    Ok(Grant {
        path: String::new(),
        policy: policy.name.clone(),
        rights: policy.rights,
        expires: WallTime::from_unix_millis(u64::MAX),
    })
}

impl Access {
    /// A token was shown; it takes the place of one for the same path.
    pub(crate) fn add(&mut self, grant: Grant) {
        self.grants.retain(|old| old.path != grant.path);
        self.grants.push(grant);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.grants.is_empty()
    }

    /// When the last token ends; `None` if there is none.
    pub(crate) fn ends(&self) -> Option<WallTime> {
        self.grants.iter().map(|grant| grant.expires).max()
    }

    /// Whether the tokens open a resource.
    pub(crate) fn check(&self, resource: &str, wanted: Rights, wall: WallTime) -> Result<(), Denied> {
        let mut denied = Denied::NoToken(resource.to_owned());
        for grant in self.grants.iter().filter(|grant| covers(&grant.path, resource)) {
            if grant.expires <= wall {
                denied = Denied::Expired(resource.to_owned());
            } else if !grant.rights.include(wanted) {
                denied = Denied::Lacks { policy: grant.policy.clone(), wanted };
            } else {
                return Ok(());
            }
        }
        Err(denied)
    }
}

fn covers(path: &str, resource: &str) -> bool {
    resource
        .strip_prefix(path)
        .is_some_and(|rest| path.is_empty() || rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use fleetwave_protocol::{bag, sas};

    use super::*;
    use crate::policy::{HostNames, Policy};

    const NOW: WallTime = WallTime::from_unix_millis(1_000_000);
    const LATER: WallTime = WallTime::from_unix_millis(2_000_000);

    fn policies() -> Policies {
        let policy = |name: &str, rights| Policy {
            name: name.to_owned(),
            primary: Key::from_bytes(format!("{name}-1")),
            secondary: Key::from_bytes(format!("{name}-2")),
            rights,
        };
        Policies::new(
            HostNames::new(["localhost".to_owned()]),
            vec![policy("service", Rights::SERVICE_CONNECT), policy("device", Rights::DEVICE_CONNECT)],
        )
    }

    fn grant(key: &str, resource: &str, policy: &str) -> Result<Grant, PolicyError> {
        let text = sas::token(&Key::from_bytes(key), resource, LATER, Some(policy));
        check(&policies(), &text, NOW)
    }

    #[test]
    fn a_token_opens_its_path_and_what_lies_below() {
        let mut access = Access::default();
        assert!(matches!(access.check("hub", Rights::SERVICE_CONNECT, NOW), Err(Denied::NoToken(_))));
        access.add(grant("service-2", "sb://localhost:5671/Hub", "service").unwrap());
        let open = |resource| access.check(resource, Rights::SERVICE_CONNECT, NOW).is_ok();
        assert!(open("hub") && open("hub/consumergroups/$default/partitions/0"));
        assert!(!open("hubs") && !open("messages/devicebound"));
        assert!(matches!(access.check("hub", Rights::SERVICE_CONNECT, LATER), Err(Denied::Expired(_))));
        access.add(grant("device-1", "localhost", "device").unwrap());
        assert!(matches!(
            access.check("messages/devicebound", Rights::SERVICE_CONNECT, NOW),
            Err(Denied::Lacks { .. })
        ));
    }

    #[test]
    fn both_readings_of_a_key_are_taken_and_no_other() {
        let text_key = Key::from_bytes("service-1").to_base64();
        assert!(grant(&text_key, "sb://localhost/hub", "service").is_ok());
        let wrong = grant("service-3", "localhost", "service");
        assert_eq!(wrong, Err(SasError::WrongKey.into()));
        assert_eq!(grant("service-1", "elsewhere", "service"), Err(SasError::WrongResource.into()));
        assert_eq!(grant("x", "localhost", "x"), Err(PolicyError::Unknown("x".into())));
    }

    #[test]
    fn plain_takes_a_policy_with_its_token_or_its_key() {
        let token =
            sas::token(&Key::from_bytes("service-1"), "localhost/messages/events", LATER, Some("service"));
        let key = Key::from_bytes("service-2").to_base64();
        let plain = |user: &str, password: &str| check_plain(&policies(), user, password, NOW).is_ok();
        assert!(plain("service@sas.root.localhost", &token) && plain("service@SAS.root.localhost", &token));
        assert!(plain("service", &key));
        assert!(!plain("service", &Key::from_bytes("service-3").to_base64()) && !plain("service", "?"));
        assert!(!plain("device@sas.root.localhost", &token) && !plain("service@sas.root.other", &token));
        assert!(!plain("d@sas.localhost", &token));
    }

    #[test]
    fn the_resource_is_verified_as_it_stands() {
        let signature = Key::from_bytes("service-1").sign(&[b"localhost:8443", b"\n", b"2000"]);
        let text = format!(
            "SharedAccessSignature sr=localhost:8443&sig={}&se=2000&skn=service",
            bag::encode(&signature)
        );
        assert!(check(&policies(), &text, NOW).is_ok());
    }
}
