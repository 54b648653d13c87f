//! What the configuration says about the way to the hub: `[hub]` and `[provisioning]`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use fleetwave_protocol::Profile;
use fleetwave_protocol::sas::Key;
use serde::Deserialize;

use crate::identity::{FileError, read_secret};

const TLS_PORT: u16 = 8883;
const PLAIN_PORT: u16 = 1883;

/// `[hub]`: where it is, and how to talk to it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hub {
    /// As the hub's operator hands it out.
    pub connection_string: Option<ConnectionString>,
    /// A file that holds it.
    pub connection_string_file: Option<PathBuf>,
    /// The hub's or broker's name, if there is no connection string; may have a port.
    pub host: Option<String>,
    /// The device's id there.
    pub device_id: Option<String>,
    /// The port, if no name has one; 8883, or 1883 with `plain`.
    pub port: Option<u16>,
    /// The port of its HTTPS interface, where files are uploaded.
    pub https_port: u16,
    /// A PEM file of the authorities that may vouch for the hub; the system's if not set.
    pub ca: Option<PathBuf>,
    /// MQTT without TLS: everybody on the way can read and change what is said.
    pub plain: bool,
    /// Whose topics are used.
    pub profile: ProfileName,
    /// The user at a broker; the device's id if not set.
    pub username: Option<String>,
    /// A file with the user's password.
    pub password_file: Option<PathBuf>,
    /// How often a silent connection is probed.
    pub keep_alive_seconds: u16,
    /// How long connecting may take.
    pub connect_seconds: u64,
    /// How long a token is good; it is renewed after 80 to 90 % of that.
    pub token_seconds: u64,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            connection_string: None,
            connection_string_file: None,
            host: None,
            device_id: None,
            port: None,
            https_port: 443,
            ca: None,
            plain: false,
            profile: ProfileName::default(),
            username: None,
            password_file: None,
            keep_alive_seconds: 60,
            connect_seconds: 30,
            token_seconds: 3600,
        }
    }
}

/// The name of a profile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProfileName {
    /// IoT Hub's topics.
    #[default]
    IotHub,
    /// Topics of the device's own on any broker.
    Plain,
}

impl From<ProfileName> for Profile {
    fn from(name: ProfileName) -> Self {
        match name {
            ProfileName::IotHub => Self::IotHub,
            ProfileName::Plain => Self::Plain,
        }
    }
}

/// `[provisioning]`: a service that says which hub the device belongs to.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provisioning {
    /// The service's name; may have a port.
    pub endpoint: String,
    /// The id scope.
    pub id_scope: String,
    /// The registration id.
    pub registration_id: String,
    /// The device's symmetric key, base64.
    pub key: Option<SecretKey>,
    /// A file with it.
    pub key_file: Option<PathBuf>,
    /// The symmetric key of an enrollment group, base64: the device's is derived from it. Who holds it can be any
    /// device of the group, so derive the key at the factory if you can.
    pub group_key: Option<SecretKey>,
    /// A file with it.
    pub group_key_file: Option<PathBuf>,
    /// How long the hub may refuse the device before it asks the service again.
    #[serde(default = "reprovision_seconds")]
    pub reprovision_seconds: u64,
}

const fn reprovision_seconds() -> u64 {
    600
}

/// A symmetric key in base64.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct SecretKey(pub Key);

impl TryFrom<String> for SecretKey {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Key::from_base64(&text).map(Self).ok_or("not a key in base64")
    }
}

/// `HostName=…;DeviceId=…;SharedAccessKey=…`, or `x509=true` in place of the key.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct ConnectionString {
    /// The hub's name.
    pub host: Address,
    /// A gateway in front of it.
    pub gateway: Option<Address>,
    /// The device's id.
    pub device: String,
    /// The device's key.
    pub key: Option<Key>,
}

/// A name or address, and a port if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The name.
    pub host: String,
    /// The port.
    pub port: Option<u16>,
}

impl Address {
    /// Reads `name` or `name:port`.
    pub(crate) fn parse(member: &str, text: &str) -> Result<Self, String> {
        let (host, port) = match text.rsplit_once(':') {
            // An IPv6 address in brackets has colons of its own.
            Some((host, port)) if !port.ends_with(']') => {
                (host, Some(port.parse().map_err(|_| format!("{member}: {port:?} is not a port"))?))
            }
            _ => (text, None),
        };
        if host.is_empty() || host.contains('/') {
            return Err(format!("{member}: a name was expected, without a scheme and a path"));
        }
        if host.contains(':') && !host.starts_with('[') {
            return Err(format!("{member}: an IPv6 address stands in brackets"));
        }
        Ok(Self { host: host.to_owned(), port })
    }

