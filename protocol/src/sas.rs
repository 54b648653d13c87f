//! Shared access signatures: tokens that a device or a service shows instead of its key.
//!
//! `SharedAccessSignature sr={resource}&sig={signature}&se={unix seconds}[&skn={policy}]`, where the signature
//! is the base64 of HMAC-SHA256 over the resource *as it stands in the token*, a line feed, and the expiry.
//! Source: the IoT Hub guide "Control access with shared access signatures"; that the text of `sr` is signed
//! as sent, encoded or not, is what the SDKs do.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::bag;
use crate::time::WallTime;

const SCHEME: &str = "SharedAccessSignature ";

/// A symmetric key, decoded.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Vec<u8>);

impl core::fmt::Debug for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Key {
    /// A key from its bytes.
    #[must_use]
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// A key from its base64 text, or `None` if it is not base64.
    #[must_use]
    pub fn from_base64(text: &str) -> Option<Self> {
        STANDARD.decode(text).ok().map(Self)
    }

    /// The base64 text that users see.
    #[must_use]
    pub fn to_base64(&self) -> String {
        STANDARD.encode(&self.0)
    }

    /// The key of the device `id` in the group of this key, as device provisioning derives it:
    /// HMAC-SHA256 of the id.
    #[must_use]
    pub fn derive(&self, id: &str) -> Self {
        Self(self.mac(&[id.as_bytes()]).finalize().into_bytes().to_vec())
    }

    /// HMAC-SHA256 of `parts`, one after the other, as base64.
    #[must_use]
    pub fn sign(&self, parts: &[&[u8]]) -> String {
        STANDARD.encode(self.mac(parts).finalize().into_bytes())
    }

    /// Whether `signature` is the base64 that [`Self::sign`] gives; takes the same time whichever byte differs.
    #[must_use]
    pub fn verify(&self, parts: &[&[u8]], signature: &str) -> bool {
        STANDARD.decode(signature).is_ok_and(|signature| self.mac(parts).verify_slice(&signature).is_ok())
    }

    fn mac(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        for part in parts {
            mac.update(part);
        }
        mac
    }
}

/// A token for `resource` (not encoded), valid until `expires`.
#[must_use]
pub fn token(key: &Key, resource: &str, expires: WallTime, policy: Option<&str>) -> String {
    let signed = token_signed_by(resource, expires, policy, |text| {
        Ok::<_, core::convert::Infallible>(key.mac(&[text]).finalize().into_bytes())
    });
    match signed {
        Ok(token) => token,
        Err(never) => match never {},
    }
}

/// Like [`token`], with a key that is elsewhere: `mac` gives the HMAC-SHA256 of a text with it.
///
/// # Errors
/// That of `mac`.
pub fn token_signed_by<M: AsRef<[u8]>, E>(
    resource: &str,
    expires: WallTime,
    policy: Option<&str>,
    mac: impl FnOnce(&[u8]) -> Result<M, E>,
) -> Result<String, E> {
    let resource = bag::encode(resource);
    let expiry = expires.as_unix_secs();
    let signature = STANDARD.encode(mac(format!("{resource}\n{expiry}").as_bytes())?);
    let mut token = format!("{SCHEME}sr={resource}&sig={}&se={expiry}", bag::encode(&signature));
    if let Some(policy) = policy {
        token.push_str("&skn=");
        bag::encode_into(policy, &mut token);
    }
    Ok(token)
}

/// A token that was read, not yet checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    signed_resource: &'a str,
    signed_expiry: &'a str,
    signature: String,
    /// The resource, decoded: `{host}/devices/{id}` or a prefix of it.
    pub resource: String,
    /// When it ends.
    pub expires: WallTime,
    /// The policy whose key signed it, if it was not the device's own.
    pub policy: Option<String>,
}

/// Why a token was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SasError {
    /// Not of the form that a token has.
    #[error("not a shared access signature: `SharedAccessSignature sr=…&sig=…&se=…` was expected")]
    Malformed,
    /// Past its end.
    #[error("the shared access signature has expired: make a new one (and check the device's clock)")]
    Expired,
    /// For something else.
    #[error("the shared access signature is for another resource: `sr` must be a prefix of the one accessed")]
    WrongResource,
    /// Not signed with this key.
    #[error("the shared access signature was not made with this key")]
    WrongKey,
}

