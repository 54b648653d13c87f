//! The JSON of device and module identities, both ways.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fleetwave_hub_core::{
    Authentication, DeviceIx, ErrorCode, HubError, Identity, IdentityChange, IdentityView, Iso8601,
    Thumbprint,
};
use fleetwave_protocol::WallTime;
use fleetwave_protocol::sas::Key;
use serde::{Deserialize, Serialize};

use crate::{HubControl, ShardView};

/// What keys may have, in bytes.
const KEY_SIZE: std::ops::RangeInclusive<usize> = 16..=64;
/// The size of the keys that the hub makes.
const NEW_KEY_SIZE: usize = 32;
/// From the first day of IoT Hub's calendar to 1970, in the 100 ns in which generation ids count.
const TICKS_BEFORE_1970: u64 = 621_355_968_000_000_000;

/// An identity as a service sends it. Members that only the hub writes are not among these.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct IdentityBody {
    pub(super) device_id: Option<String>,
    pub(super) module_id: Option<String>,
    pub(super) status: Option<String>,
    pub(super) status_reason: Option<String>,
    pub(super) authentication: Option<AuthenticationBody>,
    pub(super) capabilities: Option<CapabilitiesBody>,
    pub(super) device_scope: Option<String>,
    pub(super) parent_scopes: Option<Vec<String>>,
    pub(super) managed_by: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AuthenticationBody {
    #[serde(rename = "type")]
    kind: Option<String>,
    symmetric_key: Option<KeysBody>,
    x509_thumbprint: Option<ThumbprintsBody>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeysBody {
    primary_key: Option<String>,
    secondary_key: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ThumbprintsBody {
    primary_thumbprint: Option<String>,
    secondary_thumbprint: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CapabilitiesBody {
    iot_edge: Option<bool>,
}

/// What a service says of how an identity shows who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// Exactly so.
    As(Authentication),
    /// By keys, whichever: those that there are, or new ones.
    ByKeys,
}

impl Shown {
    /// What a new identity gets.
    fn make(self) -> Authentication {
        match self {
            Self::As(authentication) => authentication,
            Self::ByKeys => Authentication::Sas { primary: new_key(), secondary: new_key() },
        }
    }

    /// What an existing identity changes to; nothing if it stays.
    fn over(self, old: &Authentication) -> Option<Authentication> {
        match (self, old) {
            (Self::ByKeys, Authentication::Sas { .. } | Authentication::Derived) => None,
            (shown, _) => Some(shown.make()),
        }
    }
}

fn new_key() -> Key {
    Key::from_bytes(rand::random::<[u8; NEW_KEY_SIZE]>())
}

fn invalid(message: impl Into<Cow<'static, str>>) -> HubError {
    HubError { code: ErrorCode::ArgumentInvalid, message: message.into() }
}

fn given(text: Option<&String>) -> Option<&str> {
    text.map(|text| text.trim()).filter(|text| !text.is_empty())
}

impl AuthenticationBody {
    fn keys(&self) -> Result<Option<(Key, Key)>, HubError> {
        let Some(keys) = &self.symmetric_key else { return Ok(None) };
        match (given(keys.primary_key.as_ref()), given(keys.secondary_key.as_ref())) {
            (Some(primary), Some(secondary)) => {
                Ok(Some((key("primaryKey", primary)?, key("secondaryKey", secondary)?)))
            }
            (None, None) => Ok(None),
            _ => Err(invalid(
                "primaryKey and secondaryKey come together: give both, or none to have them made",
            )),
        }
    }

    fn thumbprints(&self) -> Result<[Option<Thumbprint>; 2], HubError> {
        let Some(thumbprints) = &self.x509_thumbprint else { return Ok([None, None]) };
        let parse = |text| given(text).map(Thumbprint::parse).transpose();
        Ok([
            parse(thumbprints.primary_thumbprint.as_ref())?,
            parse(thumbprints.secondary_thumbprint.as_ref())?,
        ])
    }

    /// Checks it.
    fn shown(&self) -> Result<Shown, HubError> {
        let (keys, [primary, secondary]) = (self.keys()?, self.thumbprints()?);
        let thumbprints = primary.is_some() || secondary.is_some();
        let kind = match given(self.kind.as_ref()) {
            Some(kind) => kind.to_ascii_lowercase(),
            None if thumbprints => "selfsigned".into(),
            None => "sas".into(),
        };
        let alone = |other: bool, what: &str| {
            if other {
                Err(invalid(format!("authentication of type {kind:?} has no {what}")))
            } else {
                Ok(())
            }
        };
        match kind.as_str() {
            "sas" => {
                alone(thumbprints, "thumbprints")?;
                Ok(keys.map_or(Shown::ByKeys, |(primary, secondary)| {
                    Shown::As(Authentication::Sas { primary, secondary })
                }))
            }
            "selfsigned" => {
                alone(keys.is_some(), "symmetric keys")?;
                if !thumbprints {
                    return Err(invalid("authentication of type \"selfSigned\" needs a thumbprint"));
                }
                Ok(Shown::As(Authentication::SelfSigned { primary, secondary }))
            }
            "certificateauthority" => {
                alone(keys.is_some(), "symmetric keys")?;
                alone(thumbprints, "thumbprints")?;
                Ok(Shown::As(Authentication::CertificateAuthority))
            }
            "none" => Ok(Shown::As(Authentication::None)),
            _ => Err(invalid(format!(
                "authentication is of type {kind:?}, one of sas, selfSigned, certificateAuthority, none was expected"
            ))),
        }
    }
}

fn key(name: &str, text: &str) -> Result<Key, HubError> {
    let bytes = STANDARD.decode(text).map_err(|_| invalid(format!("{name} is not base64")))?;
    if !KEY_SIZE.contains(&bytes.len()) {
        return Err(invalid(format!("{name} has {} bytes, {KEY_SIZE:?} were expected", bytes.len())));
    }
    Ok(Key::from_bytes(bytes))
}

impl IdentityBody {
    /// Refuses a body that is about somebody else than `id`, a device's or `{device}/{module}`.
    pub(super) fn check_id(&self, id: &str) -> Result<(), HubError> {
        let (device, module) =
            id.split_once('/').map_or((id, None), |(device, module)| (device, Some(module)));
        let says = |name: &str, says: Option<&String>, is: Option<&str>| match says {
            Some(says) if is != Some(says) => Err(invalid(format!(
                "the body's {name} is {says:?}, the path's is {:?}",
                is.unwrap_or_default()
            ))),
            _ => Ok(()),
        };
        says("deviceId", self.device_id.as_ref(), Some(device))?;
        says("moduleId", self.module_id.as_ref(), module)
    }

    fn enabled(&self) -> Result<Option<bool>, HubError> {
        match self.status.as_deref() {
            None => Ok(None),
            Some(status) if status.eq_ignore_ascii_case("enabled") => Ok(Some(true)),
            Some(status) if status.eq_ignore_ascii_case("disabled") => Ok(Some(false)),
            Some(status) => {
                Err(invalid(format!("status is {status:?}, \"enabled\" or \"disabled\" was expected")))
            }
        }
    }

    fn shown(&self) -> Result<Option<Shown>, HubError> {
        self.authentication.as_ref().map(AuthenticationBody::shown).transpose()
    }

    fn edge(&self) -> Option<bool> {
        self.capabilities.and_then(|capabilities| capabilities.iot_edge)
    }

    /// The identity that is to be made, and whether it is enabled.
    pub(super) fn new_identity(&self, now: WallTime) -> Result<(Identity, bool), HubError> {
        let identity = Identity {
            authentication: self.shown()?.unwrap_or(Shown::ByKeys).make(),
            generation_id: new_generation(now),
            status_reason: self.status_reason.clone(),
            edge: self.edge().unwrap_or(false),
            device_scope: given(self.device_scope.as_ref()).map(str::to_owned),
            parent_scopes: self.parent_scopes.clone().unwrap_or_default(),
            managed_by: self.managed_by.clone(),
        };
        Ok((identity, self.enabled()?.unwrap_or(true)))
    }

    /// What is to change. A reason that is absent is taken away, as the real hub does it; so is who manages a module.
    pub(super) fn change(&self, old: &IdentityView<'_>) -> Result<IdentityChange, HubError> {
        Ok(IdentityChange {
            enabled: self.enabled()?,
            status_reason: Some(self.status_reason.clone().unwrap_or_default()),
            authentication: self.shown()?.and_then(|shown| shown.over(old.authentication)),
            edge: self.edge(),
            device_scope: self.device_scope.clone(),
            parent_scopes: self.parent_scopes.clone(),
            managed_by: Some(self.managed_by.clone().unwrap_or_default()),
        })
    }
}

/// A generation id: the time, and a number in its last four digits that tells apart what is made in one millisecond.
fn new_generation(now: WallTime) -> u64 {
    let ticks = now.as_unix_millis().saturating_mul(10_000).saturating_add(TICKS_BEFORE_1970);
    ticks.saturating_add(u64::from(rand::random::<u16>()) % 10_000)
}

/// An identity as a service reads it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct IdentityJson<'a> {
    device_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    module_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    managed_by: Option<Option<&'a str>>,
    generation_id: String,
    etag: String,
    connection_state: &'static str,
    connection_state_updated_time: String,
    last_activity_time: String,
    cloud_to_device_message_count: usize,
    authentication: AuthenticationJson,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    device: Option<DeviceJson<'a>>,
}

/// The members that a device has and a module not.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeviceJson<'a> {
    status: &'static str,
    status_reason: Option<&'a str>,
    status_updated_time: String,
    capabilities: CapabilitiesJson,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_scope: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_scopes: Option<&'a [String]>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CapabilitiesJson {
    iot_edge: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AuthenticationJson {
    symmetric_key: KeysJson,
    x509_thumbprint: ThumbprintsJson,
    #[serde(rename = "type")]
    kind: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct KeysJson {
    primary_key: Option<String>,
    secondary_key: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ThumbprintsJson {
    primary_thumbprint: Option<String>,
    secondary_thumbprint: Option<String>,
}

/// A time, or the first day of IoT Hub's calendar, which identities have without a zone.
fn time(at: Option<WallTime>) -> String {
    at.map_or_else(|| "0001-01-01T00:00:00".into(), |at| Iso8601(at).to_string())
}

fn authentication_json(identity: &IdentityView<'_>, id: &str, control: &HubControl) -> AuthenticationJson {
    let [primary_key, secondary_key] = match identity.authentication {
        Authentication::Derived => {
            let key = control.device_key(id).to_base64();
            [Some(key.clone()), Some(key)]
        }
        Authentication::Sas { primary, secondary } => {
            [Some(primary.to_base64()), Some(secondary.to_base64())]
        }
        _ => [None, None],
    };
    let [primary_thumbprint, secondary_thumbprint] =
        identity.authentication.thumbprints().map(|thumbprint| thumbprint.map(ToString::to_string));
    AuthenticationJson {
        symmetric_key: KeysJson { primary_key, secondary_key },
        x509_thumbprint: ThumbprintsJson { primary_thumbprint, secondary_thumbprint },
        kind: identity.authentication.name(),
    }
}

/// Appends the identity of a device or module.
pub(super) fn write(shard: &ShardView<'_>, ix: DeviceIx, control: &HubControl, out: &mut Vec<u8>) {
    let identity = shard.hub().identity(ix);
    let device = identity.module_id.is_none().then(|| DeviceJson {
        status: if identity.enabled { "enabled" } else { "disabled" },
        status_reason: identity.status_reason,
        status_updated_time: time(identity.status_updated),
        capabilities: CapabilitiesJson { iot_edge: identity.edge },
        device_scope: identity.device_scope,
        parent_scopes: identity.device_scope.is_some().then_some(identity.parent_scopes),
    });
    let json = IdentityJson {
        device_id: identity.device_id,
        module_id: identity.module_id,
        managed_by: identity.module_id.map(|_| identity.managed_by),
        generation_id: identity.generation_id.to_string(),
        etag: identity.etag.to_string(),
        connection_state: if identity.connected { "Connected" } else { "Disconnected" },
        connection_state_updated_time: time(identity.connection_updated),
        last_activity_time: time(identity.last_activity),
        cloud_to_device_message_count: identity.c2d_waiting,
        authentication: authentication_json(&identity, shard.hub().id(ix), control),
        device,
    };
    serde_json::to_writer(out, &json)
        .expect("an identity is JSON, and a vector takes all that is written to it");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(json: serde_json::Value) -> Result<Shown, ErrorCode> {
        serde_json::from_value::<AuthenticationBody>(json).unwrap().shown().map_err(|error| error.code)
    }

    #[test]
    fn authentication_says_its_type_or_shows_it() {
        use serde_json::json;
        let (short, long) = (STANDARD.encode([1; 16]), STANDARD.encode([2; 64]));
        let digits = "a".repeat(40);
        let sas =
            Authentication::Sas { primary: Key::from_bytes([1; 16]), secondary: Key::from_bytes([2; 64]) };
        let keys = json!({ "primaryKey": short, "secondaryKey": long });
        let self_signed = Authentication::SelfSigned {
            primary: Some(Thumbprint::parse(&digits).unwrap()),
            secondary: None,
        };
        for (body, expected) in [
            (json!({}), Shown::ByKeys),
            (
                json!({ "type": "sas", "symmetricKey": { "primaryKey": "", "secondaryKey": null } }),
                Shown::ByKeys,
            ),
            (json!({ "type": "SAS", "symmetricKey": keys }), Shown::As(sas)),
            (json!({ "x509Thumbprint": { "primaryThumbprint": digits } }), Shown::As(self_signed)),
            (json!({ "type": "certificateAuthority" }), Shown::As(Authentication::CertificateAuthority)),
        ] {
            assert_eq!(shown(body.clone()), Ok(expected), "{body}");
        }
        for body in [
            json!({ "symmetricKey": { "primaryKey": short } }),
            json!({ "symmetricKey": { "primaryKey": short, "secondaryKey": "*" } }),
            json!({ "symmetricKey": { "primaryKey": short, "secondaryKey": STANDARD.encode([0; 15]) } }),
            json!({ "symmetricKey": { "primaryKey": short, "secondaryKey": STANDARD.encode([0; 65]) } }),
            json!({ "type": "selfSigned" }),
            json!({ "type": "selfSigned", "x509Thumbprint": { "primaryThumbprint": "12" } }),
            json!({ "type": "sas", "x509Thumbprint": { "primaryThumbprint": digits } }),
            json!({ "type": "certificateAuthority", "symmetricKey": keys }),
            json!({ "type": "password" }),
        ] {
            assert_eq!(shown(body.clone()), Err(ErrorCode::ArgumentInvalid), "{body}");
        }
    }
}
