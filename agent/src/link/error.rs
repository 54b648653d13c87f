//! Why there is no connection, in words that say what to do.

use fleetwave_protocol::WallTime;
use rumqttc::{ConnectReturnCode, ConnectionError, StateError, TlsError};
use rustls::CertificateError;

use crate::identity::{FileError, IdentityError};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// The device's own key or certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The file of the connection string.
    #[error(transparent)]
    Settings(#[from] FileError),
    /// The authorities' file.
    #[error("[hub] ca: {0}")]
    Authorities(FileError),
    /// No authorities.
    #[error("this system trusts no authority{0}: install ca-certificates, or set [hub] ca")]
    NoAuthorities(String),
    /// TLS came to no end.
    #[error("TLS with {host}: {why}")]
    Tls {
        /// Who was called.
        host: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// The hub does not let the device in.
    #[error("{host} refused the device ({code}): {why}")]
    Refused {
        /// Who refused.
        host: String,
        /// Its answer.
        code: &'static str,
        /// What may be wrong.
        why: String,
    },
    /// The hub is there, and takes nobody now.
    #[error("{0} is unavailable for now")]
    Unavailable(String),
    /// The provisioning service does not assign the device.
    #[error("the provisioning service: {0}")]
    Provisioning(String),
    /// Anything else on the way.
    #[error("{host}: {why}")]
    Broken {
        /// Who was called.
        host: String,
        /// What went wrong.
        why: String,
    },
}

impl LinkError {
    /// Whether the other side knows the device and does not want it, or does not know it: trying again soon will
    /// not help.
    #[must_use]
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// What an error of the MQTT library means.
    pub(super) fn of(error: ConnectionError, host: &str, wall: WallTime) -> Self {
        let host = host.to_owned();
        let broken = |host, why: String| Self::Broken { host, why };
        match error {
            ConnectionError::ConnectionRefused(ConnectReturnCode::ServiceUnavailable) => {
                Self::Unavailable(host)
            }
            ConnectionError::ConnectionRefused(code) => {
                let code = match code {
                    ConnectReturnCode::NotAuthorized => "not authorized",
                    ConnectReturnCode::BadUserNamePassword => "bad user name or password",
                    ConnectReturnCode::BadClientId => "bad client id",
                    _ => "another version of MQTT",
                };
                let why = format!(
                    "a wrong key or certificate, an unknown or disabled device, or a wrong clock (it shows {})",
                    date(wall)
                );
                Self::Refused { host, code, why }
            }
            ConnectionError::Tls(TlsError::Io(error)) => {
                let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
                match inner {
                    Some(inner) => Self::Tls { host, why: tls(inner, wall) },
                    None => broken(host, format!("the connection broke during the TLS handshake: {error}")),
                }
            }
            ConnectionError::Tls(TlsError::DNSName(_)) => {
                Self::Tls { host, why: "not a name that can stand in a certificate".to_owned() }
            }
            ConnectionError::NetworkTimeout => broken(host, "no answer in time".to_owned()),
            ConnectionError::FlushTimeout => broken(host, "it takes nothing more".to_owned()),
            // The library's own texts repeat the kind of error.
            ConnectionError::Io(error) | ConnectionError::MqttState(StateError::Io(error)) => {
                let cause = error.get_ref().and_then(|inner| inner.source()).map(ToString::to_string);
                broken(host, plain(&cause.unwrap_or_else(|| error.to_string())))
            }
            ConnectionError::MqttState(StateError::Deserialization(rumqttc::mqttbytes::Error::Io(error))) => {
                broken(host, plain(&error.to_string()))
            }
            ConnectionError::MqttState(StateError::AwaitPingResp) => {
                broken(host, "it does not answer any more".to_owned())
            }
            error => broken(host, error.to_string()),
        }
    }
}

/// What an error of the connection says, without advice to programmers.
pub(crate) fn plain(text: &str) -> String {
    match text.split_once("peer closed connection without sending TLS close_notify") {
        Some((before, _)) => {
            format!(
                "{before}the connection ended without a word: the other side is gone, or something between cut it"
            )
        }
        None => text.to_owned(),
    }
}

fn tls(error: &rustls::Error, wall: WallTime) -> String {
    let rustls::Error::InvalidCertificate(cause) = error else { return error.to_string() };
    match cause {
        CertificateError::UnknownIssuer => {
            "its certificate is from an authority that this device does not trust: set [hub] ca to the authority's \
             certificate (of a local hub: ca.pem in its directory, /ca.pem of its admin port)"
                .to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("{cause}: the hub's name in the configuration has to be one of these")
        }
        CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. }
        | CertificateError::Expired
        | CertificateError::ExpiredContext { .. } => {
            format!("{cause} (this device's clock shows {})", date(wall))
        }
        _ => error.to_string(),
    }
}

/// The date of a time, as people write it.
pub(super) fn date(wall: WallTime) -> String {
    // Days to a civil date, by Howard Hinnant's algorithm.
    let days = wall.as_unix_secs() / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, says) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (1_798_675_199, "2026-12-30"),
            (4_102_444_800, "2100-01-01"),
        ] {
            assert_eq!(date(WallTime::from_unix_millis(seconds * 1000)), says);
        }
    }

    #[test]
    fn a_connection_that_was_cut_is_told_of_without_advice_to_programmers() {
        let cut = "peer closed connection without sending TLS close_notify: https://docs.rs/rustls";
        let error = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, cut);
        let error = rumqttc::mqttbytes::Error::Io(error);
        let error = ConnectionError::MqttState(StateError::Deserialization(error));
        let told = LinkError::of(error, "hub", WallTime::from_unix_millis(0)).to_string();
        assert!(told.starts_with("hub: the connection ended without a word"), "{told}");
        assert!(!told.contains("https://"), "{told}");
    }

    #[test]
    fn who_is_refused_is_told_apart_from_who_comes_at_a_bad_time() {
        let of = |code| {
            LinkError::of(ConnectionError::ConnectionRefused(code), "hub", WallTime::from_unix_millis(0))
        };
        assert!(of(ConnectReturnCode::NotAuthorized).is_refusal());
        assert!(of(ConnectReturnCode::NotAuthorized).to_string().contains("1970-01-01"));
        assert!(!of(ConnectReturnCode::ServiceUnavailable).is_refusal());
    }
}
