//! How to reach a hub, and with whose rights: the connection string of one of its shared access policies.

use std::fmt;
use std::str::FromStr;

use fleetwave_protocol::WallTime;
use fleetwave_protocol::sas::{self, Key};

/// The form of a connection string, for messages.
const FORM: &str = "HostName=NAME.azure-devices.net;SharedAccessKeyName=POLICY;SharedAccessKey=KEY";
/// The port of REST operations where the string names none.
const HTTPS: u16 = 443;

/// A connection string of a shared access policy. The key is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Access {
    /// The hub's name, which tokens are for.
    host: String,
    https_port: u16,
    policy: String,
    key: Key,
    /// Where connections go in place of the hub's name.
    gateway: Option<String>,
}

/// Why a text is no connection string of a policy. No message repeats what may be a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// It has no such member.
    #[error("{0} is missing in the connection string; it has the form {FORM}")]
    Missing(&'static str),
    /// It is one of a device.
    #[error(
        "this is the connection string of a device (it has DeviceId); one of a shared access policy with the rights \
         `registry write` and `service connect` is needed: {FORM}"
    )]
    OfDevice,
    /// A member that is not `NAME=VALUE`.
    #[error("part {0} of the connection string is not NAME=VALUE; it has the form {FORM}")]
    Malformed(usize),
    /// The key is not base64.
    #[error("SharedAccessKey is not base64; copy the whole key, with the `=` at its end")]
    Key,
    /// The name cannot be one.
    #[error("{member} {value:?} is not a host name{hint}")]
    Host {
        /// `HostName` or `GatewayHostName`.
        member: &'static str,
        /// What it is.
        value: String,
        /// What would do.
        hint: &'static str,
    },
}

impl Access {
    /// The hub's name, without a port.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The name that connections are made to, and that certificates are held to.
    #[must_use]
    pub fn reach(&self) -> &str {
        self.gateway.as_deref().unwrap_or(&self.host)
    }

    /// The port of REST operations.
    #[must_use]
    pub const fn https_port(&self) -> u16 {
        self.https_port
    }

    /// The name of the policy whose rights these are.
    #[must_use]
    pub fn policy(&self) -> &str {
        &self.policy
    }

    /// A token for the service's operations.
    pub(super) fn token(&self, expires: WallTime) -> String {
        sas::token(&self.key, &self.host, expires, Some(&self.policy))
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("host", &self.host)
            .field("https_port", &self.https_port)
            .field("policy", &self.policy)
            .field("gateway", &self.gateway)
            .finish_non_exhaustive()
    }
}

/// Whether a text is meant as a connection string, well formed or not.
#[must_use]
pub fn is_connection_string(text: &str) -> bool {
    text.contains(';') || text.trim_start().to_ascii_lowercase().starts_with("hostname=")
}

impl FromStr for Access {
    type Err = AccessError;

    fn from_str(text: &str) -> Result<Self, AccessError> {
        let (mut host, mut policy, mut key, mut gateway) = (None, None, None, None);
        let members = text.trim().split(';').map(str::trim).enumerate();
        for (place, member) in members.filter(|(_, member)| !member.is_empty()) {
            let (name, value) = member.split_once('=').ok_or(AccessError::Malformed(place + 1))?;
            let slot = match name.to_ascii_lowercase().as_str() {
                "hostname" => &mut host,
                "sharedaccesskeyname" => &mut policy,
                "sharedaccesskey" => &mut key,
                "gatewayhostname" => &mut gateway,
                "deviceid" => return Err(AccessError::OfDevice),
                _ => continue,
            };
            *slot = Some(value).filter(|value| !value.is_empty());
        }
        let host = host.ok_or(AccessError::Missing("HostName"))?;
        let policy = policy.ok_or(AccessError::Missing("SharedAccessKeyName"))?.to_owned();
        let key =
            Key::from_base64(key.ok_or(AccessError::Missing("SharedAccessKey"))?).ok_or(AccessError::Key)?;
        let (host, https_port) = host_and_port("HostName", host)?;
        let gateway = match gateway {
            Some(gateway) => match host_and_port("GatewayHostName", gateway)? {
                (gateway, HTTPS) => Some(gateway),
                _ => return Err(wrong("GatewayHostName", gateway, "; it takes no port")),
            },
            None => None,
        };
        Ok(Self { host, https_port, policy, key, gateway })
    }
}

fn wrong(member: &'static str, value: &str, hint: &'static str) -> AccessError {
    AccessError::Host { member, value: value.to_owned(), hint }
}

fn host_and_port(member: &'static str, text: &str) -> Result<(String, u16), AccessError> {
    const ALONE: &str = "; give the name alone, without https:// or a path";
    if text.contains('/') {
        return Err(wrong(member, text, ALONE));
    }
    let (host, port) = match text.rsplit_once(':') {
        None => (text, HTTPS),
        Some((host, port)) => {
            let port = port.parse().ok().filter(|port| *port != 0);
            (host, port.ok_or_else(|| wrong(member, text, "; the port has to be a number from 1 to 65535"))?)
        }
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if host.is_empty() || !host.chars().all(plain) {
        return Err(wrong(member, text, ALONE));
    }
    Ok((host.to_ascii_lowercase(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "HostName=My-Hub.azure-devices.net;SharedAccessKeyName=iothubowner;SharedAccessKey=c2VjcmV0";

    #[test]
    fn a_policys_string_is_read_whatever_the_order_and_case_of_its_names() {
        let access: Access = GOOD.parse().expect("well formed");
        assert_eq!((access.host(), access.https_port()), ("my-hub.azure-devices.net", 443));
        assert_eq!((access.policy(), access.reach()), ("iothubowner", "my-hub.azure-devices.net"));
        let turned =
            "sharedaccesskey=c2VjcmV0; sharedaccesskeyname=iothubowner;hostname=my-hub.azure-devices.net;\n";
        assert_eq!(turned.parse(), Ok(access));
    }

    #[test]
    fn a_gateway_is_where_connections_go_and_tokens_stay_for_the_hub() {
        let access: Access = format!("{GOOD};GatewayHostName=localhost").parse().expect("well formed");
        assert_eq!((access.reach(), access.host()), ("localhost", "my-hub.azure-devices.net"));
        let local: Access =
            GOOD.replace("My-Hub.azure-devices.net", "localhost:8443").parse().expect("a port");
        assert_eq!((local.host(), local.https_port()), ("localhost", 8443));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named_and_no_key_is_shown() {
        let wrong = [
            GOOD.replace("HostName=My-Hub.azure-devices.net;", ""),
            GOOD.replace("SharedAccessKeyName=iothubowner;", ""),
            GOOD.replace("c2VjcmV0", ""),
            GOOD.replace("c2VjcmV0", "not base64"),
            GOOD.replace("My-Hub", "https://my-hub"),
            GOOD.replace(".net", ".net:0"),
            format!("{GOOD};DeviceId=d1"),
            format!("{GOOD};c2VjcmV0"),
            String::new(),
        ];
        let texts: Vec<String> =
            wrong.iter().map(|text| text.parse::<Access>().expect_err("it is wrong").to_string()).collect();
        assert!(!texts.concat().contains("c2VjcmV0"), "{texts:#?}");
        insta::assert_snapshot!(texts.join("\n"));
    }

    #[test]
    fn debugging_shows_no_key() {
        let access: Access = GOOD.parse().expect("well formed");
        assert!(!format!("{access:?}").contains("c2Vj"), "{access:?}");
    }
}
