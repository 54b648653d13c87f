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
    /// What of a device it is for: `components.app`, say. The firmware if that is not said.
    pub target: Option<Arc<str>>,
    /// The types of devices that it is for; all of them if none is named.
    pub compatible: Box<[Arc<str>]>,
    /// The chunked archive of the same payload.
    pub delta: Option<Archive>,
    /// Whether enough release keys have signed all of the above.
    pub trust: Result<(), ResultCode>,
    /// Whether it is for the target and the type of device that the catalogue belongs to.
    pub fit: Result<(), ResultCode>,
    /// The reference as it stood in the twin, so that a merge patch can be applied to it.
    reference: Map<String, Value>,
}

/// The target of a release that names none.
pub const FIRMWARE: &str = "firmware";

impl Release {
    /// One that nobody may install: it came with the device, or its reference makes no sense.
    fn unusable(id: &str, sequence: u64, reference: Map<String, Value>) -> Self {
        Self {
            id: id.into(),
            sequence,
            size: 0,
            digest: [0; 32],
            downgrade: false,
            target: None,
            compatible: Box::default(),
            delta: None,
            trust: Err(ResultCode::ReferenceMalformed),
            fit: Ok(()),
            reference,
        }
    }

    /// The reference as it stands in the twin, without signatures of its own making.
    #[must_use]
    pub fn reference(&self) -> &Map<String, Value> {
        &self.reference
    }
}

/// The chunked archive of a payload, as far as it is signed: its header holds the digest of each chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Archive {
    /// Its size in bytes.
    pub size: u64,
    /// The size of its header, with which it begins.
    pub header_size: u64,
    /// The SHA-256 of its header.
    pub header_digest: [u8; 32],
}

/// What is said of a release before anyone has signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsigned<'a> {
    /// Its name.
    pub id: &'a str,
    /// Its sequence.
    pub sequence: u64,
    /// The payload's size in bytes.
    pub size: u64,
    /// The payload's SHA-256.
    pub digest: [u8; 32],
    /// Whether a device may go down to it.
    pub downgrade: bool,
    /// What of a device it is for; the firmware if `None`.
    pub target: Option<&'a str>,
    /// The types of devices that it is for; all if there is none.
    pub compatible: Vec<&'a str>,
    /// The chunked archive of the same payload.
    pub delta: Option<Archive>,
}

impl<'a> Unsigned<'a> {
    /// A release of the firmware, for devices of any type.
    #[must_use]
    pub const fn new(id: &'a str, sequence: u64, size: u64, digest: [u8; 32]) -> Self {
        Self {
            id,
            sequence,
            size,
            digest,
            downgrade: false,
            target: None,
            compatible: Vec::new(),
            delta: None,
        }
    }

    /// Reads a reference as it stands in a twin; `None` if it lacks a member or has one of the wrong form.
    #[must_use]
    pub fn read(reference: &'a Map<String, Value>) -> Option<Self> {
        let release = Self {
            id: reference.get("id")?.as_str().filter(|id| is_name(id))?,
            sequence: reference.get("seq")?.as_u64()?,
            size: reference.get("size")?.as_u64()?,
            digest: parse_digest(reference.get("sha256")?.as_str()?)?,
            downgrade: reference.get("downgrade").map_or(Some(false), Value::as_bool)?,
            target: match reference.get("target") {
                None => None,
                Some(target) => Some(target.as_str().filter(|target| is_name(target))?),
            },
            compatible: match reference.get("compatible") {
                None => Vec::new(),
                Some(types) => {
                    let types = types.as_array().filter(|types| (1..=MOST_TYPES).contains(&types.len()))?;
                    types
                        .iter()
                        .map(|name| name.as_str().filter(|name| is_name(name)))
                        .collect::<Option<_>>()?
                }
            },
            delta: match reference.get("delta") {
                None => None,
                Some(archive) => Some(Archive::read(archive)?),
            },
        };
        Some(release)
    }

    /// What is signed: every member that decides what a device does, in a form with one reading. The second form is
    /// used only where it says more, so that agents that know the first alone take what they can.
    #[must_use]
    pub fn statement(&self) -> String {
        let Self { id, sequence, size, downgrade, .. } = self;
        let digest = Hex(&self.digest);
        if self.target.is_none() && self.compatible.is_empty() && self.delta.is_none() {
            return format!("fleetwave release 1\n{id}\n{sequence}\n{size}\n{digest}\n{downgrade}\n");
        }
        // No name is empty or has a line feed, so each line is what it stands for.
        let mut text = format!("fleetwave release 2\n{id}\n{sequence}\n{size}\n{digest}\n{downgrade}\n");
        text.push_str(self.target.unwrap_or_default());
        text.push_str(&format!("\n{}\n", self.compatible.len()));
        for name in &self.compatible {
            text.push_str(name);
            text.push('\n');
        }
        if let Some(Archive { size, header_size, header_digest }) = &self.delta {
            text.push_str(&format!("{size} {header_size} {}", Hex(header_digest)));
        }
        text.push('\n');
        text
    }

