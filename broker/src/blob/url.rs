//! Signed, expiring, read-only URLs for one blob, and the ranges asked for under them.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fleetwave_protocol::WallTime;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Why a request for a blob is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// A part of the signature is missing or more than reading is asked for.
    Incomplete,
    /// The signature is not of this path and expiry.
    Forged,
    /// The URL's time is over.
    Expired,
}

impl Refusal {
    /// The `x-ms-error-code` of Azure's blob service for it.
    pub(super) const fn code(self) -> &'static str {
        match self {
            Self::Incomplete | Self::Forged => "AuthenticationFailed",
            Self::Expired => "AuthorizationFailure",
        }
    }
}

/// Signs and checks paths.
pub(super) struct Signer(Hmac<Sha256>);

impl Signer {
    pub(super) fn new(secret: &[u8]) -> Self {
        Self(Hmac::new_from_slice(secret).expect("HMAC takes a key of any length"))
    }

    fn mac(&self, path: &str, expiry: u64) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(b"r\n");
        mac.update(expiry.to_string().as_bytes());
        mac.update(b"\n");
        mac.update(path.as_bytes());
        mac
    }

    /// `path` with a query that lets its bearer read it until `expires`, in whole seconds rounded down.
    pub(super) fn sign(&self, path: &str, expires: WallTime) -> String {
        let expiry = expires.as_unix_secs();
        let signature = URL_SAFE_NO_PAD.encode(self.mac(path, expiry).finalize().into_bytes());
        format!("{path}?sp=r&se={expiry}&sig={signature}")
    }

    /// Checks the query that came with `path`. The signature is looked at first, so that the answer does not
    /// tell whoever forges one anything about expiry.
    pub(super) fn check(&self, path: &str, query: &str, now: WallTime) -> Result<(), Refusal> {
        let (mut permission, mut expiry, mut signature) = (None, None, None);
        for member in query.split('&') {
            match member.split_once('=') {
                Some(("sp", value)) => permission = Some(value),
                Some(("se", value)) => expiry = value.parse::<u64>().ok(),
                Some(("sig", value)) => signature = URL_SAFE_NO_PAD.decode(value).ok(),
                _ => {}
            }
        }
        let (Some("r"), Some(expiry), Some(signature)) = (permission, expiry, signature) else {
            return Err(Refusal::Incomplete);
        };
        self.mac(path, expiry).verify_slice(&signature).map_err(|_| Refusal::Forged)?;
        if now.as_unix_secs() >= expiry { Err(Refusal::Expired) } else { Ok(()) }
    }
}

/// The part of a blob that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Range {
    /// All of it: no range, or one in a form that a server may ignore.
    Whole,
    /// From the first offset up to, not including, the second.
    Part(u64, u64),
    /// None of the blob's bytes.
    Unsatisfiable,
}

impl Range {
    /// Reads the value of a `Range` header for a blob of `size` bytes: `bytes=a-`, `bytes=a-b` or `bytes=-n`.
    /// Several ranges at once are not served as such; RFC 9110 (14.2) lets a server answer with the whole.
    pub(super) fn parse(value: &str, size: u64) -> Self {
        let Some((first, last)) = value.strip_prefix("bytes=").and_then(|spec| spec.split_once('-')) else {
            return Self::Whole;
        };
        let (first, last) = (number(first), number(last));
        match (first, last) {
            (Number::Is(first), Number::Missing) if first < size => Self::Part(first, size),
            (Number::Is(first), Number::Is(last)) if first > last => Self::Whole,
            (Number::Is(first), Number::Is(last)) if first < size => {
                Self::Part(first, last.saturating_add(1).min(size))
            }
            (Number::Missing, Number::Is(suffix)) if suffix > 0 && size > 0 => {
                Self::Part(size.saturating_sub(suffix), size)
            }
            (Number::Is(_), Number::Missing | Number::Is(_)) | (Number::Missing, Number::Is(_)) => {
                Self::Unsatisfiable
            }
            (Number::Wrong, _) | (_, Number::Wrong) | (Number::Missing, Number::Missing) => Self::Whole,
        }
    }
}

enum Number {
    Missing,
    Is(u64),
    Wrong,
}

fn number(text: &str) -> Number {
    if text.is_empty() {
        Number::Missing
    } else if text.bytes().all(|byte| byte.is_ascii_digit()) {
        // An offset beyond 64 bits lies behind the end of every blob.
        Number::Is(text.parse().unwrap_or(u64::MAX))
    } else {
        Number::Wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_selects_what_the_header_says() {
        for (header, expected) in [
            ("bytes=0-", Range::Part(0, 10)),
            ("bytes=3-5", Range::Part(3, 6)),
            ("bytes=3-99", Range::Part(3, 10)),
            ("bytes=-4", Range::Part(6, 10)),
            ("bytes=-40", Range::Part(0, 10)),
            ("bytes=10-", Range::Unsatisfiable),
            ("bytes=99999999999999999999999-", Range::Unsatisfiable),
            ("bytes=-0", Range::Unsatisfiable),
            ("bytes=5-3", Range::Whole),
            ("bytes=a-", Range::Whole),
            ("bytes=-", Range::Whole),
            ("bytes=1-2,5-6", Range::Whole),
            ("items=1-2", Range::Whole),
        ] {
            assert_eq!(Range::parse(header, 10), expected, "{header}");
        }
    }

    #[test]
    fn a_signature_is_good_for_its_path_and_time_only() {
        let signer = Signer::new(b"secret");
        let at = |seconds: u64| WallTime::from_unix_millis(seconds * 1000);
        let url = signer.sign("/blobs/a", at(100));
        let (path, query) = url.split_once('?').expect("a signed URL has a query");
        assert_eq!(signer.check(path, query, at(99)), Ok(()));
        assert_eq!(signer.check(path, query, at(100)), Err(Refusal::Expired));
        assert_eq!(signer.check("/blobs/b", query, at(99)), Err(Refusal::Forged));
        let later = query.replace("se=100", "se=200");
        assert_eq!(signer.check(path, &later, at(99)), Err(Refusal::Forged));
        assert_eq!(Signer::new(b"other").check(path, query, at(99)), Err(Refusal::Forged));
        assert_eq!(signer.check(path, "", at(99)), Err(Refusal::Incomplete));
        let write = query.replace("sp=r", "sp=rw");
        assert_eq!(signer.check(path, &write, at(99)), Err(Refusal::Incomplete));
    }
}
