//! How devices and modules show who they are, and what else the registry keeps of them beside their twins.
//!
//! Most devices of a fleet have a *derived* identity: nothing is kept of it, its key is derived from the hub's group
//! key by whoever checks tokens, and its generation id and etag are computed from its id. An identity that a service
//! wrote is kept beside the device's record. Keys and generation ids come from outside: a core draws no numbers.

use std::fmt;
use std::hash::Hasher as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fleetwave_protocol::WallTime;
use fleetwave_protocol::sas::Key;
use rustc_hash::FxHasher;

use crate::error::{ErrorCode, HubError};
use crate::limits;

/// How a device or module shows who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Authentication {
    /// By a token that is signed with the key which is derived from the hub's group key and the client id.
    #[default]
    Derived,
    /// By a token that is signed with one of its own keys.
    Sas {
        /// The one that clients use.
        primary: Key,
        /// The one that they can use while the other is replaced.
        secondary: Key,
    },
    /// By a certificate with one of these thumbprints; nobody comes in if both are absent.
    SelfSigned {
        /// The one that clients use.
        primary: Option<Thumbprint>,
        /// The one that they can use while the other is replaced.
        secondary: Option<Thumbprint>,
    },
    /// By a certificate of an authority that the hub trusts, made out to the device's id.
    CertificateAuthority,
    /// Not at all: modules of an edge device that has not come up yet.
    None,
}

impl Authentication {
    /// The word for it in identities and twins.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Derived | Self::Sas { .. } => "sas",
            Self::SelfSigned { .. } => "selfSigned",
            Self::CertificateAuthority => "certificateAuthority",
            Self::None => "none",
        }
    }

    /// The thumbprints, primary and secondary; none but for [`Authentication::SelfSigned`].
    #[must_use]
    pub const fn thumbprints(&self) -> [Option<&Thumbprint>; 2] {
        match self {
            Self::SelfSigned { primary, secondary } => [primary.as_ref(), secondary.as_ref()],
            _ => [None, None],
        }
    }
}

/// The SHA-1 or SHA-256 digest of a certificate in upper-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thumbprint(Box<str>);

impl Thumbprint {
    /// Takes 40 (SHA-1) or 64 (SHA-256) hexadecimal digits of either case.
    ///
    /// # Errors
    /// 400004 for anything else.
    pub fn parse(text: &str) -> Result<Self, HubError> {
        if matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(Self(text.to_ascii_uppercase().into_boxed_str()));
        }
        Err(limits::invalid(format!(
            "the thumbprint {text:?} is not 40 (SHA-1) or 64 (SHA-256) hexadecimal digits"
        )))
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a service says of an identity that it makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// How it shows who it is.
    pub authentication: Authentication,
    /// Tells devices apart that had the same id one after the other. IoT Hub's are counts of 100 ns.
    pub generation_id: u64,
    /// Why the status is what it is.
    pub status_reason: Option<String>,
    /// Whether it is an edge device: it gets the modules `$edgeAgent` and `$edgeHub`, and a scope.
    pub edge: bool,
    /// The scope of the edge device that it is below; an edge device's own, made of id and generation id if absent.
    pub device_scope: Option<String>,
    /// The scopes of the edge devices above; a device below an edge device has that one's if absent.
    pub parent_scopes: Vec<String>,
    /// Of a module: who manages it.
    pub managed_by: Option<String>,
}

/// A change of an identity; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityChange {
    /// Whether it may connect.
    pub enabled: Option<bool>,
    /// Why the status is what it is; an empty text removes the reason.
    pub status_reason: Option<String>,
    /// How it shows who it is. A connection goes on with what it showed when it was made.
    pub authentication: Option<Authentication>,
    /// Whether it is an edge device.
    pub edge: Option<bool>,
    /// The scope; an empty text removes it.
    pub device_scope: Option<String>,
    /// The scopes of the edge devices above.
    pub parent_scopes: Option<Vec<String>>,
    /// Of a module: who manages it; an empty text says nobody.
    pub managed_by: Option<String>,
}

/// The etag of an identity, without quotes: it changes with each write of the identity, not with the twin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceEtag(u32);

impl DeviceEtag {
    /// Nine digits that depend on the generation, so that a device which is made again has another etag.
    pub(crate) fn of(generation_id: u64, writes: u32) -> Self {
        const FIRST: u32 = 100_000_000;
        const COUNT: u64 = 900_000_000;
        let mut hasher = FxHasher::default();
        hasher.write_u64(generation_id);
        let place = (hasher.finish() % COUNT + u64::from(writes)) % COUNT;
        Self(FIRST + u32::try_from(place).expect("less than the count"))
    }

