//! Shared access policies: named keys of the hub itself, and what each opens.
//!
//! REST, AMQP and MQTT ask the same [`Policies`]. Source: the IoT Hub guide "Control access with shared access
//! signatures".

use std::fmt;
use std::ops::BitOr;

use fleetwave_protocol::WallTime;
use fleetwave_protocol::sas::{Key, SasError, Token};

/// What a policy may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights(u8);

impl Rights {
    /// Reads the registry.
    pub const REGISTRY_READ: Self = Self(1);
    /// Changes the registry.
    pub const REGISTRY_WRITE: Self = Self(2);
    /// Speaks to devices: twins, methods, C2D messages, jobs, feedback, events.
    pub const SERVICE_CONNECT: Self = Self(4);
    /// Speaks as a device.
    pub const DEVICE_CONNECT: Self = Self(8);

    /// Whether all of `wanted` are among these.
    #[must_use]
    pub fn include(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }
}

impl BitOr for Rights {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (Self::REGISTRY_READ, "RegistryRead"),
            (Self::REGISTRY_WRITE, "RegistryWrite"),
            (Self::SERVICE_CONNECT, "ServiceConnect"),
            (Self::DEVICE_CONNECT, "DeviceConnect"),
        ];
        let mut separator = "";
        for (_, name) in names.into_iter().filter(|(right, _)| self.include(*right)) {
            write!(f, "{separator}{name}")?;
            separator = ", ";
        }
        Ok(())
    }
}

/// A shared access policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its name, `skn` in tokens.
    pub name: String,
    /// The key that connection strings carry.
    pub primary: Key,
    /// The other one, with which the first can be replaced.
    pub secondary: Key,
    /// What it opens.
    pub rights: Rights,
}

/// The policies of a new IoT Hub, and their rights.
pub const DEFAULT_POLICIES: [(&str, Rights); 5] = [
    ("iothubowner", Rights(15)),
    ("service", Rights::SERVICE_CONNECT),
    ("device", Rights::DEVICE_CONNECT),
    ("registryRead", Rights::REGISTRY_READ),
    ("registryReadWrite", Rights(3)),
];

/// Why a policy's token was refused. None of it tells a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The token itself.
    #[error(transparent)]
    Token(#[from] SasError),
    /// It names no policy, so it is a device's.
    #[error("the token names no shared access policy: `skn` was expected")]
    NoPolicy,
    /// The hub has no such policy.
    #[error("the hub has no shared access policy {0:?}")]
    Unknown(String),
    /// The policy may not do it.
    #[error("the shared access policy {policy:?} lacks the right {wanted}")]
    Lacks {
        /// The policy.
        policy: String,
        /// What it would need.
        wanted: Rights,
    },
}

/// A policy's token that was found good.
#[derive(Clone, Copy, Debug)]
pub struct Granted<'a> {
    /// The policy that signed it.
    pub policy: &'a Policy,
    /// When it ends.
    pub expires: WallTime,
}

/// The names that a hub answers to; any if there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostNames(Vec<String>);

impl HostNames {
    /// These names, in any case.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self(names.into_iter().collect())
    }

    /// Whether `host`, perhaps with a port, is one of the names.
    #[must_use]
    pub fn accept(&self, host: &str) -> bool {
        let host = without_port(host);
        self.0.is_empty() || self.0.iter().any(|name| name.eq_ignore_ascii_case(host))
    }

    /// The names.
    #[must_use]
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }

    /// Whether a token for `covering` opens `resource`: the host is the same, or both are names of this hub, and
    /// the path begins with the token's. Ports don't count: some clients sign them, others leave them out.
    #[must_use]
    pub fn cover(&self, covering: &str, resource: &str) -> bool {
        let (covering, covering_path) = split(covering);
        let (host, path) = split(resource);
        let same = covering.eq_ignore_ascii_case(host)
            || (!self.0.is_empty() && self.accept(covering) && self.accept(host));
        same && path
            .strip_prefix(covering_path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || covering_path.is_empty())
    }
}

/// The host of a resource, without its port, and the path, without slashes at its ends.
fn split(resource: &str) -> (&str, &str) {
    let (host, path) = resource.split_once('/').unwrap_or((resource, ""));
    (without_port(host), path.trim_matches('/'))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

/// A hub's policies, and the names that their tokens are for.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    hosts: HostNames,
    policies: Vec<Policy>,
}

impl Policies {
    /// These policies, for a hub of these names.
    #[must_use]
    pub fn new(hosts: HostNames, policies: Vec<Policy>) -> Self {
        Self { hosts, policies }
    }

    /// The names of the hub.
    #[must_use]
    pub fn hosts(&self) -> &HostNames {
        &self.hosts
    }

    /// The policies, in order.
    #[must_use]
    pub fn as_slice(&self) -> &[Policy] {
        &self.policies
    }

