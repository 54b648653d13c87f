//! What clients show in the SASL exchange before a connection opens.
//!
//! Source: OASIS AMQP 1.0, part 5; IoT Hub's guide "Control access with shared access signatures" for PLAIN. `MSSBCBS` is
//! the mechanism of a client that will show a token on the `$cbs` node; the service SDK for Python uses it.

use bytes::Bytes;

use super::performative::{SaslInit, SaslMechanisms, Symbol};

/// The mechanisms, in the order of offering.
const MECHANISMS: [&str; 4] = ["MSSBCBS", "PLAIN", "ANONYMOUS", "EXTERNAL"];

/// What a client has shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// Nothing yet: tokens follow on `$cbs`.
    Later,
    /// User and password.
    Plain { user: String, password: String },
    /// A mechanism that was not offered, or a response that is not of its form.
    Unusable,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Later => f.write_str("Later"),
            Self::Plain { user, .. } => write!(f, "Plain({user:?}, …)"),
            Self::Unusable => f.write_str("Unusable"),
        }
    }
}

pub(crate) fn mechanisms() -> SaslMechanisms {
    SaslMechanisms { mechanisms: MECHANISMS.map(|name| Symbol(name.to_owned())).into() }
}

pub(crate) fn credentials(init: SaslInit) -> Credentials {
    match init.mechanism.0.as_str() {
        "MSSBCBS" | "ANONYMOUS" | "EXTERNAL" => Credentials::Later,
        "PLAIN" => plain(&init.initial_response.unwrap_or_default()).unwrap_or(Credentials::Unusable),
        _ => Credentials::Unusable,
    }
}

/// `authorization id NUL user NUL password`.
fn plain(response: &Bytes) -> Option<Credentials> {
    let text = std::str::from_utf8(response).ok()?;
    let mut parts = text.split('\0');
    let (_, user, password) = (parts.next()?, parts.next()?, parts.next()?);
    parts
        .next()
        .is_none()
        .then(|| Credentials::Plain { user: user.to_owned(), password: password.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(mechanism: &str, response: &'static [u8]) -> Credentials {
        credentials(SaslInit {
            mechanism: Symbol(mechanism.into()),
            initial_response: Some(Bytes::from_static(response)),
            hostname: None,
        })
    }

    #[test]
    fn each_mechanism_shows_what_it_has() {
        assert_eq!(shown("MSSBCBS", b""), Credentials::Later);
        assert_eq!(shown("ANONYMOUS", b"any"), Credentials::Later);
        let plain = Credentials::Plain { user: "u".into(), password: "p".into() };
        assert_eq!(shown("PLAIN", b"\0u\0p"), plain);
        assert_eq!(shown("PLAIN", b"z\0u\0p"), plain);
        assert_eq!(shown("PLAIN", b"u\0p"), Credentials::Unusable);
        assert_eq!(shown("PLAIN", b"\0u\0\xff"), Credentials::Unusable);
        assert_eq!(shown("SCRAM-SHA-1", b""), Credentials::Unusable);
        assert!(!format!("{:?}", shown("PLAIN", b"\0u\0secret")).contains("secret"));
    }
}