    /// The port that is meant.
    pub(crate) fn port(&self, configured: Option<u16>, plain: bool) -> u16 {
        self.port.or(configured).unwrap_or(if plain { PLAIN_PORT } else { TLS_PORT })
    }
}

impl TryFrom<String> for ConnectionString {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (mut host, mut gateway, mut device, mut key, mut x509) = (None, None, None, None, None);
        for member in text.trim().split(';').filter(|member| !member.is_empty()) {
            let (name, value) =
                member.split_once('=').ok_or("a member of the connection string has no `=`")?;
            let slot = match name {
                "HostName" => &mut host,
                "GatewayHostName" => &mut gateway,
                "DeviceId" => &mut device,
                "SharedAccessKey" => &mut key,
                "x509" => &mut x509,
                _ => {
                    return Err(format!(
                        "`{name}` in the connection string is not supported: HostName, DeviceId, SharedAccessKey, \
                         GatewayHostName and x509 are"
                    ));
                }
            };
            *slot = Some(value);
        }
        let missing = |name: &str| format!("the connection string has no {name}");
        let host = Address::parse("HostName", host.ok_or_else(|| missing("HostName"))?)?;
        let gateway = gateway.map(|gateway| Address::parse("GatewayHostName", gateway)).transpose()?;
        let device = device.ok_or_else(|| missing("DeviceId"))?.to_owned();
        check_device("DeviceId", &device)?;
        let key = match (key, x509) {
            (Some(key), None) => Some(Key::from_base64(key).ok_or("SharedAccessKey is not base64")?),
            (None, Some("true")) => None,
            (None, _) => return Err(missing("SharedAccessKey (or x509=true, with an [identity])")),
            (Some(_), Some(_)) => {
                return Err("the connection string has both SharedAccessKey and x509".to_owned());
            }
        };
        Ok(Self { host, gateway, device, key })
    }
}

pub(crate) fn check_device(member: &str, device: &str) -> Result<(), String> {
    let good = (1..=128).contains(&device.len())
        && device.bytes().all(|b| b.is_ascii_graphic() && !b"/+#".contains(&b));
    if good {
        return Ok(());
    }
    Err(format!("{member}: 1 to 128 ASCII characters without spaces and / + #"))
}

/// Whether `host` can only be this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl Hub {
    /// The connection string that there is, if it is not one of a file that has to be read first.
    pub(crate) fn read_connection_string(&self) -> Result<Option<ConnectionString>, FileError> {
        let Some(path) = &self.connection_string_file else {
            return Ok(self.connection_string.clone());
        };
        let text = read_secret(path)?;
        text.try_into().map(Some).map_err(|why: String| FileError::content(path, why))
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_secs(self.connect_seconds)
    }

    pub(crate) fn token_life(&self) -> Duration {
        Duration::from_secs(self.token_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(text: &str) -> Result<ConnectionString, String> {
        text.to_owned().try_into()
    }

    #[test]
    fn a_connection_string_names_hub_gateway_port_device_and_key() {
        let read =
            connection("HostName=hub.example;DeviceId=dev-1;SharedAccessKey=a2V5;GatewayHostName=[::1]:88")
                .expect("well-formed");
        assert_eq!((read.host.host.as_str(), read.host.port(None, false)), ("hub.example", 8883));
        let gateway = read.gateway.expect("named");
        assert_eq!((gateway.host.as_str(), gateway.port), ("[::1]", Some(88)));
        assert_eq!((read.device.as_str(), read.key.is_some()), ("dev-1", true));
        let read = connection("HostName=localhost;DeviceId=dev-1;x509=true").expect("well-formed");
        assert_eq!((read.host.port(None, true), read.host.port(Some(7), true)), (1883, 7));
        assert!(read.key.is_none());
    }

    #[test]
    fn a_refusal_names_the_member_and_never_quotes_the_key() {
        for (text, says) in [
            ("HostName=localhost;SharedAccessKey=c2VjcmV0", "no DeviceId"),
            ("SharedAccessKey=%c2VjcmV0;HostName=::1;DeviceId=d", "HostName"),
            ("SharedAccessKey=%c2VjcmV0;HostName=h;DeviceId=d", "SharedAccessKey is not base64"),
            ("SharedAccessKey=c2VjcmV0;HostName=https://h/;DeviceId=d", "HostName"),
            ("SharedAccessKey=c2VjcmV0;HostName=h;DeviceId=a/b", "DeviceId"),
            ("SharedAccessKey=c2VjcmV0;HostName=h;DeviceId=d;x509=true", "both"),
            ("HostName=h;DeviceId=d", "x509=true"),
            ("HostName=h;DeviceId=d;SharedAccessKeyName=c2VjcmV0", "`SharedAccessKeyName`"),
        ] {
            let error = connection(text).expect_err("refused");
            assert!(error.contains(says) && !error.contains("c2VjcmV0"), "{error}");
        }
    }
}
