//! Who may sign releases.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::VerifyingKey;
use fleetwave_agent_core::TrustRoot;
use serde::Deserialize;

/// The release keys.
#[derive(Clone, Deserialize)]
#[serde(try_from = "TrustTable")]
pub struct Trust(pub TrustRoot);

impl Trust {
    /// For people.
    pub(crate) fn describe(&self) -> String {
        let names: Vec<&str> = self.0.names().collect();
        format!("{} of these must have signed: {}", self.0.threshold(), names.join(", "))
    }
}

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
