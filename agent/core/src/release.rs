//! Releases: what the twin refers to, who signed it, and a catalogue that a whole fleet shares.

use core::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde_json::{Map, Value};

use crate::ResultCode;

/// A release in a [`Releases`] catalogue: what a device holds instead of the release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReleaseId(u32);

impl ReleaseId {
    /// Its place in the catalogue.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A release as its reference in the twin describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Release {
    /// The operator's name for it.
    pub id: Arc<str>,
    /// Rises with every release: a device takes none that is below the one it has, unless that is signed too.
    pub sequence: u64,
    /// The payload's size in bytes.
    pub size: u64,
    /// The payload's SHA-256.
    pub digest: [u8; 32],
    /// Whether a device may go down to it from a higher sequence.
    pub downgrade: bool,
    /// Whether enough release keys have signed all of the above.
    pub trust: Result<(), ResultCode>,
    /// The reference as it stood in the twin, so that a merge patch can be applied to it.
    reference: Map<String, Value>,
}

impl Release {
    /// The reference as it stands in the twin, without signatures of its own making.
    #[must_use]
    pub fn reference(&self) -> &Map<String, Value> {
        &self.reference
    }
}

/// The keys that may sign releases, and how many of them must.
#[derive(Clone, Debug, Default)]
pub struct TrustRoot {
    keys: Vec<(String, VerifyingKey)>,
    threshold: usize,
}

impl TrustRoot {
    /// `threshold` of `keys` (key id and public key) must have signed.
    ///
    /// # Panics
    /// If the threshold is zero or above the number of keys: nothing, or everything, would be trusted.
    #[must_use]
    pub fn new(keys: Vec<(String, VerifyingKey)>, threshold: usize) -> Self {
        assert!((1..=keys.len()).contains(&threshold), "threshold {threshold} with {} keys", keys.len());
        Self { keys, threshold }
    }

    fn check(&self, statement: &str, signatures: Option<&Value>) -> Result<(), ResultCode> {
        let Some(Value::Object(signatures)) = signatures else { return Err(ResultCode::SignatureMissing) };
        let mut valid = 0;
        for (id, key) in &self.keys {
            let Some(signature) = signatures.get(id) else { continue };
            let bytes = signature.as_str().and_then(|text| STANDARD.decode(text).ok());
            let signature = bytes.and_then(|bytes| Signature::from_slice(&bytes).ok());
            let genuine = signature.is_some_and(|s| key.verify_strict(statement.as_bytes(), &s).is_ok());
            if !genuine {
                return Err(ResultCode::SignatureInvalid);
            }
            valid += 1;
        }
        if valid >= self.threshold && self.threshold > 0 { Ok(()) } else { Err(ResultCode::SignatureMissing) }
    }
}

/// What is signed: every member that decides what a device does, in a form with one reading.
fn statement(id: &str, sequence: u64, size: u64, digest: &[u8; 32], downgrade: bool) -> String {
    format!("fleetwave release 1\n{id}\n{sequence}\n{size}\n{}\n{downgrade}\n", Hex(digest))
}

/// Makes the reference of a release, signed with each of `keys`.
#[must_use]
pub fn sign(
    id: &str,
    sequence: u64,
    size: u64,
    digest: &[u8; 32],
    downgrade: bool,
    keys: &[(&str, &SigningKey)],
) -> Map<String, Value> {
    let statement = statement(id, sequence, size, digest, downgrade);
    let signatures: Map<String, Value> = keys
        .iter()
        .map(|(name, key)| {
            ((*name).to_owned(), STANDARD.encode(key.sign(statement.as_bytes()).to_bytes()).into())
        })
        .collect();
    let mut reference = Map::new();
    reference.insert("id".into(), id.into());
    reference.insert("seq".into(), sequence.into());
    reference.insert("size".into(), size.into());
    reference.insert("sha256".into(), Hex(digest).to_string().into());
    if downgrade {
        reference.insert("downgrade".into(), true.into());
    }
    reference.insert("sigs".into(), signatures.into());
    reference
}

/// The releases that a fleet knows, each once, however many devices refer to it.
#[derive(Clone, Debug, Default)]
pub struct Releases {
    trust: TrustRoot,
    entries: Vec<Release>,
}

impl Releases {
    /// An empty catalogue; what is added to it is checked against `trust`, once.
    #[must_use]
    pub fn new(trust: TrustRoot) -> Self {
        Self { trust, entries: Vec::new() }
    }

    /// A release that devices run without having got it by an update: it has no payload and nobody signed it.
    pub fn preinstalled(&mut self, id: &str, sequence: u64) -> ReleaseId {
        if let Some(found) = self.find(id, sequence) {
            return found;
        }
        // A reference that says no more than this is malformed. It is not empty: an empty one in a twin must not
        // pass for a release that somebody runs.
        let reference = Map::from_iter([("id".into(), id.into()), ("seq".into(), sequence.into())]);
        self.push(Release {
            id: id.into(),
            sequence,
            size: 0,
            digest: [0; 32],
            downgrade: false,
            trust: Err(ResultCode::ReferenceMalformed),
            reference,
        })
    }