impl<'a> Token<'a> {
    /// Reads a token; its members may come in any order.
    ///
    /// # Errors
    /// [`SasError::Malformed`].
    pub fn parse(text: &'a str) -> Result<Self, SasError> {
        let members = text.strip_prefix(SCHEME).ok_or(SasError::Malformed)?;
        let (mut resource, mut signature, mut expiry, mut policy) = (None, None, None, None);
        for member in members.split('&') {
            let (key, value) = member.split_once('=').ok_or(SasError::Malformed)?;
            let slot = match key {
                "sr" => &mut resource,
                "sig" => &mut signature,
                "se" => &mut expiry,
                "skn" => &mut policy,
                _ => continue,
            };
            *slot = Some(value);
        }
        let decoded = |text: &str| bag::decode(text).map(String::from).ok_or(SasError::Malformed);
        let signed_resource = resource.ok_or(SasError::Malformed)?;
        let signed_expiry = expiry.ok_or(SasError::Malformed)?;
        let seconds: u64 = signed_expiry.parse().map_err(|_| SasError::Malformed)?;
        Ok(Self {
            signed_resource,
            signed_expiry,
            signature: decoded(signature.ok_or(SasError::Malformed)?)?,
            resource: decoded(signed_resource)?,
            expires: WallTime::from_unix_millis(seconds.saturating_mul(1000)),
            policy: policy.map(decoded).transpose()?.filter(|policy| !policy.is_empty()),
        })
    }

    /// Whether this key made the token. It says nothing about what the token is for, and until when.
    #[must_use]
    pub fn is_signed_with(&self, key: &Key) -> bool {
        let signed = [self.signed_resource.as_bytes(), b"\n", self.signed_expiry.as_bytes()];
        key.verify(&signed, &self.signature)
    }

    /// Checks the token against the resource that is accessed, the time, and the key that should have signed it.
    ///
    /// # Errors
    /// The first of [`SasError`] that applies: resource, key, expiry.
    pub fn check(&self, resource: &str, wall: WallTime, key: &Key) -> Result<(), SasError> {
        let covers = resource
            .get(..self.resource.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(&self.resource))
            && matches!(resource.as_bytes().get(self.resource.len()), None | Some(b'/'));
        if !covers {
            return Err(SasError::WrongResource);
        }
        if !self.is_signed_with(key) {
            return Err(SasError::WrongKey);
        }
        if self.expires <= wall {
            return Err(SasError::Expired);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: WallTime = WallTime::from_unix_millis(2_000_000_000_000);
    const BEFORE: WallTime = WallTime::from_unix_millis(1_999_999_999_000);

    fn key() -> Key {
        Key::from_base64("c2VjcmV0LWtleS1vZi0zMi1ieXRlcy1mb3ItdGVzdHM=").expect("base64")
    }

    #[test]
    fn a_token_opens_its_resource_and_what_lies_below_it_until_it_ends() {
        let text = token(&key(), "hub.example/devices/d1", END, None);
        let token = Token::parse(&text).expect("well-formed");
        assert_eq!(token.check("hub.example/devices/d1", BEFORE, &key()), Ok(()));
        assert_eq!(token.check("hub.example/devices/d1/modules/m", BEFORE, &key()), Ok(()));
        assert_eq!(token.check("hub.example/devices/d11", BEFORE, &key()), Err(SasError::WrongResource));
        assert_eq!(token.check("hub.example/devices/d1", END, &key()), Err(SasError::Expired));
        let other = key().derive("d2");
        assert_eq!(token.check("hub.example/devices/d1", BEFORE, &other), Err(SasError::WrongKey));
    }

    #[test]
    fn the_resource_is_verified_as_it_was_sent_encoded_or_not() {
        let signature = key().sign(&[b"localhost:8443", b"\n", b"2000000000"]);
        let text = format!(
            "SharedAccessSignature sr=localhost:8443&skn=service&se=2000000000&sig={}",
            bag::encode(&signature)
        );
        let token = Token::parse(&text).expect("well-formed");
        assert_eq!(token.policy.as_deref(), Some("service"));
        assert_eq!(token.check("localhost:8443/devices/d1", BEFORE, &key()), Ok(()));
    }

    #[test]
    fn what_is_not_a_token_is_refused_as_malformed() {
        for text in [
            "",
            "Bearer x",
            "SharedAccessSignature ",
            "SharedAccessSignature sr=a&sig=b",
            "SharedAccessSignature sr=a&sig=%zz&se=1",
            "SharedAccessSignature sr=a&sig=b&se=soon",
        ] {
            assert_eq!(Token::parse(text), Err(SasError::Malformed), "{text}");
        }
    }
}