    /// The policy of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Policy> {
        self.policies.iter().find(|policy| policy.name == name)
    }

    /// Checks the text of a policy's token: it covers `resource` (`{host}/{path}`, not encoded), is signed with one of
    /// the policy's keys, has not ended at `wall`, and the policy has all of `wanted`.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn check(
        &self,
        token: &str,
        resource: &str,
        wanted: Rights,
        wall: WallTime,
    ) -> Result<Granted<'_>, PolicyError> {
        self.check_parsed(&Token::parse(token)?, resource, wanted, wall)
    }

    /// [`Policies::check`] of a token that was read before.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn check_parsed(
        &self,
        token: &Token<'_>,
        resource: &str,
        wanted: Rights,
        wall: WallTime,
    ) -> Result<Granted<'_>, PolicyError> {
        let name = token.policy.as_deref().ok_or(PolicyError::NoPolicy)?;
        let policy = self.get(name).ok_or_else(|| PolicyError::Unknown(name.to_owned()))?;
        if !self.hosts.cover(&token.resource, resource) {
            return Err(SasError::WrongResource.into());
        }
        if !token.is_signed_with(&policy.primary) && !token.is_signed_with(&policy.secondary) {
            return Err(SasError::WrongKey.into());
        }
        if token.expires <= wall {
            return Err(SasError::Expired.into());
        }
        if !policy.rights.include(wanted) {
            return Err(PolicyError::Lacks { policy: policy.name.clone(), wanted });
        }
        Ok(Granted { policy, expires: token.expires })
    }
}

#[cfg(test)]
mod tests {
    use fleetwave_protocol::sas;

    use super::*;

    const NOW: WallTime = WallTime::from_unix_millis(1_000_000);
    const LATER: WallTime = WallTime::from_unix_millis(2_000_000);

    fn key(name: &str, which: &str) -> Key {
        Key::from_bytes(format!("{name}-{which}"))
    }

    fn policies(names: &[&str]) -> Policies {
        let hosts = HostNames::new(names.iter().map(|name| (*name).to_owned()));
        let policy = |(name, rights): (&str, Rights)| Policy {
            name: name.to_owned(),
            primary: key(name, "primary"),
            secondary: key(name, "secondary"),
            rights,
        };
        Policies::new(hosts, DEFAULT_POLICIES.map(policy).into())
    }

    fn token(policy: &str, which: &str, resource: &str) -> String {
        sas::token(&key(policy, which), resource, LATER, Some(policy))
    }

    #[test]
    fn either_key_of_a_policy_opens_what_its_rights_say_and_nothing_else() {
        let policies = policies(&["hub.example"]);
        let all = [
            (Rights::REGISTRY_READ, ["iothubowner", "registryRead", "registryReadWrite"].as_slice()),
            (Rights::REGISTRY_WRITE, &["iothubowner", "registryReadWrite"]),
            (Rights::SERVICE_CONNECT, &["iothubowner", "service"]),
            (Rights::DEVICE_CONNECT, &["iothubowner", "device"]),
        ];
        for (wanted, who) in all {
            for (policy, _) in DEFAULT_POLICIES {
                for which in ["primary", "secondary"] {
                    let token = token(policy, which, "hub.example");
                    let checked = policies.check(&token, "hub.example/devices/d", wanted, NOW);
                    assert_eq!(checked.is_ok(), who.contains(&policy), "{policy} for {wanted}");
                }
            }
        }
    }

    #[test]
    fn each_refusal_says_what_was_wrong() {
        let policies = policies(&["hub.example"]);
        let check = |token: &str, wall| {
            policies.check(token, "hub.example/twins/d", Rights::SERVICE_CONNECT, wall).unwrap_err()
        };
        let good = token("service", "primary", "hub.example");
        assert_eq!(check(&good, LATER), SasError::Expired.into());
        assert_eq!(check("nonsense", NOW), SasError::Malformed.into());
        assert_eq!(check(&token("service", "primary", "other"), NOW), SasError::WrongResource.into());
        assert_eq!(check(&token("service", "third", "hub.example"), NOW), SasError::WrongKey.into());
        assert_eq!(
            check(&token("admin", "primary", "hub.example"), NOW),
            PolicyError::Unknown("admin".into())
        );
        let own = sas::token(&key("service", "primary"), "hub.example", LATER, None);
        assert_eq!(check(&own, NOW), PolicyError::NoPolicy);
        assert_eq!(
            check(&token("device", "primary", "hub.example"), NOW).to_string(),
            r#"the shared access policy "device" lacks the right ServiceConnect"#
        );
    }

    #[test]
    fn a_token_covers_its_path_on_every_name_of_its_hub() {
        let named = HostNames::new(["localhost".to_owned(), "hub.azure-devices.net".to_owned()]);
        let open = HostNames::default();
        for (token, resource, expected) in [
            ("localhost", "localhost/devices/d", true),
            ("localhost:8443", "localhost/devices/d", true),
            ("LOCALHOST", "localhost:8443/devices/d", true),
            ("localhost/", "localhost/devices/d", true),
            ("localhost/devices/d", "localhost/devices/d", true),
            ("localhost/devices/d", "localhost/devices/d/modules/m", true),
            ("localhost/devices/d", "localhost/devices/d1", false),
            ("localhost/devices/D", "localhost/devices/d", false),
            ("localhost/devices/d/modules/m", "localhost/devices/d", false),
            ("", "localhost/devices/d", false),
        ] {
            assert_eq!(named.cover(token, resource), expected, "{token} for {resource}");
            assert_eq!(open.cover(token, resource), expected, "{token} for {resource}, any name");
        }
        assert!(named.cover("hub.azure-devices.net", "localhost/devices/d"));
        assert!(!open.cover("hub.azure-devices.net", "localhost/devices/d"));
        assert!(!named.cover("elsewhere", "localhost/devices/d"));
        assert!(named.accept("Localhost:8883") && !named.accept("elsewhere"));
    }
}