    /// The reference with these signatures, each a key's id and what it made of [`statement`](Self::statement), in
    /// base64.
    #[must_use]
    pub fn with_signatures(&self, signatures: Map<String, Value>) -> Map<String, Value> {
        let mut reference = Map::new();
        reference.insert("id".into(), self.id.into());
        reference.insert("seq".into(), self.sequence.into());
        reference.insert("size".into(), self.size.into());
        reference.insert("sha256".into(), Hex(&self.digest).to_string().into());
        if self.downgrade {
            reference.insert("downgrade".into(), true.into());
        }
        if let Some(target) = self.target {
            reference.insert("target".into(), target.into());
        }
        if !self.compatible.is_empty() {
            reference.insert("compatible".into(), self.compatible.clone().into());
        }
        if let Some(archive) = &self.delta {
            let digest = Hex(&archive.header_digest).to_string();
            let archive = serde_json::json!({
                "size": archive.size, "header_size": archive.header_size, "header_sha256": digest,
            });
            reference.insert("delta".into(), archive);
        }
        reference.insert("sigs".into(), signatures.into());
        reference
    }

    /// The reference, signed with each of `keys`.
    #[must_use]
    pub fn sign(&self, keys: &[(&str, &SigningKey)]) -> Map<String, Value> {
        let statement = self.statement();
        let sign = |key: &SigningKey| STANDARD.encode(key.sign(statement.as_bytes()).to_bytes());
        self.with_signatures(keys.iter().map(|(name, key)| ((*name).to_owned(), sign(key).into())).collect())
    }
}

impl Archive {
    fn read(value: &Value) -> Option<Self> {
        let archive = Self {
            size: value.get("size")?.as_u64()?,
            header_size: value.get("header_size")?.as_u64()?,
            header_digest: parse_digest(value.get("header_sha256")?.as_str()?)?,
        };
        (archive.header_size <= archive.size).then_some(archive)
    }
}

/// The most types of devices that a release can be for.
const MOST_TYPES: usize = 64;

/// Names stand in lines of what is signed.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= 128 && !text.contains('\n')
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

/// Makes the reference of a release of the firmware, signed with each of `keys`.
#[must_use]
pub fn sign(
    id: &str,
    sequence: u64,
    size: u64,
    digest: &[u8; 32],
    downgrade: bool,
    keys: &[(&str, &SigningKey)],
) -> Map<String, Value> {
    Unsigned { downgrade, ..Unsigned::new(id, sequence, size, *digest) }.sign(keys)
}

/// The releases that a fleet knows, each once, however many devices refer to it.
#[derive(Clone, Debug, Default)]
pub struct Releases {
    trust: TrustRoot,
    /// What of a device they are for; the firmware if `None`.
    target: Option<Arc<str>>,
    device_type: Option<Arc<str>>,
    entries: Vec<Release>,
}

impl Releases {
    /// An empty catalogue; what is added to it is checked against `trust`, once.
    #[must_use]
    pub fn new(trust: TrustRoot) -> Self {
        Self { trust, target: None, device_type: None, entries: Vec::new() }
    }

    /// The same, for a `target` (`firmware`, `components.app`) of a device of this type: what is added from now on is
    /// compared with them, too.
    #[must_use]
    pub fn fitting(self, target: &str, device_type: Option<&str>) -> Self {
        Self { target: Some(target.into()), device_type: device_type.map(Into::into), ..self }
    }

    /// A release that devices run without having got it by an update: it has no payload and nobody signed it.
    pub fn preinstalled(&mut self, id: &str, sequence: u64) -> ReleaseId {
        if let Some(found) = self.find(id, sequence) {
            return found;
        }
        // A reference that says no more than this is malformed. It is not empty: an empty one in a twin must not
        // pass for a release that somebody runs.
        let reference = Map::from_iter([("id".into(), id.into()), ("seq".into(), sequence.into())]);
        self.push(Release::unusable(id, sequence, reference))
    }

    /// The release of a reference in the twin; one that is already known is not checked again.
    ///
    /// A reference that is malformed, or that too few keys signed, gets an entry too: [`Release::trust`] says
    /// what is wrong, so that the device can report it.
    pub fn intern(&mut self, reference: &Map<String, Value>) -> ReleaseId {
        if let Some(index) = self.entries.iter().rposition(|release| release.reference == *reference) {
            return ReleaseId(index as u32);
        }
        let release = match Unsigned::read(reference) {
            Some(said) => Release {
                id: said.id.into(),
                sequence: said.sequence,
                size: said.size,
                digest: said.digest,
                downgrade: said.downgrade,
                target: said.target.map(Into::into),
                compatible: said.compatible.iter().map(|name| (*name).into()).collect(),
                delta: said.delta,
                trust: self.trust.check(&said.statement(), reference.get("sigs")),
                fit: self.fits(&said),
                reference: reference.clone(),
            },
            None => {
                let text = |name| reference.get(name).and_then(Value::as_str).unwrap_or_default();
                let sequence = reference.get("seq").and_then(Value::as_u64).unwrap_or_default();
                Release::unusable(text("id"), sequence, reference.clone())
            }
        };
        self.push(release)
    }

    fn fits(&self, said: &Unsigned<'_>) -> Result<(), ResultCode> {
        if said.target.unwrap_or(FIRMWARE) != self.target.as_deref().unwrap_or(FIRMWARE) {
            return Err(ResultCode::WrongTarget);
        }
        // A device that was not told its type takes only what is for all.
        let compatible = said.compatible.is_empty()
            || self.device_type.as_deref().is_some_and(|own| said.compatible.contains(&own));
        if compatible { Ok(()) } else { Err(ResultCode::Incompatible) }
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
