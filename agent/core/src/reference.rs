//! The reference of a release: what stands in the twin, what of it is signed, and by whom.

use core::fmt;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde_json::{Map, Value, json};

use crate::ResultCode;

/// The target of a release that names none.
pub const FIRMWARE: &str = "firmware";

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
        let mut line =
            |line: &dyn fmt::Display| writeln!(text, "{line}").expect("a String never fails to grow");
        line(&self.target.unwrap_or_default());
        line(&self.compatible.len());
        self.compatible.iter().for_each(|name| line(name));
        match &self.delta {
            Some(Archive { size, header_size, header_digest }) => {
                line(&format_args!("{size} {header_size} {}", Hex(header_digest)));
            }
            None => line(&""),
        }
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
            let archive = json!({
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

    /// How many of its keys must have signed.
    #[must_use]
    pub const fn threshold(&self) -> usize {
        self.threshold
    }

    /// The names of its keys.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.keys.iter().map(|(name, _)| name.as_str())
    }

    pub(crate) fn check(&self, statement: &str, signatures: Option<&Value>) -> Result<(), ResultCode> {
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
#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Releases;

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
        let archive = json!({"size": 9, "header_size": 1, "header_sha256": Hex(&[8; 32]).to_string()});
        let changes: [(&str, Value); 8] = [
            ("target", "firmware".into()),
            ("compatible", vec!["pi-5"].into()),
            ("delta", archive),
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

    fn name() -> impl Strategy<Value = String> {
        "[a-c.]{1,3}"
    }

    /// What a release says, owned.
    type Said = (String, [u64; 2], u8, bool, Option<String>, Vec<String>, Option<Archive>);

    /// Small values, so that two releases are alike in much.
    fn release() -> impl Strategy<Value = Said> {
        let archive = (0..3u64, 0..2u64, 0..2u8).prop_map(|(more, header_size, digest)| Archive {
            size: header_size + more,
            header_size,
            header_digest: [digest; 32],
        });
        let types = prop::collection::vec(name(), 0..3);
        let numbers = [0..3u64, 0..3u64];
        (name(), numbers, 0..3u8, any::<bool>(), prop::option::of(name()), types, prop::option::of(archive))
    }

    fn unsigned(said: &Said) -> Unsigned<'_> {
        let (id, [sequence, size], digest, downgrade, target, types, delta) = said;
        Unsigned {
            downgrade: *downgrade,
            target: target.as_deref(),
            compatible: types.iter().map(String::as_str).collect(),
            delta: *delta,
            ..Unsigned::new(id, *sequence, *size, [*digest; 32])
        }
    }

    proptest! {
        /// Does: writes any release, reads it. Asserts: it says the same, and is trusted.
        #[test]
        fn a_reference_is_read_as_it_was_written(said in release()) {
            let unsigned = unsigned(&said);
            let reference = unsigned.sign(&[("k1", &key(1))]);
            prop_assert_eq!(trust_of(&reference, 1), Ok(()));
            prop_assert_eq!(Unsigned::read(&reference), Some(unsigned));
        }

        /// Does: puts each member of one release into another that is signed. Asserts: it is not trusted, unless the
        /// member was the same; and no two releases have one statement.
        #[test]
        fn no_member_of_a_signed_release_can_be_exchanged(one in release(), other in release()) {
            let (one, other) = (unsigned(&one), unsigned(&other));
            prop_assert_eq!(one == other, one.statement() == other.statement());
            let (signed, other) = (one.sign(&[("k1", &key(1))]), other.sign(&[("k1", &key(1))]));
            for member in ["id", "seq", "size", "sha256", "downgrade", "target", "compatible", "delta"] {
                let mut forged = signed.clone();
                match other.get(member) {
                    Some(value) => forged.insert(member.to_owned(), value.clone()),
                    None => forged.remove(member),
                };
                prop_assert_eq!(forged == signed, trust_of(&forged, 1).is_ok(), "{}", member);
            }
        }
    }
}