    /// The release of a reference in the twin; one that is already known is not checked again.
    ///
    /// A reference that is malformed, or that too few keys signed, gets an entry too: [`Release::trust`] says
    /// what is wrong, so that the device can report it.
    pub fn intern(&mut self, reference: &Map<String, Value>) -> ReleaseId {
        if let Some(index) = self.entries.iter().rposition(|release| release.reference == *reference) {
            return ReleaseId(index as u32);
        }
        let id = reference.get("id").and_then(Value::as_str);
        let sequence = reference.get("seq").and_then(Value::as_u64);
        let size = reference.get("size").and_then(Value::as_u64);
        let digest = reference.get("sha256").and_then(Value::as_str).and_then(parse_digest);
        let downgrade = match reference.get("downgrade") {
            None => Some(false),
            Some(value) => value.as_bool(),
        };
        let trust = match (id, sequence, size, digest, downgrade) {
            (Some(id), Some(sequence), Some(size), Some(digest), Some(downgrade))
                if !id.is_empty() && id.len() <= 128 && !id.contains('\n') =>
            {
                let statement = statement(id, sequence, size, &digest, downgrade);
                self.trust.check(&statement, reference.get("sigs"))
            }
            _ => Err(ResultCode::ReferenceMalformed),
        };
        self.push(Release {
            id: id.unwrap_or_default().into(),
            sequence: sequence.unwrap_or_default(),
            size: size.unwrap_or_default(),
            digest: digest.unwrap_or_default(),
            downgrade: downgrade.unwrap_or_default(),
            trust,
            reference: reference.clone(),
        })
    }

    /// The first release with this name and sequence.
    #[must_use]
    pub fn find(&self, id: &str, sequence: u64) -> Option<ReleaseId> {
        let index =
            self.entries.iter().position(|release| &*release.id == id && release.sequence == sequence)?;
        Some(ReleaseId(index as u32))
    }

    /// The last release with this name.
    #[must_use]
    pub fn by_name(&self, id: &str) -> Option<ReleaseId> {
        let index = self.entries.iter().rposition(|release| &*release.id == id)?;
        Some(ReleaseId(index as u32))
    }

    /// Whether both stand for the same image.
    #[must_use]
    pub fn same(&self, a: ReleaseId, b: ReleaseId) -> bool {
        a == b || (self[a].id == self[b].id && self[a].sequence == self[b].sequence)
    }

    /// All releases with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (ReleaseId, &Release)> {
        self.entries.iter().enumerate().map(|(index, release)| (ReleaseId(index as u32), release))
    }

    fn push(&mut self, release: Release) -> ReleaseId {
        let id = ReleaseId(self.entries.len() as u32);
        self.entries.push(release);
        id
    }
}

impl core::ops::Index<ReleaseId> for Releases {
    type Output = Release;

    fn index(&self, id: ReleaseId) -> &Release {
        &self.entries[id.index()]
    }
}

fn parse_digest(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16);
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Some(digest)
}

/// Bytes as lower-case hexadecimal digits.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    fn catalogue(threshold: usize) -> Releases {
        let keys = (1..=3).map(|n| (format!("k{n}"), key(n).verifying_key())).collect();
        Releases::new(TrustRoot::new(keys, threshold))
    }

    fn trust_of(reference: &Map<String, Value>, threshold: usize) -> Result<(), ResultCode> {
        let mut releases = catalogue(threshold);
        let id = releases.intern(reference);
        releases[id].trust
    }

    #[test]
    fn a_release_is_trusted_when_enough_keys_signed_it() {
        let (k1, k2, stranger) = (key(1), key(2), key(9));
        let signed = |keys: &[(&str, &SigningKey)]| sign("fw-2", 2, 10, &[7; 32], false, keys);
        assert_eq!(trust_of(&signed(&[("k1", &k1), ("k2", &k2)]), 2), Ok(()));
        assert_eq!(trust_of(&signed(&[("k1", &k1)]), 2), Err(ResultCode::SignatureMissing));
        assert_eq!(trust_of(&signed(&[("k9", &stranger)]), 1), Err(ResultCode::SignatureMissing));
        assert_eq!(trust_of(&signed(&[("k1", &stranger)]), 1), Err(ResultCode::SignatureInvalid));
    }

    #[test]
    fn changing_any_signed_member_is_noticed() {
        let k1 = key(1);
        let genuine = sign("fw-2", 2, 10, &[7; 32], false, &[("k1", &k1)]);
        let changes: [(&str, Value); 5] = [
            ("id", "fw-3".into()),
            ("seq", 3.into()),
            ("size", 11.into()),
            ("sha256", Hex(&[8; 32]).to_string().into()),
            ("downgrade", true.into()),
        ];
        for (member, value) in changes {
            let mut forged = genuine.clone();
            forged.insert(member.into(), value);
            assert_eq!(trust_of(&forged, 1), Err(ResultCode::SignatureInvalid), "{member}");
            let mut broken = genuine.clone();
            broken.insert(member.into(), Value::Array(vec![]));
            assert_eq!(trust_of(&broken, 1), Err(ResultCode::ReferenceMalformed), "{member}");
        }
    }

    #[test]
    fn a_reference_is_interned_once() {
        let k1 = key(1);
        let mut releases = catalogue(1);
        let reference = sign("fw-2", 2, 10, &[7; 32], false, &[("k1", &k1)]);
        assert_eq!(releases.intern(&reference), releases.intern(&reference.clone()));
        assert_eq!(releases.iter().count(), 1);
    }
}
