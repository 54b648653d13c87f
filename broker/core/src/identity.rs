//! How devices and modules show who they are, and what else the registry keeps of them beside their twins.
//!
//! Most devices of a fleet have a *derived* identity: nothing is kept of it, its key is derived from the hub's group
//! key by whoever checks tokens, and its generation id and etag are computed from its id. An identity that a service
//! wrote is kept beside the device's record. Keys and generation ids come from outside: a core draws no numbers.

use std::fmt;
use std::hash::Hasher as _;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fleetwave_protocol::sas::Key;
use fleetwave_protocol::{Now, WallTime};
use rustc_hash::FxHasher;

use crate::error::{ErrorCode, HubError};
use crate::hub::Hub;
use crate::io::{CloseReason, DeviceIx, Done, Output};
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
    fn of(generation_id: u64, writes: u32) -> Self {
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
    fn check(self, if_match: Option<&str>) -> Result<(), HubError> {
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

/// An identity as the registry keeps it.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) identity: Identity,
    writes: u32,
    status_updated: Option<WallTime>,
    pub(crate) connection_updated: Option<WallTime>,
}

impl Kept {
    pub(crate) fn new(identity: Identity) -> Box<Self> {
        Box::new(Self { identity, writes: 0, status_updated: None, connection_updated: None })
    }
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

/// The generation id of a derived identity.
fn derived_generation(id: &str) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(id.as_bytes());
    // Eighteen digits, as IoT Hub's are these years.
    600_000_000_000_000_000 + hasher.finish() % 100_000_000_000_000_000
}

/// The modules that each edge device has.
pub(crate) const EDGE_MODULES: [&str; 2] = ["$edgeAgent", "$edgeHub"];

/// The scope of an edge device.
fn edge_scope(device_id: &str, generation_id: u64) -> String {
    format!("ms-azure-iot-edge://{device_id}-{generation_id}")
}

/// Fills in what a service may leave to the registry.
fn complete_scopes(identity: &mut Identity, device_id: &str) {
    if identity.edge {
        if identity.device_scope.is_none() {
            identity.device_scope = Some(edge_scope(device_id, identity.generation_id));
        }
    } else if identity.parent_scopes.is_empty()
        && let Some(scope) = &identity.device_scope
    {
        identity.parent_scopes = vec![scope.clone()];
    }
}

/// The device's part and the module's part of a client id.
pub(crate) fn split(id: &str) -> (&str, Option<&str>) {
    match id.split_once('/') {
        Some((device, module)) => (device, Some(module)),
        None => (id, None),
    }
}

impl Hub {
    /// The identity of a device or module.
    ///
    /// # Panics
    /// If there is no such device.
    #[must_use]
    pub fn identity(&self, device: DeviceIx) -> IdentityView<'_> {
        let entry = self.device(device).expect("a device of this hub");
        let id = self.registry.id(device);
        let (device_id, module_id) = split(id);
        let kept = self.kept(device);
        let identity = kept.map(|kept| &kept.identity);
        let generation_id = identity.map_or_else(|| derived_generation(id), |kept| kept.generation_id);
        IdentityView {
            device_id,
            module_id,
            authentication: identity.map_or(&Authentication::Derived, |kept| &kept.authentication),
            generation_id,
            etag: DeviceEtag::of(generation_id, kept.map_or(0, |kept| kept.writes)),
            enabled: entry.enabled,
            status_reason: identity.and_then(|kept| kept.status_reason.as_deref()),
            status_updated: kept.and_then(|kept| kept.status_updated),
            connected: entry.connected,
            connection_updated: kept.and_then(|kept| kept.connection_updated),
            last_activity: entry.last_activity(),
            c2d_waiting: self.c2d.get(&device).map_or(0, crate::c2d::Queue::len),
            edge: identity.is_some_and(|kept| kept.edge),
            device_scope: identity.and_then(|kept| kept.device_scope.as_deref()),
            parent_scopes: identity.map_or(&[], |kept| &kept.parent_scopes),
            managed_by: identity.and_then(|kept| kept.managed_by.as_deref()),
            model_id: self.models.get(&device).map(|model| &**model),
        }
    }

    /// The number of each kind of devices, counted now.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let mut statistics = Statistics::default();
        for (_, device) in self.registry.iter().filter(|(_, device)| !device.module) {
            statistics.total += 1;
            statistics.enabled += u64::from(device.enabled);
            statistics.disabled += u64::from(!device.enabled);
            statistics.connected += u64::from(device.connected);
        }
        statistics
    }

    /// What is kept of an identity; nothing of a derived one.
    fn kept(&self, ix: DeviceIx) -> Option<&Kept> {
        let kept = self.device(ix)?.kept;
        if kept { self.identities.get(&ix).map(|kept| &**kept) } else { None }
    }

    /// Keeps the identity of a device that has just been made. Its scopes are filled in.
    pub(crate) fn keep_new(&mut self, ix: DeviceIx, mut identity: Identity) {
        complete_scopes(&mut identity, self.registry.id(ix));
        self.keep(ix, Kept::new(identity));
    }

    fn keep(&mut self, ix: DeviceIx, kept: Box<Kept>) {
        if let Some(device) = self.registry.get_mut(ix) {
            device.kept = true;
            self.identities.insert(ix, kept);
        }
    }

    /// Notes when a connection began or ended, of identities that are kept.
    pub(crate) fn connection_changed(&mut self, now: Now, ix: DeviceIx) {
        if self.device(ix).is_some_and(|device| device.kept)
            && let Some(kept) = self.identities.get_mut(&ix)
        {
            kept.connection_updated = Some(now.wall);
        }
    }

    /// Notes the model that a device named when it connected.
    pub(crate) fn set_model(&mut self, ix: DeviceIx, model: Option<&str>) {
        match model {
            // Fleets have few models: devices share the text.
            Some(model) if self.models.get(&ix).is_none_or(|known| **known != *model) => {
                let shared = match &self.last_model {
                    Some(last) if **last == *model => Arc::clone(last),
                    _ => Arc::from(model),
                };
                self.last_model = Some(Arc::clone(&shared));
                self.models.insert(ix, shared);
            }
            Some(_) => {}
            None if self.models.is_empty() => {}
            None => {
                self.models.remove(&ix);
            }
        }
    }

    pub(crate) fn put_identity(
        &mut self,
        now: Now,
        ix: DeviceIx,
        change: &IdentityChange,
        if_match: Option<&str>,
        out: &mut Vec<Output>,
    ) {
        let edge = match self.check_identity(ix, change, if_match) {
            Ok(edge) => edge,
            Err(error) => return out.push(Output::Service(Err(Box::new(error)))),
        };
        let enabled = self.device(ix).is_some_and(|device| device.enabled);
        let mut kept = self.take_kept(ix);
        kept.apply(now, change, enabled);
        let device_id = split(self.registry.id(ix)).0;
        complete_scopes(&mut kept.identity, device_id);
        let etag = DeviceEtag::of(kept.identity.generation_id, kept.writes);
        self.keep(ix, kept);
        out.push(Output::Service(Ok(Done::IdentityPut { etag })));
        if let Some(enabled) = change.enabled {
            self.enable(now, ix, enabled, out);
        }
        if edge {
            self.add_edge_modules(now, ix);
        }
    }

    /// Checks all of a change before any of it is done. Says whether the device becomes an edge device.
    fn check_identity(
        &self,
        ix: DeviceIx,
        change: &IdentityChange,
        if_match: Option<&str>,
    ) -> Result<bool, HubError> {
        let device = self.existing(ix)?;
        let identity = self.identity(ix);
        identity.etag.check(if_match)?;
        if device.module && change.edge == Some(true) {
            return Err(limits::invalid("a module can't be an edge device"));
        }
        if device.module && change.enabled == Some(false) {
            return Err(limits::invalid("a module has no status of its own: disable its device"));
        }
        if let Some(reason) = &change.status_reason {
            limits::check_status_reason(reason)?;
        }
        Ok(change.edge == Some(true) && !identity.edge)
    }

    /// The identity of an existing device, to be changed and given back.
    fn take_kept(&mut self, ix: DeviceIx) -> Box<Kept> {
        self.identities.remove(&ix).unwrap_or_else(|| {
            let generation_id = derived_generation(self.registry.id(ix));
            Kept::new(Identity { generation_id, ..Identity::default() })
        })
    }

    pub(crate) fn set_status(&mut self, now: Now, ix: DeviceIx, enabled: bool, out: &mut Vec<Output>) {
        let change = IdentityChange { enabled: Some(enabled), ..IdentityChange::default() };
        let first = out.len();
        self.put_identity(now, ix, &change, None, out);
        if let Some(Output::Service(Ok(done))) = out.get_mut(first) {
            *done = Done::StatusSet;
        }
    }

    /// Lets a device connect or not; its modules follow it.
    fn enable(&mut self, now: Now, ix: DeviceIx, enabled: bool, out: &mut Vec<Output>) {
        let Some(device) = self.registry.get_mut(ix) else { return };
        device.enabled = enabled;
        if !enabled {
            self.end_session(now, ix, CloseReason::Disabled, out);
            for module in self.modules_of(ix).to_vec() {
                self.end_session(now, module, CloseReason::Disabled, out);
            }
        }
    }

    /// Refuses an identity etag that is not the current one.
    pub(crate) fn check_device_etag(&self, ix: DeviceIx, if_match: Option<&str>) -> Result<(), HubError> {
        if is_forced(if_match) { Ok(()) } else { self.identity(ix).etag.check(if_match) }
    }
}

impl Kept {
    fn apply(&mut self, now: Now, change: &IdentityChange, enabled: bool) {
        fn set(place: &mut Option<String>, text: Option<&String>) {
            if let Some(text) = text {
                *place = Some(text.clone()).filter(|text| !text.is_empty());
            }
        }
        let identity = &mut self.identity;
        if change.enabled.is_some_and(|new| new != enabled) {
            self.status_updated = Some(now.wall);
        }
        set(&mut identity.status_reason, change.status_reason.as_ref());
        set(&mut identity.device_scope, change.device_scope.as_ref());
        set(&mut identity.managed_by, change.managed_by.as_ref());
        if let Some(authentication) = &change.authentication {
            identity.authentication = authentication.clone();
        }
        if let Some(edge) = change.edge {
            identity.edge = edge;
        }
        if let Some(scopes) = &change.parent_scopes {
            identity.parent_scopes.clone_from(scopes);
        }
        self.writes = self.writes.wrapping_add(1);
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
