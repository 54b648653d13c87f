//! The hub, and who the device is there.

use std::net::IpAddr;

use fleetwave_protocol::sas::Key;
use serde::Deserialize;

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