    /// Whether a given etag, in quotes or bare, is this one.
    #[must_use]
    pub fn is(self, given: &str) -> bool {
        given.trim_matches('"') == self.to_string()
    }

    /// Refuses a given etag that is neither this one nor `*`.
    pub(crate) fn check(self, if_match: Option<&str>) -> Result<(), HubError> {
        if is_forced(if_match) || if_match.is_some_and(|given| self.is(given)) {
            return Ok(());
        }
        Err(HubError::new(
            ErrorCode::PreconditionFailed,
            format!("the identity's etag is {self}, not {}", if_match.unwrap_or_default().trim_matches('"')),
        ))
    }
}

impl fmt::Display for DeviceEtag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0.to_string()))
    }
}

/// Whether a write is to be done whatever the etag is.
pub(crate) fn is_forced(if_match: Option<&str>) -> bool {
    if_match.is_none_or(|etag| etag.trim_matches('"') == "*")
}

/// The identity of a device or module, as it is now.
#[derive(Clone, Copy, Debug)]
pub struct IdentityView<'a> {
    /// The device, or the device of the module.
    pub device_id: &'a str,
    /// The module.
    pub module_id: Option<&'a str>,
    /// How it shows who it is.
    pub authentication: &'a Authentication,
    /// Tells devices apart that had the same id one after the other.
    pub generation_id: u64,
    /// Changes with each write of the identity.
    pub etag: DeviceEtag,
    /// Whether it may connect.
    pub enabled: bool,
    /// Why the status is what it is.
    pub status_reason: Option<&'a str>,
    /// When the status changed, if it did and it is known.
    pub status_updated: Option<WallTime>,
    /// Whether it is connected.
    pub connected: bool,
    /// When it connected or disconnected last, if it did and it is known.
    pub connection_updated: Option<WallTime>,
    /// When it connected, read, reported or sent last, if it did.
    pub last_activity: Option<WallTime>,
    /// How many C2D messages wait for it.
    pub c2d_waiting: usize,
    /// Whether it is an edge device.
    pub edge: bool,
    /// Its scope.
    pub device_scope: Option<&'a str>,
    /// The scopes of the edge devices above.
    pub parent_scopes: &'a [String],
    /// Who manages the module.
    pub managed_by: Option<&'a str>,
    /// The model that it named when it connected last.
    pub model_id: Option<&'a str>,
}

/// How many devices there are. Modules are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// All of them.
    pub total: u64,
    /// Those that may connect.
    pub enabled: u64,
    /// Those that may not.
    pub disabled: u64,
    /// Those that are connected.
    pub connected: u64,
}

/// The device's part and the module's part of a client id.
pub(crate) fn split(id: &str) -> (&str, Option<&str>) {
    match id.split_once('/') {
        Some((device, module)) => (device, Some(module)),
        None => (id, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thumbprint_is_a_digest_in_hexadecimal_digits() {
        let sha1 = "a361ea6a7119a8b0b7bbffa2eafdad1f9d5bed8c";
        assert_eq!(Thumbprint::parse(sha1).unwrap().as_str(), sha1.to_uppercase());
        assert!(Thumbprint::parse(&"F".repeat(64)).is_ok());
        for bad in ["", "A361", &"g".repeat(40), &"a".repeat(41), &format!("{}:", "a".repeat(39))] {
            assert_eq!(Thumbprint::parse(bad).unwrap_err().code, ErrorCode::ArgumentInvalid, "{bad:?}");
        }
    }

    #[test]
    fn a_device_etag_is_base64_of_nine_digits_and_changes_with_each_write() {
        let mut seen = Vec::new();
        for writes in [0, 1, 2, u32::MAX] {
            let text = DeviceEtag::of(637_121_074_930_370_650, writes).to_string();
            let digits = STANDARD.decode(&text).unwrap();
            assert!(digits.len() == 9 && digits.iter().all(u8::is_ascii_digit), "{text}");
            assert!(!seen.contains(&text));
            seen.push(text);
        }
        assert_ne!(DeviceEtag::of(1, 0), DeviceEtag::of(2, 0));
    }

    #[test]
    fn keys_do_not_show_when_an_identity_is_printed() {
        let key = Key::from_bytes(*b"secret");
        let identity = Identity {
            authentication: Authentication::Sas { primary: key.clone(), secondary: key.clone() },
            ..Identity::default()
        };
        let printed = format!("{identity:?}");
        assert!(!printed.contains("secret") && !printed.contains(&key.to_base64()), "{printed}");
    }
}
