//! The configuration: one TOML file, whose mistakes are told with their line.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::VerifyingKey;
use fleetwave_agent_core::{Backoff, Policy, TrustRoot};
use fleetwave_protocol::sas::Key;
use serde::Deserialize;

use crate::logs::Log;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Something in it is wrong.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// What is wrong, without quoting the line: it may hold the device's key.
        message: String,
    },
}

/// What the agent is told by its operator.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The directory of journal, slots and downloads.
    pub state: PathBuf,
    /// The hub.
    pub hub: Hub,
    /// What runs before the first update.
    pub installed: Installed,
    /// Who may sign releases.
    pub trust: Trust,
    /// How a new release is judged.
    #[serde(default)]
    pub health: Health,
    /// Delays and limits.
    #[serde(default)]
    pub limits: Limits,
    /// What is logged.
    #[serde(default)]
    pub log: Log,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`], with the place of the first mistake.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        toml::from_str(&text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            ConfigError::Invalid {
                path: path.to_owned(),
                line: before.matches('\n').count() + 1,
                column: before.rsplit('\n').next().unwrap_or_default().chars().count() + 1,
                message: error.message().to_owned(),
            }
        })
    }
}

/// The hub, and who the device is there.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hub {
    /// As the hub's operator hands it out.
    pub connection_string: ConnectionString,
}

/// `HostName=…;DeviceId=…;SharedAccessKey=…`.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct ConnectionString {
    /// The hub's name, without a port.
    pub host: String,
    /// Its MQTT port.
    pub port: u16,
    /// The device's id.
    pub device: String,
    /// The device's key.
    pub key: Key,
}

/// The port of MQTT without TLS.
const MQTT_PORT: u16 = 1883;

impl TryFrom<String> for ConnectionString {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (mut host, mut device, mut key) = (None, None, None);
        for member in text.split(';').filter(|member| !member.is_empty()) {
            let (name, value) =
                member.split_once('=').ok_or("a member of the connection string has no `=`")?;
            let slot = match name {
                "HostName" => &mut host,
                "DeviceId" => &mut device,
                "SharedAccessKey" => &mut key,
                _ => {
                    return Err(format!(
                        "`{name}` in the connection string is not supported: HostName, DeviceId and \
                         SharedAccessKey are"
                    ));
                }
            };
            *slot = Some(value);
        }
        let missing = |name: &str| format!("the connection string has no {name}");
        let address = host.ok_or_else(|| missing("HostName"))?;
        let (host, port) = match address.rsplit_once(':') {
            // An IPv6 address in brackets has colons of its own.
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| format!("HostName: {port:?} is not a port"))?)
            }
            _ => (address, MQTT_PORT),
        };
        if !is_loopback(host) {
            return Err(format!(
                "HostName: {host:?} is not this machine. This version of the agent has no TLS yet, and does not \
                 send a device's credentials over a network without it: use localhost, 127.0.0.1 or [::1]"
            ));
        }
        let device = device.ok_or_else(|| missing("DeviceId"))?;
        if device.is_empty()
            || device.len() > 128
            || !device.bytes().all(|b| b.is_ascii_graphic() && !b"/+#".contains(&b))
        {
            return Err("DeviceId: 1 to 128 ASCII characters without spaces and / + #".to_owned());
        }
        let key = key.ok_or_else(|| missing("SharedAccessKey"))?;
        let key = Key::from_base64(key).ok_or("SharedAccessKey is not base64")?;
        Ok(Self { host: host.to_owned(), port, device: device.to_owned(), key })
    }
}

/// Whether `host` can only be this machine: without TLS the agent talks to no other.
pub(crate) fn is_loopback(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The release that a device came with.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Installed {
    /// Its name.
    pub id: String,
    /// Its sequence.
    pub seq: u64,
}

/// The release keys.
#[derive(Clone, Deserialize)]
#[serde(try_from = "TrustTable")]
pub struct Trust(pub TrustRoot);

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trust")
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TrustTable {
    threshold: usize,
    keys: BTreeMap<String, ReleaseKey>,
}

impl TryFrom<TrustTable> for Trust {
    type Error = String;

    fn try_from(TrustTable { threshold, keys }: TrustTable) -> Result<Self, String> {
        if !(1..=keys.len()).contains(&threshold) {
            return Err(format!("threshold is {threshold}, with {} keys: 1 up to their number", keys.len()));
        }
        Ok(Self(TrustRoot::new(keys.into_iter().map(|(id, key)| (id, key.0)).collect(), threshold)))
    }
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct ReleaseKey(VerifyingKey);

impl TryFrom<String> for ReleaseKey {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bytes = STANDARD.decode(text).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        bytes
            .and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok())
            .map(Self)
            .ok_or("not a base64 Ed25519 public key (32 bytes)")
    }
}

/// How a new release is judged.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// A program and its arguments; its exit code says whether the release is healthy. Without one it is healthy as
    /// soon as it reaches the hub.
    pub command: Vec<String>,
}

/// Delays and limits.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The longest random delay before an update starts.
    pub splay_seconds: u64,
    /// The first pause before a step is tried again; later ones are longer.
    pub retry_seconds: u64,
    /// The first pause before connecting again; later ones are longer.
    pub reconnect_seconds: u64,
    /// How long a new release has to become healthy and to reach the hub.
    pub probation_seconds: u64,
    /// The largest payload.
    pub slot_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        let policy = Policy::default();
        Self {
            splay_seconds: policy.splay.as_secs(),
            retry_seconds: policy.retry.first.as_secs(),
            reconnect_seconds: policy.reconnect.first.as_secs(),
            probation_seconds: policy.probation_timeout.as_secs(),
            slot_bytes: policy.slot_size,
        }
    }
}

impl Limits {
    /// The policy that they make.
    #[must_use]
    pub fn policy(&self) -> Policy {
        let policy = Policy::default();
        let first =
            |seconds: u64, backoff: Backoff| Backoff { first: Duration::from_secs(seconds), ..backoff };
        Policy {
            splay: Duration::from_secs(self.splay_seconds),
            retry: first(self.retry_seconds, policy.retry),
            reconnect: first(self.reconnect_seconds, policy.reconnect),
            probation_timeout: Duration::from_secs(self.probation_seconds),
            slot_size: self.slot_bytes,
            ..policy
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(text: &str) -> Result<ConnectionString, String> {
        text.to_owned().try_into()
    }

    #[test]
    fn a_connection_string_names_hub_port_device_and_key() {
        let read =
            connection("HostName=[::1]:8883;DeviceId=dev-1;SharedAccessKey=a2V5").expect("well-formed");
        assert_eq!((read.host.as_str(), read.port, read.device.as_str()), ("[::1]", 8883, "dev-1"));
        let read = connection("HostName=localhost;DeviceId=dev-1;SharedAccessKey=a2V5").expect("well-formed");
        assert_eq!((read.host.as_str(), read.port), ("localhost", 1883));
    }

    #[test]
    fn a_hub_elsewhere_is_refused_because_there_is_no_tls_yet() {
        for host in ["hub.azure-devices.net", "10.0.0.1:1883", "localhost.example"] {
            let error = connection(&format!("HostName={host};DeviceId=d;SharedAccessKey=a2V5"));
            assert!(error.expect_err(host).contains("no TLS yet"), "{host}");
        }
    }

    #[test]
    fn a_refusal_never_quotes_the_key() {
        let bad = [
            "HostName=localhost;SharedAccessKey=c2VjcmV0",
            "SharedAccessKey=%c2VjcmV0;HostName=::1;DeviceId=d",
        ];
        for text in bad {
            let error = connection(text).expect_err("refused");
            assert!(!error.contains("c2VjcmV0"), "{error}");
        }
    }
}
